/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* The balancer: takes packets for VIPs, leaves everything else to the kernel. */
#include "local.h"
#include "nat.h"

#define MORE_FRAGMENTS_OR_OFFSET htons(0x3fff)

INLINE int for_vip(struct packet *p, struct vip *vip)
{
	struct ipv4 *ip = p->ip;
	if (ip->version_length != 0x45)
		return dropped(REASON_IP_OPTIONS);
	if (ip->fragment & MORE_FRAGMENTS_OR_OFFSET)
		return dropped(REASON_FRAGMENT);
	if (ip->protocol == IP_ICMP)
		return answer_icmp(p->eth, ip, p->end, vip);
	if (ip->protocol != IP_TCP && ip->protocol != IP_UDP)
		return dropped(REASON_NO_LISTENER);

	p->ports = (void *)(ip + 1);
	if ((void *)(p->ports + 1) > p->end)
		return dropped(REASON_MALFORMED);
	if (ip->protocol == IP_TCP) {
		struct tcp *tcp = (void *)p->ports;
		if ((void *)(tcp + 1) > p->end)
			return dropped(REASON_MALFORMED);
		p->tcp_flags = tcp->flags;
	}
	struct control *self = control_block();
	if (!self)
		return dropped(REASON_NO_LISTENER);

	struct listener_key key = { .vip = ip->destination, .port = p->ports->destination, .protocol = ip->protocol };
	struct listener *listener = bpf_map_lookup_elem(&listeners, &key);
	if (listener)
		return forward_packet(p, listener, vip->owned, self);
	/* Source ports of ours are never a listener's. */
	u16 port = ntohs(p->ports->destination);
	if ((u16)(port - self->port_first) >= self->port_count)
		return dropped(REASON_NO_LISTENER);
	return reverse_packet(p, self);
}

INLINE int maybe_probe(struct packet *p)
{
	struct udp *udp = (void *)(p->ip + 1);
	if ((void *)(udp + 1) > p->end)
		return XDP_PASS;
	struct control *self = control_block();
	if (!self || self->probe_address != p->ip->destination || self->probe_port != udp->ports.destination)
		return XDP_PASS;
	return answer_probe(p->eth, p->ip, udp, p->end, self);
}

SEC("xdp")
int balancer(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	struct packet p = { .eth = data, .end = (void *)(long)ctx->data_end };
	if ((void *)(p.eth + 1) > p.end)
		return XDP_PASS;
	if (p.eth->type == ETH_ARP)
		return answer_arp(p.eth, p.end);
	if (p.eth->type != ETH_IPV4)
		return XDP_PASS;
	p.ip = (void *)(p.eth + 1);
	if ((void *)(p.ip + 1) > p.end)
		return XDP_PASS;

	u32 destination = p.ip->destination;
	struct vip *vip = bpf_map_lookup_elem(&vips, &destination);
	if (vip) {
		p.now = bpf_ktime_get_ns();
		p.bytes = (u32)((long)ctx->data_end - (long)ctx->data);
		return for_vip(&p, vip);
	}
	if (p.ip->protocol == IP_UDP && p.ip->version_length == 0x45)
		return maybe_probe(&p);
	return XDP_PASS;
}

char program_license[] SEC("license") = "Dual BSD/GPL";
