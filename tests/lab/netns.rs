//! A network namespace, and how to do something inside it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::{self, Runtime};

use crate::sweep;

/// Where `ip netns` keeps its namespaces, so that a person can enter ours by name.
const DIRECTORY: &str = "/run/netns";

/// A namespace. The value that created it also ends it.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    file: fs::File,
    /// The lab that made it, and whose tools run inside; none if another did.
    lab: Option<String>,
}

impl Netns {
    /// A new, empty namespace `fl-ID-HOST` of a lab, with its loopback up.
    ///
    /// # Errors
    /// Without root, or when the name is taken.
    pub fn create(lab_id: &str, host: &str) -> Result<Arc<Self>> {
        let name = &format!("fl-{lab_id}-{host}");
        run_ip(&["netns", "add", name], None, Some(lab_id))
            .with_context(|| format!("creating the namespace {name}"))?;
        let netns = Arc::new(Self::of_name(name, Some(lab_id.to_owned()))?);
        netns.ip("link set lo up")?;
        // Addresses count at once: nobody here can have the same one.
        netns.sysctl(&[
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/accept_ra", "0"),
        ])?;
        Ok(netns)
    }

    /// A namespace that another made, and will end.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn open(name: &str) -> Result<Arc<Self>> {
        Ok(Arc::new(Self::of_name(name, None)?))
    }

    fn of_name(name: &str, lab: Option<String>) -> Result<Self> {
        let path = Path::new(DIRECTORY).join(name);
        let file = fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { name: name.to_owned(), path, file, lab })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets that it opens stay there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace it made");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A runtime of one thread that lives inside: every socket that its tasks open does too.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn runtime(self: &Arc<Self>) -> io::Result<Runtime> {
        let netns = Arc::clone(self);
        runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(&self.name)
            .enable_all()
            .on_thread_start(move || {
                setns(&netns.file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace it made");
            })
            .build()
    }

    /// A non-blocking socket that lives in the namespace.
    ///
    /// # Errors
    /// When the kernel refuses to open one.
    pub fn socket(&self, domain: Domain, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        let socket = self.enter(|| Socket::new(domain, kind, protocol))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// Runs a tool inside and returns what it printed.
    ///
    /// # Errors
    /// When it cannot be started or fails; with what it said.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = marked(program, self.lab.as_deref());
        let output = self.enter(|| command.args(arguments).stdin(Stdio::null()).output());
        checked(output, || format!("{program} {} in {}", arguments.join(" "), self.name))
    }

    /// Runs `ip` commands inside, one a line.
    ///
    /// # Errors
    /// At the first line that fails; with what `ip` said.
    pub fn ip(&self, lines: &str) -> Result<()> {
        run_ip(&["-n", &self.name, "-batch", "-"], Some(lines), self.lab.as_deref())
            .with_context(|| format!("in {}", self.name))
    }

    /// Sets kernel parameters under `/proc/sys/net`, for instance `ipv4/ip_forward`.
    ///
    /// # Errors
    /// With the parameter that could not be written.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            settings.iter().try_for_each(|(name, value)| {
                fs::write(Path::new("/proc/sys/net").join(name), value)
                    .with_context(|| format!("setting net/{name} to {value}"))
            })
        })
        .with_context(|| format!("in {}", self.name))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.lab.is_some() {
            delete(&self.name);
        }
    }
}

/// Deletes the namespace of that name, if there is one.
pub fn delete(name: &str) {
    // A namespace that is gone already was swept by another: nothing to say.
    let _ = run_ip(&["netns", "delete", name], None, None);
}

/// The names of all namespaces that begin with `prefix`.
pub fn with_prefix(prefix: &str) -> Vec<String> {
    fs::read_dir(DIRECTORY)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// A tool that ends with its lab: one that outlived it would go on making what is then swept by nobody.
fn marked(program: &str, lab_id: Option<&str>) -> Command {
    let mut command = Command::new(program);
    command.envs(lab_id.map(|id| (sweep::MARK, id)));
    command
}

fn run_ip(arguments: &[&str], input: Option<&str>, lab_id: Option<&str>) -> Result<()> {
    let start = || -> io::Result<Output> {
        let mut child = marked("ip", lab_id)
            .args(arguments)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
            stdin.write_all(text.as_bytes())?;
        }
        child.wait_with_output()
    };
    checked(start(), || format!("ip {}\n{}", arguments.join(" "), input.unwrap_or_default())).map(drop)
}

fn checked(output: io::Result<Output>, what: impl Fn() -> String) -> Result<String> {
    let output =
        output.with_context(|| format!("starting {}: is it installed? run scripts/setup", what()))?;
    ensure!(
        output.status.success(),
        "{} failed ({}): {}",
        what(),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
