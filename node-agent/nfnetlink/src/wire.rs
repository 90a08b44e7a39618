//! Netlink framing: messages of attributes, written into one growing buffer and
//! read back as borrowed slices.
//!
//! ```text
//! nlmsghdr (16) | nfgenmsg (4) | attribute | attribute | …      everything padded to 4 bytes
//!                                len u16, type u16, payload (perhaps attributes again)
//! ```
//!
//! Headers are in host byte order, the integers of nf_tables attributes in network
//! byte order. Reading is total: whatever does not fit its frame ends the iteration.

use std::time::Duration;

use crate::uapi::{NAME_MAX, NLA_F_NESTED, NLA_TYPE_MASK};

pub(crate) const NLMSG_HEADER: usize = 16;
const NFGEN_HEADER: usize = 4;
const NLA_HEADER: usize = 4;
/// `struct ifinfomsg`
pub(crate) const IFINFO_HEADER: usize = 16;
/// `struct genlmsghdr`
pub(crate) const GENERIC_HEADER: usize = 4;
/// Of every family that is asked here.
const GENERIC_VERSION: u8 = 1;

/// Rounds up to the next multiple of four.
pub(crate) const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// Appends messages and attributes to a buffer.
///
/// What cannot be represented (an attribute over 64 KiB, a name with a NUL) is
/// remembered as the writer's fault rather than returned from every call; whoever
/// sends the buffer asks for it first.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pub(crate) buffer: Vec<u8>,
    fault: Option<&'static str>,
}

/// Where a nested attribute or a message begins, so that its length can be filled in.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub(crate) struct Open(usize);

impl Writer {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { buffer: Vec::with_capacity(bytes), fault: None }
    }

    /// Why the buffer must not be sent, once.
    pub(crate) fn take_fault(&mut self) -> Option<&'static str> {
        self.fault.take()
    }

    pub(crate) fn set_fault(&mut self, why: &'static str) {
        self.fault.get_or_insert(why);
    }

    /// Starts a message; `resource` is `nfgenmsg.res_id`.
    pub(crate) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        family: u8,
        resource: u16,
    ) -> Open {
        let open = self.open_message(kind, flags, sequence);
        self.buffer.extend_from_slice(&[family, 0]);
        self.buffer.extend_from_slice(&resource.to_be_bytes());
        open
    }

    /// Starts a message to a family of generic netlink.
    pub(crate) fn generic_message(&mut self, family: u16, flags: u16, sequence: u32, command: u8) -> Open {
        let open = self.open_message(family, flags, sequence);
        self.buffer.extend_from_slice(&[command, GENERIC_VERSION, 0, 0]);
        open
    }

    /// Starts a message about an interface that is named by its attributes.
    pub(crate) fn link_message(&mut self, kind: u16, flags: u16, sequence: u32) -> Open {
        let open = self.open_message(kind, flags, sequence);
        self.buffer.extend_from_slice(&[0; IFINFO_HEADER]);
        open
    }

    fn open_message(&mut self, kind: u16, flags: u16, sequence: u32) -> Open {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(&flags.to_ne_bytes());
        self.buffer.extend_from_slice(&sequence.to_ne_bytes());
        self.buffer.extend_from_slice(&[0; 4]);
        Open(start)
    }

    /// Fills in a message's length. May be called again after more was appended.
    pub(crate) fn close_message(&mut self, open: Open) {
        match u32::try_from(self.buffer.len() - open.0) {
            Ok(length) => self.buffer[open.0..open.0 + 4].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.set_fault("a message exceeds 4 GiB"),
        }
    }

    pub(crate) fn attr(&mut self, kind: u16, payload: &[u8]) {
        let open = self.open(kind);
        self.buffer.extend_from_slice(payload);
        self.close(open);
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    pub(crate) fn u64(&mut self, kind: u16, value: u64) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// A name: NUL-terminated, at most 255 bytes.
    pub(crate) fn name(&mut self, kind: u16, name: &str) {
        if name.is_empty() {
            self.set_fault("a name is empty");
        } else if name.len() > NAME_MAX {
            self.set_fault("a name is longer than 255 bytes");
        } else if name.bytes().any(|byte| byte == 0) {
            self.set_fault("a name contains a NUL byte");
        }
        let open = self.open(kind);
        self.buffer.extend_from_slice(name.as_bytes());
        self.buffer.push(0);
        self.close(open);
    }

    /// Starts an attribute of which the payload follows.
    pub(crate) fn open(&mut self, kind: u16) -> Open {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 2]);
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        Open(start)
    }

    /// Starts an attribute that holds attributes.
    pub(crate) fn open_nested(&mut self, kind: u16) -> Open {
        self.open(kind | NLA_F_NESTED)
    }

    /// Fills in an attribute's length and pads it. May be called again after more
    /// was appended, which the element lists do.
    pub(crate) fn close(&mut self, open: Open) {
        match u16::try_from(self.buffer.len() - open.0) {
            Ok(length) => self.buffer[open.0..open.0 + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.set_fault("an attribute exceeds 64 KiB"),
        }
        self.buffer.resize(align(self.buffer.len()), 0);
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let open = self.open_nested(kind);
        fill(self);
        self.close(open);
    }

    /// Bytes between `open` and the end of the buffer.
    pub(crate) fn length_since(&self, open: Open) -> usize {
        self.buffer.len() - open.0
    }
}

