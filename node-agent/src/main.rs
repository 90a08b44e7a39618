use clap::Parser;

// Two threads: one commits, the other answers probes meanwhile.
#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    node_agent::run::main(node_agent::args::Cli::parse()).await
}
