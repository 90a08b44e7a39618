//! The table of connections (ctnetlink): which there are, and an end to some.
//!
//! ```text
//! Conntrack ◀──visit── kernel     entry by entry, filtered by the kernel where it can
//!           ──delete─▶ kernel     this very entry, or nothing
//! ```

mod flow;

use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::data_types::Family;
use crate::error::{Error, Result};
use crate::socket::{Answer, force_buffer, open, receive, send, set_option};
use crate::uapi::*;
use crate::wire::{Messages, Writer, read_u32};

pub use flow::{Flow, Tuple, Zone};

/// Larger than the kernel's largest datagram in a dump (32 KiB).
const DATAGRAM: usize = 64 << 10;
/// Holds the answers to [`AT_ONCE`] messages, each about 1 KiB with overhead.
const RECEIVE_BUFFER: usize = 1 << 20;
/// Messages in one datagram.
const AT_ONCE: usize = 256;

/// A netlink socket for the connection table of the network namespace in which it was opened.
/// Blocking. Needs CAP_NET_ADMIN, and a kernel with CONFIG_NF_CT_NETLINK.
#[derive(Debug)]
pub struct Conntrack {
    fd: OwnedFd,
    sequence: u32,
    datagram: Vec<u8>,
    /// Whether the kernel refused to filter by protocol.
    unfiltered: bool,
}

impl Conntrack {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        let fd = open(libc::NETLINK_NETFILTER, 0)?;
        set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1)?;
        force_buffer(&fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BUFFER)?;
        Ok(Self { fd, sequence: 0, datagram: vec![0; DATAGRAM], unfiltered: false })
    }

    /// Hands over the entries of a family and protocol (`IPPROTO_*`), all zones, in the kernel's
    /// order; nothing is held. Entries that come and go meanwhile may be missed or come twice.
    ///
    /// From Linux 5.8 on the kernel leaves out other protocols (`CTA_FILTER`); older ones list all
    /// entries of the family, one that refuses the filter is asked again without. The outcome is the
    /// same. Tells how many entries the kernel handed over.
    pub fn visit(&mut self, family: Family, protocol: u8, mut visit: impl FnMut(&Flow)) -> Result<usize> {
        if !self.unfiltered {
            match self.dump(family, protocol, true, &mut visit) {
                Err(Error::Query { errno: libc::EINVAL | libc::EOPNOTSUPP, .. }) => self.unfiltered = true,
                result => return result,
            }
        }
        self.dump(family, protocol, false, &mut visit)
    }

    /// Ends these entries and tells how many of them were still there: one that was made anew
    /// meanwhile, towards another endpoint, stays.
    pub fn delete(&mut self, flows: &[Flow]) -> Result<usize> {
        let message = |flow: &Flow, w: &mut Writer, sequence| {
            let kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE;
            let family = flow.original.family().number();
            let open = w.message(kind, NLM_F_REQUEST | NLM_F_ACK, sequence, family, 0);
            flow.encode_name(w);
            w.close_message(open);
        };
        self.tell("deleting connections", flows, libc::ENOENT, message)
    }

    /// Makes entries, which nothing but their timeout ends: for tests and measurements, since in
    /// life packets make them. Tells how many there were not before. Their ids are the kernel's.
    pub fn create(&mut self, flows: &[Flow], timeout: Duration) -> Result<usize> {
        let seconds = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX);
        let message = |flow: &Flow, w: &mut Writer, sequence| {
            let kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW;
            let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
            let open = w.message(kind, flags, sequence, flow.original.family().number(), 0);
            flow.original.encode(CTA_TUPLE_ORIG, flow.zone, w);
            flow.reply.encode(CTA_TUPLE_REPLY, Zone::Usual, w);
            if let Zone::Both(zone) = flow.zone {
                w.attr(CTA_ZONE, &zone.to_be_bytes());
            }
            w.u32(CTA_TIMEOUT, seconds);
            w.close_message(open);
        };
        self.tell("making connections", flows, libc::EEXIST, message)
    }

    /// One message for each, many in a datagram, and their acknowledgements. `harmless` is the errno
    /// that means that there was nothing to do.
    fn tell(
        &mut self,
        what: &str,
        flows: &[Flow],
        harmless: i32,
        message: impl Fn(&Flow, &mut Writer, u32),
    ) -> Result<usize> {
        let mut done = 0;
        for part in flows.chunks(AT_ONCE) {
            let mut w = Writer::default();
            let first = self.sequence.wrapping_add(1);
            for flow in part {
                self.sequence = self.sequence.wrapping_add(1);
                message(flow, &mut w, self.sequence);
            }
            send(&self.fd, &[&w.buffer])?;
            let (mut answered, mut refused) = (0, None);
            while answered < part.len() {
                // The kernel works all of them off inside sendmsg.
                let Some(length) = receive(&self.fd, &mut self.datagram, libc::MSG_DONTWAIT)? else {
                    return Err(Error::Protocol("a message about a connection was not answered"));
                };
                for message in Messages::new(&self.datagram[..length]) {
                    let number = message.sequence.wrapping_sub(first);
                    let answer = Answer::decode(&message).filter(|_| (number as usize) < part.len());
                    let Some(Answer { errno, .. }) = answer else { continue };
                    answered += 1;
                    match errno {
                        0 => done += 1,
                        errno if errno == harmless => {}
                        errno => refused = Some(errno),
                    }
                }
            }
            if let Some(errno) = refused {
                return Err(Error::Query { what: what.to_owned(), errno });
            }
        }
        Ok(done)
    }

    fn dump(
        &mut self,
        family: Family,
        protocol: u8,
        filtered: bool,
        visit: &mut impl FnMut(&Flow),
    ) -> Result<usize> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut question = Writer::default();
        let kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET;
        let open = question.message(kind, NLM_F_REQUEST | NLM_F_DUMP, self.sequence, family.number(), 0);
        if filtered {
            question
                .nest(CTA_TUPLE_ORIG, |w| w.nest(CTA_TUPLE_PROTO, |w| w.attr(CTA_PROTO_NUM, &[protocol])));
            // The flags are in host byte order, unlike the rest.
            question
                .nest(CTA_FILTER, |w| w.attr(CTA_FILTER_ORIG_FLAGS, &CTA_FILTER_F_PROTO_NUM.to_ne_bytes()));
        }
        question.close_message(open);
        send(&self.fd, &[&question.buffer])?;

        let refused = |errno: i32| {
            let what = "listing connections".to_owned();
            Error::Query { what, errno }
        };
        let mut handed_over = 0;
        loop {
            let Some(length) = receive(&self.fd, &mut self.datagram, 0)? else { continue };
            for message in Messages::new(&self.datagram[..length]) {
                if message.sequence != self.sequence {
                    continue;
                }
                match message.kind {
                    NLMSG_DONE => {
                        let errno = read_u32(message.body, 0).unwrap_or_default() as i32;
                        return if errno < 0 {
                            Err(refused(errno.saturating_neg()))
                        } else {
                            Ok(handed_over)
                        };
                    }
                    NLMSG_ERROR => {
                        let errno = Answer::decode(&message).map_or(libc::EPROTO, |answer| answer.errno);
                        return Err(refused(errno));
                    }
                    _ => {
                        handed_over += 1;
                        if let Some(flow) = Flow::decode(&message).filter(|f| f.original.protocol == protocol)
                        {
                            visit(&flow);
                        }
                    }
                }
            }
        }
    }
}
