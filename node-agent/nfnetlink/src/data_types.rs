//! The small words of nf_tables: families, registers, values, verdicts.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::uapi::{
    NF_ACCEPT, NF_DROP, NFT_BREAK, NFT_CONTINUE, NFT_DATA_VALUE_MAXLEN, NFT_GOTO, NFT_JUMP, NFT_RETURN,
    NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_VERDICT_CHAIN, NFTA_VERDICT_CODE,
};
use crate::wire::{Attrs, Writer, be32, name};

/// The address family of a table (`NFPROTO_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Family {
    /// IPv4 and IPv6 in one table.
    Inet,
    /// IPv4.
    Ip,
    /// ARP.
    Arp,
    /// Ingress and egress of single devices.
    Netdev,
    /// Bridged frames.
    Bridge,
    /// IPv6.
    Ip6,
}

impl Family {
    const ALL: [(Self, u8, &'static str); 6] = [
        (Self::Inet, 1, "inet"),
        (Self::Ip, 2, "ip"),
        (Self::Arp, 3, "arp"),
        (Self::Netdev, 5, "netdev"),
        (Self::Bridge, 7, "bridge"),
        (Self::Ip6, 10, "ip6"),
    ];

    /// The kernel's number.
    pub fn number(self) -> u8 {
        Self::ALL.iter().find(|entry| entry.0 == self).map_or(0, |entry| entry.1)
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.iter().find(|entry| entry.1 == number).map(|entry| entry.0)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|entry| entry.0 == *self).map_or("?", |entry| entry.2))
    }
}

/// A register of the rule machine: sixteen 4-byte words, which the kernel also
/// addresses as four 16-byte registers. A value longer than a word occupies the words
/// that follow; each field of a concatenation starts at a word.
///
/// The kernel names the first word of a 16-byte register by the register's old number
/// when it lists rules, and so does the encoding here: `Reg::R32_00 == Reg::R1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reg(u8);

impl Reg {
    /// First 16-byte register, `NFT_REG_1`.
    pub const R1: Self = Self(0);
    /// `NFT_REG_2`.
    pub const R2: Self = Self(4);
    /// `NFT_REG_3`.
    pub const R3: Self = Self(8);
    /// `NFT_REG_4`.
    pub const R4: Self = Self(12);
    /// First word, `NFT_REG32_00`; the others follow.
    pub const R32_00: Self = Self(0);
    /// `NFT_REG32_01`, which `nft` calls reg 9.
    pub const R32_01: Self = Self(1);
    /// `NFT_REG32_02`.
    pub const R32_02: Self = Self(2);
    /// `NFT_REG32_03`.
    pub const R32_03: Self = Self(3);
    /// `NFT_REG32_04`.
    pub const R32_04: Self = Self(4);
    /// `NFT_REG32_05`.
    pub const R32_05: Self = Self(5);
    /// `NFT_REG32_06`.
    pub const R32_06: Self = Self(6);
    /// `NFT_REG32_07`.
    pub const R32_07: Self = Self(7);
    /// `NFT_REG32_08`.
    pub const R32_08: Self = Self(8);
    /// `NFT_REG32_09`.
    pub const R32_09: Self = Self(9);
    /// `NFT_REG32_10`.
    pub const R32_10: Self = Self(10);
    /// `NFT_REG32_11`.
    pub const R32_11: Self = Self(11);
    /// `NFT_REG32_12`.
    pub const R32_12: Self = Self(12);
    /// `NFT_REG32_13`.
    pub const R32_13: Self = Self(13);
    /// `NFT_REG32_14`.
    pub const R32_14: Self = Self(14);
    /// `NFT_REG32_15`.
    pub const R32_15: Self = Self(15);

    /// The register that ends the rule: the target of a lookup in a map of verdicts.
    pub const VERDICT: Self = Self(u8::MAX);

    /// The word `index`, 0 to 15.
    pub const fn word(index: u8) -> Option<Self> {
        if index < 16 { Some(Self(index)) } else { None }
    }

    /// The register that follows a value of `bytes` which starts here: where the next
    /// field of a concatenation goes.
    pub const fn after(self, bytes: usize) -> Option<Self> {
        let index = self.0 as usize + bytes.div_ceil(4);
        if index < 16 { Some(Self(index as u8)) } else { None }
    }

