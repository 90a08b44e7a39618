//! Programs that are started again a second after they die, as a kubelet or systemd would do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::spawn::{Spawner, Spec};
use crate::wait;

/// Between a death and the next start.
pub const RESTART_DELAY: Duration = Duration::from_secs(1);

/// Between SIGTERM and SIGKILL.
pub const GRACE: Duration = Duration::from_secs(10);

/// A supervised program. Dropping it kills the process.
#[derive(Debug)]
pub struct Program {
    name: String,
    log: PathBuf,
    orders: mpsc::Sender<Order>,
    state: watch::Receiver<State>,
}

#[derive(Debug, Clone, Copy)]
enum Order {
    /// With the signal that ends it.
    Stop(Signal),
    Start,
}

/// What became of a program so far.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The running process, if one runs.
    pub pid: Option<u32>,
    pub starts: u32,
    pub last_exit: Option<ExitStatus>,
}

impl Program {
    /// # Errors
    /// When it cannot be started the first time.
    pub async fn start(name: &str, spawner: &Spawner, spec: Spec) -> Result<Self> {
        let child = spawner.spawn(&spec).await?;
        let (publish, state) = watch::channel(State { pid: child.id(), starts: 1, last_exit: None });
        let (orders, inbox) = mpsc::channel(4);
        let log = spec.log.clone();
        tokio::spawn(supervise(spawner.clone(), spec, child, inbox, publish));
        Ok(Self { name: name.to_owned(), log, orders, state })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// How often it was started again.
    pub fn restarts(&self) -> u32 {
        self.state.borrow().starts - 1
    }

    /// Sends a signal to the running process.
    ///
    /// # Errors
    /// When none runs right now.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.state.borrow().pid.with_context(|| format!("{} is not running", self.name))?;
        let pid = i32::try_from(pid).context("a pid fits 22 bits")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Sends a signal, and waits until the next process runs.
    ///
    /// # Errors
    /// When it was not running, or is not started again.
    pub async fn signal_and_await_restart(&self, signal: Signal) -> Result<()> {
        let before = self.state().starts;
        self.signal(signal)?;
        wait::until(
            &format!("{} runs again after {signal}", self.name),
            Duration::from_secs(40),
            async || match self.state() {
                State { pid: Some(_), starts, .. } if starts > before => Ok(()),
                state => bail!("{state:?}"),
            },
        )
        .await
    }

    /// SIGTERM, SIGKILL after [`GRACE`], and no new start until [`Self::resume`]. Returns once the
    /// process is gone.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop(&self) -> Result<()> {
        self.orders.send(Order::Stop(Signal::SIGTERM)).await.context("the supervisor ended")?;
        let asked = self.ended(GRACE).await;
        if asked.is_err() {
            // It may have ended just now; if not, the next wait says so.
            let _ = self.signal(Signal::SIGKILL);
        }
        self.ended(GRACE).await
    }

    /// SIGKILL, and no new start until [`Self::resume`]. Returns once the process is gone.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill(&self) -> Result<()> {
        self.orders.send(Order::Stop(Signal::SIGKILL)).await.context("the supervisor ended")?;
        self.ended(GRACE).await
    }

    async fn ended(&self, deadline: Duration) -> Result<()> {
        wait::until(&format!("{} ended", self.name), deadline, async || match self.state() {
            State { pid: None, .. } => Ok(()),
            state => bail!("{state:?}"),
        })
        .await
    }

    /// Starts it again after [`Self::stop`] or [`Self::kill`].
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn resume(&self) -> Result<()> {
        self.orders.send(Order::Start).await.context("the supervisor ended")?;
        wait::until(&format!("{} runs", self.name), Duration::from_secs(5), async || match self.state() {
            State { pid: Some(_), .. } => Ok(()),
            state => bail!("{state:?}"),
        })
        .await
    }

    /// The last lines of its log, for messages about what went wrong.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// All that it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Owns the child; ends, and kills it, when nobody can give orders any more.
async fn supervise(
    spawner: Spawner,
    spec: Spec,
    child: Child,
    mut orders: mpsc::Receiver<Order>,
    state: watch::Sender<State>,
) {
    let mut running = Some(child);
    let mut wanted = true;
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                None => return,
                Some(Order::Stop(signal)) => {
                    wanted = false;
                    if let Some(pid) = running.as_ref().and_then(Child::id).and_then(|pid| i32::try_from(pid).ok()) {
                        let _ = kill(Pid::from_raw(pid), signal);
                    }
                }
                Some(Order::Start) => wanted = true,
            },
            exit = exited(&mut running) => {
                running = None;
                state.send_modify(|state| {
                    state.pid = None;
                    state.last_exit = exit;
                });
                if wanted {
                    sleep(RESTART_DELAY).await;
                }
            }
        }
        if wanted && running.is_none() {
            match spawner.spawn(&spec).await {
                Ok(child) => {
                    state.send_modify(|state| {
                        state.pid = child.id();
                        state.starts += 1;
                    });
                    running = Some(child);
                }
                Err(error) => {
                    tracing::warn!(program = %spec.program.display(), "not started again: {error:#}");
                    return;
                }
            }
        }
    }
}

/// The exit of the running child; never, if none runs.
async fn exited(running: &mut Option<Child>) -> Option<ExitStatus> {
    match running {
        Some(child) => child.wait().await.ok(),
        None => std::future::pending().await,
    }
}
