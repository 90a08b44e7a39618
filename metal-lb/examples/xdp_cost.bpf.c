/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Undoes what the balancer did to a frame, then calls it: test_run repeats on one and the same frame,
 * which after the first round would no longer be for a VIP. */
#include "../src/xdp/bpf.h"

#define FRAME 64
#define FIRST_CLIENT 0x0a000000 /* 10.0.0.0 */

struct template {
	u8 frame[FRAME];
	u32 clients; /* how many take turns */
	u32 round;
};

struct {
	UINT(type, BPF_MAP_TYPE_ARRAY);
	UINT(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, struct template);
} template SEC(".maps");

struct {
	UINT(type, 3 /* BPF_MAP_TYPE_PROG_ARRAY */);
	UINT(max_entries, 1);
	TYPE(key, u32);
	TYPE(value, u32);
} next SEC(".maps");

static long (*const bpf_tail_call)(void *ctx, void *programs, u32 index) = (void *)12;

SEC("xdp")
int restore(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	u32 zero = 0;
	struct template *t = bpf_map_lookup_elem(&template, &zero);
	if (!t || data + FRAME > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(data, t->frame, FRAME);
	if (t->clients) {
		struct ipv4 *ip = data + sizeof(struct eth);
		ip->source = htonl(FIRST_CLIENT + t->round);
		t->round = t->round + 1 == t->clients ? 0 : t->round + 1;
	}
	bpf_tail_call(ctx, &next, 0);
	return XDP_ABORTED;
}

SEC("xdp")
int nothing(struct xdp_md *ctx)
{
	return XDP_TX;
}

char program_license[] SEC("license") = "Dual BSD/GPL";
