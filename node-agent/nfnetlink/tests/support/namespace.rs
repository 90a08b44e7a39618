//! A network namespace for one test.

/// Runs `test` in a thread of its own with a fresh network namespace, which goes with
/// the thread. Sockets opened in it, and programs started from it, see that namespace.
pub(crate) fn in_fresh_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .expect("a network namespace needs CAP_SYS_ADMIN");
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}
