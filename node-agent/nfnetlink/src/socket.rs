//! The socket on which batches are committed and rulesets read, and every system call
//! of the crate.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::batch::Batch;
use crate::error::{Error, Failure, Rejection, Result};
use crate::uapi::{
    NFNL_MSG_BATCH_END, NFNL_SUBSYS_NFTABLES, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_REQUEST, NLMSG_ERROR,
    NLMSGERR_ATTR_MSG, NLMSGERR_ATTR_OFFS,
};
use crate::wire::{Attrs, Message, Messages, NLMSG_HEADER, Writer, align, name, read_u32};
use crate::witness::Witness;

/// Larger than the kernel's largest datagram in a dump (32 KiB).
const DATAGRAM: usize = 256 << 10;
/// Room that one complaint takes in the receive buffer, overhead included.
const COMPLAINT: usize = 1 << 10;
const RECEIVE_BUFFER: std::ops::RangeInclusive<usize> = (1 << 20)..=(64 << 20);

/// A netlink socket for nf_tables. Blocking: a commit returns when the kernel has
/// decided, a dump when all is read.
///
/// It sees the network namespace in which it was opened, whatever the calling thread
/// does later. It can be used on after any error: what is left of a dump or of the
/// kernel's complaints is cleared away by the next question (so ask one after
/// [`Error::Overrun`], before the next commit).
#[derive(Debug)]
pub struct Socket {
    pub(crate) fd: OwnedFd,
    pub(crate) sequence: u32,
    pub(crate) datagram: Vec<u8>,
    send_buffer: usize,
    receive_buffer: usize,
    /// Opened together, so that it sees the same network namespace.
    pub(crate) witness: Witness,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace. Needs CAP_NET_ADMIN
    /// there for anything but reading.
    pub fn open() -> Result<Self> {
        let fd = open(libc::NETLINK_NETFILTER, 0)?;
        set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1)?;
        set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1)?;
        let mut socket = Self {
            fd,
            sequence: 0,
            datagram: vec![0; DATAGRAM],
            send_buffer: 0,
            receive_buffer: 0,
            witness: Witness::open()?,
        };
        socket.grow_receive_buffer(*RECEIVE_BUFFER.start())?;
        Ok(socket)
    }

    /// Brings all changes of the batch into force, or none. The batch can be committed
    /// again, for instance after [`Error::StaleGeneration`] with a new expectation.
    pub fn commit(&mut self, batch: &Batch) -> Result<()> {
        let changes = batch.encoded()?;
        if batch.is_empty() {
            return Ok(());
        }
        let mut end = Writer::default();
        let sequence =
            u32::try_from(batch.len()).map_err(|_| Error::Protocol("too many changes for a batch"))? + 1;
        let open = end.message(NFNL_MSG_BATCH_END, NLM_F_REQUEST, sequence, 0, NFNL_SUBSYS_NFTABLES);
        end.close_message(open);
        self.grow_send_buffer(changes.len() + end.buffer.len())?;
        let complaints = batch.len().saturating_mul(COMPLAINT);
        self.grow_receive_buffer(complaints.clamp(*RECEIVE_BUFFER.start(), *RECEIVE_BUFFER.end()))?;
        send(&self.fd, &[changes, &end.buffer])?;
        self.read_outcome(batch, sequence)
    }

    /// The kernel works the batch off inside `sendmsg`, so all that it has to say is in
    /// the queue by now: complaints in order, and the acknowledgement of the last
    /// change, which is not worth anything if there is a complaint. `end` is the batch's
    /// highest sequence number; questions have higher ones.
    fn read_outcome(&mut self, batch: &Batch, end: u32) -> Result<()> {
        let mut acknowledged = false;
        let mut failures = Vec::new();
        let mut is_stale = false;
        while let Some(length) = receive(&self.fd, &mut self.datagram, libc::MSG_DONTWAIT)? {
            for message in Messages::new(&self.datagram[..length]) {
                let Some(answer) = Answer::decode(&message) else { continue };
                if message.sequence > end {
                    continue;
                }
                let index = batch.index_of(message.sequence);
                match answer.errno {
                    0 => acknowledged |= index == Some(batch.len() - 1),
                    libc::ERESTART if index.is_none() => is_stale = true,
                    errno => failures.push(Failure {
                        message: index,
                        what: index.map_or("the batch".to_owned(), |index| batch.describe(index)),
                        errno,
                        text: answer.text.map(str::to_owned),
                        offset: answer.offset,
                    }),
                }
            }
        }
        if is_stale {
            return Err(Error::StaleGeneration);
        }
        if !failures.is_empty() {
            return Err(Error::Rejected(Rejection { failures }));
        }
        if acknowledged { Ok(()) } else { Err(Error::Protocol("the batch was not acknowledged")) }
    }

    /// The kernel takes a batch only in one piece, so it has to fit into the buffer.
    fn grow_send_buffer(&mut self, bytes: usize) -> Result<()> {
        if bytes > self.send_buffer {
            let wanted = bytes.next_power_of_two().max(1 << 17);
            force_buffer(&self.fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, wanted)?;
            self.send_buffer = wanted;
        }
        Ok(())
    }

    fn grow_receive_buffer(&mut self, bytes: usize) -> Result<()> {
        if bytes > self.receive_buffer {
            force_buffer(&self.fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, bytes)?;
            self.receive_buffer = bytes;
        }
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `nlmsgerr`: an acknowledgement or a complaint.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    /// Positive; 0 means success.
    pub(crate) errno: i32,
    text: Option<&'a str>,
    offset: Option<u32>,
}

