//! What users are told of their Services: once when it begins to be so, and again for as long as it is.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};

use node_agent::nft::claims::Title;
use node_agent::nft::desired::{DesiredFrontend, DesiredService};
use node_agent::nft::layout::{Frontend, Group, MAX_TARGETS, Target};
use node_agent::nft::mirror::Mirror;
use node_agent::nft::note::Note;
use node_agent::nft::plan::Planner;
use service_model::{ObjectName, Protocol, ServiceName};

fn name(name: &str) -> ServiceName {
    ObjectName::new("ns", name)
}

/// What they all want.
fn frontend() -> Frontend {
    Frontend::Vip { ip: [192, 0, 2, 1].into(), protocol: Protocol::Tcp, port: 80 }
}

fn taken(loser: &str, by: &str) -> (ServiceName, Note) {
    (name(loser), Note::Taken { frontend: frontend(), by: name(by) })
}

fn too_many(service: &str) -> (ServiceName, Note) {
    (name(service), Note::TooManyEndpoints { frontend: frontend() })
}

fn wanting(title: Title, endpoints: usize) -> DesiredService {
    let target =
        |number: usize| Target { ip: [10, 244, (number / 250) as u8, (number % 250) as u8].into(), port: 80 };
    let as_wanted = DesiredFrontend {
        label: "ns/any:http".into(),
        groups: [Group::Served].into_iter().collect(),
        cluster: (0..endpoints).map(target).collect(),
        local: Vec::new(),
        sources: BTreeSet::new(),
        title,
        affinities: Vec::new(),
    };
    DesiredService { frontends: [(frontend(), as_wanted)].into(), ..DesiredService::default() }
}

/// Services that are planned one at a time, each as soon as it changes.
#[derive(Default)]
struct Cluster {
    planner: Planner,
    mirror: Mirror,
    wanted: BTreeMap<ServiceName, DesiredService>,
}

impl Cluster {
    /// What is told of it.
    fn now(&mut self, service: &str, wants: DesiredService) -> Vec<(ServiceName, Note)> {
        self.wanted.insert(name(service), wants);
        let desired = |name: &ServiceName| self.wanted.get(name).cloned().unwrap_or_default();
        let plan = self.planner.plan(&BTreeSet::from([name(service)]), desired, &self.mirror);
        plan.now.iter().for_each(|step| self.mirror.follow(step));
        plan.notes
    }

    /// What would be told again.
    fn again(&self) -> Vec<(ServiceName, Note)> {
        self.planner.notes().cloned().collect()
    }
}

fn nothing() -> DesiredService {
    DesiredService::default()
}

#[test]
fn what_is_still_so_is_told_again_and_what_is_no_more_is_not() {
    use Title::{Allocated, ExternalIp, LoadBalancer};
    for (what, service, wants, told, again) in [
        ("nothing new", "b", wanting(LoadBalancer, 1), vec![], vec![taken("b", "a")]),
        ("the owner serves it otherwise", "a", wanting(LoadBalancer, 2), vec![], vec![taken("b", "a")]),
        ("the loser does not ask any more", "b", nothing(), vec![], vec![]),
        ("the owner does not ask any more", "a", nothing(), vec![], vec![]),
        (
            "the loser has the better title",
            "b",
            wanting(Allocated, 1),
            vec![taken("a", "b")],
            vec![taken("a", "b")],
        ),
        (
            "the owner has the lesser",
            "a",
            wanting(ExternalIp, 1),
            vec![taken("a", "b")],
            vec![taken("a", "b")],
        ),
        (
            "a third asks",
            "c",
            wanting(LoadBalancer, 1),
            vec![taken("c", "a")],
            vec![taken("b", "a"), taken("c", "a")],
        ),
    ] {
        let mut cluster = Cluster::default();
        assert_eq!(cluster.now("a", wanting(LoadBalancer, 1)), []);
        assert_eq!(cluster.now("b", wanting(LoadBalancer, 1)), [taken("b", "a")]);
        assert_eq!(cluster.again(), [taken("b", "a")]);
        assert_eq!(cluster.now(service, wants), told, "{what}");
        assert_eq!(cluster.again(), again, "{what}");
    }
}

#[test]
fn too_many_endpoints_are_told_again_until_they_are_few_enough_or_anothers() {
    use Title::{Allocated, LoadBalancer};
    let many = || wanting(LoadBalancer, MAX_TARGETS + 1);
    for (what, service, wants, again) in [
        ("fewer", "a", wanting(LoadBalancer, MAX_TARGETS), vec![]),
        ("as many", "a", many(), vec![too_many("a")]),
        ("gone", "a", nothing(), vec![]),
        ("another has the better title", "b", wanting(Allocated, 1), vec![taken("a", "b")]),
        ("another asks in vain", "b", wanting(LoadBalancer, 1), vec![too_many("a"), taken("b", "a")]),
    ] {
        let mut cluster = Cluster::default();
        assert_eq!(cluster.now("a", many()), [too_many("a")]);
        cluster.now(service, wants);
        assert_eq!(cluster.again(), again, "{what}");
    }
}

#[test]
fn who_asks_in_vain_once_more_is_told_once_more() {
    let mut cluster = Cluster::default();
    cluster.now("a", wanting(Title::LoadBalancer, 1));
    for _ in 0..2 {
        assert_eq!(cluster.now("b", wanting(Title::LoadBalancer, 1)), [taken("b", "a")]);
        assert_eq!(cluster.now("b", wanting(Title::LoadBalancer, 1)), []);
        cluster.now("b", nothing());
    }
}
