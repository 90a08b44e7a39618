//! Lists that are made to be sure, hours after the last one.

use std::time::Instant;

use super::*;

const fn after(shortest: u64, longest: u64) -> Times {
    Times { anew: (Duration::from_millis(shortest), Duration::from_millis(longest)), ..TIMES }
}

fn addressed(name: &str, version: u32, address: &str) -> Value {
    let mut node = node(name, version);
    node["status"] = json!({"addresses": [{"type": "InternalIP", "address": address}]});
    node
}

/// A list as that configuration asks for it, and the watch behind it.
fn listing(config: &watcher::Config, version: u32, items: &[Value]) -> Vec<Reply> {
    match config.initial_list_strategy {
        InitialListStrategy::ListWatch => vec![list(version, items), Lines(vec![], Hold)],
        InitialListStrategy::StreamingList => {
            let items = items.iter().map(|item| event("ADDED", item.clone()));
            vec![Lines(items.chain([list_complete(version)]).collect(), Hold)]
        }
    }
}

impl Watched {
    /// The requests that come next, each as it was asked.
    async fn asked(&mut self, requests: usize) -> Vec<String> {
        let mut asked = Vec::new();
        for _ in 0..requests {
            let target = self.server.asked().await.target;
            asked.push(match (target.contains("watch=true"), target.contains("sendInitialEvents=true")) {
                (false, _) => {
                    assert!(!target.contains("resourceVersion"), "older than what is known? {target}");
                    "list".to_owned()
                }
                (true, true) => {
                    assert!(
                        target.contains("NotOlderThan") && target.ends_with("resourceVersion="),
                        "{target}"
                    );
                    "streamed list".to_owned()
                }
                (true, false) => {
                    format!("watch from {}", target.rsplit('=').next().unwrap_or_default())
                }
            });
        }
        asked
    }

    async fn apply_next(&mut self, world: &mut World, changes: usize) {
        for _ in 0..changes {
            let change = tokio::time::timeout(DEADLINE, self.changes.recv()).await.expect("a change comes");
            world.apply(change.unwrap());
        }
    }
}

#[tokio::test]
async fn a_change_and_a_deletion_that_no_watch_told_of_are_put_right() {
    for config in [pages(), streamed()] {
        let before = [addressed("kept", 1, "10.0.0.1"), addressed("changed", 2, "10.0.0.2"), node("gone", 3)];
        let after_it = [addressed("kept", 1, "10.0.0.1"), addressed("changed", 8, "10.0.0.8")];
        let script = [listing(&config, 10, &before), listing(&config, 20, &after_it)].concat();
        let mut watched = Watched::nodes(config, after(50, 50), script).await;
        let mut world = World::default();
        watched.apply_next(&mut world, 5).await;
        world.take_dirty();
        watched.apply_next(&mut world, 1).await;
        assert!(world.has_synced(&[Kind::Node]), "what is known stays known");
        assert_eq!(world.nodes().count(), 3, "and in force");
        watched.apply_next(&mut world, 3).await;
        let dirty: Vec<String> = world.take_dirty().nodes.iter().map(ToString::to_string).collect();
        assert_eq!(dirty, ["changed", "gone"], "and nothing else is planned anew");
        let addresses: Vec<_> =
            world.nodes().flat_map(service_model::Node::internal_ips).map(|a| a.to_string()).collect();
        assert_eq!(addresses, ["10.0.0.8", "10.0.0.1"]);
        let of = watched.metrics.of("Node");
        assert_eq!((of.lists.get(), of.interruptions.get()), (2, 0), "nothing has failed");
    }
}

#[tokio::test]
async fn the_watch_is_ended_and_a_list_of_the_newest_state_asked_for_as_at_the_start() {
    for (config, expected) in [
        (pages(), &["list", "watch from 10", "list", "watch from 20"][..]),
        (streamed(), &["streamed list", "streamed list"]),
    ] {
        let nodes = [node("a", 1)];
        let script = [listing(&config, 10, &nodes), listing(&config, 20, &nodes)].concat();
        let mut watched = Watched::nodes(config, after(50, 50), script).await;
        assert_eq!(watched.asked(expected.len()).await, expected);
    }
}

