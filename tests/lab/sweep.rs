//! What a lab leaves on the machine, and how it goes away.
//!
//! Everything carries the lab's id: namespaces begin with `fl-ID-`, processes have [`MARK`] in
//! their environment, files and mounts are below `/run/fairlead-lab/ID`. A lab sweeps its own id
//! when it ends. A janitor process sweeps it when the lab could not (Ctrl-C, a crash, `kill -9`),
//! and the next lab sweeps every id whose owner is dead.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{netns, programs};

/// The environment variable that says to which lab a process belongs.
pub const MARK: &str = "FAIRLEAD_LAB";

const ROOT: &str = "/run/fairlead-lab";

/// The lab's folder on this machine. Dropping it sweeps.
#[derive(Debug)]
pub struct Ground {
    name: String,
    id: String,
    path: PathBuf,
    janitor: Child,
    /// Closed by our death, whichever way: that is what the janitor waits for.
    life_line: Option<ChildStdin>,
}

impl Ground {
    /// A fresh folder, after sweeping what dead labs left.
    ///
    /// # Errors
    /// When `/run` cannot be written, so without root.
    pub fn claim(name: &str) -> Result<Self> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        leftovers().iter().for_each(|id| sweep(id));
        let me = std::process::id();
        let id = match LABS.fetch_add(1, Ordering::Relaxed) {
            0 => format!("{name}-{me}"),
            nth => format!("{name}-{me}-{nth}"),
        };
        let path = Path::new(ROOT).join(&id);
        fs::create_dir_all(path.join("logs"))
            .with_context(|| format!("creating {}: the lab must run as root", path.display()))?;
        // At once: another lab that reads half of it takes the owner for dead.
        let aside = path.join("owner.new");
        fs::write(&aside, format!("{me} {}", start_time(me).unwrap_or_default()))?;
        fs::rename(aside, path.join("owner"))?;
        let mut janitor = std::os::unix::process::CommandExt::process_group(
            Command::new(programs::ours("lab-run")?)
                .args(["janitor", &id])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
            0,
        )
        .spawn()
        .context("starting the janitor")?;
        let life_line = janitor.stdin.take();
        Ok(Self { name: name.to_owned(), id, path, janitor, life_line })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{name}.log"))
    }

    /// What was logged outlives the lab beside the programs that were built, until the next lab of
    /// that name: somebody may want to know why it failed.
    fn keep_logs(&self) -> Result<()> {
        let kept = programs::build_folder()?.join("lab-logs").join(&self.name);
        let _ = fs::remove_dir_all(&kept);
        fs::create_dir_all(&kept)?;
        for log in fs::read_dir(self.path.join("logs"))? {
            let log = log?;
            fs::copy(log.path(), kept.join(log.file_name()))?;
        }
        Ok(())
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        end_processes(&self.id);
        if let Err(error) = self.keep_logs() {
            tracing::debug!("the logs of {} are lost: {error:#}", self.id);
        }
        sweep(&self.id);
        drop(self.life_line.take());
        let _ = self.janitor.wait();
    }
}

/// Removes everything that carries the id. Safe to run twice, also at the same time.
pub fn sweep(id: &str) {
    end_processes(id);
    netns::with_prefix(&format!("fl-{id}-")).iter().for_each(|name| netns::delete(name));
    let folder = Path::new(ROOT).join(id);
    for mount in mounts_below(&folder) {
        let _ = umount2(&mount, MntFlags::MNT_DETACH);
    }
    let _ = fs::remove_dir_all(&folder);
}

/// The ids whose owner is dead.
fn leftovers() -> Vec<String> {
    let ids = fs::read_dir(ROOT).into_iter().flatten();
    ids.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|id| !owner_lives(&Path::new(ROOT).join(id).join("owner")))
        .collect()
}

/// Whether the process that the file names still runs. A folder that is just being made counts as
/// alive: its owner writes the file next.
fn owner_lives(file: &Path) -> bool {
    let Ok(owner) = fs::read_to_string(file) else { return true };
    let Some((pid, started)) = owner.split_once(' ') else { return false };
    pid.parse().ok().and_then(start_time).is_some_and(|now| now == started)
}

/// When a process started, in clock ticks since boot: with the pid, a name that is never reused.
/// Field 22 of proc_pid_stat(5), counted after the parenthesis that closes the command's name.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19).map(str::to_owned)
}

fn end_processes(id: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let marked = marked_processes(id);
        marked.iter().for_each(|pid| {
            let _ = kill(*pid, Signal::SIGKILL);
        });
        if marked.is_empty() || Instant::now() > deadline {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn marked_processes(id: &str) -> Vec<Pid> {
    let mark = format!("{MARK}={id}");
    let processes = fs::read_dir("/proc").into_iter().flatten();
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes()))
        })
        .map(Pid::from_raw)
        .collect()
}

/// Mount points at or below the folder, the deepest first.
fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(PathBuf::from)
        .filter(|point| point.starts_with(folder))
        .collect();
    points.sort();
    points.reverse();
    points
}
