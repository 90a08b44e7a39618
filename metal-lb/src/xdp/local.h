/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* What the host answers itself: ARP and echo for owned VIPs, its peers' probes. */
#pragma once
#include "packet.h"

#define ARP_REQUEST htons(1)
#define ARP_REPLY htons(2)
#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO 8

/* Since the control process last beat; all ones: never, or longer than that. */
INLINE u32 control_age_ms(const struct liveness *alive)
{
	u64 beat = alive->beat_ns;
	u64 age = since(bpf_ktime_get_ns(), beat) / 1000000;
	return !beat || age > 0xffffffff ? 0xffffffff : (u32)age;
}

/* Somebody announces an address that this host owns. The control process decides what to make of
 * it. If there is none, its successor speaks: two hosts that answer would share the packets. */
INLINE void hear_announcement(struct vip *vip, const struct arp *arp, const struct settings *host)
{
	u32 zero = 0;
	struct liveness *alive = bpf_map_lookup_elem(&liveness, &zero);
	if (alive && control_age_ms(alive) > CONTROL_LOST_MS && !is_mac(arp->sender_mac, host->mac))
		vip->owned = 0;
}

INLINE int answer_arp(struct eth *eth, void *end)
{
	struct arp *arp = (void *)(eth + 1);
	if ((void *)(arp + 1) > end || arp->protocol != ETH_IPV4)
		return XDP_PASS;
	u32 address = arp->target_ip;
	struct vip *vip = bpf_map_lookup_elem(&vips, &address);
	const struct settings *host = host_settings();
	if (!vip || !vip->owned || !host)
		return XDP_PASS;
	if (arp->sender_ip == address) {
		hear_announcement(vip, arp, host);
		return XDP_PASS;
	}
	if (arp->operation != ARP_REQUEST)
		return XDP_PASS;
	static const u8 broadcast[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
	if (!is_mac(eth->destination, broadcast) && !is_mac(eth->destination, host->mac))
		return XDP_PASS;
	copy_mac(eth->destination, arp->sender_mac);
	copy_mac(eth->source, host->mac);
	arp->operation = ARP_REPLY;
	copy_mac(arp->target_mac, arp->sender_mac);
	arp->target_ip = arp->sender_ip;
	copy_mac(arp->sender_mac, host->mac);
	arp->sender_ip = address;
	return XDP_TX;
}

/* Back to whoever sent it. The sum of the addresses stays the same. */
INLINE int turn_around(struct packet *p)
{
	u32 address = p->ip->destination;
	p->ip->destination = p->ip->source;
	p->ip->source = address;
	u8 mac[6];
	copy_mac(mac, p->eth->source);
	return to_frame(p, mac);
}

INLINE int answer_echo(struct packet *p, struct icmp *icmp, int owned)
{
	if (!owned)
		return dropped(REASON_NOT_OWNER);
	u16 before, after;
	__builtin_memcpy(&before, icmp, 2);
	icmp->type = ICMP_ECHO_REPLY;
	__builtin_memcpy(&after, icmp, 2);
	icmp->checksum = csum_apply(icmp->checksum, csum_diff16(before, after));
	return turn_around(p);
}

/* The answer tells a dead control process from a dead host. Its UDP checksum is left out, which IPv4
 * allows. Everything else on the port goes to the control process. */
INLINE int answer_probe(struct packet *p)
{
	struct udp *udp = (void *)(p->ip + 1);
	struct probe *probe = (void *)(udp + 1);
	if ((void *)(probe + 1) > p->end || udp->ports.destination != p->host->probe_port)
		return XDP_PASS;
	if (probe->magic != htonl(PROBE_MAGIC) || probe->kind != htonl(PROBE_REQUEST))
		return XDP_PASS;
	u32 zero = 0;
	struct liveness *alive = bpf_map_lookup_elem(&liveness, &zero);
	if (!alive)
		return XDP_PASS;
	probe->kind = htonl(PROBE_ANSWER);
	probe->control_age_ms = htonl(control_age_ms(alive));
	probe->generation_term = htonll(alive->generation_term);
	probe->generation_counter = htonll(alive->generation_counter);
	probe->slot = htonl(p->host->slot);
	u16 port = udp->ports.source;
	udp->ports.source = udp->ports.destination;
	udp->ports.destination = port;
	udp->checksum = 0;
	return turn_around(p);
}
