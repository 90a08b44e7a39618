//! Loading, pinning and attaching the program.
//!
//! ```text
//! BPF_DIR/INTERFACE/link-native, or link-generic   the program, tied to the interface
//! BPF_DIR/INTERFACE/v2/flows …                     the maps
//! ```
//!
//! They are pinned, so the packet path outlives the process. A new process takes the pinned maps over
//! and replaces the program behind the pinned link: no packet is lost. The version of the maps' shape
//! is part of their path, so that a release with other structs begins with empty maps instead of
//! misreading the old ones: then all connections end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use libbpf_rs::{Object, ObjectBuilder, PrintLevel, ProgramMut};
use nix::errno::Errno;
use nix::sys::statfs::{FsType, statfs};

use super::link::{self, Mode};
use crate::desired::Mac;

/// The version of the maps' shape: changes whenever a struct or a map of the program does.
pub const ABI: &str = "v2";
/// `BPF_FS_MAGIC` (linux/magic.h)
const BPF_FS: FsType = FsType(0xcafe_4a11);

static BALANCER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/balancer.o"));

/// Where the program goes.
#[derive(Debug, Clone)]
pub struct Settings {
    pub interface: String,
    /// Below a BPF filesystem; one is mounted there if none is.
    pub bpf_dir: PathBuf,
    /// Connections that can be established at once; a quarter as many half-open ones.
    pub max_connections: u32,
    pub mode: Mode,
}

/// Whether the program was there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attachment {
    /// Attached for the first time.
    New,
    /// The program behind a pinned link was replaced; connections go on.
    Replaced,
}

impl Settings {
    /// The folder of the pinned maps.
    pub fn pins(&self) -> PathBuf {
        self.folder().join(ABI)
    }

    /// Everything that is pinned for the interface.
    pub fn folder(&self) -> PathBuf {
        self.bpf_dir.join(&self.interface)
    }

    fn link(&self, mode: Mode) -> PathBuf {
        self.folder().join(match mode {
            Mode::Native => "link-native",
            Mode::Generic => "link-generic",
        })
    }

    /// The links that are pinned, one at most.
    fn links(&self) -> impl Iterator<Item = PathBuf> {
        [Mode::Native, Mode::Generic].map(|mode| self.link(mode)).into_iter().filter(|path| path.exists())
    }
}

/// Loads the program into pinned maps and attaches it, or replaces the one that is attached.
///
/// # Errors
/// When the kernel refuses; the message names what to do about the usual causes.
pub fn attach(settings: &Settings) -> anyhow::Result<Attachment> {
    let interface = interface_index(&settings.interface)?;
    ensure_bpf_filesystem(&settings.bpf_dir)?;
    let pins = settings.pins();
    std::fs::create_dir_all(&pins).with_context(|| format!("creating {}", pins.display()))?;
    let object = load(Some(&pins), settings.max_connections)?;
    let program = program(&object)?;

    let wanted = settings.link(settings.mode);
    let mut attachment = Attachment::New;
    for path in settings.links() {
        let link = open_link(&path)?;
        if path == wanted && link::interface_of(link.as_fd()).context("asking the pinned link")? == interface
        {
            link::update(link.as_fd(), program.as_fd())
                .context("replacing the program behind the pinned link")?;
            attachment = Attachment::Replaced;
        } else {
            let link = path.display();
            tracing::warn!(%link, "the program is attached in another mode, or to another interface; attaching again");
            detach(&path)?;
        }
    }
    if attachment == Attachment::New {
        let link = link::attach(program.as_fd(), interface, settings.mode)
            .map_err(|error| anyhow::anyhow!("{}: {error}", advice(&error, &settings.interface)))?;
        link::pin(link.as_fd(), &wanted)
            .with_context(|| format!("pinning the link at {}", wanted.display()))?;
    }
    remove_other_versions(settings)?;
    Ok(attachment)
}

fn open_link(path: &Path) -> anyhow::Result<OwnedFd> {
    link::open_pinned(path).with_context(|| format!("opening the pinned link {}", path.display()))
}

/// Takes the program off before this returns, and forgets the link.
fn detach(path: &Path) -> anyhow::Result<()> {
    link::detach(open_link(path)?.as_fd()).with_context(|| format!("detaching {}", path.display()))?;
    std::fs::remove_file(path).with_context(|| format!("removing {}", path.display()))
}

