/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Connections: how long they live, and how a new one gets its target and its source port.
 *
 *   client:cport -> VIP:port          becomes   VIP:source_port -> target:nodePort
 *   target:nodePort -> VIP:source     becomes   VIP:port -> client:cport
 *
 * flows finds the tuple of a client's packet, connections the client of a tuple. The latter owns the
 * tuple; a flow whose tuple names somebody else is void, so that no eviction mixes two clients. */
#pragma once
#include "packet.h"

#define SECOND 1000000000ull
#define HALF_OPEN_NS (30 * SECOND)
#define HALF_CLOSED_NS (60 * SECOND)
#define CLOSED_NS (10 * SECOND)
/* A source port rests this long after its connection's last packet, where others can be had. */
#define REST_NS (120 * SECOND)
/* And this long if every port that was tried is in use or resting. A half-open connection that is
 * silent for longer loses its port then: or a flood of SYNs would hold them all. */
#define SHORT_REST_NS SECOND
/* A UDP flow on a target that left its table, and answers no more, moves on. */
#define UDP_UNANSWERED_NS (5 * SECOND)
#define SEEN_STEP_NS (SECOND / 4)
#define PORT_TRIES 16

INLINE int is_closed(const struct connection *c)
{
	u32 both = STATE_FIN_CLIENT | STATE_FIN_TARGET;
	return (c->state & STATE_RESET) || (c->state & both) == both;
}

INLINE int is_alive(const struct connection *c, u64 now)
{
	u64 limit = c->idle_s * SECOND;
	if (c->state)
		limit = is_closed(c) ? CLOSED_NS : HALF_CLOSED_NS;
	return since(now, c->seen_ns) < limit;
}

INLINE int is_half_open_alive(const struct connection *c, u64 now)
{
	return !c->state && since(now, c->seen_ns) < HALF_OPEN_NS;
}

INLINE int belongs_to(const struct connection *c, const struct flow_key *key)
{
	return c->client == key->client && c->client_port == key->client_port && c->port == key->port;
}

INLINE void tuple_of(struct tuple *tuple, const struct flow_key *key, const struct flow *flow)
{
	*tuple = (struct tuple){
		.vip = key->vip,
		.target = flow->address,
		.source_port = flow->source_port,
		.target_port = flow->port,
		.protocol = key->protocol,
	};
}

/* The target that a flow began with, unless its id means another one by now. */
INLINE struct target *target_of(const struct flow *flow)
{
	u32 id = flow->target;
	struct target *target = bpf_map_lookup_elem(&targets, &id);
	return target && target->address == flow->address && target->port == flow->port ? target : 0;
}

/* Equal on all hosts. (The finalizer of MurmurHash3, which is in the public domain.) */
INLINE u64 flow_hash(const struct flow_key *key, u64 seed)
{
	u64 h = ((u64)key->client << 32 | key->vip) ^ seed;
	h *= 0x9e3779b97f4a7c15ull;
	h ^= (u64)key->client_port << 32 | (u64)key->port << 8 | key->protocol;
	h ^= h >> 33;
	h *= 0xff51afd7ed558ccdull;
	h ^= h >> 33;
	h *= 0xc4ceb9fe1a85ec53ull;
	h ^= h >> 33;
	return h;
}

INLINE u32 choose_target(u32 index, u64 hash)
{
	void *map = bpf_map_lookup_elem(&tables, &index);
	if (!map)
		return 0;
	u32 zero = 0;
	struct table *table = bpf_map_lookup_elem(map, &zero);
	u64 slot = hash % TABLE_SLOTS;
	/* The compiler knows that this holds, older verifiers do not. */
	asm volatile("" : "+r"(slot));
	return table && slot < TABLE_SLOTS ? table->targets[slot] : 0;
}

INLINE void prefer_longest(const struct connection *c, u64 now, u16 port, u64 *longest, u16 *fallback)
{
	u64 rest = since(now, c->seen_ns);
	if (rest > *longest) {
		*longest = rest;
		*fallback = port;
	}
}

/* Takes a source port that no established connection to the target has, and enters the half-open
 * connection under it. Tries a few that the flow's hash picks: the first that nobody had lately, else
 * the one that has been silent longest. Every flow walks in steps of its own, or flows would pile up behind
 * one another. 0: none. */
INLINE u16 take_source_port(const struct packet *p, struct tuple *tuple, const struct connection *new, u64 hash)
{
	/* Odd, and a slice has 2^11 * 3 ports: the tries are all different. */
	u32 start = (u32)(hash >> 40), step = (u32)(hash >> 20) | 1;
	u16 fallback = 0;
	u64 longest = SHORT_REST_NS;
	u32 ports = p->host->ports;
	if (!ports)
		return 0;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < PORT_TRIES; i++) {
		u16 port = htons(p->host->first_port + (start + i * step) % ports);
		struct listener_key own = { .vip = tuple->vip, .port = port, .protocol = tuple->protocol };
		if (bpf_map_lookup_elem(&listeners, &own))
			continue;
		tuple->source_port = port;
		struct connection *c = bpf_map_lookup_elem(&half_open, tuple);
		if (c) {
			if (is_half_open_alive(c, p->now)) {
				prefer_longest(c, p->now, port, &longest, &fallback);
				continue;
			}
			bpf_map_delete_elem(&half_open, tuple);
		}
		c = bpf_map_lookup_elem(&connections, tuple);
		if (c) {
			if (!is_closed(c) && is_alive(c, p->now))
				continue;
			if (since(p->now, c->seen_ns) < REST_NS) {
				prefer_longest(c, p->now, port, &longest, &fallback);
				continue;
			}
			bpf_map_delete_elem(&connections, tuple);
		}
		if (bpf_map_update_elem(&half_open, tuple, new, BPF_NOEXIST) == 0)
			return port;
	}
	if (!fallback)
		return 0;
	tuple->source_port = fallback;
	/* Its flow is void from here on. */
	bpf_map_delete_elem(&connections, tuple);
	bpf_map_delete_elem(&half_open, tuple);
	return bpf_map_update_elem(&half_open, tuple, new, BPF_NOEXIST) == 0 ? fallback : 0;
}
