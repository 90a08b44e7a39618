//! Two nodes that are alike in everything, one with the real kube-proxy and one with node-agent:
//! every flow must have the same fate on both. See `README.md`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and tells what it does")]

mod batch;
mod cases;
mod difference;
mod endpoints;
mod fates;
mod features;
mod findings;
mod flows;
mod foretold;
mod generate;
mod kept;
mod lab_of_two;
mod legacy;
mod listing;
mod meant;
mod probe;
mod setups;
mod shared;
mod shrink;
mod twin;
mod verdict;
mod zone;

use std::time::Instant;

use anyhow::{Result, ensure};
use cases::Case;
use fates::Fates;
use features::Settings;
use generate::Generator;
use lab_of_two::LabOfTwo;
use node_agent::run::raise_descriptor_limit;
use setups::Setup;
use tokio::sync::Mutex;

/// As many Services as the programs have to take in at once.
const BATCH: usize = 250;

/// This machine has room for one lab of two.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn both_nodes_give_every_flow_the_same_fate() -> Result<()> {
    compare(setups::usual()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn so_they_do_where_pods_are_known_by_interfaces_and_loopback_answers_node_ports() -> Result<()> {
    compare(setups::interfaces_and_loopback()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn so_they_do_where_kube_proxy_writes_iptables() -> Result<()> {
    compare(setups::iptables()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn so_they_do_where_one_interface_is_the_pods_and_all_are_masqueraded() -> Result<()> {
    compare(setups::one_interface_and_all_masqueraded()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn so_they_do_where_nobody_is_known_as_a_pod() -> Result<()> {
    compare(setups::nobody_is_local()).await
}

async fn compare(setup: Setup) -> Result<()> {
    let _turn = ONE_AT_A_TIME.lock().await;
    // Whoever answers or asks in a lab of two does so in this process, on more sockets than it may have at first.
    raise_descriptor_limit()?;
    let settings = Settings::from_environment()?.without(setup.without);
    let started = Instant::now();
    let (one_in, floors) = (setup.one_in, setup.floors);
    let lab = LabOfTwo::start(setup).await?;
    println!("the twins run after {:.1} s; {settings}", started.elapsed().as_secs_f32());

    let mut failures = 0;
    let fixtures = cases::fixtures(&settings.features)?;
    let judged = lab.judge(&fixtures, &settings, batch::PATIENT).await?;
    println!("{} fixtures: {judged}", fixtures.len());
    for case in judged.different_cases() {
        failures += 1;
        println!("{}", findings::describe(&fixtures[case], &judged.of_case(case)));
    }

    let mut fates = Fates::default();
    let mut generator = Generator::new(&settings);
    let mut left = settings.cases.div_ceil(one_in);
    while left > 0 {
        let mut trees = generator.trees(left.min(BATCH))?;
        left -= trees.len();
        let cases: Vec<Case> = trees.iter().map(|tree| generator.case(tree)).collect();
        let judged = lab.judge(&cases, &settings, batch::PATIENT).await?;
        println!("{} cases: {judged}, {:.1} s so far", cases.len(), started.elapsed().as_secs_f32());
        fates.extend(judged.fates());
        for case in judged.different_cases() {
            failures += 1;
            let whole = (cases[case].clone(), judged.of_case(case));
            let (case, differences) = match failures {
                ..=shrink::MOST => {
                    let alone = async |case: &Case| {
                        let judged = lab.judge(std::slice::from_ref(case), &settings, batch::BRISK).await?;
                        Ok(judged.of_case(0))
                    };
                    shrink::shrink(alone, &generator, &mut trees[case], whole).await?
                }
                _ => whole,
            };
            println!("{}", findings::keep(&lab.logs(), failures, &case, &differences)?);
        }
    }
    ensure!(failures == 0, "{failures} cases differ; {settings}");
    let missing = fates.missing(floors);
    ensure!(missing.is_empty(), "the lab did not do what it is for: {}; {settings}", missing.join(", "));
    Ok(())
}
