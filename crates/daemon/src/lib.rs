//! What every Fairlead program needs around its work: logs, signals, probes, metrics and owned tasks.

pub mod http;
pub mod log;
pub mod metrics;
mod ready;
pub mod routes;
mod shutdown;
mod tasks;

pub use ready::{Readiness, ReadyToken};
pub use shutdown::Shutdown;
pub use tasks::Tasks;

/// The exit code of a program; an error is said in one line, also where backtraces are on: it is
/// about what the user asked for, or about the machine.
#[expect(clippy::print_stderr, reason = "verbs have no log")]
pub fn exit_code(program: &str, ended: anyhow::Result<()>) -> std::process::ExitCode {
    match ended {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
