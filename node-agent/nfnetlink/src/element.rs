//! Elements of sets and maps.

use std::time::Duration;

use crate::data_types::{Verdict, decode_bytes, encode_value};
use crate::uapi::{
    NFT_SET_ELEM_INTERVAL_END, NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_LIST_ELEM, NFTA_SET_ELEM_DATA,
    NFTA_SET_ELEM_EXPIRATION, NFTA_SET_ELEM_FLAGS, NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_KEY_END,
    NFTA_SET_ELEM_TIMEOUT, NFTA_SET_ELEM_USERDATA,
};
use crate::userdata;
use crate::wire::{Attrs, Writer, be32, be64, millis};

/// An element, borrowed: what a batch writes and what a dump shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Element<'a> {
    /// The key ([`crate::Value::bytes`]).
    pub key: &'a [u8],
    /// The last key of a range, in an interval set with a concatenated key.
    pub key_end: Option<&'a [u8]>,
    /// The element ends a range instead of beginning one: how an interval set with a
    /// single field stores them, first key included, end excluded.
    pub interval_end: bool,
    /// A map's datum. Not needed to delete.
    pub data: Option<ElementData<'a>>,
    /// How long the element lives, if not as long as the set says.
    pub timeout: Option<Duration>,
    /// How long it has left.
    pub expires: Option<Duration>,
    /// Shown by `nft`; at most [`crate::COMMENT_MAX`] bytes.
    pub comment: Option<&'a str>,
}

/// What a map's element carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ElementData<'a> {
    /// A value.
    Value(&'a [u8]),
    /// A verdict.
    Verdict(Verdict),
}

impl<'a> Element<'a> {
    /// An element of a set.
    pub fn key(key: &'a [u8]) -> Self {
        Self { key, ..Self::default() }
    }

    /// An element of a map.
    pub fn pair(key: &'a [u8], data: &'a [u8]) -> Self {
        Self { key, data: Some(ElementData::Value(data)), ..Self::default() }
    }

    /// The element with a comment.
    #[must_use]
    pub fn comment(self, comment: &'a str) -> Self {
        Self { comment: Some(comment), ..self }
    }

    /// A map's datum, if it is a value.
    pub fn value(&self) -> Option<&'a [u8]> {
        match &self.data {
            Some(ElementData::Value(bytes)) => Some(bytes),
            _ => None,
        }
    }

    pub(crate) fn encode(&self, w: &mut Writer) {
        w.nest(NFTA_LIST_ELEM, |w| {
            if self.interval_end {
                w.u32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
            }
            if let Some(timeout) = self.timeout {
                w.u64(NFTA_SET_ELEM_TIMEOUT, millis(timeout));
            }
            if let Some(expires) = self.expires {
                w.u64(NFTA_SET_ELEM_EXPIRATION, millis(expires));
            }
            encode_value(NFTA_SET_ELEM_KEY, self.key, w);
            if let Some(end) = self.key_end {
                encode_value(NFTA_SET_ELEM_KEY_END, end, w);
            }
            match &self.data {
                Some(ElementData::Value(value)) => encode_value(NFTA_SET_ELEM_DATA, value, w),
                Some(ElementData::Verdict(verdict)) => verdict.encode(NFTA_SET_ELEM_DATA, w),
                None => {}
            }
            if let Some(comment) = self.comment {
                userdata::encode_comment(NFTA_SET_ELEM_USERDATA, comment, w);
            }
        });
    }

    /// Reads the contents of a list's entry. Elements without a key (the catch-all)
    /// read as none.
    pub(crate) fn decode(payload: &'a [u8]) -> Option<Self> {
        let mut element = Self::default();
        let mut key = None;
        for (kind, value) in Attrs::new(payload) {
            match kind {
                NFTA_SET_ELEM_KEY => key = decode_bytes(value),
                NFTA_SET_ELEM_KEY_END => element.key_end = decode_bytes(value),
                NFTA_SET_ELEM_FLAGS => element.interval_end = be32(value)? & NFT_SET_ELEM_INTERVAL_END != 0,
                NFTA_SET_ELEM_DATA => element.data = decode_data(value),
                NFTA_SET_ELEM_TIMEOUT => element.timeout = Some(Duration::from_millis(be64(value)?)),
                NFTA_SET_ELEM_EXPIRATION => element.expires = Some(Duration::from_millis(be64(value)?)),
                NFTA_SET_ELEM_USERDATA => element.comment = userdata::decode_comment(value),
                _ => {}
            }
        }
        element.key = key?;
        Some(element)
    }
}

fn decode_data(payload: &[u8]) -> Option<ElementData<'_>> {
    match Attrs::new(payload).next()? {
        (NFTA_DATA_VALUE, value) => Some(ElementData::Value(value)),
        (NFTA_DATA_VERDICT, value) => Verdict::decode(value).map(ElementData::Verdict),
        _ => None,
    }
}