impl<'a> Answer<'a> {
    pub(crate) fn decode(message: &Message<'a>) -> Option<Self> {
        if message.kind != NLMSG_ERROR {
            return None;
        }
        let errno = (read_u32(message.body, 0)? as i32).checked_neg()?;
        let mut answer = Self { errno, text: None, offset: None };
        if message.flags & NLM_F_ACK_TLVS == 0 {
            return Some(answer);
        }
        // The attributes stand behind the message that is answered, of which there is
        // only the header if the answer is capped.
        let original = match message.flags & NLM_F_CAPPED {
            0 => usize::try_from(read_u32(message.body, 4)?).ok()?,
            _ => NLMSG_HEADER,
        };
        for (kind, value) in Attrs::new(message.body.get(4 + align(original)..).unwrap_or_default()) {
            match kind {
                NLMSGERR_ATTR_MSG => answer.text = name(value),
                NLMSGERR_ATTR_OFFS => answer.offset = read_u32(value, 0),
                _ => {}
            }
        }
        Some(answer)
    }
}

/// Opens an AF_NETLINK socket of the protocol (`NETLINK_*`); `flags` besides SOCK_CLOEXEC.
pub(crate) fn open(protocol: libc::c_int, flags: libc::c_int) -> Result<OwnedFd> {
    // SAFETY: socket(2) takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC | flags, protocol) };
    if fd < 0 {
        return Err(Error::last_os("socket"));
    }
    // SAFETY: the descriptor was just returned by the kernel and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let address = kernel_address();
    // SAFETY: the address is an initialised sockaddr_nl and its true size is given.
    let result = unsafe {
        libc::bind(fd.as_raw_fd(), (&raw const address).cast(), mem::size_of_val(&address) as libc::socklen_t)
    };
    if result < 0 { Err(Error::last_os("bind")) } else { Ok(fd) }
}

/// All zero but the family: the kernel as a destination, any port as our own.
fn kernel_address() -> libc::sockaddr_nl {
    // SAFETY: sockaddr_nl is plain integers, for which zero is valid.
    let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address
}

