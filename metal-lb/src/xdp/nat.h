/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Connections: full NAT in both directions.
 *
 *   client:cport -> VIP:port        becomes   VIP:source_port -> target:nodePort
 *   target:nodePort -> VIP:source   becomes   VIP:port -> client:cport
 *
 * A flow begins half-open and is promoted by the target's first answer. */
#pragma once
#include "csum.h"
#include "maps.h"

#define PORT_TRIES 16
/* A source port rests this long after its flow's last packet. */
#define REUSE_NS (120ull * 1000000000)

struct packet {
	struct eth *eth;
	struct ipv4 *ip;
	struct ports *ports;
	void *end;
	u64 now;
	u32 bytes;
	u8 tcp_flags;
};

INLINE void count(void *map, u32 index, const struct packet *p, u32 new_flows)
{
	struct counters *c = bpf_map_lookup_elem(map, &index);
	if (!c)
		return;
	c->packets += 1;
	c->bytes += p->bytes;
	c->new_flows += new_flows;
}

/* How long a flow lives without a packet. */
INLINE u64 lifetime(const struct reverse *r, u8 protocol, const struct control *self)
{
	if (protocol == IP_UDP)
		return self->udp_ns;
	if (r->state & STATE_RESET || (r->state & (STATE_FIN_CLIENT | STATE_FIN_TARGET)) == (STATE_FIN_CLIENT | STATE_FIN_TARGET))
		return self->closing_ns;
	return self->established_ns;
}

/* A FIN from both sides, or a reset: a new SYN is a new connection. */
INLINE int is_closing(const struct reverse *r)
{
	return r->state & STATE_RESET || (r->state & (STATE_FIN_CLIENT | STATE_FIN_TARGET)) == (STATE_FIN_CLIENT | STATE_FIN_TARGET);
}

/* Rewrites addresses and ports, fixes the checksums and sends the frame back out. */
INLINE int rewrite(struct packet *p, u32 source, u16 source_port, u32 destination, u16 destination_port,
		   const u8 *mac, const struct control *self)
{
	struct ipv4 *ip = p->ip;
	if (ip->ttl <= 1)
		return dropped(REASON_TTL);

	u32 addresses = csum_replace32(0, ip->source, source);
	addresses = csum_replace32(addresses, ip->destination, destination);
	u32 ports = csum_replace16(addresses, p->ports->source, source_port);
	ports = csum_replace16(ports, p->ports->destination, destination_port);

	if (ip->protocol == IP_TCP) {
		struct tcp *tcp = (void *)p->ports;
		if ((void *)(tcp + 1) > p->end)
			return dropped(REASON_MALFORMED);
		tcp->checksum = csum_apply(tcp->checksum, ports);
	} else {
		struct udp *udp = (void *)p->ports;
		if ((void *)(udp + 1) > p->end)
			return dropped(REASON_MALFORMED);
		if (udp->checksum) {
			u16 sum = csum_apply(udp->checksum, ports);
			udp->checksum = sum ? sum : 0xffff;
		}
	}

	u16 ttl_before, ttl_after;
	__builtin_memcpy(&ttl_before, &ip->ttl, 2);
	ip->ttl -= 1;
	__builtin_memcpy(&ttl_after, &ip->ttl, 2);
	ip->checksum = csum_apply(ip->checksum, csum_replace16(addresses, ttl_before, ttl_after));
	ip->source = source;
	ip->destination = destination;
	p->ports->source = source_port;
	p->ports->destination = destination_port;
	copy_mac(p->eth->destination, mac);
	copy_mac(p->eth->source, self->mac);
	return XDP_TX;
}

/* Hash of a flow for the table's slot: equal on all hosts. (A finalizer of MurmurHash3, public domain.) */
INLINE u32 flow_hash(const struct flow_key *k)
{
	u64 h = ((u64)k->client << 32 | k->vip) * 0x9e3779b97f4a7c15ull;
	h ^= (u64)k->client_port << 32 | (u64)k->port << 8 | k->protocol;
	h ^= h >> 33;
	h *= 0xff51afd7ed558ccdull;
	h ^= h >> 33;
	h *= 0xc4ceb9fe1a85ec53ull;
	h ^= h >> 33;
	return (u32)h;
}

