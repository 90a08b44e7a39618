//! Signals reach the whole process, so this test has one of its own.

use std::time::Duration;

use daemon::Shutdown;
use nix::sys::signal::{Signal, raise};

const DEADLINE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn the_first_signal_asks_for_a_graceful_stop_and_the_second_ends_waiting() {
    let shutdown = Shutdown::listen().unwrap();
    let token = shutdown.token();
    assert!(!token.is_cancelled());

    raise(Signal::SIGTERM).unwrap();
    tokio::time::timeout(DEADLINE, token.cancelled()).await.expect("SIGTERM cancels the token");
    assert!(!shutdown.is_forced(), "one signal is not two");

    raise(Signal::SIGINT).unwrap();
    tokio::time::timeout(DEADLINE, shutdown.forced())
        .await
        .expect("the second signal, of either kind, forces");
    assert!(shutdown.is_forced());
}
