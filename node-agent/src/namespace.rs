//! For tests: a network namespace of their own.

use std::panic::resume_unwind;

/// Runs the test on a thread in a fresh network namespace, which ends with it.
pub(crate) fn in_namespace(test: impl FnOnce() + Send) {
    let isolated = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
        test();
    };
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(isolated).join() {
            resume_unwind(panic);
        }
    });
}
