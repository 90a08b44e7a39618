//! The verbs that only read: `plan` and `dump`.

use kube_watch::{Source, read_dir};
use service_model::{Node, World};

use crate::args::{NodeArgs, PlanArgs};
use crate::nft::desired::DesiredService;
use crate::nft::kernel::Kernel;
use crate::nft::mirror::Mirror;
use crate::nft::plan::{Planner, plan_node_addresses, plan_structure};
use crate::nft::ruleset::Ruleset;
use crate::run::watch_config;
use crate::select::Place;

#[expect(clippy::print_stdout, reason = "the answer of a command line verb")]
pub(crate) fn print_plan(args: &PlanArgs) -> anyhow::Result<()> {
    let config = args.node.config()?;
    let Source::Dir(path) = &args.source else { anyhow::bail!("a plan is made from dir:PATH") };
    let mut world = World::default();
    for change in read_dir(path, &watch_config(&config))? {
        world.apply(change);
    }
    let place = Place { node: &config.node_name, zone: world.node(&config.node_name).and_then(Node::zone) };
    let (mut planner, mut mirror) = (Planner::default(), Mirror::default());
    let structure = plan_structure(&Ruleset::both(&config), &mirror);
    structure.now.iter().for_each(|step| mirror.follow(step));
    print!("{structure}");
    let internal = world.node(&config.node_name).into_iter().flat_map(Node::internal_ips);
    let addresses = config.nodeport_addresses.select(internal, &[]).into_iter().collect();
    print!("{}", plan_node_addresses(&addresses, &mirror));
    let names = world.services().map(|s| s.name.clone()).collect();
    let desired =
        |name: &_| world.service(name).map(|s| DesiredService::of(s, &world, place)).unwrap_or_default();
    print!("{}", planner.plan(&names, desired, &mirror));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the answer of a command line verb")]
pub(crate) fn print_dump(args: &NodeArgs) -> anyhow::Result<()> {
    let mirror = Kernel::open()?.observe(&Ruleset::both(&args.config()?))?;
    for address in &mirror.node_addresses {
        println!("NodePorts are answered on {address}");
    }
    for (frontend, state) in &mirror.frontends {
        println!("{frontend} ({}): {:?}", state.label, state.groups);
        for (pool, targets) in [("", &state.cluster), (" on this node", &state.local)] {
            for (index, target) in targets.iter().enumerate() {
                if let Some(target) = target {
                    println!("    #{index}{pool} {target}");
                }
            }
        }
    }
    Ok(())
}
