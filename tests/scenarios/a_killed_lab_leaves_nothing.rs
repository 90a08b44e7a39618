//! However a lab ends, in the middle of whatever it does, it leaves nothing on the machine.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{netns, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// When the demo prints this, it is…
const MOMENTS: [&str; 3] = ["etcd, kube-apiserver", "== A Deployment", "of 100 new connections"];

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_lab_leaves_nothing() -> Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        for moment in MOMENTS {
            killed_at(signal, moment).await.with_context(|| format!("{signal} at {moment:?}"))?;
        }
    }
    Ok(())
}

async fn killed_at(signal: Signal, moment: &str) -> Result<()> {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let pid = demo.id().context("it has just started")?;
    let mut output = BufReader::new(demo.stdout.take().context("it is piped")?).lines();
    loop {
        let line = output.next_line().await?.context("the demo ended before that moment")?;
        if line.contains(moment) {
            break;
        }
    }
    let id = format!("demo-{pid}");
    ensure!(!left_by(&id)?.is_empty(), "the demo has nothing on the machine");
    kill(Pid::from_raw(i32::try_from(pid)?), signal)?;
    // Its output must not block it while it ends.
    while output.next_line().await?.is_some() {}
    demo.wait().await?;
    wait::until("everything is gone", Duration::from_secs(10), async || {
        let left = left_by(&id)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}

/// Namespaces, processes, mounts and files that carry the lab's id.
fn left_by(id: &str) -> Result<Vec<String>> {
    let mut left = netns::with_prefix(&format!("fl-{id}-"));
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    left.extend(mounts.lines().filter(|line| line.contains(id)).map(|line| format!("mount {line}")));
    let folder = Path::new("/run/fairlead-lab").join(id);
    left.extend(folder.exists().then(|| folder.display().to_string()));
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        let environ = fs::read(process.join("environ")).unwrap_or_default();
        if String::from_utf8_lossy(&environ).split('\0').any(|entry| entry == format!("FAIRLEAD_LAB={id}")) {
            left.push(format!("process {}", process.display()));
        }
    }
    Ok(left)
}
