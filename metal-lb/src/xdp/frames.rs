//! Whole frames out of an interface.

use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::Context;

use super::object::interface_index;

/// A packet socket that only sends.
#[derive(Debug)]
pub struct FrameSocket {
    fd: OwnedFd,
    interface: i32,
}

impl FrameSocket {
    /// # Errors
    /// Without CAP_NET_RAW, or when the interface does not exist.
    pub fn open(interface: &str) -> anyhow::Result<Self> {
        let interface = interface_index(interface)?;
        // SAFETY: plain system call; protocol 0 receives nothing.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error()).context("opening a packet socket needs CAP_NET_RAW");
        }
        // SAFETY: the descriptor was just made and nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, interface })
    }

    /// # Errors
    /// When the link is down or its queue full.
    pub fn send(&self, frame: &[u8]) -> std::io::Result<()> {
        // SAFETY: sockaddr_ll is plain data, for which all zeroes are valid.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = self.interface;
        // SAFETY: frame and address live across the call, with their lengths.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    }
}
