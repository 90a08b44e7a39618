use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use metal_lb::args::{Cli, Verb};
use metal_lb::xdp::{Mode, object, pass};
use metal_lb::{document_file, run, state};

#[tokio::main]
async fn main() -> ExitCode {
    let ended = match Cli::parse().verb {
        Verb::Run(args) => run::run(*args).await,
        Verb::Check { config } => check(&config),
        Verb::State(args) => state::print(&args).await,
        Verb::Cleanup(path) => object::cleanup(&run::settings(&path, 0, Mode::Native)),
        Verb::LabXdpPass { interface } => pass::attach(&interface),
    };
    daemon::exit_code("metal-lb", ended)
}

#[expect(clippy::print_stdout, reason = "the answer of a command line verb")]
fn check(path: &Path) -> anyhow::Result<()> {
    let config = document_file::read(path)?;
    println!("{}: generation {}, {} listeners", path.display(), config.generation, config.listeners.len());
    Ok(())
}