#[tokio::test]
async fn watches_that_are_ended_and_resumed_do_not_put_it_off() {
    let ends = (0..100_000).map(|_| Lines(vec![bookmark(15)], End));
    let script = std::iter::once(list(10, &[])).chain(ends).collect();
    let mut watched = Watched::nodes(pages(), after(2000, 2000), script).await;
    assert_eq!(watched.asked(1).await, ["list"]);
    let mut watches = 0;
    let listed = async {
        while watched.asked(1).await != ["list"] {
            watches += 1;
        }
    };
    tokio::time::timeout(DEADLINE, listed).await.expect("it is listed anew");
    assert!(watches > 1, "{watches} watches");
}

#[tokio::test]
async fn a_list_after_an_expiry_is_the_last_one_from_then_on() {
    let wait = Duration::from_secs(2);
    let mut script = vec![list(10, &[]), Lines(vec![], EndAfter(wait / 3)), Json(410, status(410))];
    script.extend([listing(&pages(), 20, &[]), listing(&pages(), 30, &[])].concat());
    let mut watched = Watched::nodes(pages(), after(2000, 2000), script).await;
    assert_eq!(watched.asked(4).await, ["list", "watch from 10", "watch from 10", "list"]);
    let listed = Instant::now();
    assert_eq!(watched.asked(2).await, ["watch from 20", "list"]);
    // The server tells of a request a moment after it was made, not before.
    assert!(listed.elapsed() > wait * 9 / 10, "{:?}", listed.elapsed());
}

#[tokio::test]
async fn a_list_that_is_refused_leaves_what_is_known_and_the_watch_goes_on() {
    for (config, mut expected) in [
        (pages(), vec!["list", "watch from 10", "list", "watch from 10"]),
        (streamed(), vec!["streamed list", "streamed list", "watch from 10"]),
    ] {
        let refused = [Json(500, status(500)), Lines(vec![event("ADDED", node("b", 11))], Hold)];
        let again = listing(&config, 20, &[node("a", 1), node("b", 11)]);
        let script = [&listing(&config, 10, &[node("a", 1)])[..], &refused, &again].concat();
        let pause = Duration::from_secs(1);
        let mut watched =
            Watched::nodes(config, Times { anew_retry: (pause, pause), ..after(50, 50) }, script).await;
        watched.expect(&["Node list started", "apply a", "Node list ended", "apply b"]).await;
        assert_eq!(watched.metrics.of("Node").interruptions.get(), 1);
        watched.expect(&["Node list started", "apply a", "apply b", "Node list ended"]).await;
        expected.push(expected[0]);
        assert_eq!(watched.asked(expected.len()).await, expected);
    }
}

#[tokio::test]
async fn a_list_that_breaks_off_is_made_again_and_sweeps_only_at_its_end() {
    let both = [node("a", 1), node("b", 2)];
    let table = [
        (pages(), vec![page("more", &[node("a", 1)]), Json(500, status(500))]),
        (streamed(), vec![Lines(vec![event("ADDED", node("a", 1))], Cut)]),
    ];
    for (config, broken) in table {
        let again = listing(&config, 20, &both[1..]);
        let script = [listing(&config, 10, &both), broken, again].concat();
        let mut watched = Watched::nodes(config, after(50, 50), script).await;
        watched.expect(&["Node list started", "apply a", "apply b", "Node list ended"]).await;
        watched.expect(&["Node list started", "apply a"]).await;
        watched.expect(&["Node list started", "apply b", "Node list ended"]).await;
    }
}

#[tokio::test]
async fn what_was_listed_together_is_not_listed_anew_together() {
    let again = |_| async {
        let mut watched = Watched::nodes(pages(), after(1, 1000), listing(&pages(), 10, &[])).await;
        assert_eq!(watched.asked(3).await, ["list", "watch from 10", "list"]);
        Instant::now()
    };
    let moments = futures::future::join_all((0..8).map(again)).await;
    let (first, last) = (moments.iter().min().unwrap(), moments.iter().max().unwrap());
    assert!(*last - *first > Duration::from_millis(100), "{moments:?}");
}
