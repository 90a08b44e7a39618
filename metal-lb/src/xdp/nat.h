/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Full NAT in both directions. */
#pragma once
#include "connection.h"

INLINE int is_syn(const struct packet *p)
{
	return p->protocol == IP_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

INLINE void touch(struct connection *c, const struct packet *p, u32 fin)
{
	if (since(p->now, c->seen_ns) > SEEN_STEP_NS)
		c->seen_ns = p->now;
	if (p->tcp_flags & (TCP_FIN | TCP_RST)) {
		u32 state = (p->tcp_flags & TCP_RST ? STATE_RESET : 0) | (p->tcp_flags & TCP_FIN ? fin : 0);
		c->seen_ns = p->now;
		__sync_fetch_and_or(&c->state, state);
	}
}

INLINE int to_target(struct packet *p, const struct flow_key *key, u16 source_port, u32 id, struct target *target,
		     u32 table, u32 new_flows)
{
	if (!(target->flags & TARGET_HAS_MAC))
		return dropped(REASON_NO_NEIGHBOUR);
	count(&listener_counters, table, p->bytes, new_flows, p->now);
	count(&target_counters, id, p->bytes, new_flows, p->now);
	return translate(p, key->vip, source_port, target->address, target->port, target->mac);
}

/* The next packet of a connection. A SYN is no sign of life: one that nobody answers may come from a
 * client that has forgotten the connection, again and again. */
INLINE int follow(struct packet *p, const struct flow_key *key, const struct flow *flow, struct connection *c,
		  struct target *target)
{
	if (!is_syn(p))
		touch(c, p, STATE_FIN_CLIENT);
	if (__builtin_memcmp(c->client_mac, p->eth->source, 6))
		copy_mac(c->client_mac, p->eth->source);
	return to_target(p, key, flow->source_port, flow->target, target, flow->table, 0);
}

/* What an earlier connection of the same client and port has left behind. */
struct remains {
	int flow; /* whether its flow is in flows: it would take the next packet */
	int half_open; /* whether it was half-open, as this tuple: a late answer would bring it back */
	struct tuple tuple;
};

/* A new connection: target, source port, half-open entries, first packet. */
INLINE int open_flow(struct packet *p, const struct flow_key *key, int owned, const struct remains *old)
{
	struct listener_key lkey = { .vip = key->vip, .port = key->port, .protocol = key->protocol };
	struct listener *listener = bpf_map_lookup_elem(&listeners, &lkey);
	if (!listener)
		return dropped(REASON_NO_LISTENER);
	if (!owned)
		return dropped(REASON_NOT_OWNER);
	u64 hash = flow_hash(key, p->host->seed);
	u32 table = listener->table;
	u32 id = choose_target(table, hash);
	struct target *target = id ? bpf_map_lookup_elem(&targets, &id) : 0;
	if (!target || !target->address)
		return dropped(REASON_NO_TARGET);

	struct flow flow = { .target = id, .address = target->address, .port = target->port, .table = table };
	struct tuple tuple;
	tuple_of(&tuple, key, &flow);
	struct connection new = {
		.seen_ns = p->now,
		.client = key->client,
		.client_port = key->client_port,
		.port = key->port,
		.target = id,
		.table = table,
		.idle_s = listener->idle_s,
	};
	copy_mac(new.client_mac, p->eth->source);
	if (old->half_open)
		bpf_map_delete_elem(&half_open, &old->tuple);
	flow.source_port = take_source_port(p, &tuple, &new, hash);
	if (!flow.source_port)
		return dropped(REASON_NO_SOURCE_PORT);
	if (bpf_map_update_elem(&half_open_flows, key, &flow, BPF_ANY))
		return dropped(REASON_TABLE_FULL);
	if (old->flow)
		bpf_map_delete_elem(&flows, key);
	return to_target(p, key, flow.source_port, id, target, table, 1);
}

/* From half-open to established. The connection first: it owns the tuple. */
INLINE int promote(const struct flow_key *key, const struct flow *flow, const struct tuple *tuple,
		   const struct connection *c)
{
	struct connection established = *c;
	if (bpf_map_update_elem(&connections, tuple, &established, BPF_ANY) ||
	    bpf_map_update_elem(&flows, key, flow, BPF_ANY))
		return -1;
	bpf_map_delete_elem(&half_open, tuple);
	bpf_map_delete_elem(&half_open_flows, key);
	return 0;
}

/* Whether an established connection takes this packet, or the packet begins another one. A SYN inside
 * a connection is the target's to judge, also once one side has closed: it may be forged. */
INLINE int takes(const struct connection *c, const struct target *target, const struct packet *p)
{
	if (is_syn(p))
		return !is_closed(c);
	if (p->protocol == IP_UDP && !(target->flags & TARGET_IN_TABLE))
		return since(p->now, c->replied_ns) < UDP_UNANSWERED_NS;
	return 1;
}

/* Client to VIP, as part of an established connection. -1: there is none that takes it. */
INLINE int forward_established(struct packet *p, const struct flow_key *key, struct remains *old, u32 *why)
{
	struct flow *found = bpf_map_lookup_elem(&flows, key);
	if (!found)
		return -1;
	old->flow = 1;
	/* Read once: an element that is evicted meanwhile becomes another client's. */
	struct flow flow = *found;
	struct tuple tuple;
	tuple_of(&tuple, key, &flow);
	struct connection *c = bpf_map_lookup_elem(&connections, &tuple);
	if (!c || !belongs_to(c, key))
		return -1;
	struct target *target = target_of(&flow);
	int alive = is_alive(c, p->now);
	if (alive && target && takes(c, target, p))
		return follow(p, key, &flow, c, target);
	*why = alive ? REASON_TARGET_GONE : REASON_EXPIRED;
	return -1;
}

/* … of a half-open one. */
INLINE int forward_half_open(struct packet *p, const struct flow_key *key, struct remains *old)
{
	struct flow *found = bpf_map_lookup_elem(&half_open_flows, key);
	if (!found)
		return -1;
	struct flow flow = *found;
	tuple_of(&old->tuple, key, &flow);
	struct connection *c = bpf_map_lookup_elem(&half_open, &old->tuple);
	if (!c || !belongs_to(c, key))
		return -1;
	old->half_open = 1;
	if (!is_half_open_alive(c, p->now))
		return -1;
	struct target *target = target_of(&flow);
	if (p->protocol == IP_TCP && !is_syn(p)) {
		/* The client's answer to the target's: both ends are real. */
		if (!target)
			return dropped(REASON_TARGET_GONE);
		if (!c->replied_ns && !(p->tcp_flags & TCP_RST))
			return dropped(REASON_NO_CONNECTION);
		touch(c, p, STATE_FIN_CLIENT);
		if (c->replied_ns && promote(key, &flow, &old->tuple, c))
			return dropped(REASON_TABLE_FULL);
		return to_target(p, key, flow.source_port, flow.target, target, flow.table, 0);
	}
	if (target && target->flags & TARGET_IN_TABLE)
		return follow(p, key, &flow, c, target);
	return -1;
}

/* Client to VIP. */
INLINE int forward(struct packet *p, int owned)
{
	struct flow_key key = {
		.client = p->ip->source,
		.vip = p->ip->destination,
		.client_port = p->ports->source,
		.port = p->ports->destination,
		.protocol = p->protocol,
	};
	struct remains old = {};
	u32 why = REASON_NO_CONNECTION;

	int verdict = forward_established(p, &key, &old, &why);
	if (verdict < 0)
		verdict = forward_half_open(p, &key, &old);
	/* It may have been promoted on another CPU between the two looks. */
	if (verdict < 0 && !old.flow && !is_syn(p))
		verdict = forward_established(p, &key, &old, &why);
	if (verdict >= 0)
		return verdict;
	if (p->protocol == IP_TCP && !is_syn(p))
		return dropped(why);
	return open_flow(p, &key, owned, &old);
}

INLINE int to_client(struct packet *p, const struct tuple *tuple, struct connection *c)
{
	touch(c, p, STATE_FIN_TARGET);
	if (since(p->now, c->replied_ns) > SEEN_STEP_NS)
		c->replied_ns = p->now;
	count(&listener_counters, c->table, p->bytes, 0, p->now);
	count(&target_counters, c->target, p->bytes, 0, p->now);
	return translate(p, tuple->vip, c->port, c->client, c->client_port, c->client_mac);
}

/* Target to one of our source ports. -1: there is no such connection. */
INLINE int backward(struct packet *p)
{
	struct tuple tuple = {
		.vip = p->ip->destination,
		.target = p->ip->source,
		.source_port = p->ports->destination,
		.target_port = p->ports->source,
		.protocol = p->protocol,
	};
	struct connection *c = bpf_map_lookup_elem(&connections, &tuple);
	if (c && is_alive(c, p->now))
		return to_client(p, &tuple, c);
	int known = c != 0;
	c = bpf_map_lookup_elem(&half_open, &tuple);
	if (!c || since(p->now, c->seen_ns) >= HALF_OPEN_NS)
		return known ? dropped(REASON_EXPIRED) : -1;
	if (p->protocol == IP_TCP) {
		/* Half-open until the client answers: a flood of SYNs is answered too. */
		c->replied_ns = p->now;
		return to_client(p, &tuple, c);
	}
	struct flow_key key = {
		.client = c->client,
		.vip = tuple.vip,
		.client_port = c->client_port,
		.port = c->port,
		.protocol = IP_UDP,
	};
	struct flow flow = {
		.target = c->target,
		.address = tuple.target,
		.port = tuple.target_port,
		.source_port = tuple.source_port,
		.table = c->table,
	};
	c->replied_ns = p->now;
	if (promote(&key, &flow, &tuple, c))
		return dropped(REASON_TABLE_FULL);
	c = bpf_map_lookup_elem(&connections, &tuple);
	return c ? to_client(p, &tuple, c) : dropped(REASON_TABLE_FULL);
}
