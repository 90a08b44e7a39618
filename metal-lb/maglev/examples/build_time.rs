//! Prints how long a table for 1000 targets takes: median, best and worst of 21 builds.
//! `cargo run --release -p maglev --example build_time`

#![expect(clippy::print_stdout, reason = "an example's output")]

use std::time::Instant;

use maglev::{Backend, TABLE_SLOTS, table};

fn main() {
    let names: Vec<String> = (0..1000).map(|i| format!("node-{i}")).collect();
    let backends: Vec<Backend<'_>> =
        names.iter().zip(1..).map(|(identity, value)| Backend { identity, weight: 1, value }).collect();
    let mut times: Vec<_> = (0..21)
        .map(|seed| {
            let start = Instant::now();
            assert_eq!(table(&backends, TABLE_SLOTS, seed).len(), TABLE_SLOTS as usize);
            start.elapsed()
        })
        .collect();
    times.sort();
    println!("{TABLE_SLOTS} slots, 1000 targets: median {:?} ({:?} to {:?})", times[10], times[0], times[20]);
}
