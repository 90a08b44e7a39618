//! What a proxy that works with IPVS makes outside nf_tables, taken away: virtual servers, the interface
//! that holds their addresses, sets of addresses.
//!
//! ```text
//! generic netlink   IPVS_CMD_FLUSH      the virtual servers, all of them
//! rtnetlink         RTM_DELLINK         one interface, if it is of the kind expected
//! nfnetlink         IPSET_CMD_DESTROY   one set, unless a rule refers to it
//! ```

use std::os::fd::OwnedFd;

use crate::error::{Error, Result};
use crate::socket::{Answer, open, receive, send, set_option};
use crate::uapi::*;
use crate::wire::{Attrs, GENERIC_HEADER, IFINFO_HEADER, Messages, Open, Writer};

/// Larger than what the kernel tells of one interface or family.
const DATAGRAM: usize = 64 << 10;

/// Removes all virtual servers of the calling thread's network namespace, with the connections that
/// they carry. `false` where the kernel has no IPVS.
///
/// # Errors
/// When the kernel refuses.
pub fn flush_virtual_servers() -> Result<bool> {
    let mut asker = Asker::open(libc::NETLINK_GENERIC)?;
    let Some(family) = asker.family("IPVS")? else { return Ok(false) };
    let order = asker.ask(|w, sequence, flags| w.generic_message(family, flags, sequence, IPVS_CMD_FLUSH))?;
    order.done("flushing IPVS")
}

/// Whether the calling thread's network namespace has an interface of that name.
///
/// # Errors
/// When it is of another kind (`EMEDIUMTYPE`), or the kernel refuses.
pub fn has_link(name: &str, kind: &str) -> Result<bool> {
    let found = about_link(&mut Asker::open(libc::NETLINK_ROUTE)?, RTM_GETLINK, name)?;
    let what = format!("the interface {name}");
    if !found.is_there(&what, libc::ENODEV)? {
        return Ok(false);
    }
    let of_kind = found.attr(IFINFO_HEADER, &[IFLA_LINKINFO, IFLA_INFO_KIND]).and_then(crate::wire::name);
    if of_kind == Some(kind) {
        return Ok(true);
    }
    let what = format!("{what}, which should be of the kind {kind}");
    Err(Error::Query { what, errno: libc::EMEDIUMTYPE })
}

/// Removes an interface of the calling thread's network namespace. `false` if there is none of that
/// name.
///
/// # Errors
/// When it is of another kind (`EMEDIUMTYPE`), or the kernel refuses.
pub fn delete_link(name: &str, kind: &str) -> Result<bool> {
    if !has_link(name, kind)? {
        return Ok(false);
    }
    let order = about_link(&mut Asker::open(libc::NETLINK_ROUTE)?, RTM_DELLINK, name)?;
    order.is_there(&format!("the interface {name}"), libc::ENODEV)
}

fn about_link(asker: &mut Asker, operation: u16, name: &str) -> Result<Reply> {
    asker.ask(|w, sequence, flags| {
        let open = w.link_message(operation, flags, sequence);
        w.name(IFLA_IFNAME, name);
        open
    })
}

/// The ipsets of the network namespace in which it was opened.
#[derive(Debug)]
pub struct IpSets(Asker);

impl IpSets {
    /// In the calling thread's network namespace.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub fn open() -> Result<Self> {
        Ok(Self(Asker::open(libc::NETLINK_NETFILTER)?))
    }

    /// Removes a set. `false` if there is none of that name, or the kernel has no ipsets.
    ///
    /// # Errors
    /// When a rule refers to it, or the kernel refuses otherwise.
    pub fn destroy(&mut self, name: &str) -> Result<bool> {
        let mut order = self.0.ask(|w, sequence, flags| {
            let kind = NFNL_SUBSYS_IPSET << 8 | IPSET_CMD_DESTROY;
            let open = w.message(kind, flags | NLM_F_EXCL, sequence, libc::AF_INET as u8, 0);
            w.attr(IPSET_ATTR_PROTOCOL, &[IPSET_PROTOCOL]);
            w.name(IPSET_ATTR_SETNAME, name);
            open
        })?;
        if order.errno == IPSET_ERR_BUSY {
            order.errno = libc::EBUSY;
        }
        // nfnetlink's own answer where no subsystem has the number.
        Ok(order.errno != libc::EINVAL && order.is_there(&format!("the ipset {name}"), libc::ENOENT)?)
    }
}

