/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Incremental Internet checksums (RFC 1624, equation 3: HC' = ~(~HC + ~m + m')). */
#pragma once
#include "bpf.h"

/* What replacing words adds to a sum; kept in 64 bits, folded once at the end. */
INLINE u64 csum_diff32(u32 before, u32 after)
{
	return (u64)(u32)~before + after;
}

INLINE u64 csum_diff16(u16 before, u16 after)
{
	return (u64)(u16)~before + after;
}

INLINE u16 csum_apply(u16 checksum, u64 diff)
{
	u64 sum = (u64)(u16)~checksum + diff;
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (u16)~sum;
}
