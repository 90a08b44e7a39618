//! User data: bytes that the kernel keeps for its clients, in the layout of `nft`
//! (libnftnl `udata.h`): a list of (type u8, length u8, value), unpadded, integers in
//! host byte order. `nft` reads comments from them, and how to print the keys of a set.

use crate::expr::NumgenKind;
use crate::field::{Field, MapData, Origin};
use crate::uapi::NFT_USERDATA_MAXLEN;
use crate::wire::Writer;

/// Type of a comment on a table, chain, rule or set element; 0 for all of them.
const COMMENT: u8 = 0;

/// Longest comment in bytes that fits; `nft` itself accepts 128 as input.
pub const COMMENT_MAX: usize = NFT_USERDATA_MAXLEN - 3;

const SET_KEYBYTEORDER: u8 = 0;
const SET_DATABYTEORDER: u8 = 1;
const SET_KEY_TYPEOF: u8 = 3;
const SET_DATA_TYPEOF: u8 = 4;
const SET_DATA_INTERVAL: u8 = 6;
const SET_COMMENT: u8 = 7;
const TYPEOF_EXPR: u8 = 0;
const TYPEOF_DATA: u8 = 1;

const BYTEORDER_NONE: u32 = 0;

/// `enum expr_types` of nft.
const EXPR_VERDICT: u32 = 1;
const EXPR_PAYLOAD: u32 = 7;
const EXPR_META: u32 = 9;
const EXPR_CONCAT: u32 = 13;
const EXPR_NUMGEN: u32 = 23;

/// Writes `comment` as the attribute `kind`.
pub(crate) fn encode_comment(kind: u16, comment: &str, w: &mut Writer) {
    let mut bytes = [0; NFT_USERDATA_MAXLEN];
    match comment_into(COMMENT, comment, &mut bytes) {
        Ok(length) => w.attr(kind, &bytes[..length]),
        Err(why) => w.set_fault(why),
    }
}

fn comment_into(
    kind: u8,
    comment: &str,
    bytes: &mut [u8; NFT_USERDATA_MAXLEN],
) -> Result<usize, &'static str> {
    if comment.len() > COMMENT_MAX {
        return Err("a comment is longer than 253 bytes");
    }
    if comment.bytes().any(|byte| byte == 0) {
        return Err("a comment contains a NUL byte");
    }
    bytes[0] = kind;
    bytes[1] = comment.len() as u8 + 1;
    bytes[2..2 + comment.len()].copy_from_slice(comment.as_bytes());
    Ok(comment.len() + 3)
}

/// Reads the comment of a table, chain, rule or element.
pub(crate) fn decode_comment(payload: &[u8]) -> Option<&str> {
    text(find(payload, COMMENT)?)
}

/// Writes what `nft` wants to know of a set as the attribute `kind`.
pub(crate) fn encode_set(
    kind: u16,
    key: &[Field],
    data: Option<&MapData>,
    comment: Option<&str>,
    w: &mut Writer,
) {
    let mut out = Vec::with_capacity(NFT_USERDATA_MAXLEN);
    number(&mut out, SET_KEYBYTEORDER, byteorder(key));
    match data {
        Some(MapData::Fields(fields)) => number(&mut out, SET_DATABYTEORDER, byteorder(fields)),
        Some(MapData::Verdict) => number(&mut out, SET_DATABYTEORDER, BYTEORDER_NONE),
        None => {}
    }
    let data_has_origin = match data {
        Some(MapData::Fields(fields)) => fields.iter().all(|field| field.origin.is_some()),
        Some(MapData::Verdict) | None => true,
    };
    if data_has_origin && key.iter().all(|field| field.origin.is_some()) {
        nest(&mut out, SET_KEY_TYPEOF, |out| encode_typeof(key, out));
        match data {
            Some(MapData::Fields(fields)) => {
                nest(&mut out, SET_DATA_TYPEOF, |out| encode_typeof(fields, out));
            }
            Some(MapData::Verdict) => nest(&mut out, SET_DATA_TYPEOF, |out| {
                number(out, TYPEOF_EXPR, EXPR_VERDICT);
                nest(out, TYPEOF_DATA, |_| {});
            }),
            None => {}
        }
    }
    if data.is_some() {
        number(&mut out, SET_DATA_INTERVAL, 0);
    }
    if let Some(comment) = comment {
        let mut bytes = [0; NFT_USERDATA_MAXLEN];
        match comment_into(SET_COMMENT, comment, &mut bytes) {
            Ok(length) => out.extend_from_slice(&bytes[..length]),
            Err(why) => w.set_fault(why),
        }
    }
    if out.len() > NFT_USERDATA_MAXLEN {
        w.set_fault("a set's key, data and comment need more than 256 bytes of user data");
    }
    w.attr(kind, &out);
}

