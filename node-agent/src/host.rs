//! What the kernel says of this host.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

/// `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR` (linux/rtnetlink.h)
const ADDRESSES_OF_INTERFACES: u32 = 0x10 | 0x100;

/// Says when the addresses of this network namespace's interfaces may have changed.
#[derive(Debug)]
pub struct AddressChanges(OwnedFd);

/// The addresses of all interfaces, in the network namespace of the calling thread.
///
/// # Errors
/// When the kernel does not say (no descriptor or memory left): not the same as no addresses.
pub fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    let addresses = nix::ifaddrs::getifaddrs()?
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .collect();
    Ok(addresses)
}

impl AddressChanges {
    /// In the network namespace of the calling thread.
    ///
    /// # Errors
    /// When there is no rtnetlink socket to be had.
    pub fn listen() -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, ADDRESSES_OF_INTERFACES))?;
        Ok(Self(socket))
    }

    /// Takes what has come; what it says is in [`addresses`].
    pub fn take(&self) {
        // The rest of a longer message is discarded with it.
        let mut message = [0; 256];
        loop {
            match recv(self.0.as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT) {
                // Some were lost: no matter.
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}

impl AsFd for AddressChanges {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
