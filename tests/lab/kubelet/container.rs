//! One container: the pod's program in place of the image, started again when it dies.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::process::ExitStatusExt;
use tokio::process::Child;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::probe;
use crate::netns::Netns;
use crate::spawn::{Spawner, Spec};

/// Delays before each next start: at once, then longer and longer.
const BACKOFF: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// What happened to the container with that index in its pod.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) index: usize,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Started {
        pid: u32,
    },
    NotStarted,
    Ready(bool),
    /// Ended, and whether it will be started again.
    Ended {
        code: i32,
        signal: Option<i32>,
        again: bool,
    },
}

/// Everything needed to run a container.
#[derive(Debug)]
pub(super) struct Runner {
    pub(super) index: usize,
    pub(super) spec: Spec,
    pub(super) probe: probe::Plan,
    /// Whence, and whither, probes go.
    pub(super) node: Arc<Netns>,
    pub(super) address: IpAddr,
    /// `lifecycle.preStop.sleep`.
    pub(super) before_stop: Duration,
    pub(super) restart: Restart,
    pub(super) spawner: Spawner,
}

/// The pod's `restartPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restart {
    Always,
    OnFailure,
    Never,
}

impl Restart {
    pub(super) fn parse(policy: Option<&str>) -> Self {
        match policy {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }

    fn applies(self, code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => code != 0,
            Self::Never => false,
        }
    }
}

impl Runner {
    /// Runs the container until `stop` asks it to end and it has ended. Dropping the future kills it.
    pub(super) async fn run(self, events: mpsc::Sender<Event>, stop: CancellationToken) {
        for start in 0.. {
            let pause = BACKOFF[(start as usize).min(BACKOFF.len() - 1)];
            if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                return self.tell(&events, What::Ended { code: 0, signal: None, again: false }).await;
            }
            let Ok(mut child) = self.spawner.spawn(&self.spec).await else {
                self.tell(&events, What::NotStarted).await;
                continue;
            };
            if let Some(pid) = child.id() {
                self.tell(&events, What::Started { pid }).await;
            }
            let probing = self
                .probe
                .clone()
                .watch(self.node.clone(), self.address, |ready| self.tell(&events, What::Ready(ready)));
            let exit = tokio::select! {
                exit = self.until_exit(&mut child, &stop) => exit,
                () = probing => continue,
            };
            let (code, signal) = match exit {
                Ok(status) => (status.code().unwrap_or(128 + status.signal().unwrap_or(0)), status.signal()),
                Err(_) => (255, None),
            };
            let again = !stop.is_cancelled() && self.restart.applies(code);
            self.tell(&events, What::Ended { code, signal, again }).await;
            if !again {
                return;
            }
        }
    }

    async fn tell(&self, events: &mpsc::Sender<Event>, what: What) {
        // The pod's worker hears no more once it is done with the pod.
        let _ = events.send(Event { index: self.index, what }).await;
    }

    /// Waits for the exit; asks for it once `stop` is cancelled.
    async fn until_exit(
        &self,
        child: &mut Child,
        stop: &CancellationToken,
    ) -> std::io::Result<std::process::ExitStatus> {
        if let Some(exit) = stop.run_until_cancelled(child.wait()).await {
            return exit;
        }
        sleep(self.before_stop).await;
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended meanwhile, which is what we want.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        child.wait().await
    }
}