/// The attributes in a payload, as (type without flag bits, payload).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attrs<'a>(&'a [u8]);

impl<'a> Attrs<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(read_u16(self.0, 0)?);
        let kind = read_u16(self.0, 2)? & NLA_TYPE_MASK;
        let payload = self.0.get(NLA_HEADER..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some((kind, payload))
    }
}

/// One netlink message of a datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// What follows the netlink header.
    pub(crate) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The nf_tables operation (`NFT_MSG_*`), if the message is of that subsystem.
    pub(crate) fn operation(&self) -> Option<u16> {
        (self.kind >> 8 == crate::uapi::NFNL_SUBSYS_NFTABLES).then_some(self.kind & 0xff)
    }

    /// `nfgenmsg.nfgen_family`; 0 if the message is too short to have one.
    pub(crate) fn family(&self) -> u8 {
        self.body.first().copied().unwrap_or_default()
    }

    pub(crate) fn attrs(&self) -> Attrs<'a> {
        Attrs::new(self.body.get(NFGEN_HEADER..).unwrap_or_default())
    }
}

/// The messages of a datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    pub(crate) fn new(datagram: &'a [u8]) -> Self {
        Self(datagram)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = usize::try_from(read_u32(self.0, 0)?).ok()?;
        let message = Message {
            kind: read_u16(self.0, 4)?,
            flags: read_u16(self.0, 6)?,
            sequence: read_u32(self.0, 8)?,
            body: self.0.get(NLMSG_HEADER..length)?,
        };
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some(message)
    }
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A 32-bit integer attribute in network byte order.
pub(crate) fn be32(payload: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(payload.try_into().ok()?))
}

/// A 64-bit integer attribute in network byte order.
pub(crate) fn be64(payload: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(payload.try_into().ok()?))
}

/// A NUL-terminated name. Names that are not UTF-8 (the kernel does not care) read
/// as none.
pub(crate) fn name(payload: &[u8]) -> Option<&str> {
    let end = payload.iter().position(|byte| *byte == 0).unwrap_or(payload.len());
    std::str::from_utf8(&payload[..end]).ok()
}

/// As [`name`], where any bytes may stand and none is worth losing the message for.
pub(crate) fn lossy_name(payload: &[u8]) -> String {
    let end = payload.iter().position(|byte| *byte == 0).unwrap_or(payload.len());
    String::from_utf8_lossy(&payload[..end]).into_owned()
}

/// Whole milliseconds, as the kernel wants them.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_reads_back_as_it_was_written() {
        let mut writer = Writer::default();
        let open = writer.message(0x0a03, 5, 7, 2, 9);
        writer.name(1, "abcd");
        writer.nest(2, |w| w.u32(3, 0x0102_0304));
        writer.close_message(open);
        assert_eq!(writer.take_fault(), None);

        let mut messages = Messages::new(&writer.buffer);
        let message = messages.next().unwrap();
        assert_eq!((message.kind, message.flags, message.sequence, message.family()), (0x0a03, 5, 7, 2));
        assert_eq!(message.operation(), Some(3));
        let attrs: Vec<_> = message.attrs().collect();
        assert_eq!(name(attrs[0].1), Some("abcd"));
        assert_eq!(
            Attrs::new(attrs[1].1).next().map(|(kind, value)| (kind, be32(value))),
            Some((3, Some(0x0102_0304)))
        );
        assert!(messages.next().is_none());
    }

    #[test]
    fn an_attribute_that_does_not_fit_is_the_writers_fault() {
        let mut writer = Writer::default();
        writer.attr(1, &[0; 70_000]);
        assert_eq!(writer.take_fault(), Some("an attribute exceeds 64 KiB"));
        for bad in ["", "nul\0inside", &"x".repeat(256)] {
            writer.name(1, bad);
            assert!(writer.take_fault().is_some(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_iteration_ends(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Messages::new(&bytes).count() <= bytes.len());
            prop_assert!(Attrs::new(&bytes).count() <= bytes.len());
        }
    }
}
