/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* What the host answers itself: ARP and echo for owned VIPs, its peers' probes. */
#pragma once
#include "csum.h"
#include "maps.h"

#define ARP_REQUEST htons(1)
#define ARP_REPLY htons(2)
#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO 8

INLINE int answer_arp(struct eth *eth, void *end)
{
	struct arp *arp = (void *)(eth + 1);
	if ((void *)(arp + 1) > end || arp->operation != ARP_REQUEST || arp->protocol != ETH_IPV4)
		return XDP_PASS;
	u32 address = arp->target_ip;
	struct vip *vip = bpf_map_lookup_elem(&vips, &address);
	if (!vip || !vip->owned)
		return XDP_PASS;
	struct control *self = control_block();
	/* An announcement of the address by somebody else asks nothing. */
	if (!self || arp->sender_ip == address)
		return XDP_PASS;

	copy_mac(eth->destination, arp->sender_mac);
	copy_mac(eth->source, self->mac);
	arp->operation = ARP_REPLY;
	copy_mac(arp->target_mac, arp->sender_mac);
	arp->target_ip = arp->sender_ip;
	copy_mac(arp->sender_mac, self->mac);
	arp->sender_ip = address;
	return XDP_TX;
}

INLINE void turn_around(struct eth *eth, struct ipv4 *ip)
{
	u8 mac[6];
	copy_mac(mac, eth->destination);
	copy_mac(eth->destination, eth->source);
	copy_mac(eth->source, mac);
	u32 address = ip->destination;
	ip->destination = ip->source;
	ip->source = address;
}

INLINE int answer_icmp(struct eth *eth, struct ipv4 *ip, void *end, struct vip *vip)
{
	struct icmp *icmp = (void *)(ip + 1);
	if ((void *)(icmp + 1) > end)
		return dropped(REASON_MALFORMED);
	if (icmp->type != ICMP_ECHO || icmp->code != 0)
		return passed(REASON_ICMP_PASSED);
	if (!vip->owned)
		return dropped(REASON_NOT_OWNER);
	u16 before, after;
	__builtin_memcpy(&before, icmp, 2);
	icmp->type = ICMP_ECHO_REPLY;
	__builtin_memcpy(&after, icmp, 2);
	icmp->checksum = csum_apply(icmp->checksum, csum_replace16(0, before, after));
	turn_around(eth, ip);
	return XDP_TX;
}

/* A probe's answer tells a dead control process from a dead host. Its UDP checksum is left out,
 * which IPv4 allows. */
INLINE int answer_probe(struct eth *eth, struct ipv4 *ip, struct udp *udp, void *end, struct control *self)
{
	struct probe *probe = (void *)(udp + 1);
	if ((void *)(probe + 1) > end || probe->magic != htonl(PROBE_MAGIC) || probe->kind != htonl(PROBE_REQUEST))
		return XDP_PASS;
	u64 age = (bpf_ktime_get_ns() - self->heartbeat_ns) / 1000000;
	probe->kind = htonl(PROBE_ANSWER);
	probe->control_age_ms = htonl(age > 0xffffffff ? 0xffffffff : (u32)age);
	probe->generation_term = htonll(self->generation_term);
	probe->generation_counter = htonll(self->generation_counter);
	u16 port = udp->ports.source;
	udp->ports.source = udp->ports.destination;
	udp->ports.destination = port;
	udp->checksum = 0;
	turn_around(eth, ip);
	return XDP_TX;
}
