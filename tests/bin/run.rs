//! `lab-run exec` becomes another program, inside a namespace and tied to the life of the lab.
//! `lab-run janitor` waits for the lab's death and sweeps after it.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

#[derive(Debug, Parser)]
enum Verb {
    /// Becomes PROGRAM inside a network namespace; dies with the thread that started it.
    Exec {
        #[arg(long)]
        netns: PathBuf,
        /// The process that starts us; if it is gone already, so are we.
        #[arg(long)]
        parent: i32,
        #[arg(long)]
        hostname: Option<String>,
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
    /// Removes what the lab left, once standard input ends.
    Janitor { id: String },
}

fn main() -> Result<()> {
    match Verb::parse() {
        Verb::Exec { netns, parent, hostname, program } => {
            set_pdeathsig(Signal::SIGKILL)?;
            ensure!(getppid().as_raw() == parent, "the lab died while it started us");
            let file = File::open(&netns).with_context(|| format!("opening {}", netns.display()))?;
            setns(&file, CloneFlags::CLONE_NEWNET).context("entering the namespace: root only")?;
            if let Some(hostname) = hostname {
                unshare(CloneFlags::CLONE_NEWUTS)?;
                std::fs::write("/proc/sys/kernel/hostname", hostname).context("taking a host name")?;
            }
            let error = Command::new(&program[0]).args(&program[1..]).exec();
            Err(error).with_context(|| format!("starting {}", program[0].display()))
        }
        Verb::Janitor { id } => {
            std::io::stdin().read_to_end(&mut Vec::new())?;
            lab::sweep::sweep(&id);
            Ok(())
        }
    }
}
