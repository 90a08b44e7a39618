//! The verbs that only read: `plan` and `dump`.

use std::fmt;
use std::path::Path;

use anyhow::Context;
use kube_watch::{Source, read_dir};
use service_model::{Node, World};

use crate::args::{NodeArgs, PlanArgs};
use crate::config::Config;
use crate::nft::desired::DesiredService;
use crate::nft::kernel::Kernel;
use crate::nft::layout::{Group, TABLE};
use crate::nft::mirror::Mirror;
use crate::nft::plan::{Plan, Planner, plan_node_addresses, plan_structure};
use crate::nft::ruleset::Ruleset;
use crate::nft::step::{Element, Step};
use crate::select::Place;

#[expect(clippy::print_stdout, reason = "the answer of a command line verb")]
pub(crate) fn print_plan(args: &PlanArgs) -> anyhow::Result<()> {
    let Source::Dir(path) = &args.source else { anyhow::bail!("a plan is made from dir:PATH") };
    for plan in plans(path, &args.node.config()?)? {
        print!("{plan}");
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the answer of a command line verb")]
pub(crate) fn print_dump(args: &NodeArgs) -> anyhow::Result<()> {
    let rulesets = Ruleset::both(&args.config()?);
    let mirror = Kernel::open().and_then(|mut kernel| kernel.observe(&rulesets));
    let mirror = mirror.context("reading our tables needs CAP_NET_ADMIN")?;
    print!("{}", Dump(&mirror));
    Ok(())
}

/// What an empty node would be given, in the order of the commits.
fn plans(path: &Path, config: &Config) -> anyhow::Result<[Plan; 3]> {
    let mut world = World::default();
    for change in read_dir(path, &config.watches())? {
        world.apply(change);
    }
    let place = Place { node: &config.node_name, zone: world.node(&config.node_name).and_then(Node::zone) };
    let (mut planner, mut mirror) = (Planner::default(), Mirror::default());
    let structure = plan_structure(&Ruleset::both(config), &mirror);
    structure.now.iter().for_each(|step| mirror.follow(step));
    let primary = world.node(&config.node_name).into_iter().flat_map(Node::primary_ips);
    let addresses = config.nodeport_addresses.select(primary, &[]).into_iter().collect();
    let addresses = plan_node_addresses(&addresses, &mirror);
    let names = world.services().map(|s| s.name.clone()).collect();
    let desired =
        |name: &_| world.service(name).map(|s| DesiredService::of(s, &world, place)).unwrap_or_default();
    let services = planner.plan(&names, desired, &mirror);
    Ok([structure, addresses, services])
}

/// What is in the kernel: each frontend, what its groups do with it, its endpoints by index.
struct Dump<'a>(&'a Mirror);

impl fmt::Display for Dump<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return writeln!(f, "nothing is programmed: there is no table {TABLE} in this network namespace");
        }
        for address in &self.0.node_addresses {
            writeln!(f, "NodePorts are answered on {address}")?;
        }
        for (frontend, state) in &self.0.frontends {
            writeln!(f, "{frontend} for {}", state.label)?;
            for group in state.groups.iter().filter(|group| *group != Group::Served) {
                writeln!(f, "    {}", Step::Add(Element::Member { frontend: *frontend, group }))?;
            }
            for (place, targets) in [("", &state.cluster), (" on this node", &state.local)] {
                for (index, target) in targets.iter().enumerate() {
                    if let Some(target) = target {
                        writeln!(f, "    #{index}{place} {target}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Verb};

    #[test]
    fn a_dump_says_in_words_what_was_programmed() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/web");
        let command = ["node-agent", "dump", "--hostname-override=node-1"];
        let Verb::Dump(node) = Cli::parse_from(command).verb else { unreachable!("the verb is dump") };
        let config = node.config().unwrap();
        let mut mirror = Mirror::default();
        for plan in plans(&folder, &config).unwrap() {
            plan.now.iter().for_each(|step| mirror.follow(step));
        }
        assert!(Dump(&Mirror::default()).to_string().contains("nothing is programmed"));
        let dump = Dump(&mirror).to_string();
        for line in [
            "10.96.7.7:80/TCP for shop/web:http\n",
            "    spread 10.96.7.7:80/TCP over 2 endpoints\n",
            "    #0 10.244.1.5:8080\n",
        ] {
            assert!(dump.contains(line), "{line} is not in\n{dump}");
        }
    }
}
