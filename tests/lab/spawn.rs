//! Starting processes that cannot outlive the lab.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, mpsc};
use std::thread;

use anyhow::{Context, Result};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use crate::netns::Netns;
use crate::{programs, sweep};

/// What to start, and where.
#[derive(Debug, Clone)]
pub struct Spec {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    pub environment: BTreeMap<String, String>,
    pub netns: Arc<Netns>,
    /// The name that the process takes its machine to have; the lab's own if none.
    pub hostname: Option<String>,
    /// Receives standard output and standard error.
    pub log: PathBuf,
}

type Order = (Command, oneshot::Sender<std::io::Result<Child>>);

/// Starts processes, each in its namespace, in a process group of its own, and with nothing of
/// our environment but `PATH` and `HOME`.
///
/// They ask the kernel to be killed when the *thread* that started them ends. So one thread
/// starts them all, and it ends with the lab, however the lab ends.
#[derive(Debug, Clone)]
pub struct Spawner {
    orders: mpsc::Sender<Order>,
    launcher: PathBuf,
    lab_id: String,
}

impl Spawner {
    /// # Errors
    /// Outside a tokio runtime, or when `lab-run` was not built.
    pub fn new(lab_id: &str) -> Result<Self> {
        let launcher = programs::ours("lab-run")?;
        let runtime = tokio::runtime::Handle::try_current().context("the lab needs a tokio runtime")?;
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::Builder::new().name("lab-spawner".into()).spawn(move || {
            let _runtime = runtime.enter();
            for (mut command, reply) in inbox {
                // Nobody waits for the answer any more: the child is dropped, and so killed.
                let _ = reply.send(command.spawn());
            }
        })?;
        Ok(Self { orders, launcher, lab_id: lab_id.to_owned() })
    }

    /// # Errors
    /// When the program or its log cannot be opened, or the lab is being taken down.
    pub async fn spawn(&self, spec: &Spec) -> Result<Child> {
        let log = open_log(&spec.log)?;
        let mut command = Command::new(&self.launcher);
        command.arg("exec").arg("--netns").arg(spec.netns.path());
        command.arg("--parent").arg(std::process::id().to_string());
        if let Some(hostname) = &spec.hostname {
            command.arg("--hostname").arg(hostname);
        }
        command.arg("--").arg(&spec.program).args(&spec.arguments);
        command.env_clear();
        for kept in ["PATH", "HOME"] {
            command.envs(std::env::var_os(kept).map(|value| (kept, value)));
        }
        command.envs(&spec.environment).env(sweep::MARK, &self.lab_id);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.process_group(0).kill_on_drop(true);

        let (reply, answer) = oneshot::channel();
        self.orders.send((command, reply)).ok().context("the lab is being taken down")?;
        answer
            .await
            .context("the lab is being taken down")?
            .with_context(|| format!("starting {}", spec.program.display()))
    }
}

fn open_log(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("opening the log {}", path.display()))
}
