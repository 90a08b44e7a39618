//! What somebody else does to our tables while an agent runs, and that it is counted.

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use service_model::{Change, Endpoint, Object};

use crate::agents::{apply, list, with_counted_agent};
use crate::hosts::Ground;
use crate::worlds::Shop;

const DEADLINE: Duration = Duration::from_secs(15);

fn counted(registry: &Registry) -> u64 {
    let mut text = String::new();
    encode(&mut text, registry).unwrap();
    let mut values =
        text.lines().filter_map(|l| l.strip_prefix("fairlead_node_agent_changes_by_others_total "));
    values.next().unwrap().parse().unwrap()
}

fn nft(ground: &Ground, command: &str) -> String {
    let done = ground.node.run(|| Command::new("nft").arg(command).output().unwrap());
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// Waits for the set to hold the text.
fn until_programmed(ground: &Ground, set: &str, text: &str) {
    let deadline = Instant::now() + DEADLINE;
    while !nft(ground, &format!("list set ip fairlead {set}")).contains(text) {
        assert!(Instant::now() < deadline, "{set} has no {text}");
    }
}

/// So many more endpoints that the commit is made without listening.
fn with_many(changes: Vec<Change>) -> Vec<Change> {
    let more = |mut change: Change| {
        if let Change::Apply(Object::EndpointSlice(slice)) = &mut change {
            let ip = |number: u16| -> IpAddr {
                let [high, low] = number.to_be_bytes();
                match slice.family {
                    service_model::IpFamily::V4 => [10, 244, 100 + high, low].into(),
                    service_model::IpFamily::V6 => [0xfd00, 0x10, 0x244, 9, 0, 0, 0, number].into(),
                }
            };
            slice.endpoints.extend((0..300).map(|number| Endpoint::ready(ip(number))));
        }
        change
    };
    changes.into_iter().map(more).collect()
}

#[test]
fn each_change_of_somebody_else_is_counted_and_put_right_and_none_of_our_own() {
    let ground = Ground::new();
    let [a, b, _] = &ground.pods;
    let shop = |endpoints: &[_]| Shop {
        endpoints: endpoints.to_vec(),
        affinity: Some(Duration::from_secs(60)),
        ..Shop::default()
    };
    with_counted_agent(&ground, |tx, registry| {
        list(tx, &ground, &shop(&[a]));
        until_programmed(&ground, "n-1", "10.96.0.10 . tcp . 80");
        for _ in 0..3 {
            apply(tx, &ground, &shop(&[a, b]));
            until_programmed(&ground, "n-2", "10.96.0.10 . tcp . 80");
            apply(tx, &ground, &shop(&[a]));
            until_programmed(&ground, "n-1", "10.96.0.10 . tcp . 80");
        }
        let many = with_many(shop(&[a]).changes(&ground.node));
        many.into_iter().for_each(|change| tx.blocking_send(change).unwrap());
        until_programmed(&ground, "n-384", "10.96.0.10 . tcp . 80");
        // Its next commit says that it listens again.
        apply(tx, &ground, &shop(&[a]));
        until_programmed(&ground, "n-1", "10.96.0.10 . tcp . 80");
        nft(&ground, "add table ip another; add chain ip another c; delete table ip another");
        apply(tx, &ground, &shop(&[a, b]));
        until_programmed(&ground, "n-2", "10.96.0.10 . tcp . 80");
        assert_eq!(counted(registry), 0, "our own, and another table's");
        for times in 1..=2 {
            nft(&ground, "flush ruleset");
            until_programmed(&ground, "n-2", "10.96.0.10 . tcp . 80");
            // The kernel has it a moment before it is counted.
            let deadline = Instant::now() + DEADLINE;
            while counted(registry) < times {
                assert!(Instant::now() < deadline, "it is not counted");
            }
            assert_eq!(counted(registry), times);
        }
    });
}