    /// The kernel's number (`enum nft_registers`).
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::VERDICT => 0,
            Self(index) if index % 4 == 0 => u32::from(index) / 4 + 1,
            Self(index) => u32::from(index) + 8,
        }
    }

    pub(crate) fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::VERDICT),
            1..=4 => Some(Self((number as u8 - 1) * 4)),
            8..=23 => Some(Self(number as u8 - 8)),
            _ => None,
        }
    }

    pub(crate) fn read(payload: &[u8]) -> Option<Self> {
        Self::from_number(be32(payload)?)
    }
}

/// Up to 64 bytes as they lie in registers: the key or datum of a set element, the
/// operand of a comparison. The builder methods append a field of a concatenation,
/// each padded to a whole word; a lone field is padded only when another follows.
///
/// ```
/// use nfnetlink::Value;
/// let key = Value::new().ipv4([10, 0, 0, 1].into()).u8(6).port(80);
/// assert_eq!(key.bytes(), [10, 0, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0]);
/// assert_eq!(Value::new().port(80).bytes(), [0, 80]);
/// ```
#[derive(Clone, Copy)]
pub struct Value {
    bytes: [u8; NFT_DATA_VALUE_MAXLEN],
    length: u8,
    /// A second field was appended, so the last one is padded too.
    fields: u8,
}

impl Value {
    /// The empty value.
    pub const fn new() -> Self {
        Self { bytes: [0; NFT_DATA_VALUE_MAXLEN], length: 0, fields: 0 }
    }

    /// A value of exactly these bytes; `None` if there are more than 64.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut value = Self::new();
        value.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        value.length = bytes.len() as u8;
        value.fields = 1;
        Some(value)
    }

    /// Appends an IPv4 address.
    #[must_use]
    pub fn ipv4(self, address: Ipv4Addr) -> Self {
        self.field(&address.octets())
    }

    /// Appends an IPv6 address.
    #[must_use]
    pub fn ipv6(self, address: Ipv6Addr) -> Self {
        self.field(&address.octets())
    }

    /// Appends an address of either family.
    #[must_use]
    pub fn ip(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => self.ipv4(address),
            IpAddr::V6(address) => self.ipv6(address),
        }
    }

    /// Appends a byte, such as an IP protocol number.
    #[must_use]
    pub fn u8(self, number: u8) -> Self {
        self.field(&[number])
    }

    /// Appends a port (network byte order).
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.field(&port.to_be_bytes())
    }

    /// Appends a 32-bit integer in host byte order: marks, numgen results, ct state.
    #[must_use]
    pub fn u32(self, number: u32) -> Self {
        self.field(&number.to_ne_bytes())
    }

    /// Appends a field of the given bytes.
    ///
    /// # Panics
    /// If the value would exceed 64 bytes, the most that the kernel's registers hold.
    #[must_use]
    pub fn field(mut self, bytes: &[u8]) -> Self {
        let start = (self.length as usize).next_multiple_of(4);
        let end = start + bytes.len();
        assert!(end <= NFT_DATA_VALUE_MAXLEN, "a value of {end} bytes does not fit into the registers");
        self.bytes[start..end].copy_from_slice(bytes);
        self.fields = self.fields.saturating_add(1);
        let end = if self.fields > 1 { end.next_multiple_of(4) } else { end };
        self.length = end as u8;
        self
    }

    /// The bytes, as they travel.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length as usize]
    }
}

impl Default for Value {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl Eq for Value {}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Value {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.bytes().cmp(other.bytes())
    }
}

impl std::hash::Hash for Value {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.bytes().hash(state);
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Leave this hook and go on.
    Accept,
    /// Discard.
    Drop,
    /// Go on with the next rule.
    Continue,
    /// Stop evaluating this rule.
    Break,
    /// Return to the calling chain.
    Return,
    /// Evaluate the chain, then come back.
    Jump(String),
    /// Evaluate the chain and do not come back.
    Goto(String),
}

impl Verdict {
    fn code(&self) -> i32 {
        match self {
            Self::Accept => NF_ACCEPT,
            Self::Drop => NF_DROP,
            Self::Continue => NFT_CONTINUE,
            Self::Break => NFT_BREAK,
            Self::Return => NFT_RETURN,
            Self::Jump(_) => NFT_JUMP,
            Self::Goto(_) => NFT_GOTO,
        }
    }

