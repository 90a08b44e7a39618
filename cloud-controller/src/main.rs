//! See the library.

use std::process::ExitCode;

use clap::Parser;
use cloud_controller::args::{Cli, Verb};

#[tokio::main]
async fn main() -> ExitCode {
    let ended = match Cli::parse().verb {
        Verb::Run(args) => {
            daemon::log::init(args.log_format);
            cloud_controller::run::run(args).await
        }
        Verb::Plan(args) => {
            daemon::log::init(daemon::log::LogFormat::Text);
            cloud_controller::plan_verb::run(args).await
        }
    };
    daemon::exit_code("cloud-controller", ended)
}
