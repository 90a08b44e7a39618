/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* ICMP errors about a connection's packets go to the end that sent them, so that path MTU discovery
 * works through the balancer. An error quotes the packet's IP header and 8 bytes more (RFC 792). */
#pragma once
#include "connection.h"

#define ICMP_UNREACHABLE 3
#define ICMP_TIME_EXCEEDED 11

/* Rewrites the quoted packet to what its sender knows, and sends the error there. */
INLINE int return_error(struct packet *p, struct icmp *icmp, struct ipv4 *quoted, struct ports *ports, u32 source,
			u16 source_port, u32 destination, u16 destination_port, const u8 *mac)
{
	if (p->ip->ttl <= 1)
		return dropped(REASON_TTL);
	/* The quoted header's own checksum makes up for its addresses: only the ports are left. */
	u64 diff = csum_diff32(quoted->source, source) + csum_diff32(quoted->destination, destination);
	quoted->checksum = csum_apply(quoted->checksum, diff);
	quoted->source = source;
	quoted->destination = destination;
	diff = csum_diff16(ports->source, source_port) + csum_diff16(ports->destination, destination_port);
	ports->source = source_port;
	ports->destination = destination_port;
	icmp->checksum = csum_apply(icmp->checksum, diff);
	readdress(p->ip, p->ip->destination, source, &diff);
	return to_frame(p, mac);
}

INLINE int follow_error(struct packet *p, struct icmp *icmp)
{
	struct ipv4 *quoted = (void *)(icmp + 1);
	struct ports *ports = (void *)(quoted + 1);
	if ((void *)(ports + 1) > p->end || quoted->version_length != 0x45 || quoted->source != p->ip->destination)
		return passed(REASON_ICMP_PASSED);

	/* About what a client sent, on its way to the target. */
	struct tuple tuple = {
		.vip = quoted->source,
		.target = quoted->destination,
		.source_port = ports->source,
		.target_port = ports->destination,
		.protocol = quoted->protocol,
	};
	struct connection *c = bpf_map_lookup_elem(&connections, &tuple);
	int alive = c && is_alive(c, p->now);
	if (!alive) {
		/* The first packet was refused, or found no way. */
		c = bpf_map_lookup_elem(&half_open, &tuple);
		alive = c && is_half_open_alive(c, p->now);
	}
	if (c && alive)
		return return_error(p, icmp, quoted, ports, c->client, c->client_port, tuple.vip, c->port,
				    c->client_mac);

	/* About what a target sent, on its way to the client. */
	struct flow_key key = {
		.client = quoted->destination,
		.vip = quoted->source,
		.client_port = ports->destination,
		.port = ports->source,
		.protocol = quoted->protocol,
	};
	struct flow *flow = bpf_map_lookup_elem(&flows, &key);
	if (!flow)
		return passed(REASON_ICMP_PASSED);
	tuple_of(&tuple, &key, flow);
	c = bpf_map_lookup_elem(&connections, &tuple);
	struct target *target = target_of(flow);
	if (!c || !belongs_to(c, &key) || !is_alive(c, p->now) || !target)
		return passed(REASON_ICMP_PASSED);
	if (!(target->flags & TARGET_HAS_MAC))
		return dropped(REASON_NO_NEIGHBOUR);
	return return_error(p, icmp, quoted, ports, target->address, target->port, key.vip, flow->source_port,
			    target->mac);
}