/// The maps of releases that shaped them differently: no program uses them any more.
fn remove_other_versions(settings: &Settings) -> anyhow::Result<()> {
    let folder = settings.folder();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() && path != settings.pins() {
            let maps = path.display();
            tracing::warn!(%maps, "another release left these maps; connections begin anew in this one's");
            std::fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// What to do about a refusal to attach.
fn advice(error: &io::Error, interface: &str) -> String {
    let why = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EBUSY) => format!(
            "another XDP program is attached; `ip link show {interface}` names it, `ip link set {interface} xdp off` \
             removes it (`metal-lb cleanup` if it is this one, pinned in another --bpf-dir)"
        ),
        Some(Errno::ENOSPC) => "its peer has more transmit queues than it has receive queues; create both ends of a \
             veth with numrxqueues 1 numtxqueues 1"
            .to_owned(),
        Some(Errno::ERANGE) => format!("its MTU is too large for XDP; `ip link set {interface} mtu 1500`"),
        Some(Errno::EOPNOTSUPP | Errno::EINVAL) => {
            "its driver has no native XDP in this setup (large receive offload?); --xdp-mode generic works on any \
             interface, several times slower"
                .to_owned()
        }
        Some(Errno::EPERM) => "attaching needs root, or CAP_BPF and CAP_NET_ADMIN".to_owned(),
        _ => "the kernel refuses; dmesg may say why".to_owned(),
    };
    format!("cannot attach to {interface}: {why}")
}

/// Detaches the program and removes the pinned maps of every version: all connections end.
///
/// # Errors
/// When a pin cannot be removed.
pub fn cleanup(settings: &Settings) -> anyhow::Result<()> {
    settings.links().try_for_each(|path| detach(&path))?;
    let folder = settings.folder();
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing the pins in {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// The loaded program, with its maps pinned below `pins`, or private without. Maps that are pinned
/// there already are taken over with their content.
///
/// # Errors
/// When the kernel refuses it, or a pinned map has another shape.
pub fn load(pins: Option<&Path>, max_connections: u32) -> anyhow::Result<Object> {
    libbpf_rs::set_print(Some((PrintLevel::Warn, |_, text| tracing::warn!("libbpf: {}", text.trim_end()))));
    let mut open =
        ObjectBuilder::default().open_memory(BALANCER).context("opening the compiled XDP program")?;
    for mut map in open.maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        match name.as_str() {
            "flows" | "connections" => map.set_max_entries(max_connections)?,
            "half_open_flows" | "half_open" => map.set_max_entries((max_connections / 4).max(1024))?,
            // Constants; they belong to the program.
            name if name.starts_with('.') || name.contains(".rodata") => continue,
            _ => {}
        }
        if let Some(pins) = pins {
            map.set_pin_path(pins.join(&name)).with_context(|| format!("pinning map {name}"))?;
        }
    }
    open.load().with_context(|| {
        let pinned = pins.map(|p| format!(", and no map in {} of another size", p.display())).unwrap_or_default();
        format!(
            "loading the XDP program: needs root (or CAP_BPF and CAP_NET_ADMIN), a kernel of 5.15 or newer{pinned} \
             (`metal-lb cleanup` removes them, with all connections)"
        )
    })
}

/// The balancer program of a loaded object.
///
/// # Errors
/// Never for an object of [`load`].
pub fn program(object: &Object) -> anyhow::Result<ProgramMut<'_>> {
    object.progs_mut().find(|p| p.name() == "balancer").context("the object holds no program named balancer")
}

pub(super) fn interface_index(name: &str) -> anyhow::Result<i32> {
    let index = nix::net::if_::if_nametoindex(name)
        .with_context(|| format!("there is no interface {name}: choose one of `ip link` with --interface"))?;
    i32::try_from(index).context("interface index")
}

pub(super) fn interface_mac(name: &str) -> anyhow::Result<Mac> {
    interface_index(name)?;
    let mut addresses = nix::ifaddrs::getifaddrs().context("listing interfaces")?;
    let mac = addresses
        .find_map(|a| if a.interface_name == name { a.address?.as_link_addr()?.addr() } else { None });
    mac.map(Mac).with_context(|| format!("{name} has no link-layer address: choose an Ethernet interface"))
}

/// bpffs is not mounted everywhere (minimal systems, fresh mount namespaces).
fn ensure_bpf_filesystem(dir: &Path) -> anyhow::Result<()> {
    let is_bpf = |path: &Path| statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS);
    if dir.ancestors().any(|a| a.exists() && is_bpf(a)) {
        return Ok(());
    }
    let mount_point = Path::new("/sys/fs/bpf");
    let target = if dir.starts_with(mount_point) { mount_point } else { dir };
    std::fs::create_dir_all(target).with_context(|| format!("creating {}", target.display()))?;
    nix::mount::mount(Some("bpf"), target, Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting a BPF filesystem at {}", target.display()))?;
    if !is_bpf(target) {
        bail!("{} is not a BPF filesystem even after mounting one", target.display());
    }
    Ok(())
}
