//! What a set's key, and a map's datum, is made of.
//!
//! Each is a concatenation of [`Field`]s. The kernel knows only its length; how `nft` prints it is
//! told by a type number and, in user data, by the expressions that the fields come from (`typeof`).

use crate::data_types::Family;
use crate::expr::NumgenKind;
use crate::uapi::NFT_DATA_VALUE_MAXLEN;
use crate::wire::Writer;

/// Bits of one type number within a concatenation's.
const TYPE_BITS: u32 = 6;
/// As many type numbers as fit into 32 bits.
const MAX_FIELDS: usize = 5;

/// The type of a field, by the numbers of `nft` (`enum datatypes`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DataType {
    /// A 32-bit number, host byte order: what numgen loads.
    Integer,
    /// `ipv4_addr`.
    Ipv4Addr,
    /// `ipv6_addr`.
    Ipv6Addr,
    /// `inet_proto`, one byte.
    InetProto,
    /// `inet_service`, a port.
    InetService,
    /// `mark`, 32 bits, host byte order.
    Mark,
    /// A type that this library does not write; met in dumps.
    Other(u8),
}

impl DataType {
    /// (type, number, bytes, byte order as in nft's `enum byteorder`)
    const ALL: [(Self, u8, usize, u32); 6] = [
        (Self::Integer, 4, 4, Self::HOST),
        (Self::Ipv4Addr, 7, 4, Self::BIG_ENDIAN),
        (Self::Ipv6Addr, 8, 16, Self::BIG_ENDIAN),
        (Self::InetProto, 12, 1, Self::BIG_ENDIAN),
        (Self::InetService, 13, 2, Self::BIG_ENDIAN),
        (Self::Mark, 19, 4, Self::HOST),
    ];
    const HOST: u32 = 1;
    const BIG_ENDIAN: u32 = 2;

    fn number(self) -> u8 {
        match self {
            Self::Other(number) => number,
            known => Self::ALL.iter().find(|entry| entry.0 == known).map_or(0, |entry| entry.1),
        }
    }

    fn from_number(number: u8) -> Self {
        Self::ALL.iter().find(|entry| entry.1 == number).map_or(Self::Other(number), |entry| entry.0)
    }

    /// Its length in bytes; 0 if unknown.
    pub fn bytes(self) -> usize {
        Self::ALL.iter().find(|entry| entry.0 == self).map_or(0, |entry| entry.2)
    }
}

/// The expression that a field comes from, which `nft` prints after `typeof`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A header's field, by `nft`'s numbers.
    Payload {
        /// `enum proto_desc_id`.
        header: u32,
        /// The field's number within the header's template.
        field: u32,
    },
    /// A property of the packet.
    Meta {
        /// `NFT_META_*`.
        key: u32,
    },
    /// A number generator; the modulus says which numbers occur.
    Numgen {
        /// How.
        kind: NumgenKind,
        /// How many.
        modulus: u32,
        /// From where.
        offset: u32,
    },
}

/// One field of a key or datum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Field {
    /// Its type.
    pub kind: DataType,
    /// Where it comes from. `nft` prints `typeof` if every field of key and datum has
    /// one, `type` otherwise; and it has no `type` for [`DataType::Integer`].
    pub origin: Option<Origin>,
}

impl Field {
    /// `ip saddr`
    pub const IP_SADDR: Self = Self::payload(DataType::Ipv4Addr, Self::IP, 11);
    /// `ip daddr`
    pub const IP_DADDR: Self = Self::payload(DataType::Ipv4Addr, Self::IP, 12);
    /// `ip6 saddr`
    pub const IP6_SADDR: Self = Self::payload(DataType::Ipv6Addr, Self::IP6, 8);
    /// `ip6 daddr`
    pub const IP6_DADDR: Self = Self::payload(DataType::Ipv6Addr, Self::IP6, 9);
    /// `th sport`
    pub const TH_SPORT: Self = Self::payload(DataType::InetService, Self::TH, 1);
    /// `th dport`
    pub const TH_DPORT: Self = Self::payload(DataType::InetService, Self::TH, 2);
    /// `meta l4proto`
    pub const L4PROTO: Self = Self::meta(DataType::InetProto, 16);
    /// `meta mark`
    pub const MARK: Self = Self::meta(DataType::Mark, 3);

