//! Loading, pinning and attaching the program.
//!
//! Maps and link are pinned, so the packet path outlives the process. A new process takes the pinned
//! maps over and replaces the program behind the pinned link: no packet is lost. The version of
//! the maps' shape is part of the path, so that a release with other structs begins with empty maps
//! instead of misreading the old ones.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use libbpf_rs::{Link, Object, ObjectBuilder, OpenObject};
use nix::sys::statfs::{FsType, statfs};

/// Changes whenever a struct or a map of the program does.
const ABI: &str = "v1";
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
        self.bpf_dir.join(&self.interface).join(ABI)
    }

    fn link(&self) -> PathBuf {
        self.pins().join("link")
    }
}

/// Loads the program into pinned maps and attaches it, or replaces the one that is attached.
///
/// # Errors
/// When the kernel refuses; the message names what to do about the usual causes.
pub fn attach(settings: &Settings) -> anyhow::Result<Attachment> {
    ensure_bpf_filesystem(&settings.bpf_dir)?;
    let pins = settings.pins();
    std::fs::create_dir_all(&pins).with_context(|| format!("creating {}", pins.display()))?;
    let object = load(Some(&pins), settings.max_connections)?;
    let program = program(&object)?;

    let path = settings.link();
    if path.exists() {
        let mut link =
            Link::open(&path).with_context(|| format!("opening the pinned link {}", path.display()))?;
        match link.update_prog(&program) {
            Ok(()) => return Ok(Attachment::Replaced),
            Err(error) => {
                tracing::warn!(%error, "the pinned link is dead (its interface is gone?); attaching anew");
                std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
    }
    let index = interface_index(&settings.interface)?;
    let mut link = program.attach_xdp(index).with_context(|| {
        format!(
            "attaching to {0}: another XDP program may be there (ip link show {0}), or the driver has no native \
             XDP in this setup (a veth needs one queue on both ends: numrxqueues 1 numtxqueues 1)",
            settings.interface
        )
    })?;
    link.pin(&path).with_context(|| format!("pinning the link at {}", path.display()))?;
    // The pin keeps it attached.
    link.disconnect();
    Ok(Attachment::New)
}

/// Detaches the program and removes the pinned maps: all connections end.
///
/// # Errors
/// When a pin cannot be removed.
pub fn cleanup(settings: &Settings) -> anyhow::Result<()> {
    let pins = settings.pins();
    match std::fs::remove_dir_all(&pins) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("removing the pins in {}", pins.display())),
    }
}

/// The loaded program, with its maps pinned below `pins`, or private without.
///
/// # Errors
/// When the kernel refuses it, or a pinned map has another shape.
pub fn load(pins: Option<&Path>, max_connections: u32) -> anyhow::Result<Object> {
    let mut open = open()?;
    for mut map in open.maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        let entries = match name.as_str() {
            "forward" | "reverse" => max_connections,
            "half_forward" | "half_reverse" => (max_connections / 4).max(1024),
            _ => map.max_entries(),
        };
        map.set_max_entries(entries).with_context(|| format!("sizing map {name}"))?;
        if let Some(pins) = pins {
            map.set_pin_path(pins.join(&name)).with_context(|| format!("pinning map {name}"))?;
        }
    }
    open.load().context(
        "loading the XDP program: needs root (or CAP_BPF and CAP_NET_ADMIN) and a kernel of 5.15 or newer",
    )
}

fn open() -> anyhow::Result<OpenObject> {
    ObjectBuilder::default().open_memory(BALANCER).context("opening the compiled XDP program")
}

/// The balancer program of a loaded object.
///
/// # Errors
/// Never for an object of [`load`].
pub fn program(object: &Object) -> anyhow::Result<libbpf_rs::ProgramMut<'_>> {
    object.progs_mut().find(|p| p.name() == "balancer").context("the object holds no program named balancer")
}

pub(super) fn interface_index(name: &str) -> anyhow::Result<i32> {
    let index = nix::net::if_::if_nametoindex(name)
        .with_context(|| format!("there is no interface {name}: choose one of `ip link` with --interface"))?;
    i32::try_from(index).context("interface index")
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