/* Whether a tuple belongs to somebody, or did too short a time ago. */
INLINE int is_taken(void *map, const struct reverse_key *key, const struct packet *p, const struct control *self)
{
	struct reverse *r = bpf_map_lookup_elem(map, key);
	return r && p->now - r->last_seen_ns < lifetime(r, key->protocol, self) + REUSE_NS;
}

struct selection {
	u32 id;
	struct target *target;
	struct forward flow;
};

INLINE struct target *select_target(const struct flow_key *key, const struct listener *listener, u32 *id)
{
	u32 index = listener->table;
	void *table = bpf_map_lookup_elem(&tables, &index);
	if (!table)
		return 0;
	u32 slot = flow_hash(key) % TABLE_SLOTS;
	u32 *chosen = bpf_map_lookup_elem(table, &slot);
	if (!chosen || *chosen == 0)
		return 0;
	*id = *chosen;
	return bpf_map_lookup_elem(&targets, id);
}

/* A new connection: target, source port, half-open entries, first packet. */
INLINE int open_flow(struct packet *p, const struct flow_key *key, const struct listener *listener,
		     const struct control *self)
{
	u32 id = 0;
	struct target *target = select_target(key, listener, &id);
	if (!target || !target->address)
		return dropped(REASON_NO_TARGET);

	struct reverse_key rkey = {
		.vip = key->vip,
		.target_address = target->address,
		.target_port = target->port,
		.protocol = key->protocol,
	};
	struct reverse owner = {
		.last_seen_ns = p->now,
		.client = key->client,
		.client_port = key->client_port,
		.port = key->port,
		.target = id,
	};
	copy_mac(owner.client_mac, p->eth->source);

	u32 start = bpf_get_prandom_u32();
	u16 source_port = 0;
	if (self->port_count == 0)
		return dropped(REASON_NO_SOURCE_PORT);
#pragma unroll
	for (int i = 0; i < PORT_TRIES; i++) {
		u16 port = self->port_first + (u16)((start + i * 2654435761u) % self->port_count);
		struct listener_key own = { .vip = key->vip, .port = htons(port), .protocol = key->protocol };
		rkey.source_port = htons(port);
		if (bpf_map_lookup_elem(&listeners, &own) || is_taken(&reverse, &rkey, p, self))
			continue;
		if (is_taken(&half_reverse, &rkey, p, self))
			continue;
		bpf_map_delete_elem(&half_reverse, &rkey);
		if (bpf_map_update_elem(&half_reverse, &rkey, &owner, BPF_NOEXIST) == 0) {
			source_port = rkey.source_port;
			break;
		}
	}
	if (!source_port)
		return dropped(REASON_NO_SOURCE_PORT);

	struct forward flow = {
		.target = id,
		.target_address = target->address,
		.target_port = target->port,
		.source_port = source_port,
	};
	if (bpf_map_update_elem(&half_forward, key, &flow, BPF_ANY))
		return dropped(REASON_TABLE_FULL);
	count(&listener_stats, listener->table, p, 1);
	count(&target_stats, id, p, 1);
	return rewrite(p, key->vip, source_port, target->address, target->port, target->mac, self);
}

INLINE struct reverse_key reverse_key_of(const struct flow_key *key, const struct forward *flow)
{
	struct reverse_key rkey = {
		.vip = key->vip,
		.target_address = flow->target_address,
		.source_port = flow->source_port,
		.target_port = flow->target_port,
		.protocol = key->protocol,
	};
	return rkey;
}

INLINE int owns(const struct reverse *r, const struct flow_key *key)
{
	return r && r->client == key->client && r->client_port == key->client_port && r->port == key->port;
}

