//! Tables.

use crate::data_types::Family;
use crate::uapi::{NFTA_TABLE_FLAGS, NFTA_TABLE_HANDLE, NFTA_TABLE_NAME, NFTA_TABLE_USERDATA};
use crate::userdata;
use crate::wire::{Message, Writer, be32, be64, name};

/// Names a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableRef<'a> {
    /// Its family.
    pub family: Family,
    /// Its name, unique within the family.
    pub name: &'a str,
}

impl<'a> TableRef<'a> {
    /// Names the table `name` of `family`.
    pub const fn new(family: Family, name: &'a str) -> Self {
        Self { family, name }
    }
}

/// A table: a namespace for chains and sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// [`Table::DORMANT`], [`Table::OWNER`], [`Table::PERSIST`], or-ed.
    pub flags: u32,
    /// Shown by `nft`.
    pub comment: Option<String>,
}

impl Table {
    /// The table's base chains see no packets.
    pub const DORMANT: u32 = 1;
    /// Only the socket that created the table may change it, and it goes with the
    /// socket (Linux 5.12).
    pub const OWNER: u32 = 2;
    /// An owned table outlives its owner (Linux 6.9).
    pub const PERSIST: u32 = 4;

    /// A table without flags and comment.
    pub fn new(family: Family, name: &str) -> Self {
        Self { family, name: name.to_owned(), flags: 0, comment: None }
    }

    /// The table's name.
    pub fn id(&self) -> TableRef<'_> {
        TableRef::new(self.family, &self.name)
    }

    pub(crate) fn encode(&self, w: &mut Writer) {
        w.name(NFTA_TABLE_NAME, &self.name);
        w.u32(NFTA_TABLE_FLAGS, self.flags);
        if let Some(comment) = &self.comment {
            userdata::encode_comment(NFTA_TABLE_USERDATA, comment, w);
        }
    }

    pub(crate) fn decode(message: &Message<'_>) -> Option<Listed<Self>> {
        let (mut table, mut handle) = (Self::new(Family::from_number(message.family())?, ""), 0);
        for (kind, value) in message.attrs() {
            match kind {
                NFTA_TABLE_NAME => table.name = name(value)?.to_owned(),
                NFTA_TABLE_FLAGS => table.flags = be32(value)?,
                NFTA_TABLE_HANDLE => handle = be64(value)?,
                NFTA_TABLE_USERDATA => table.comment = userdata::decode_comment(value).map(str::to_owned),
                _ => {}
            }
        }
        Some(Listed { family: table.family, table: table.name.clone(), handle, item: table })
    }
}

/// Something that the kernel listed, and where it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed<T> {
    /// Family of the table.
    pub family: Family,
    /// Name of the table.
    pub table: String,
    /// The kernel's number for it, unique within the table and never reused: a table
    /// that was deleted and created anew has another one.
    pub handle: u64,
    /// What it is, equal to what was written.
    pub item: T,
}

impl<T> Listed<T> {
    /// The table that it is in.
    pub fn table(&self) -> TableRef<'_> {
        TableRef::new(self.family, &self.table)
    }
}
