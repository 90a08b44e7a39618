//! The tie between a program and an interface: a link that is pinned outlives its process.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libbpf_sys::{BPF_XDP, bpf_link_create_opts, bpf_link_info};

/// Where in the kernel the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// In the driver. Refused where the driver cannot.
    #[default]
    Native,
    /// Behind the driver, on any interface, several times slower.
    Generic,
}

/// Attaches a program.
///
/// # Errors
/// EBUSY: another program is there. ENOSPC, EOPNOTSUPP, ERANGE: the driver cannot in this setup.
pub(super) fn attach(program: BorrowedFd<'_>, interface: i32, mode: Mode) -> io::Result<OwnedFd> {
    let flags = match mode {
        Mode::Native => libbpf_sys::XDP_FLAGS_DRV_MODE,
        Mode::Generic => libbpf_sys::XDP_FLAGS_SKB_MODE,
    };
    // SAFETY: plain data, for which all zeroes are valid: null pointers and no flags.
    let mut options: bpf_link_create_opts = unsafe { std::mem::zeroed() };
    options.sz = size_of::<bpf_link_create_opts>() as libbpf_sys::size_t;
    options.flags = flags;
    // SAFETY: the descriptor is borrowed and the options live across the call.
    let fd =
        unsafe { libbpf_sys::bpf_link_create(program.as_raw_fd(), interface, BPF_XDP, &raw const options) };
    owned(fd)
}

/// The index of the interface that a link is on; 0 when it is gone.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn interface_of(link: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: plain data, for which all zeroes are valid.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<bpf_link_info>() as u32;
    // SAFETY: the descriptor is borrowed, and the kernel writes at most `length` bytes into `info`.
    done(unsafe { libbpf_sys::bpf_link_get_info_by_fd(link.as_raw_fd(), &raw mut info, &raw mut length) })?;
    // SAFETY: the links that are pinned here are XDP's; of another kind's it would be some number.
    Ok(unsafe { info.__bindgen_anon_1.xdp.ifindex } as i32)
}

/// Replaces the program behind a link in one go: no packet meets none.
///
/// # Errors
/// ENOLINK: the interface is gone.
pub(super) fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are borrowed; null options mean none.
    done(unsafe { libbpf_sys::bpf_link_update(link.as_raw_fd(), program.as_raw_fd(), std::ptr::null()) })
}

/// Takes the program off the interface before this returns; removing the pin alone does it some time
/// later.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed.
    done(unsafe { libbpf_sys::bpf_link_detach(link.as_raw_fd()) })
}

/// # Errors
/// When the path is not on a BPF filesystem, or taken.
pub(super) fn pin(link: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the descriptor is borrowed and the path is a C string that lives across the call.
    done(unsafe { libbpf_sys::bpf_obj_pin(link.as_raw_fd(), path.as_ptr()) })
}

/// # Errors
/// ENOENT: nothing is pinned there.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is a C string that lives across the call.
    owned(unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) })
}

fn owned(fd: i32) -> io::Result<OwnedFd> {
    done(fd)?;
    // SAFETY: the call succeeded, so it is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// libbpf answers a negated errno.
fn done(answer: i32) -> io::Result<()> {
    if answer < 0 { Err(io::Error::from_raw_os_error(-answer)) } else { Ok(()) }
}
