//! What a program and its children have used: looked at from outside, so that it fits every program.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};
use tokio::time::sleep;

use crate::figures::Samples;

/// Between two looks for the peak.
const PAUSE: Duration = Duration::from_millis(25);

/// A process, and those that it and its children started and that still run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Family(pub(crate) u32);

impl Family {
    /// Processor seconds so far, with children that have ended: fields 14 to 17 of proc_pid_stat(5).
    pub(crate) fn processor_seconds(self) -> Result<f64> {
        let mut ticks = 0;
        for pid in self.members() {
            // A child that ended meanwhile counts at its parent from now on.
            let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
            let (_, fields) = stat.rsplit_once(") ").context("a stat line has a command's name")?;
            ticks += fields.split(' ').skip(11).take(4).filter_map(|f| f.parse::<u32>().ok()).sum::<u32>();
        }
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the clock has ticks")?;
        #[allow(clippy::cast_precision_loss, reason = "a hundred or a thousand")]
        Ok(f64::from(ticks) / per_second as f64)
    }

    /// Bytes of `VmRSS` or `VmHWM`, of all together.
    pub(crate) fn memory(self, field: &str) -> f64 {
        let kibibytes = self.members().into_iter().filter_map(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
            value.trim().trim_end_matches(" kB").parse::<u32>().ok()
        });
        kibibytes.map(|kibibytes| f64::from(kibibytes) * 1024.0).sum()
    }

    /// Does `work`, and looks meanwhile how much memory all have together at most.
    pub(crate) async fn peak_during<T>(self, peak: &mut Samples, work: impl Future<Output = T>) -> T {
        let mut most = 0.0_f64;
        let looking = async {
            loop {
                most = most.max(self.memory("VmRSS"));
                sleep(PAUSE).await;
            }
        };
        let done = tokio::select! {
            done = work => done,
            never = looking => never,
        };
        peak.add(most.max(self.memory("VmHWM")));
        done
    }

    /// The first is the process itself. A program of many threads has children at each of them.
    fn members(self) -> Vec<u32> {
        let mut members = vec![self.0];
        let mut next = 0;
        while let Some(pid) = members.get(next).copied() {
            next += 1;
            let threads = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"));
            for thread in threads.into_iter().flatten().flatten() {
                let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
                members.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
        }
        members
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_child_of_any_thread_counts_with_its_children() {
        let start = || Command::new("sh").args(["-c", "read x & read y"]).stdin(Stdio::piped()).spawn();
        // A thread that lives on: the children of one that ends go to another.
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            tell.send(start().unwrap()).unwrap();
            let _ = wait.recv();
        });
        let mut child = told.recv().unwrap();
        let members = Family(std::process::id()).members();
        assert!(members.contains(&child.id()), "{} is not among {members:?}", child.id());
        assert!(Family(std::process::id()).memory("VmRSS") > Family(child.id()).memory("VmRSS"));
        child.kill().unwrap();
        child.wait().unwrap();
        drop(done);
        thread.join().unwrap();
    }
}