/// What a set's user data tells beyond the kernel's own attributes.
#[derive(Debug, Default)]
pub(crate) struct SetUserdata {
    /// Where the key's fields come from; empty if unknown.
    pub(crate) key: Vec<Origin>,
    pub(crate) data: Vec<Origin>,
    pub(crate) comment: Option<String>,
}

pub(crate) fn decode_set(payload: &[u8]) -> SetUserdata {
    SetUserdata {
        key: find(payload, SET_KEY_TYPEOF).and_then(decode_typeof).unwrap_or_default(),
        data: find(payload, SET_DATA_TYPEOF).and_then(decode_typeof).unwrap_or_default(),
        comment: find(payload, SET_COMMENT).and_then(text).map(str::to_owned),
    }
}

/// A lone field has its own byte order, a concatenation none.
fn byteorder(fields: &[Field]) -> u32 {
    match fields {
        [field] => field.byteorder(),
        _ => BYTEORDER_NONE,
    }
}

fn encode_typeof(fields: &[Field], out: &mut Vec<u8>) {
    let origins: Vec<Origin> = fields.iter().filter_map(|field| field.origin).collect();
    if let [origin] = origins[..] {
        return encode_origin(origin, out);
    }
    number(out, TYPEOF_EXPR, EXPR_CONCAT);
    nest(out, TYPEOF_DATA, |out| {
        for (index, origin) in origins.into_iter().enumerate() {
            nest(out, index as u8, |out| encode_origin(origin, out));
        }
    });
}

fn encode_origin(origin: Origin, out: &mut Vec<u8>) {
    let (expr, words): (u32, [Option<u32>; 3]) = match origin {
        Origin::Payload { header, field } => (EXPR_PAYLOAD, [Some(header), Some(field), None]),
        Origin::Meta { key } => (EXPR_META, [Some(key), None, None]),
        Origin::Numgen { kind, modulus, offset } => {
            (EXPR_NUMGEN, [Some(kind.number()), Some(modulus), Some(offset)])
        }
    };
    number(out, TYPEOF_EXPR, expr);
    nest(out, TYPEOF_DATA, |out| {
        for (index, word) in words.into_iter().flatten().enumerate() {
            number(out, index as u8, word);
        }
    });
}

/// At most one level of nesting, whatever the bytes say.
fn decode_typeof(payload: &[u8]) -> Option<Vec<Origin>> {
    if find_number(payload, TYPEOF_EXPR)? == EXPR_CONCAT {
        return entries(find(payload, TYPEOF_DATA)?).map(|(_, field)| decode_origin(field)).collect();
    }
    Some(vec![decode_origin(payload)?])
}

fn decode_origin(payload: &[u8]) -> Option<Origin> {
    let data = find(payload, TYPEOF_DATA)?;
    match find_number(payload, TYPEOF_EXPR)? {
        EXPR_PAYLOAD => Some(Origin::Payload { header: find_number(data, 0)?, field: find_number(data, 1)? }),
        EXPR_META => Some(Origin::Meta { key: find_number(data, 0)? }),
        EXPR_NUMGEN => Some(Origin::Numgen {
            kind: NumgenKind::from_number(find_number(data, 0)?)?,
            modulus: find_number(data, 1)?,
            offset: find_number(data, 2)?,
        }),
        _ => None,
    }
}

