//! Processes that the lab owns: they die with it, and a supervised one is restarted a second after
//! it ends, as a kubelet would.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command as StdCommand, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// Marks the lab's processes, so that a later run can find those that a `kill -9` left.
pub const MARK: &str = "FAIRLEAD_LAB";

/// Starts a process that ends when this one does. Its output goes to a file.
///
/// # Errors
/// When the program does not exist or the log cannot be written.
pub fn spawn(command: StdCommand, log: &Path) -> anyhow::Result<Child> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("opening {}", log.display()))?;
    let shown = format!("{command:?}");
    let mut command = Command::from(command);
    command
        .env(MARK, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    command.process_group(0).kill_on_drop(true);
    // SAFETY: prctl is async-signal-safe and touches no memory of the parent.
    unsafe {
        command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
    command.spawn().with_context(|| format!("starting {shown}"))
}

/// A program that is restarted when it ends.
#[derive(Debug)]
pub struct Supervised {
    pub name: String,
    pub log: PathBuf,
    pid: watch::Receiver<Option<u32>>,
    restarts: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<()>,
}

impl Supervised {
    /// Starts the program and keeps it running until dropped.
    pub fn start(name: &str, log: PathBuf, command: impl Fn() -> StdCommand + Send + 'static) -> Self {
        let (pid_tx, pid) = watch::channel(None);
        let restarts = Arc::new(AtomicU32::new(0));
        let (counter, path, label) = (Arc::clone(&restarts), log.clone(), name.to_owned());
        let task = tokio::spawn(async move {
            loop {
                match spawn(command(), &path) {
                    Ok(mut child) => {
                        pid_tx.send_replace(child.id());
                        let ended = child.wait().await;
                        pid_tx.send_replace(None);
                        tracing::debug!(program = %label, ?ended, "ended; starting again in a second");
                    }
                    Err(error) => tracing::error!(program = %label, "{error:#}"),
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { name: name.to_owned(), log, pid, restarts, task }
    }

    pub fn restarts(&self) -> u32 {
        self.restarts.load(Ordering::Relaxed)
    }

    pub fn pid(&self) -> Option<u32> {
        *self.pid.borrow()
    }

    /// Sends a signal to the running process.
    ///
    /// # Errors
    /// When it is not running.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid().with_context(|| format!("{} is not running", self.name))?;
        Ok(kill(Pid::from_raw(i32::try_from(pid)?), signal)?)
    }

    /// What it has logged so far.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // Dropping the task drops the child, which kills it.
        self.task.abort();
        if let Some(pid) = self.pid() {
            let _ended = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
    }
}
