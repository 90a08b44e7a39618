//! `node-agent plan`: what would be programmed on an empty node, from a folder of objects.

use std::path::Path;

use kube_watch::{Source, read_dir};
use service_model::{Node, World};

use crate::args::PlanArgs;
use crate::config::Config;
use crate::nft::desired::DesiredService;
use crate::nft::mirror::Mirror;
use crate::nft::plan::{Plan, Planner, plan_node_addresses, plan_structure};
use crate::nft::ruleset::Ruleset;
use crate::overrides::Overrides;
use crate::select::Place;
use crate::settings::Settings;

#[expect(clippy::print_stdout, reason = "the answer of a command line verb")]
pub(crate) fn print_plan(args: &PlanArgs) -> anyhow::Result<()> {
    let Source::Dir(path) = &args.source else { anyhow::bail!("a plan is made from dir:PATH") };
    let settings = Settings::new(&args.configured)?;
    for plan in plans(path, &settings.config, &settings.overrides)? {
        print!("{plan}");
    }
    Ok(())
}

/// What an empty node would be given, in the order of the commits.
fn plans(path: &Path, config: &Config, overrides: &Overrides) -> anyhow::Result<[Plan; 3]> {
    let mut world = World::default();
    for mut change in read_dir(path, &config.watches())? {
        overrides.apply(&mut change);
        world.apply(change);
    }
    let place = Place { node: &config.node_name, zone: world.node(&config.node_name).and_then(Node::zone) };
    let node = config.node.after(world.node(&config.node_name));
    let config = &Config { node, ..config.clone() };
    let (mut planner, mut mirror) = (Planner::default(), Mirror::default());
    let structure = plan_structure(&Ruleset::each(config), &mirror);
    structure.now.iter().for_each(|step| mirror.follow(step));
    // The host's addresses are not in the folder: those that the Node names are taken for its.
    let addresses = config.answering(&node.primary_ips.iter().collect()).unwrap_or_default();
    let addresses = plan_node_addresses(&addresses, &mirror);
    let names = world.services().map(|s| s.name.clone()).collect();
    let desired =
        |name: &_| world.service(name).map(|s| DesiredService::of(s, &world, place)).unwrap_or_default();
    let services = planner.plan(&names, desired, &mirror);
    Ok([structure, addresses, services])
}
