/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* What the program and the control process share. layout.rs mirrors every struct here; both change
 * in one commit, and a test compares them with BTF. Addresses and ports are in network order unless
 * a comment says otherwise. IPv6 will have keys and maps of its own, so that these stay short. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long s64;

#define MAX_VIPS 4096
#define MAX_LISTENERS 4096
#define MAX_TARGETS 65536
#define TABLE_SLOTS 65537
#define TABLE_LABEL_WORDS 4
/* The first source port of any host's slice, host order. No reply comes to one below. */
#define FIRST_SOURCE_PORT 16384

/* Why a packet to one of our addresses was dropped or, at the end, passed on. */
enum reason {
	REASON_MALFORMED = 0,
	REASON_FRAGMENT,
	REASON_IP_OPTIONS,
	REASON_NOT_OWNER,
	REASON_NO_LISTENER,
	REASON_NO_TARGET,
	REASON_TARGET_GONE,
	REASON_NO_NEIGHBOUR,
	REASON_NO_CONNECTION,
	REASON_EXPIRED,
	REASON_NO_SOURCE_PORT,
	REASON_TTL,
	REASON_TABLE_FULL,
	REASON_ICMP_PASSED,
	REASON_COUNT,
};

/* What belongs to the host. One element. */
struct settings {
	u64 seed; /* of flow hashes; the same on every host of the tier */
	u32 probe_address; /* 0: probes are not answered */
	u16 probe_port; /* at that address */
	u16 first_port; /* host order: this host's slice of source ports */
	u16 ports; /* how many, host order; 0: no new connections */
	u8 mac[6]; /* of the interface: only frames to it are balanced */
	u32 slot;
	u32 zero;
};

/* A control process that is silent for longer has not just been restarted: its peers take over what
 * it owned (members/machine.rs). */
#define CONTROL_LOST_MS 10000

/* Signs of life of the control process. One element. */
struct liveness {
	u64 beat_ns; /* CLOCK_MONOTONIC; 0: never */
	u64 generation_term;
	u64 generation_counter;
};

struct vip {
	u32 owned; /* answer ARP and echo, take new connections */
};

struct listener_key {
	u32 vip;
	u16 port;
	u8 protocol;
	u8 zero;
};

struct listener {
	u32 table; /* index into tables and listener_counters */
	u32 idle_s; /* of its connections, host order */
};

/* Who gets new connections: a flow's hash chooses a slot, which holds a target's id or 0. */
struct table {
	u16 targets[TABLE_SLOTS];
	u16 zero;
	u32 label[TABLE_LABEL_WORDS]; /* the control process notes what it was built for and from */
};

#define TARGET_IN_TABLE 1 /* gets new connections */
#define TARGET_HAS_MAC 2

struct target {
	u32 address; /* 0: no such target */
	u16 port;
	u8 mac[6];
	u32 vip; /* the listener that it serves */
	u16 vip_port;
	u8 protocol;
	u8 flags;
};

struct flow_key {
	u32 client;
	u32 vip;
	u16 client_port;
	u16 port;
	u8 protocol;
	u8 zero[3];
};

struct flow {
	u32 target; /* id */
	u32 address;
	u16 port;
	u16 source_port;
	u32 table; /* the listener's, for counters */
};

/* What a target sees of a connection. */
struct tuple {
	u32 vip;
	u32 target;
	u16 source_port;
	u16 target_port;
	u8 protocol;
	u8 zero[3];
};

#define STATE_FIN_CLIENT 1
#define STATE_FIN_TARGET 2
#define STATE_RESET 4

/* Owns its tuple: a flow counts only while this names the same client. */
struct connection {
	u64 seen_ns; /* the last packet, to a quarter second */
	u64 replied_ns; /* the last one from the target; 0: never */
	u32 client;
	u16 client_port;
	u16 port;
	u8 client_mac[6]; /* replies go to whoever sent */
	u16 zero;
	u32 target; /* id */
	u32 table;
	u32 idle_s;
	u32 state; /* both directions add to it, on two CPUs */
};

struct counters {
	u64 packets; /* both directions */
	u64 bytes;
	u64 new_flows;
	u64 seen_ns; /* the last packet */
};

/* A liveness probe between hosts: the peer's program turns a request into the answer. All fields in
 * network order. */
#define PROBE_MAGIC 0x464c5042 /* "FLPB" */
#define PROBE_REQUEST 1
#define PROBE_ANSWER 2

struct probe {
	u32 magic;
	u32 kind;
	u64 nonce;
	u64 generation_term;
	u64 generation_counter;
	u32 control_age_ms; /* since the control process last beat; all ones: never */
	u32 slot; /* of the host that answers */
};
