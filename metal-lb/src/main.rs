use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    metal_lb::run::main(metal_lb::args::Cli::parse()).await
}
