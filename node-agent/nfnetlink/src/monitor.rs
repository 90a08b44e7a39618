//! Notifications: who changed what in the ruleset of a network namespace.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::data_types::Family;
use crate::dump::Generation;
use crate::error::{Error, Result};
use crate::socket::{force_buffer, open, receive, set_option};
use crate::uapi::*;
use crate::wire::{Message, Messages, name};

const DATAGRAM: usize = 256 << 10;
const RECEIVE_BUFFER: usize = 4 << 20;

/// What kind of thing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum ObjectKind {
    Table,
    Chain,
    Rule,
    Set,
    Element,
    /// A named counter, quota, …, or a flowtable.
    Other,
}

/// Whether it came, or changed, or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// It was added or changed.
    New,
    /// It was deleted.
    Deleted,
}

/// Something that happened to the ruleset. The changes of a commit come before its
/// generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A commit is complete.
    Generation(Generation),
    /// Things of a kind came or went in a table. Repetitions in a row are left out.
    Object {
        /// Which.
        change: Change,
        /// Of what.
        kind: ObjectKind,
        /// The table's family.
        family: Family,
        /// The table's name.
        table: String,
    },
    /// The receive buffer overflowed: an unknown number of events is missing (ENOBUFS).
    Overrun,
}

/// A non-blocking socket that receives the notifications of the network namespace in
/// which it was opened.
///
/// The kernel builds notifications only while somebody listens, which makes large
/// commits two to eight times as slow: [leave](Monitor::leave) around one's own.
#[derive(Debug)]
pub struct Monitor {
    fd: OwnedFd,
    datagram: Vec<u8>,
}

impl Monitor {
    /// Opens a socket and joins the group.
    pub fn open() -> Result<Self> {
        let monitor = Self::apart()?;
        monitor.join()?;
        Ok(monitor)
    }

    /// One that receives nothing before it [joins](Monitor::join).
    pub(crate) fn apart() -> Result<Self> {
        let fd = open(libc::NETLINK_NETFILTER, libc::SOCK_NONBLOCK)?;
        force_buffer(&fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BUFFER)?;
        Ok(Self { fd, datagram: vec![0; DATAGRAM] })
    }

    /// Begins to receive.
    pub fn join(&self) -> Result<()> {
        set_option(&self.fd, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES as libc::c_int)
    }

    /// Stops receiving. What has already come can still be read.
    pub fn leave(&self) -> Result<()> {
        set_option(
            &self.fd,
            libc::SOL_NETLINK,
            libc::NETLINK_DROP_MEMBERSHIP,
            NFNLGRP_NFTABLES as libc::c_int,
        )
    }

    /// Appends the events of one datagram; `WouldBlock` if there is none now, as
    /// `AsyncFd::try_io` wants it. An overflow is an event, not an error.
    pub fn receive(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        match receive(&self.fd, &mut self.datagram, libc::MSG_DONTWAIT) {
            Ok(Some(length)) => {
                for event in Messages::new(&self.datagram[..length]).filter_map(|message| decode(&message)) {
                    if events.last() != Some(&event) {
                        events.push(event);
                    }
                }
                Ok(())
            }
            Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
            Err(Error::Overrun) => {
                events.push(Event::Overrun);
                Ok(())
            }
            Err(Error::Os { source, .. }) => Err(source),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Throws away what has come so far.
    pub fn drain(&mut self) -> io::Result<()> {
        let mut events = Vec::new();
        loop {
            match self.receive(&mut events) {
                Ok(()) => events.clear(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::os::fd::AsRawFd for Monitor {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

pub(crate) fn decode(message: &Message<'_>) -> Option<Event> {
    let operation = message.operation()?;
    if operation == NFT_MSG_NEWGEN {
        return Generation::decode(message).map(Event::Generation);
    }
    let (change, kind) = match operation {
        NFT_MSG_NEWTABLE => (Change::New, ObjectKind::Table),
        NFT_MSG_DELTABLE => (Change::Deleted, ObjectKind::Table),
        NFT_MSG_NEWCHAIN => (Change::New, ObjectKind::Chain),
        NFT_MSG_DELCHAIN => (Change::Deleted, ObjectKind::Chain),
        NFT_MSG_NEWRULE => (Change::New, ObjectKind::Rule),
        NFT_MSG_DELRULE => (Change::Deleted, ObjectKind::Rule),
        NFT_MSG_NEWSET => (Change::New, ObjectKind::Set),
        NFT_MSG_DELSET => (Change::Deleted, ObjectKind::Set),
        NFT_MSG_NEWSETELEM => (Change::New, ObjectKind::Element),
        NFT_MSG_DELSETELEM => (Change::Deleted, ObjectKind::Element),
        NFT_MSG_NEWOBJ | NFT_MSG_NEWFLOWTABLE => (Change::New, ObjectKind::Other),
        NFT_MSG_DELOBJ | NFT_MSG_DELFLOWTABLE => (Change::Deleted, ObjectKind::Other),
        _ => return None,
    };
    // The table's name is attribute 1 of every kind of message.
    let (_, table) = message.attrs().find(|(kind, _)| *kind == NFTA_TABLE_NAME)?;
    let family = Family::from_number(message.family())?;
    Some(Event::Object { change, kind, family, table: name(table)?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn arbitrary_notifications_are_read_without_panic(operation in 0_u16..30, body in proptest::collection::vec(any::<u8>(), 0..80)) {
            decode(&Message { kind: NFNL_SUBSYS_NFTABLES << 8 | operation, flags: 0, sequence: 0, body: &body });
        }
    }
}
