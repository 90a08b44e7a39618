//! Figures beside the peers', in one run, turn by turn: a Markdown table at the end.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what is printed is the result")]

mod cluster;
mod contender;
mod figures;
mod lone_change;
mod machine;
mod proxies;
mod reach;
mod replay;
mod shape;
mod usage;

use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use figures::Row;
use shape::{Rounds, Size};

/// What is measured, and how often.
#[derive(Debug, Parser)]
struct Plan {
    /// A run of two minutes; what else is given counts.
    #[arg(long)]
    quick: bool,
    /// SERVICESxENDPOINTS[+exposed]:ROUNDS[/PEER_ROUNDS], comma separated, growing where endpoints are
    /// the same: how many Services, and how many cold starts of each program. `exposed` ones have a
    /// NodePort and a load balancer's address, too.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "10x2:5,1000x2:5,10000x2:5,30000x2:5,10000x10:5,5000x50:5,10000x2+exposed:5",
        default_value_if("quick", "true", "1000x2:3")
    )]
    sizes: Vec<Size>,
    /// Lone changes of endpoints in each round of each program.
    #[arg(long, default_value = "40", default_value_if("quick", "true", "10"))]
    changes: usize,
    /// Seconds for which nothing changes, in each round with changes. node-agent looks at everything every 300.
    #[arg(long, default_value = "20", default_value_if("quick", "true", "10"))]
    idle: u64,
    /// Services that are applied and reached, one after the other; 0 for none.
    #[arg(long, default_value = "15", default_value_if("quick", "true", "5"))]
    reach_rounds: usize,
    /// ROUNDS[/PEER_ROUNDS]: starts of each program to which a recorded watch is replayed, with 1,000 and
    /// with 10,000 Services of 2 endpoints where they are among the sizes; 0 for none.
    #[arg(long, default_value = "5", default_value_if("quick", "true", "1"))]
    replay_rounds: Rounds,
    /// Changes a second that are replayed, one rate after the other.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "2000,8000",
        default_value_if("quick", "true", "2000")
    )]
    rates: Vec<u32>,
    /// Seconds of each rate; 16 at most.
    #[arg(long, default_value = "8", default_value_if("quick", "true", "4"))]
    replay_seconds: u64,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let plan = Plan::parse();
    let head = machine::described(&plan);
    println!("{head}\n| median (least – most) | Fairlead | kube-proxy | factor |\n|---|---|---|---|");
    // What runs ends, and what was made is removed, with the future that is dropped.
    tokio::select! {
        done = measure(&plan) => done?,
        _ = tokio::signal::ctrl_c() => {
            progress("stopping: removing everything from this machine");
            return Ok(ExitCode::from(130));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Every row is printed once it is known: a run that is cut short is not lost.
async fn measure(plan: &Plan) -> Result<()> {
    let tell = |row: Row| println!("{row}");
    if plan.reach_rounds > 0 {
        reach::measure(plan.reach_rounds).await?.into_iter().for_each(tell);
    }
    proxies::measure(plan, tell).await
}

/// With the time since the first word, on standard error: the table alone is the output.
fn progress(text: &str) {
    static START: OnceLock<Instant> = OnceLock::new();
    let seconds = START.get_or_init(Instant::now).elapsed().as_secs();
    eprintln!("  … {:3}:{:02} {text}", seconds / 60, seconds % 60);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_run_is_short_except_where_told_otherwise() {
        let rounds = |arguments: &[&str]| {
            let plan = Plan::parse_from([&["bench"], arguments].concat());
            let starts: usize = plan.sizes.iter().map(|size| size.rounds.turns().count()).sum();
            (starts, plan.changes, plan.reach_rounds)
        };
        assert_eq!(rounds(&[]), (70, 40, 15));
        assert_eq!(rounds(&["--quick"]), (6, 10, 5));
        assert_eq!(rounds(&["--quick", "--sizes=10x2:1,20x2:2/1", "--changes=3"]), (5, 3, 5));
    }
}
