/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* The kernel's interface to BPF programs (include/uapi/linux/bpf.h), as far as it is used, and
 * packet headers without libc's. */
#pragma once
#include "structs.h"

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define UINT(name, value) int(*name)[value]
#define TYPE(name, type) type *name
#define ARRAY_OF(name, type) type *name[]

enum { XDP_ABORTED = 0, XDP_DROP, XDP_PASS, XDP_TX };

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_ARRAY_OF_MAPS = 12,
};
#define BPF_F_NO_COMMON_LRU 2
#define BPF_ANY 0
#define BPF_NOEXIST 1

struct xdp_md {
	u32 data;
	u32 data_end;
	u32 data_meta;
	u32 ingress_ifindex;
	u32 rx_queue_index;
	u32 egress_ifindex;
};

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static u64 (*const bpf_ktime_get_ns)(void) = (void *)5;
/* Advances with the timer interrupt, a few milliseconds at a time, and costs no clock read. */
static u64 (*const bpf_ktime_get_coarse_ns)(void) = (void *)160;

#define htons(x) ((u16)__builtin_bswap16((u16)(x)))
#define ntohs(x) htons(x)
#define htonl(x) ((u32)__builtin_bswap32((u32)(x)))
#define htonll(x) ((u64)__builtin_bswap64((u64)(x)))

#define ETH_IPV4 htons(0x0800)
#define ETH_ARP htons(0x0806)
#define IP_ICMP 1
#define IP_TCP 6
#define IP_UDP 17

struct eth {
	u8 destination[6];
	u8 source[6];
	u16 type;
} __attribute__((packed));

struct ipv4 {
	u8 version_length;
	u8 tos;
	u16 total_length;
	u16 id;
	u16 fragment;
	u8 ttl;
	u8 protocol;
	u16 checksum;
	u32 source;
	u32 destination;
};

struct ports {
	u16 source;
	u16 destination;
};

struct tcp {
	struct ports ports;
	u32 sequence;
	u32 acknowledgement;
	u8 offset;
	u8 flags;
	u16 window;
	u16 checksum;
	u16 urgent;
};
#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

struct udp {
	struct ports ports;
	u16 length;
	u16 checksum;
};

struct icmp {
	u8 type;
	u8 code;
	u16 checksum;
	u32 rest;
};

struct arp {
	u16 hardware;
	u16 protocol;
	u8 hardware_length;
	u8 protocol_length;
	u16 operation;
	u8 sender_mac[6];
	u32 sender_ip;
	u8 target_mac[6];
	u32 target_ip;
} __attribute__((packed));

INLINE void copy_mac(u8 *to, const u8 *from)
{
	__builtin_memcpy(to, from, 6);
}

INLINE int is_mac(const u8 *a, const u8 *b)
{
	return __builtin_memcmp(a, b, 6) == 0;
}
