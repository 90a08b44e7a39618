/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/* What the program and the control process share. xdp/layout.rs mirrors every struct here; both
 * change in one commit, and a test compares the sizes with BTF. Addresses and ports are in network
 * order unless a name says otherwise. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define MAX_VIPS 4096
#define MAX_LISTENERS 4096
#define MAX_TARGETS 65536
#define TABLE_SLOTS 65537

/* What a packet for one of our addresses was dropped, or passed on, for. */
enum verdict_reason {
	REASON_MALFORMED = 0,
	REASON_FRAGMENT,
	REASON_IP_OPTIONS,
	REASON_NOT_OWNER,
	REASON_NO_LISTENER,
	REASON_NO_TARGET,
	REASON_NO_CONNECTION,
	REASON_NO_SOURCE_PORT,
	REASON_TTL,
	REASON_TABLE_FULL,
	REASON_ICMP_PASSED,
	REASON_COUNT,
};

/* Written by the control process; read for every probe and SYN. One element. */
struct control {
	u64 heartbeat_ns; /* CLOCK_MONOTONIC of the last sign of life */
	u64 generation_term;
	u64 generation_counter;
	u64 half_open_ns;
	u64 established_ns;
	u64 closing_ns;
	u64 udp_ns;
	u32 probe_address; /* 0: probes are not answered */
	u16 probe_port;
	u16 port_first; /* host order: this host's slice of SNAT source ports */
	u16 port_count;
	u8 mac[6];
	u64 zero;
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
	u32 table; /* index into tables and listener_stats */
	u32 zero;
	u64 fingerprint; /* of the table's content, for the control process */
};

struct target {
	u32 address;
	u16 port;
	u8 mac[6];
	u32 table;   /* the listener's table that it belongs to */
	u32 active;  /* in the table: gets new connections */
};

struct flow_key {
	u32 client;
	u32 vip;
	u16 client_port;
	u16 port;
	u8 protocol;
	u8 zero[3];
};

struct forward {
	u32 target; /* id */
	u32 target_address;
	u16 target_port;
	u16 source_port;
};

struct reverse_key {
	u32 vip;
	u32 target_address;
	u16 source_port;
	u16 target_port;
	u8 protocol;
	u8 zero[3];
};

/* The reverse entry owns the translation: a forward entry counts only while this one names the
 * same client. */
struct reverse {
	u64 last_seen_ns;
	u32 client;
	u16 client_port;
	u16 port;
	u8 client_mac[6]; /* replies go to whoever sent */
	u8 state;
	u8 zero;
	u32 target; /* id */
	u32 zero2;
};

#define STATE_FIN_CLIENT 1
#define STATE_FIN_TARGET 2
#define STATE_RESET 4

struct counters {
	u64 packets;
	u64 bytes;
	u64 new_flows;
};

/* A liveness probe between hosts: the request's answer is written by the peer's XDP program. */
#define PROBE_MAGIC 0x464c5042 /* "FLPB" */
#define PROBE_REQUEST 1
#define PROBE_ANSWER 2

struct probe {
	u32 magic;          /* network order, as all fields */
	u32 kind;
	u64 nonce;
	u64 generation_term;
	u64 generation_counter;
	u32 control_age_ms; /* since the control process last wrote its heartbeat */
	u32 zero;
};
