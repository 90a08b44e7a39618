/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* The packet under way: what was parsed, and how it is sent out again. */
#pragma once
#include "csum.h"
#include "maps.h"

struct packet {
	struct eth *eth;
	struct ipv4 *ip;
	struct ports *ports;
	void *end;
	const struct settings *host;
	u64 now;
	u32 bytes;
	u8 protocol;
	u8 tcp_flags;
};

/* Time since `then`. A clock read on another CPU may be a little ahead: that is no time at all. */
INLINE u64 since(u64 now, u64 then)
{
	return (s64)(now - then) > 0 ? now - then : 0;
}

INLINE int to_frame(struct packet *p, const u8 *mac)
{
	copy_mac(p->eth->destination, mac);
	copy_mac(p->eth->source, p->host->mac);
	return XDP_TX;
}

/* Replaces the addresses, one hop further. `diff` comes out as what the addresses add to sums. */
INLINE void readdress(struct ipv4 *ip, u32 source, u32 destination, u64 *diff)
{
	*diff = csum_diff32(ip->source, source) + csum_diff32(ip->destination, destination);
	u16 before, after;
	__builtin_memcpy(&before, &ip->ttl, 2);
	ip->ttl -= 1;
	__builtin_memcpy(&after, &ip->ttl, 2);
	ip->checksum = csum_apply(ip->checksum, *diff + csum_diff16(before, after));
	ip->source = source;
	ip->destination = destination;
}

/* Rewrites addresses and ports, fixes the checksums and sends the frame back out. */
INLINE int translate(struct packet *p, u32 source, u16 source_port, u32 destination, u16 destination_port,
		     const u8 *mac)
{
	struct ports *ports = p->ports;
	if (p->ip->ttl <= 1)
		return dropped(REASON_TTL);
	u64 diff;
	readdress(p->ip, source, destination, &diff);
	diff += csum_diff16(ports->source, source_port) + csum_diff16(ports->destination, destination_port);
	ports->source = source_port;
	ports->destination = destination_port;
	if (p->protocol == IP_TCP) {
		struct tcp *tcp = (void *)ports;
		if ((void *)(tcp + 1) > p->end)
			return dropped(REASON_MALFORMED);
		tcp->checksum = csum_apply(tcp->checksum, diff);
	} else {
		struct udp *udp = (void *)ports;
		if ((void *)(udp + 1) > p->end)
			return dropped(REASON_MALFORMED);
		/* 0 means that the sender left it out (RFC 768). */
		if (udp->checksum) {
			u16 sum = csum_apply(udp->checksum, diff);
			udp->checksum = sum ? sum : 0xffff;
		}
	}
	return to_frame(p, mac);
}
