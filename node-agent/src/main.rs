use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    node_agent::run::main(node_agent::args::Cli::parse()).await
}
