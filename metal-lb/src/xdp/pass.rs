//! A program that passes every frame. A veth delivers what its peer sends with XDP_TX only if it
//! carries a program itself.

use anyhow::Context;
use libbpf_rs::ObjectBuilder;

use super::object::interface_index;

static PASS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pass.o"));

/// Attaches the program for as long as the interface lives (or until [`libbpf_rs::Xdp`] detaches it).
///
/// # Errors
/// When the interface does not exist or the kernel refuses.
pub fn attach(interface: &str) -> anyhow::Result<()> {
    use std::os::fd::AsFd;
    let object = ObjectBuilder::default().open_memory(PASS)?.load().context("loading the pass program")?;
    let program = object.progs_mut().next().context("the object holds no program")?;
    let xdp = libbpf_rs::Xdp::new(program.as_fd());
    xdp.attach(interface_index(interface)?, libbpf_rs::XdpFlags::DRV_MODE)
        .with_context(|| format!("attaching the pass program to {interface}"))
}
