/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* Incremental Internet checksums (RFC 1624, equation 3: HC' = ~(~HC + ~m + m')). */
#pragma once
#include "bpf.h"

/* The sum of what replaces what, to be folded into one or more checksums. */
INLINE u32 csum_replace32(u32 sum, u32 before, u32 after)
{
	sum += (u16)~before;
	sum += (u16)~(before >> 16);
	sum += (u16)after;
	sum += after >> 16;
	return sum;
}

INLINE u32 csum_replace16(u32 sum, u16 before, u16 after)
{
	return sum + (u16)~before + after;
}

INLINE u16 csum_apply(u16 checksum, u32 sum)
{
	sum += (u16)~checksum;
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (u16)~sum;
}