/// One question or order at a time.
#[derive(Debug)]
struct Asker {
    fd: OwnedFd,
    sequence: u32,
    datagram: Vec<u8>,
}

/// What the kernel said to it.
struct Reply {
    /// Positive; 0 means success.
    errno: i32,
    /// Of the last message before the acknowledgement, what follows the netlink header.
    body: Vec<u8>,
}

impl Asker {
    fn open(protocol: libc::c_int) -> Result<Self> {
        let fd = open(protocol, 0)?;
        set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1)?;
        Ok(Self { fd, sequence: 0, datagram: vec![0; DATAGRAM] })
    }

    /// Sends the message that is begun and filled, with these flags, and reads up to its
    /// acknowledgement.
    fn ask(&mut self, fill: impl FnOnce(&mut Writer, u32, u16) -> Open) -> Result<Reply> {
        self.sequence += 1;
        let mut w = Writer::default();
        let open = fill(&mut w, self.sequence, NLM_F_REQUEST | NLM_F_ACK);
        w.close_message(open);
        if let Some(why) = w.take_fault() {
            return Err(Error::Protocol(why));
        }
        send(&self.fd, &[&w.buffer])?;
        let mut body = Vec::new();
        loop {
            let Some(length) = receive(&self.fd, &mut self.datagram, 0)? else { continue };
            for message in Messages::new(&self.datagram[..length]) {
                if message.sequence != self.sequence {
                    continue;
                }
                match Answer::decode(&message) {
                    Some(Answer { errno, .. }) => return Ok(Reply { errno, body }),
                    None => body = message.body.to_vec(),
                }
            }
        }
    }

    /// The number of a generic netlink family, if the kernel has it.
    fn family(&mut self, name: &str) -> Result<Option<u16>> {
        let reply = self.ask(|w, sequence, flags| {
            let open = w.generic_message(GENL_ID_CTRL, flags, sequence, CTRL_CMD_GETFAMILY);
            w.name(CTRL_ATTR_FAMILY_NAME, name);
            open
        })?;
        if !reply.is_there(&format!("the netlink family {name}"), libc::ENOENT)? {
            return Ok(None);
        }
        let number = reply.attr(GENERIC_HEADER, &[CTRL_ATTR_FAMILY_ID]);
        let number = number.and_then(|bytes| Some(u16::from_ne_bytes(bytes.try_into().ok()?)));
        number.map(Some).ok_or(Error::Protocol("a netlink family without a number"))
    }
}

impl Reply {
    fn done(&self, what: &str) -> Result<bool> {
        match self.errno {
            0 => Ok(true),
            errno => Err(Error::Query { what: what.to_owned(), errno }),
        }
    }

    /// Whether it was done; not if `absent` says that there is no such thing.
    fn is_there(&self, what: &str, absent: i32) -> Result<bool> {
        if self.errno == absent { Ok(false) } else { self.done(what) }
    }

    /// The attribute at the end of the path, behind a header of that many bytes.
    fn attr(&self, header: usize, path: &[u16]) -> Option<&[u8]> {
        path.iter().try_fold(self.body.get(header..)?, |bytes, kind| {
            Attrs::new(bytes).find(|(found, _)| found == kind).map(|(_, value)| value)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_found_by_its_name_or_is_not_there() {
        let mut asker = Asker::open(libc::NETLINK_GENERIC).unwrap();
        assert_eq!(asker.family("nlctrl").unwrap(), Some(GENL_ID_CTRL));
        assert_eq!(asker.family("no-such-family").unwrap(), None);
    }

    #[test]
    fn an_order_to_a_family_has_its_command_and_version() {
        let mut w = Writer::default();
        let open = w.generic_message(0x1d, NLM_F_REQUEST | NLM_F_ACK, 7, IPVS_CMD_FLUSH);
        w.close_message(open);
        assert_eq!(w.buffer, [20, 0, 0, 0, 0x1d, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0, 17, 1, 0, 0]);
    }

    #[test]
    fn a_loopback_interface_is_not_of_a_kind_and_stays() {
        assert!(!delete_link("no-such-link", "dummy").unwrap());
        let refused = delete_link("lo", "dummy").unwrap_err().to_string();
        assert!(refused.contains("the interface lo, which should be of the kind dummy"), "{refused}");
    }
}
