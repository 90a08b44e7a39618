/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Passes every frame. A veth delivers XDP_TX frames only to a peer that carries a program too. */
#include "bpf.h"

SEC("xdp")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char program_license[] SEC("license") = "Dual BSD/GPL";