    const TH: u32 = 11;
    const IP: u32 = 12;
    const IP6: u32 = 13;

    /// `numgen random mod MODULUS`
    pub const fn random(modulus: u32) -> Self {
        let origin = Origin::Numgen { kind: NumgenKind::Random, modulus, offset: 0 };
        Self { kind: DataType::Integer, origin: Some(origin) }
    }

    /// A field of which only the type is said.
    pub const fn plain(kind: DataType) -> Self {
        Self { kind, origin: None }
    }

    /// The source address field of a family's packets.
    pub fn saddr(family: Family) -> Self {
        if family == Family::Ip6 { Self::IP6_SADDR } else { Self::IP_SADDR }
    }

    /// The destination address field of a family's packets.
    pub fn daddr(family: Family) -> Self {
        if family == Family::Ip6 { Self::IP6_DADDR } else { Self::IP_DADDR }
    }

    const fn payload(kind: DataType, header: u32, field: u32) -> Self {
        Self { kind, origin: Some(Origin::Payload { header, field }) }
    }

    const fn meta(kind: DataType, key: u32) -> Self {
        Self { kind, origin: Some(Origin::Meta { key }) }
    }

    /// As nft's `enum byteorder`: an expression's byte order goes before its type's.
    pub(crate) fn byteorder(&self) -> u32 {
        match self.origin {
            Some(Origin::Payload { .. }) => DataType::BIG_ENDIAN,
            Some(Origin::Meta { .. } | Origin::Numgen { .. }) => DataType::HOST,
            None => DataType::ALL.iter().find(|entry| entry.0 == self.kind).map_or(0, |entry| entry.3),
        }
    }
}

/// What a map's elements carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapData {
    /// A value of these fields.
    Fields(Vec<Field>),
    /// A verdict. Each change makes the kernel check the whole table for loops, in
    /// milliseconds that grow with the table: prefer verdicts in rules.
    Verdict,
}

/// Writes the type and length of a value of these fields: the type numbers in one
/// word, the first field's highest; the bytes with padding if there are several.
pub(crate) fn encode_type(type_attr: u16, length_attr: u16, fields: &[Field], w: &mut Writer) {
    let bytes = match fields {
        [field] => field.kind.bytes(),
        fields => fields.iter().map(|field| field.kind.bytes().next_multiple_of(4)).sum(),
    };
    if fields.is_empty() || fields.len() > MAX_FIELDS {
        w.set_fault("a set's key and data have one to five fields");
    }
    if bytes > NFT_DATA_VALUE_MAXLEN || fields.iter().any(|field| field.kind.bytes() == 0) {
        w.set_fault("a set's key and data are of known types and at most 64 bytes long");
    }
    w.u32(
        type_attr,
        fields.iter().fold(0, |number, field| number << TYPE_BITS | u32::from(field.kind.number())),
    );
    w.u32(length_attr, bytes as u32);
}

/// The fields behind a type number, with what user data tells of them if it agrees.
pub(crate) fn fields(number: u32, origins: &[Origin]) -> Vec<Field> {
    let mask = (1 << TYPE_BITS) - 1;
    let mut numbers: Vec<u32> = (0..MAX_FIELDS as u32)
        .map(|index| number >> (index * TYPE_BITS) & mask)
        .take_while(|number| *number != 0)
        .collect();
    numbers.reverse();
    let origins = if origins.len() == numbers.len() { origins } else { &[] };
    let origin = |index: usize| origins.get(index).copied();
    let kind = |number: u32| DataType::from_number(number as u8);
    numbers
        .into_iter()
        .enumerate()
        .map(|(at, number)| Field { kind: kind(number), origin: origin(at) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expr::MetaKey;

    #[test]
    fn fields_of_packet_properties_use_the_kernels_keys() {
        for (field, key) in [(Field::L4PROTO, MetaKey::L4proto), (Field::MARK, MetaKey::Mark)] {
            assert_eq!(field.origin, Some(Origin::Meta { key: key.number() }));
        }
    }
}