/* Client to VIP. */
INLINE int forward_packet(struct packet *p, const struct listener *listener, int owned, const struct control *self)
{
	struct flow_key key = {
		.client = p->ip->source,
		.vip = p->ip->destination,
		.client_port = p->ports->source,
		.port = p->ports->destination,
		.protocol = p->ip->protocol,
	};
	int is_syn = key.protocol == IP_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	int opens = key.protocol == IP_UDP || is_syn;

	int half = 0;
	struct reverse *r = 0;
	struct forward *flow = bpf_map_lookup_elem(&forward, &key);
	if (flow) {
		struct reverse_key rkey = reverse_key_of(&key, flow);
		r = bpf_map_lookup_elem(&reverse, &rkey);
	} else {
		flow = bpf_map_lookup_elem(&half_forward, &key);
		half = 1;
		if (flow) {
			struct reverse_key rkey = reverse_key_of(&key, flow);
			r = bpf_map_lookup_elem(&half_reverse, &rkey);
		}
	}

	if (flow && owns(r, &key)) {
		u64 idle = p->now - r->last_seen_ns;
		u64 limit = half ? self->half_open_ns : lifetime(r, key.protocol, self);
		u32 id = flow->target;
		struct target *target = bpf_map_lookup_elem(&targets, &id);
		int same = target && target->address == flow->target_address && target->port == flow->target_port;
		int fresh = idle < limit && same && !(is_syn && is_closing(r)) && !(opens && half && !target->active);
		if (fresh) {
			r->last_seen_ns = p->now;
			copy_mac(r->client_mac, p->eth->source);
			if (p->tcp_flags & TCP_RST)
				r->state |= STATE_RESET;
			if (p->tcp_flags & TCP_FIN)
				r->state |= STATE_FIN_CLIENT;
			count(&listener_stats, listener->table, p, 0);
			count(&target_stats, id, p, 0);
			return rewrite(p, key.vip, flow->source_port, target->address, target->port, target->mac, self);
		}
	}
	if (!opens)
		return dropped(REASON_NO_CONNECTION);
	if (!owned)
		return dropped(REASON_NOT_OWNER);
	if (flow) {
		bpf_map_delete_elem(&forward, &key);
		bpf_map_delete_elem(&half_forward, &key);
	}
	return open_flow(p, &key, listener, self);
}

/* Target to VIP's source port. The first answer makes a half-open flow an established one. */
INLINE int reverse_packet(struct packet *p, const struct control *self)
{
	struct reverse_key rkey = {
		.vip = p->ip->destination,
		.target_address = p->ip->source,
		.source_port = p->ports->destination,
		.target_port = p->ports->source,
		.protocol = p->ip->protocol,
	};
	struct reverse *r = bpf_map_lookup_elem(&reverse, &rkey);
	struct reverse *half = r ? 0 : bpf_map_lookup_elem(&half_reverse, &rkey);
	struct reverse owner;
	if (half) {
		owner = *half;
		owner.last_seen_ns = p->now;
		struct flow_key key = {
			.client = owner.client,
			.vip = rkey.vip,
			.client_port = owner.client_port,
			.port = owner.port,
			.protocol = rkey.protocol,
		};
		struct forward flow = {
			.target = owner.target,
			.target_address = rkey.target_address,
			.target_port = rkey.target_port,
			.source_port = rkey.source_port,
		};
		/* The reverse entry first: it owns the tuple. */
		if (bpf_map_update_elem(&reverse, &rkey, &owner, BPF_ANY) || bpf_map_update_elem(&forward, &key, &flow, BPF_ANY))
			return dropped(REASON_TABLE_FULL);
		bpf_map_delete_elem(&half_reverse, &rkey);
		bpf_map_delete_elem(&half_forward, &key);
		r = bpf_map_lookup_elem(&reverse, &rkey);
	}
	if (!r || p->now - r->last_seen_ns >= lifetime(r, rkey.protocol, self))
		return dropped(REASON_NO_CONNECTION);
	r->last_seen_ns = p->now;
	if (p->tcp_flags & TCP_RST)
		r->state |= STATE_RESET;
	if (p->tcp_flags & TCP_FIN)
		r->state |= STATE_FIN_TARGET;
	u32 id = r->target;
	count(&target_stats, id, p, 0);
	return rewrite(p, rkey.vip, r->port, r->client, r->client_port, r->client_mac, self);
}
