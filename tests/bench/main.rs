//! Figures beside the peers', in one run, turn by turn: a Markdown table at the end.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what is printed is the result")]

mod cluster;
mod contender;
mod figures;
mod proxies;
mod reach;

use std::str::FromStr;

use anyhow::{Context, Result};
use clap::Parser;

/// What is measured, and how often.
#[derive(Debug, Parser)]
struct Plan {
    /// SERVICES:ROUNDS, comma separated, growing: how many Services, and how many cold starts of each
    /// program.
    #[arg(long, value_delimiter = ',', default_value = "1000:7,10000:5")]
    sizes: Vec<Size>,
    /// Lone changes of endpoints, for each program at each size.
    #[arg(long, default_value_t = 60)]
    changes: usize,
    /// Services that are applied and reached, one after the other.
    #[arg(long, default_value_t = 15)]
    reach_rounds: usize,
}

#[derive(Debug, Clone, Copy)]
struct Size {
    services: usize,
    rounds: usize,
}

impl FromStr for Size {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (services, rounds) = text.split_once(':').context("give SERVICES:ROUNDS")?;
        Ok(Self { services: services.parse()?, rounds: rounds.parse()? })
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let plan = Plan::parse();
    let mut rows = reach::measure(plan.reach_rounds).await?;
    rows.extend(proxies::measure(&plan).await?);
    println!(
        "\n| median (least – most) | Fairlead | kube-proxy 1.37.2, nftables | factor |\n|---|---|---|---|"
    );
    rows.iter().for_each(|row| println!("{row}"));
    Ok(())
}

fn progress(text: &str) {
    eprintln!("  … {text}");
}
