//! Mirrors of `structs.h`. Addresses and ports are in network order, as in the packets.

use std::net::Ipv4Addr;

use maglev::TABLE_SLOTS;

/// A struct that is shared with the program byte for byte.
///
/// # Safety
/// The type is `repr(C)`, has no padding that is not spelled out, and every bit pattern is valid.
pub unsafe trait Shared: Copy + Default {
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: the implementor has no uninitialised bytes, and u8 needs no alignment.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// `None` when the length is not the struct's.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        // SAFETY: the length is checked, every bit pattern is valid, and the read is unaligned.
        (bytes.len() == size_of::<Self>()).then(|| unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }
}

macro_rules! shared {
    ($($(#[$doc:meta])* struct $name:ident[$size:literal] { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct $name { $(pub $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $size);
        // SAFETY: repr(C), the fields are integers and arrays of them, and they add up to the size:
        // there is no padding.
        unsafe impl Shared for $name {}
        const _: () = assert!(0 $(+ size_of::<$type>())* == $size);
    )*};
}

shared! {
    /// What belongs to the host.
    struct Settings[32] {
        seed: u64,
        probe_address: u32,
        probe_port: u16,
        first_port: u16,
        ports: u16,
        mac: [u8; 6],
        slot: u32,
        zero: u32,
    }

    /// Signs of life of the control process.
    struct Liveness[24] {
        beat_ns: u64,
        generation_term: u64,
        generation_counter: u64,
    }

    struct Vip[4] {
        owned: u32,
    }

    struct ListenerKey[8] {
        vip: u32,
        port: u16,
        protocol: u8,
        zero: u8,
    }

    struct Listener[8] {
        table: u32,
        idle_s: u32,
    }

    /// The end of a table: what it was built for and from. The program never reads it.
    struct TableLabel[16] {
        listener: ListenerKey,
        fingerprint_high: u32,
        fingerprint_low: u32,
    }

    struct Target[20] {
        address: u32,
        port: u16,
        mac: [u8; 6],
        vip: u32,
        vip_port: u16,
        protocol: u8,
        flags: u8,
    }

    struct FlowKey[16] {
        client: u32,
        vip: u32,
        client_port: u16,
        port: u16,
        protocol: u8,
        zero: [u8; 3],
    }

    struct Flow[16] {
        target: u32,
        address: u32,
        port: u16,
        source_port: u16,
        table: u32,
    }

    /// What a target sees of a connection.
    struct Tuple[16] {
        vip: u32,
        target: u32,
        source_port: u16,
        target_port: u16,
        protocol: u8,
        zero: [u8; 3],
    }

    /// Owns its tuple.
    struct Connection[48] {
        seen_ns: u64,
        replied_ns: u64,
        client: u32,
        client_port: u16,
        port: u16,
        client_mac: [u8; 6],
        zero: u16,
        target: u32,
        table: u32,
        idle_s: u32,
        state: u32,
    }

    struct Counters[32] {
        packets: u64,
        bytes: u64,
        new_flows: u64,
        seen_ns: u64,
    }

    /// A liveness probe, all fields in network order.
    struct Probe[40] {
        magic: u32,
        kind: u32,
        nonce: u64,
        generation_term: u64,
        generation_counter: u64,
        control_age_ms: u32,
        slot: u32,
    }
}

/// The names of `enum reason`, in its order: metric labels.
pub const REASONS: [&str; 14] = [
    "malformed",
    "fragment",
    "ip_options",
    "not_owner",
    "no_listener",
    "no_target",
    "target_gone",
    "no_neighbour",
    "no_connection",
    "expired",
    "no_source_port",
    "ttl",
    "table_full",
    "icmp_passed",
];

/// `struct table` up to its label: a u16 a slot, and padding.
pub const TABLE_SLOT_BYTES: usize = (TABLE_SLOTS as usize + 1) * size_of::<u16>();
/// The size of `struct table`.
pub const TABLE_BYTES: usize = TABLE_SLOT_BYTES + size_of::<TableLabel>();

pub const TARGET_IN_TABLE: u8 = 1;
pub const TARGET_HAS_MAC: u8 = 2;

/// The first of all hosts' source ports.
pub const FIRST_SOURCE_PORT: u16 = 16_384;

pub const PROBE_MAGIC: u32 = 0x464c_5042;
pub const PROBE_REQUEST: u32 = 1;
pub const PROBE_ANSWER: u32 = 2;

pub fn address_to_net(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

pub fn address_from_net(address: u32) -> Ipv4Addr {
    Ipv4Addr::from(address.to_ne_bytes())
}
