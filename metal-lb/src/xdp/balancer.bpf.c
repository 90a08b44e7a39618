/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* The balancer: takes packets for VIPs, leaves everything else to the kernel.
 *
 *   structs.h     what the control process shares       packet.h      the packet under way
 *   bpf.h         the kernel's interface, headers       connection.h  lifetimes, targets, source ports
 *   maps.h        the maps, counting                    nat.h         both directions
 *   csum.h        checksums                             local.h icmp.h  ARP, echo, probes, ICMP errors
 */
#include "icmp.h"
#include "local.h"
#include "nat.h"

#define MORE_FRAGMENTS_OR_OFFSET htons(0x3fff)

INLINE int icmp_for_vip(struct packet *p, int owned)
{
	struct icmp *icmp = (void *)(p->ip + 1);
	if ((void *)(icmp + 1) > p->end)
		return dropped(REASON_MALFORMED);
	if (icmp->type == ICMP_ECHO && icmp->code == 0)
		return answer_echo(p, icmp, owned);
	if (icmp->type == ICMP_UNREACHABLE || icmp->type == ICMP_TIME_EXCEEDED)
		return follow_error(p, icmp);
	return passed(REASON_ICMP_PASSED);
}

INLINE int for_vip(struct packet *p, int owned)
{
	struct ipv4 *ip = p->ip;
	if (ip->version_length != 0x45)
		return dropped(REASON_IP_OPTIONS);
	if (ip->fragment & MORE_FRAGMENTS_OR_OFFSET)
		return dropped(REASON_FRAGMENT);
	p->protocol = ip->protocol;
	if (p->protocol == IP_ICMP)
		return icmp_for_vip(p, owned);
	p->ports = (void *)(ip + 1);
	if (p->protocol == IP_TCP) {
		struct tcp *tcp = (void *)p->ports;
		if ((void *)(tcp + 1) > p->end)
			return dropped(REASON_MALFORMED);
		p->tcp_flags = tcp->flags;
	} else if (p->protocol == IP_UDP) {
		if ((void *)p->ports + sizeof(struct udp) > p->end)
			return dropped(REASON_MALFORMED);
	} else {
		return dropped(REASON_NO_LISTENER);
	}
	if (ntohs(p->ports->destination) >= FIRST_SOURCE_PORT) {
		int verdict = backward(p);
		if (verdict >= 0)
			return verdict;
	}
	return forward(p, owned);
}

SEC("xdp")
int balancer(struct xdp_md *ctx)
{
	struct packet p = { .eth = (void *)(long)ctx->data, .end = (void *)(long)ctx->data_end };
	p.ip = (void *)(p.eth + 1);
	if ((void *)p.ip > p.end)
		return XDP_PASS;
	if (p.eth->type == ETH_ARP)
		return answer_arp(p.eth, p.end);
	if (p.eth->type != ETH_IPV4 || (void *)(p.ip + 1) > p.end)
		return XDP_PASS;
	p.host = host_settings();
	/* A switch that floods, or a promiscuous interface, shows us the frames of others. */
	if (!p.host || !is_mac(p.eth->destination, p.host->mac))
		return XDP_PASS;

	u32 destination = p.ip->destination;
	struct vip *vip = bpf_map_lookup_elem(&vips, &destination);
	if (vip) {
		p.now = bpf_ktime_get_coarse_ns();
		p.bytes = (u32)(p.end - (void *)p.eth);
		return for_vip(&p, vip->owned);
	}
	if (destination == p.host->probe_address && p.ip->protocol == IP_UDP && p.ip->version_length == 0x45)
		return answer_probe(&p);
	return XDP_PASS;
}

char program_license[] SEC("license") = "Dual BSD/GPL";
