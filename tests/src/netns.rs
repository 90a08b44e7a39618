//! Network namespaces, links between them, and code that runs inside one.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};

/// A named namespace; it is removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// # Errors
    /// Without root, or when the name is taken.
    pub fn new(name: impl Into<String>) -> anyhow::Result<Self> {
        let namespace = Self { name: name.into() };
        ip(None, &format!("netns add {}", namespace.name))?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        format!("/run/netns/{}", self.name).into()
    }

    /// Runs lines of `ip` commands inside.
    ///
    /// # Errors
    /// The first line that `ip` refuses.
    pub fn ip(&self, script: &str) -> anyhow::Result<()> {
        ip(Some(&self.name), script)
    }

    /// A command that will run inside. `ip netns exec` would hide bpffs; nsenter does not.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a command inside and returns what it printed.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<String> {
        output(self.command(program).args(args))
    }

    /// Runs a function on a thread inside. Sockets that it makes stay in the namespace.
    ///
    /// # Errors
    /// When the namespace is gone, or the function's own.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        inside(&self.path(), work)
    }
}

/// See [`Namespace::inside`].
///
/// # Errors
/// When the namespace is gone.
pub fn inside<T: Send>(path: &std::path::Path, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let file = std::fs::File::open(path).with_context(|| format!("entering {}", path.display()))?;
            setns(file, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        });
        thread.join().map_err(|_| anyhow::anyhow!("the work inside {} panicked", path.display()))?
    })
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(None, &format!("netns del {}", self.name)) {
            tracing::debug!("removing namespace {}: {error:#}", self.name);
        }
    }
}

/// A veth pair between two namespaces, up on both ends. One queue on each: XDP wants that.
///
/// # Errors
/// When a name is taken.
pub fn link(a: (&Namespace, &str), b: (&Namespace, &str)) -> anyhow::Result<()> {
    let queues = "numrxqueues 1 numtxqueues 1";
    a.0.ip(&format!("link add {} {queues} type veth peer name {} {queues} netns {}", a.1, b.1, b.0.name))?;
    a.0.ip(&format!("link set {} up", a.1))?;
    b.0.ip(&format!("link set {} up", b.1))
}

/// Runs lines of `ip` commands, in one process.
///
/// # Errors
/// The first line that `ip` refuses, with what it said.
pub fn ip(namespace: Option<&str>, script: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    if let Some(name) = namespace {
        command.args(["-n", name]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ip: run scripts/setup")?;
    child.stdin.take().context("ip has no input")?.write_all(script.as_bytes())?;
    let done = child.wait_with_output()?;
    if !done.status.success() {
        bail!("ip {script:?} in {namespace:?}: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(())
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// When it cannot be started or fails; with what it said.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    if !done.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