pub(crate) fn set_option(
    fd: &OwnedFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> Result<()> {
    // SAFETY: the value is a c_int and its size is given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            mem::size_of_val(&value) as libc::socklen_t,
        )
    };
    if result < 0 { Err(Error::last_os("setsockopt")) } else { Ok(()) }
}

/// Sets a buffer size regardless of the system's limit, or up to the limit without
/// the privilege for that (a send that does not fit then fails with EMSGSIZE).
pub(crate) fn force_buffer(fd: &OwnedFd, force: libc::c_int, plain: libc::c_int, bytes: usize) -> Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX / 2);
    set_option(fd, libc::SOL_SOCKET, force, bytes).or_else(|_| set_option(fd, libc::SOL_SOCKET, plain, bytes))
}

/// Sends the parts as one datagram to the kernel.
pub(crate) fn send(fd: &OwnedFd, parts: &[&[u8]]) -> Result<()> {
    let mut address = kernel_address();
    let mut vectors: Vec<libc::iovec> = parts
        .iter()
        .map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() })
        .collect();
    // SAFETY: msghdr is plain integers and pointers, for which zero is valid.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_name = (&raw mut address).cast();
    header.msg_namelen = mem::size_of_val(&address) as libc::socklen_t;
    header.msg_iov = vectors.as_mut_ptr();
    header.msg_iovlen = vectors.len() as _;
    loop {
        // SAFETY: every pointer in the header is to something that outlives the call,
        // with its true length; the kernel only reads them.
        if unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const header, 0) } >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(Error::Os { call: "sendmsg", source: error });
        }
    }
}

/// Receives one datagram of the kernel; `None` if there is none and `flags` say not to
/// wait.
pub(crate) fn receive(fd: &OwnedFd, buffer: &mut [u8], flags: libc::c_int) -> Result<Option<usize>> {
    loop {
        let mut sender = kernel_address();
        let mut sender_length = mem::size_of_val(&sender) as libc::socklen_t;
        // SAFETY: buffer and sender are valid for writes of the lengths given.
        let length = unsafe {
            libc::recvfrom(
                fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                flags | libc::MSG_TRUNC,
                (&raw mut sender).cast(),
                &raw mut sender_length,
            )
        };
        match usize::try_from(length) {
            Ok(length) if length > buffer.len() => {
                return Err(Error::Protocol("a datagram exceeds the buffer"));
            }
            Ok(_) if sender.nl_pid != 0 => {}
            Ok(length) => return Ok(Some(length)),
            Err(_) => {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(None),
                    Some(libc::EINTR) => {}
                    Some(libc::ENOBUFS) => return Err(Error::Overrun),
                    _ => return Err(Error::Os { call: "recvfrom", source: error }),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(flags: u16, body: &[u8]) -> Option<(i32, Option<String>, Option<u32>)> {
        let message = Message { kind: NLMSG_ERROR, flags, sequence: 1, body };
        Answer::decode(&message).map(|answer| (answer.errno, answer.text.map(str::to_owned), answer.offset))
    }

    #[test]
    fn a_complaint_tells_errno_text_and_offset() {
        let mut body = (-2_i32).to_ne_bytes().to_vec();
        body.extend_from_slice(&[0; NLMSG_HEADER]);
        let mut w = Writer::default();
        w.attr(NLMSGERR_ATTR_MSG, b"no such thing\0");
        w.attr(NLMSGERR_ATTR_OFFS, &20_u32.to_ne_bytes());
        body.extend_from_slice(&w.buffer);
        let flags = NLM_F_ACK_TLVS | NLM_F_CAPPED;
        assert_eq!(answer(flags, &body), Some((2, Some("no such thing".into()), Some(20))));
        assert_eq!(answer(0, &body), Some((2, None, None)));
    }

    proptest! {
        #[test]
        fn arbitrary_answers_are_read_without_panic(flags: u16, body in proptest::collection::vec(any::<u8>(), 0..80)) {
            answer(flags, &body);
        }
    }
}
