//! Removing what a lab that was killed left behind.

use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::ip;
use crate::process::MARK;

/// The prefix of every namespace of the lab that runs in process `pid`.
pub fn prefix(pid: u32) -> String {
    format!("fl-{pid}-")
}

/// The folder of that lab's files.
pub fn folder(pid: u32) -> PathBuf {
    std::env::temp_dir().join(format!("fairlead-lab-{pid}"))
}

/// The folder of that lab's pinned BPF objects.
pub fn bpf_folder(pid: u32) -> PathBuf {
    format!("/sys/fs/bpf/fairlead-lab-{pid}").into()
}

/// Ends the processes and removes the namespaces, files and pins of labs whose process is gone.
pub fn dead_labs() {
    for pid in marked_processes().into_iter().filter(|(_, lab)| !is_alive(*lab)).map(|(pid, _)| pid) {
        let _ended = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    for name in names(Path::new("/run/netns")) {
        if lab_of(&name, "fl-").is_some_and(|lab| !is_alive(lab)) {
            drop(ip(None, &format!("netns del {name}")));
        }
    }
    for (parent, prefix) in [(std::env::temp_dir(), "fairlead-lab-"), ("/sys/fs/bpf".into(), "fairlead-lab-")]
    {
        for name in names(&parent) {
            if lab_of(&name, prefix).is_some_and(|lab| !is_alive(lab)) {
                drop(std::fs::remove_dir_all(parent.join(&name)));
            }
        }
    }
}

fn lab_of(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.split('-').next()?.parse().ok()
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// Processes that carry a lab's mark, with the lab's process id.
fn marked_processes() -> Vec<(i32, u32)> {
    let marked = |name: String| {
        let pid: i32 = name.parse().ok()?;
        let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        let entries = environment.split(|b| *b == 0).filter_map(|e| std::str::from_utf8(e).ok());
        let lab = entries.filter_map(|e| e.strip_prefix(MARK)?.strip_prefix('=')).next()?;
        Some((pid, lab.parse().ok()?))
    };
    names(Path::new("/proc")).into_iter().filter_map(marked).collect()
}
