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

MAP(control, BPF_MAP_TYPE_ARRAY, 1, u32, struct control);
MAP(vips, BPF_MAP_TYPE_HASH, MAX_VIPS, u32, struct vip);
MAP(listeners, BPF_MAP_TYPE_HASH, MAX_LISTENERS, struct listener_key, struct listener);
MAP(targets, BPF_MAP_TYPE_ARRAY, MAX_TARGETS, u32, struct target);
MAP(reasons, BPF_MAP_TYPE_PERCPU_ARRAY, REASON_COUNT, u32, u64);
MAP(listener_stats, BPF_MAP_TYPE_PERCPU_ARRAY, MAX_LISTENERS, u32, struct counters);
MAP(target_stats, BPF_MAP_TYPE_PERCPU_ARRAY, MAX_TARGETS, u32, struct counters);

/* Established flows, and apart from them those that no target has answered yet: a flood of SYNs
 * evicts none of the established. Shared by all CPUs: the reply lands on another one. */
LRU(forward, 262144, struct flow_key, struct forward);
LRU(reverse, 262144, struct reverse_key, struct reverse);
LRU(half_forward, 65536, struct flow_key, struct forward);
LRU(half_reverse, 65536, struct reverse_key, struct reverse);

/* One Maglev table a listener, swapped as a whole. Slot values are target ids; 0 is none. */
struct table {
	UINT(type, BPF_MAP_TYPE_ARRAY);
	UINT(max_entries, TABLE_SLOTS);
	TYPE(key, u32);
	TYPE(value, u32);
};

struct {
	UINT(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	UINT(max_entries, MAX_LISTENERS);
	TYPE(key, u32);
	ARRAY_OF(values, struct table);
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

INLINE struct control *control_block(void)
{
	u32 zero = 0;
	return bpf_map_lookup_elem(&control, &zero);
}
