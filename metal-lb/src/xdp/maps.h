/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* The maps. All but the sizes of the connection tables are fixed; those are set before loading. */
#pragma once
#include "bpf.h"

#define MAP(name, map_type, entries, key_type, value_type)                                                   \
	struct {                                                                                             \
		UINT(type, map_type);                                                                        \
		UINT(max_entries, entries);                                                                  \
		TYPE(key, key_type);                                                                         \
		TYPE(value, value_type);                                                                     \
	} name SEC(".maps")

#define LRU(name, entries, key_type, value_type)                                                             \
	struct {                                                                                             \
		UINT(type, BPF_MAP_TYPE_LRU_HASH);                                                           \
		UINT(max_entries, entries);                                                                  \
		UINT(map_flags, BPF_F_NO_COMMON_LRU);                                                        \
		TYPE(key, key_type);                                                                         \
		TYPE(value, value_type);                                                                     \
	} name SEC(".maps")

MAP(settings, BPF_MAP_TYPE_ARRAY, 1, u32, struct settings);
MAP(liveness, BPF_MAP_TYPE_ARRAY, 1, u32, struct liveness);
MAP(vips, BPF_MAP_TYPE_HASH, MAX_VIPS, u32, struct vip);
MAP(listeners, BPF_MAP_TYPE_HASH, MAX_LISTENERS, struct listener_key, struct listener);
MAP(targets, BPF_MAP_TYPE_ARRAY, MAX_TARGETS, u32, struct target);
MAP(reasons, BPF_MAP_TYPE_PERCPU_ARRAY, REASON_COUNT, u32, u64);
MAP(listener_counters, BPF_MAP_TYPE_PERCPU_ARRAY, MAX_LISTENERS, u32, struct counters);
MAP(target_counters, BPF_MAP_TYPE_PERCPU_ARRAY, MAX_TARGETS, u32, struct counters);

/* Established connections, and apart from them the half-open: a flood of SYNs evicts none of the
 * established. All CPUs share them, because the reply lands on another one. */
LRU(flows, 262144, struct flow_key, struct flow);
LRU(connections, 262144, struct tuple, struct connection);
LRU(half_open_flows, 65536, struct flow_key, struct flow);
LRU(half_open, 65536, struct tuple, struct connection);

/* One Maglev table a listener, swapped as a whole. It is one value, so that one call fills it. The
 * kernel takes no table of another size than this. */
struct table_map {
	UINT(type, BPF_MAP_TYPE_ARRAY);
	UINT(max_entries, 1);
	UINT(key_size, sizeof(u32));
	UINT(value_size, sizeof(struct table));
};

struct {
	UINT(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	UINT(max_entries, MAX_LISTENERS);
	TYPE(key, u32);
	ARRAY_OF(values, struct table_map);
} tables SEC(".maps");

INLINE int dropped(u32 reason)
{
	u64 *count = bpf_map_lookup_elem(&reasons, &reason);
	if (count)
		*count += 1;
	return XDP_DROP;
}

INLINE int passed(u32 reason)
{
	dropped(reason);
	return XDP_PASS;
}

INLINE const struct settings *host_settings(void)
{
	u32 zero = 0;
	return bpf_map_lookup_elem(&settings, &zero);
}

INLINE void count(void *map, u32 index, u32 bytes, u32 new_flows, u64 now)
{
	struct counters *c = bpf_map_lookup_elem(map, &index);
	if (!c)
		return;
	c->packets += 1;
	c->bytes += bytes;
	c->new_flows += new_flows;
	c->seen_ns = now;
}