fn number(out: &mut Vec<u8>, kind: u8, value: u32) {
    out.extend_from_slice(&[kind, 4]);
    out.extend_from_slice(&value.to_ne_bytes());
}

/// A length over 255 wraps; the whole is then over 256 bytes, which the caller rejects.
fn nest(out: &mut Vec<u8>, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[kind, 0]);
    fill(out);
    out[start + 1] = (out.len() - start - 2) as u8;
}

/// The (type, value) pairs in the bytes, as far as they are well-formed.
fn entries(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (kind, length) = (*bytes.first()?, usize::from(*bytes.get(1)?));
        let value = bytes.get(2..2 + length)?;
        bytes = &bytes[2 + length..];
        Some((kind, value))
    })
}

fn find(bytes: &[u8], wanted: u8) -> Option<&[u8]> {
    entries(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn find_number(bytes: &[u8], wanted: u8) -> Option<u32> {
    Some(u32::from_ne_bytes(find(bytes, wanted)?.try_into().ok()?))
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.strip_suffix(&[0])?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_comment_is_laid_out_as_nft_does_it() {
        let mut w = Writer::default();
        encode_comment(6, "ns/a:p", &mut w);
        assert_eq!(&w.buffer[4..], b"\x00\x07ns/a:p\0\0\0\0");
        assert_eq!(decode_comment(&w.buffer[4..]), Some("ns/a:p"));
    }

    #[test]
    fn a_comment_that_does_not_fit_is_refused() {
        for (comment, fits) in [("x".repeat(253), true), ("x".repeat(254), false), ("a\0b".into(), false)] {
            let mut w = Writer::default();
            encode_comment(6, &comment, &mut w);
            assert_eq!(w.take_fault().is_none(), fits);
        }
    }

    /// Captured from `nft --debug=mnl` 1.0.6 for
    /// `map eps { typeof ip daddr . meta l4proto . th dport . numgen random mod 65536 : ip daddr . th dport; comment "hello"; }`.
    #[cfg(target_endian = "little")]
    const ENDPOINTS: &str = "\
        000400000000010400000000036000040d00000001580014000407000000010c00040c0000000104\
        0c000000010e00040900000001060004100000000214000407000000010c00040b00000001040200\
        0000031a0004170000000112000401000000010400000100020400000000043400040d000000012c\
        0014000407000000010c00040c00000001040c0000000114000407000000010c00040b0000000104\
        02000000060400000000070668656c6c6f00";

    #[test]
    #[cfg(target_endian = "little")]
    fn a_map_is_described_as_nft_does_it() {
        let key = [Field::IP_DADDR, Field::L4PROTO, Field::TH_DPORT, Field::random(65536)];
        let data = MapData::Fields(vec![Field::IP_DADDR, Field::TH_DPORT]);
        let mut w = Writer::default();
        encode_set(13, &key, Some(&data), Some("hello"), &mut w);
        let hex: String = w.buffer[4..182].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, ENDPOINTS);

        let told = decode_set(&w.buffer[4..182]);
        assert_eq!(told.key, key.map(|field| field.origin.unwrap()));
        assert_eq!(told.data.len(), 2);
        assert_eq!(told.comment.as_deref(), Some("hello"));
    }

    #[test]
    fn a_set_whose_description_does_not_fit_is_refused() {
        let key = [Field::IP6_DADDR, Field::L4PROTO, Field::TH_DPORT];
        for (length, fits) in [(100, true), (253, false)] {
            let mut w = Writer::default();
            encode_set(13, &key, None, Some(&"c".repeat(length)), &mut w);
            assert_eq!(w.take_fault().is_none(), fits, "{length}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            decode_set(&bytes);
            decode_comment(&bytes);
        }
    }
}