    /// Writes the attribute `kind` with `NFTA_DATA_VERDICT` inside.
    pub(crate) fn encode(&self, kind: u16, w: &mut Writer) {
        w.nest(kind, |w| {
            w.nest(NFTA_DATA_VERDICT, |w| {
                w.attr(NFTA_VERDICT_CODE, &self.code().to_be_bytes());
                if let Self::Jump(chain) | Self::Goto(chain) = self {
                    w.name(NFTA_VERDICT_CHAIN, chain);
                }
            });
        });
    }

    /// Reads the contents of `NFTA_DATA_VERDICT`. Verdicts that we never write (queue)
    /// read as none.
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let (mut code, mut chain) = (None, None);
        for (kind, value) in Attrs::new(payload) {
            match kind {
                NFTA_VERDICT_CODE => code = Some(be32(value)? as i32),
                NFTA_VERDICT_CHAIN => chain = Some(name(value)?.to_owned()),
                _ => {}
            }
        }
        match code? {
            NF_ACCEPT => Some(Self::Accept),
            NF_DROP => Some(Self::Drop),
            NFT_CONTINUE => Some(Self::Continue),
            NFT_BREAK => Some(Self::Break),
            NFT_RETURN => Some(Self::Return),
            NFT_JUMP => Some(Self::Jump(chain?)),
            NFT_GOTO => Some(Self::Goto(chain?)),
            _ => None,
        }
    }
}

/// Writes the attribute `kind` with `NFTA_DATA_VALUE` inside.
pub(crate) fn encode_value(kind: u16, value: &[u8], w: &mut Writer) {
    w.nest(kind, |w| w.attr(NFTA_DATA_VALUE, value));
}

/// Reads the bytes in a nest with `NFTA_DATA_VALUE` inside.
pub(crate) fn decode_bytes(payload: &[u8]) -> Option<&[u8]> {
    Attrs::new(payload).find(|(kind, _)| *kind == NFTA_DATA_VALUE).map(|(_, value)| value)
}

/// As [`decode_bytes`], as a value.
pub(crate) fn decode_value(payload: &[u8]) -> Option<Value> {
    Value::from_bytes(decode_bytes(payload)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_use_the_numbers_the_kernel_lists() {
        for (index, number) in [(0, 1), (1, 9), (2, 10), (3, 11), (4, 2), (8, 3), (12, 4), (15, 23)] {
            let register = Reg::word(index).unwrap();
            assert_eq!(register.number(), number);
            assert_eq!(Reg::from_number(number), Some(register));
            assert_eq!(
                Reg::from_number(u32::from(index) + 8),
                Some(register),
                "either name reads as the word"
            );
        }
        assert_eq!((Reg::VERDICT.number(), Reg::from_number(0)), (0, Some(Reg::VERDICT)));
        assert_eq!(Reg::VERDICT.after(4), None);
        for number in [5, 6, 7, 24, u32::MAX] {
            assert_eq!(Reg::from_number(number), None);
        }
    }

    #[test]
    fn the_next_field_of_a_concatenation_starts_at_a_word() {
        assert_eq!(Reg::R1.after(4), Some(Reg::R32_01));
        assert_eq!(Reg::R32_01.after(1), Some(Reg::R32_02));
        assert_eq!(Reg::R1.after(16), Some(Reg::R2));
        assert_eq!(Reg::R32_15.after(4), None);
    }

    #[test]
    fn every_field_of_a_concatenation_is_padded() {
        let cases: [(Value, &[u8]); 4] = [
            (Value::new().u8(6), &[6]),
            (Value::new().u8(6).port(80), &[6, 0, 0, 0, 0, 80, 0, 0]),
            (Value::new().port(80).u8(6), &[0, 80, 0, 0, 6, 0, 0, 0]),
            (Value::new().ipv4([1, 2, 3, 4].into()), &[1, 2, 3, 4]),
        ];
        for (value, bytes) in cases {
            assert_eq!(value.bytes(), bytes);
        }
        assert_eq!(Value::from_bytes(&[0; 65]), None);
    }

    #[test]
    fn families_have_the_kernels_numbers_and_nfts_names() {
        for (family, number, text) in Family::ALL {
            assert_eq!((family.number(), family.to_string().as_str()), (number, text));
            assert_eq!(Family::from_number(number), Some(family));
        }
        assert_eq!(Family::from_number(0), None);
    }
}
