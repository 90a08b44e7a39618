use std::process::ExitCode;

// Two threads: one commits, the other answers probes meanwhile.
#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    daemon::exit_code("node-agent", node_agent::run::main(node_agent::command_line::parse()).await)
}
