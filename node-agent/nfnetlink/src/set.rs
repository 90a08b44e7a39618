//! Sets and maps.

use std::time::Duration;

use crate::data_types::Family;
use crate::field::{Field, MapData, encode_type, fields};
use crate::table::Listed;
use crate::uapi::{
    NFT_DATA_VERDICT, NFT_SET_ANONYMOUS, NFT_SET_CONCAT, NFT_SET_CONSTANT, NFT_SET_EVAL, NFT_SET_INTERVAL,
    NFT_SET_MAP, NFT_SET_TIMEOUT, NFTA_LIST_ELEM, NFTA_SET_DATA_LEN, NFTA_SET_DATA_TYPE, NFTA_SET_DESC,
    NFTA_SET_DESC_CONCAT, NFTA_SET_DESC_SIZE, NFTA_SET_FIELD_LEN, NFTA_SET_FLAGS, NFTA_SET_GC_INTERVAL,
    NFTA_SET_HANDLE, NFTA_SET_ID, NFTA_SET_KEY_LEN, NFTA_SET_KEY_TYPE, NFTA_SET_NAME, NFTA_SET_TABLE,
    NFTA_SET_TIMEOUT, NFTA_SET_USERDATA,
};
use crate::userdata;
use crate::wire::{Attrs, Message, Writer, be32, be64, millis, name};

/// A set, or a map if it has data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name, unique within the table.
    pub name: String,
    /// The key; at most 64 bytes in all, each field padded to 4 if there are several.
    pub key: Vec<Field>,
    /// What the elements carry besides.
    pub data: Option<MapData>,
    /// [`Set::CONSTANT`], [`Set::INTERVAL`], [`Set::TIMEOUT`], [`Set::DYNAMIC`], or-ed.
    pub flags: u32,
    /// How long elements live by default.
    pub timeout: Option<Duration>,
    /// How often expired elements are removed, in whole milliseconds; the kernel's choice is a
    /// second. Until then they take room, but match nothing.
    pub gc_interval: Option<Duration>,
    /// The most elements. The kernel sets 65535 for a set that a rule fills
    /// ([`crate::expr::Dynset`]) and that has none: say it, or dumps will differ.
    pub size: Option<u32>,
    /// Shown by `nft`.
    pub comment: Option<String>,
}

impl Set {
    /// Elements never change once the set is used.
    pub const CONSTANT: u32 = NFT_SET_CONSTANT;
    /// Elements are ranges.
    pub const INTERVAL: u32 = NFT_SET_INTERVAL;
    /// Elements expire.
    pub const TIMEOUT: u32 = NFT_SET_TIMEOUT;
    /// Rules add elements.
    pub const DYNAMIC: u32 = NFT_SET_EVAL;

    /// What the kernel's flags say that other members say here.
    const DERIVED: u32 = NFT_SET_MAP | NFT_SET_CONCAT;

    /// A set without flags.
    pub fn new(name: &str, key: impl Into<Vec<Field>>) -> Self {
        Self {
            name: name.to_owned(),
            key: key.into(),
            data: None,
            flags: 0,
            timeout: None,
            gc_interval: None,
            size: None,
            comment: None,
        }
    }

    /// A map to values.
    pub fn map(name: &str, key: impl Into<Vec<Field>>, data: impl Into<Vec<Field>>) -> Self {
        Self { data: Some(MapData::Fields(data.into())), ..Self::new(name, key) }
    }

    /// Whether `nft` calls it anonymous: part of a rule, and gone with it. This library
    /// does not create such sets.
    pub fn is_anonymous(&self) -> bool {
        self.flags & NFT_SET_ANONYMOUS != 0
    }

    /// `id` names the set within its batch; the kernel insists on one.
    pub(crate) fn encode(&self, table: &str, id: u32, w: &mut Writer) {
        let is_interval_concat = self.flags & Self::INTERVAL != 0 && self.key.len() > 1;
        let mut flags = self.flags & !Self::DERIVED;
        if self.data.is_some() {
            flags |= NFT_SET_MAP;
        }
        if is_interval_concat {
            flags |= NFT_SET_CONCAT;
        }
        w.name(NFTA_SET_TABLE, table);
        w.name(NFTA_SET_NAME, &self.name);
        w.u32(NFTA_SET_FLAGS, flags);
        encode_type(NFTA_SET_KEY_TYPE, NFTA_SET_KEY_LEN, &self.key, w);
        match &self.data {
            Some(MapData::Fields(fields)) => encode_type(NFTA_SET_DATA_TYPE, NFTA_SET_DATA_LEN, fields, w),
            Some(MapData::Verdict) => {
                w.u32(NFTA_SET_DATA_TYPE, NFT_DATA_VERDICT);
                w.u32(NFTA_SET_DATA_LEN, 0);
            }
            None => {}
        }
        if self.size.is_some() || is_interval_concat {
            w.nest(NFTA_SET_DESC, |w| {
                if let Some(size) = self.size {
                    w.u32(NFTA_SET_DESC_SIZE, size);
                }
                if is_interval_concat {
                    w.nest(NFTA_SET_DESC_CONCAT, |w| {
                        for field in &self.key {
                            w.nest(NFTA_LIST_ELEM, |w| w.u32(NFTA_SET_FIELD_LEN, field.kind.bytes() as u32));
                        }
                    });
                }
            });
        }
        w.u32(NFTA_SET_ID, id);
        if let Some(timeout) = self.timeout {
            w.u64(NFTA_SET_TIMEOUT, millis(timeout));
        }
        if let Some(interval) = self.gc_interval {
            w.u32(NFTA_SET_GC_INTERVAL, u32::try_from(interval.as_millis()).unwrap_or(u32::MAX));
        }
        userdata::encode_set(NFTA_SET_USERDATA, &self.key, self.data.as_ref(), self.comment.as_deref(), w);
    }

    pub(crate) fn decode(message: &Message<'_>) -> Option<Listed<Self>> {
        let (mut set, mut table, mut handle) = (Self::new("", []), "", 0);
        let (mut key_type, mut data_type) = (0, 0);
        let mut told = userdata::SetUserdata::default();
        for (kind, value) in message.attrs() {
            match kind {
                NFTA_SET_TABLE => table = name(value)?,
                NFTA_SET_NAME => set.name = name(value)?.to_owned(),
                NFTA_SET_HANDLE => handle = be64(value)?,
                NFTA_SET_FLAGS => set.flags = be32(value)?,
                NFTA_SET_KEY_TYPE => key_type = be32(value)?,
                NFTA_SET_DATA_TYPE => data_type = be32(value)?,
                NFTA_SET_TIMEOUT => set.timeout = Some(Duration::from_millis(be64(value)?)),
                NFTA_SET_GC_INTERVAL => {
                    set.gc_interval = Some(Duration::from_millis(be32(value)?.into()));
                }
                NFTA_SET_DESC => {
                    let size = Attrs::new(value).find(|(kind, _)| *kind == NFTA_SET_DESC_SIZE);
                    set.size = size.and_then(|(_, value)| be32(value));
                }
                NFTA_SET_USERDATA => told = userdata::decode_set(value),
                _ => {}
            }
        }
        set.key = fields(key_type, &told.key);
        if set.flags & NFT_SET_MAP != 0 {
            set.data = Some(match data_type {
                NFT_DATA_VERDICT => MapData::Verdict,
                number => MapData::Fields(fields(number, &told.data)),
            });
        }
        set.flags &= !Self::DERIVED;
        set.comment = told.comment;
        let family = Family::from_number(message.family())?;
        Some(Listed { family, table: table.to_owned(), handle, item: set })
    }
}
