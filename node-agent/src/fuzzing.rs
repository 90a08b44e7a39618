//! A node whose kernel is the fake, for a fuzzer to tell of a cluster. Nothing here is in an ordinary
//! build.

use std::collections::BTreeSet;
use std::net::IpAddr;

use clap::Parser;
use kube_watch::WatchConfig;
use service_model::{Change, Node, ServiceName, World};

use crate::args::{Cli, Verb};
use crate::config::Config;
use crate::kube_proxy::file;
use crate::nft::desired::DesiredService;
use crate::nft::evaluate::holes;
use crate::nft::fake::Fake;
use crate::nft::plan::{Plan, Planner, plan_node_addresses, plan_structure};
use crate::nft::ruleset::Ruleset;
use crate::select::Place;
use crate::settings::Settings;

/// A node, called `here`, that does what it is told at once.
#[derive(Debug)]
pub struct FakeNode {
    config: Config,
    world: World,
    planner: Planner,
    fake: Fake,
}

impl Default for FakeNode {
    fn default() -> Self {
        let flags = ["--hostname-override=here", "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56"];
        let command = ["node-agent", "plan", "--source=dir:."].into_iter().chain(flags);
        let Verb::Plan(plan) = Cli::parse_from(command).verb else { unreachable!("the verb is plan") };
        let config = Settings::new(&plan.configured).expect("the flags are right").config;
        let mut fake = Fake::default();
        let structure = plan_structure(&Ruleset::each(&config), &fake.observe());
        fake.commit(&structure.now).expect("an empty kernel takes our tables");
        Self { config, world: World::default(), planner: Planner::default(), fake }
    }
}

impl FakeNode {
    /// What it watches.
    pub fn watches(&self) -> WatchConfig {
        self.config.watches()
    }

    /// Takes the changes, and programs what they ask for.
    ///
    /// # Panics
    /// When the kernel would refuse it, when it leaves a hole, or when there is more to do afterwards.
    pub fn follow(&mut self, changes: impl IntoIterator<Item = Change>) {
        changes.into_iter().for_each(|change| self.world.apply(change));
        let dirty = self.world.take_dirty();
        let mut services = dirty.services;
        if !dirty.nodes.is_empty() {
            services.extend(self.world.services().map(|service| service.name.clone()));
        }
        let plan = self.plan(&services);
        for steps in [&plan.now, &plan.later.into_values().flatten().collect()] {
            self.fake.commit(steps).expect("the kernel takes what is planned");
            assert_eq!(holes(&self.fake.observe()), Vec::<String>::new());
        }
        let again = self.plan(&services);
        assert!(again.now.is_empty() && again.later.is_empty(), "there is more to do:\n{again}");
    }

    fn plan(&mut self, services: &BTreeSet<ServiceName>) -> Plan {
        let mirror = self.fake.observe();
        let node = self.world.node(&self.config.node_name);
        self.config.node = self.config.node.after(node);
        let host: BTreeSet<IpAddr> = self.config.node.primary_ips.iter().collect();
        let addresses = self.config.answering(&host).unwrap_or_default();
        let place = Place { node: &self.config.node_name, zone: node.and_then(Node::zone) };
        let world = &self.world;
        let desired = |name: &ServiceName| {
            world.service(name).map(|s| DesiredService::of(s, world, place)).unwrap_or_default()
        };
        let mut plan = plan_node_addresses(&addresses, &mirror);
        plan.append(self.planner.plan(services, desired, &mirror));
        plan
    }
}

/// Reads a file for kube-proxy as `--config` would.
///
/// # Panics
/// When reading does, or when what `--write-config-to` makes of it is read as something else.
pub fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(given) = file::parse(text) else { return };
    // An error is what an operator is told.
    let _ = Settings::of(given.configuration.clone(), Vec::new());
    let written = given.configuration.written();
    for text in [written.to_string(), file::to_yaml(&given.configuration)] {
        let again = file::parse(&text).expect("what is written can be read");
        assert_eq!(again.unknown, Vec::<String>::new());
        assert_eq!(again.configuration.written(), written);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_of_the_fuzzer_are_followed() {
        let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/folder");
        let mut node = FakeNode::default();
        let changes = kube_watch::read_dir(&seeds, &node.watches()).unwrap();
        node.follow(changes);
        assert!(node.world.services().next().is_some(), "the seeds have Services");
    }
}
