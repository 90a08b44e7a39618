//! Next hops as the kernel has them, in namespaces of their own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/net.rs"]
mod net;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use metal_lb::desired::Mac;
use metal_lb::neighbours::{self, Neighbours, NextHop};
use net::{Host, Lan};
use tokio::sync::{mpsc, watch};

const DEADLINE: Duration = Duration::from_secs(20);
const OWN: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 21);
const NODE: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 11);
const ROUTER: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
const BEHIND_ROUTER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 5);
const BY_OTHER_INTERFACE: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 5);
const UNROUTED: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 5);
const ABSENT: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 99);

struct Watch {
    changes: mpsc::Receiver<Neighbours>,
    nodes: watch::Sender<BTreeSet<Ipv4Addr>>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Watch {
    fn start(nodes: &[Ipv4Addr], known: &[(Ipv4Addr, Mac)]) -> Self {
        let (nodes, wanted) = watch::channel(nodes.iter().copied().collect());
        let (changes_tx, changes) = mpsc::channel(16);
        let known: BTreeMap<Ipv4Addr, Mac> = known.iter().copied().collect();
        let task = tokio::spawn(neighbours::run("eth0".into(), wanted, known, changes_tx));
        Self { changes, nodes, task }
    }

    /// The first report that the condition holds for.
    async fn until(&mut self, what: &str, condition: impl Fn(&Neighbours) -> bool) -> Neighbours {
        let found = async {
            loop {
                let now = self.changes.recv().await.expect("it goes on");
                if condition(&now) {
                    return now;
                }
            }
        };
        tokio::time::timeout(DEADLINE, found).await.unwrap_or_else(|_| panic!("not yet: {what}"))
    }
}

/// Runs on a host, on a runtime whose threads all belong to it.
fn on(host: &Host, task: impl AsyncFnOnce() + Send) {
    host.run(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(task());
    });
}

#[test]
fn every_kind_of_next_hop_is_told_apart() {
    let lan = Lan::new("hops");
    let (own, node, router) = (lan.host("lb", OWN), lan.host("node", NODE), lan.host("router", ROUTER));
    own.ip("link add other type veth peer name far");
    own.ip("link set other up");
    own.ip("link set far up");
    own.ip(&format!("route add 10.1.0.0/16 via {ROUTER}"));
    own.ip("route add 10.2.0.0/16 dev other");
    own.ip("route add unreachable 10.3.0.0/16");
    on(&own, async || {
        let all = [OWN, NODE, BEHIND_ROUTER, BY_OTHER_INTERFACE, UNROUTED, ABSENT];
        let mut watch = Watch::start(&all, &[]);
        let expected = [
            (OWN, NextHop::Local),
            // Nobody but the watch itself has sent anything to these two.
            (NODE, NextHop::Mac(node.mac())),
            (BEHIND_ROUTER, NextHop::Mac(router.mac())),
            (BY_OTHER_INTERFACE, NextHop::Elsewhere),
            (UNROUTED, NextHop::NoRoute),
            (ABSENT, NextHop::Unresolved),
        ];
        let expected = Neighbours { next_hops: expected.into(), carrier: true };
        watch.until("all are told apart", |now| *now == expected).await;

        watch.nodes.send_replace([NODE].into());
        watch.until("the others are no longer wanted", |now| now.next_hops.len() == 1).await;
        drop(watch.nodes);
        tokio::time::timeout(DEADLINE, watch.task).await.expect("it ends").unwrap().unwrap();
    });
}

#[test]
fn a_changed_address_is_followed_and_a_forgotten_one_stays() {
    let lan = Lan::new("macs");
    let (own, node) = (lan.host("lb", OWN), lan.host("node", NODE));
    let (old, new) = (Mac([2, 0, 0, 0, 0, 7]), Mac([2, 0, 0, 0, 0, 8]));
    on(&own, async || {
        // What an earlier process had programmed holds until the kernel knows better.
        let mut watch = Watch::start(&[NODE, ABSENT], &[(NODE, old), (ABSENT, old)]);
        let is = |mac| move |now: &Neighbours| now.next_hops[&NODE] == NextHop::Mac(mac);
        watch.until("what was known", is(old)).await;
        own.ip(&format!("neigh replace {NODE} lladdr {new} dev eth0"));
        let now = watch.until("the new address", is(new)).await;
        assert_eq!(now.next_hops[&ABSENT], NextHop::Mac(old));
        own.ip(&format!("neigh del {NODE} dev eth0"));
        own.ip(&format!("route add {ABSENT}/32 via {ROUTER}"));
        let own_mac = node.mac();
        own.ip(&format!("neigh replace {ROUTER} lladdr {own_mac} dev eth0"));
        let now =
            watch.until("the route's change", |now| now.next_hops[&ABSENT] == NextHop::Mac(own_mac)).await;
        assert_eq!(now.next_hops[&NODE], NextHop::Mac(new), "forgotten by the kernel, not by us");
        watch.task.abort();
    });
}

#[test]
fn the_link_is_watched_and_an_interface_made_anew_or_readdressed_ends_the_watch() {
    let lan = Lan::new("carrier");
    let own = lan.host("lb", OWN);
    on(&own, async || {
        let mut watch = Watch::start(&[NODE], &[]);
        watch.until("the first report", |now| now.carrier).await;
        lan.set_carrier("lb", false);
        watch.until("the link is lost", |now| !now.carrier).await;
        lan.set_carrier("lb", true);
        for changes in [
            &["link set eth0 address 02:00:00:00:99:01"][..],
            &["link del eth0", "link add eth0 type veth peer name far"],
        ] {
            watch.until("the link is there", |now| now.carrier).await;
            changes.iter().for_each(|change| own.ip(change));
            let ended = tokio::time::timeout(DEADLINE, watch.task).await.expect("it ends").unwrap();
            let error = format!("{:#}", ended.unwrap_err());
            assert!(error.contains("eth0"), "{error}");
            watch = Watch::start(&[NODE], &[]);
        }
        watch.task.abort();
    });
}
