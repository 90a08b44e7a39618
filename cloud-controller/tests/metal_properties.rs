//! Whatever happens in whatever order: no address twice, none that changes, none that leaks.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;
use service_model::ServiceType;
use support::{Cluster, Until, name, pool, web};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// Four addresses for five Services: running out is part of the game.
const POOL: &str = "172.30.0.200-172.30.0.203";

#[derive(Debug, Clone)]
enum Event {
    /// Create, or change: which port, and which address is asked for, if any.
    Apply {
        service: usize,
        port: u16,
        ask: Option<u8>,
    },
    ToClusterIp(usize),
    Delete(usize),
    /// Somebody takes our finalizer off, and perhaps deletes the Service with that.
    TearOff {
        service: usize,
        delete: bool,
    },
    Reconcile {
        service: usize,
        batches: Option<usize>,
    },
    TalkToHosts,
    Seconds(u64),
    Host {
        host: usize,
        down: bool,
        slow: bool,
    },
    Pool {
        small: bool,
    },
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let service = 0..NAMES.len();
    prop_oneof![
        4 => (service.clone(), 80u16..82, proptest::option::weighted(0.3, 200u8..204))
            .prop_map(|(service, port, ask)| Event::Apply { service, port, ask }),
        1 => service.clone().prop_map(Event::ToClusterIp),
        2 => service.clone().prop_map(Event::Delete),
        1 => (service.clone(), any::<bool>())
            .prop_map(|(service, delete)| Event::TearOff { service, delete }),
        8 => (service, proptest::option::weighted(0.3, 0usize..5))
            .prop_map(|(service, batches)| Event::Reconcile { service, batches }),
        4 => Just(Event::TalkToHosts),
        2 => (0u64..20).prop_map(Event::Seconds),
        1 => (0usize..2, any::<bool>(), any::<bool>())
            .prop_map(|(host, down, slow)| Event::Host { host, down, slow }),
        1 => any::<bool>().prop_map(|small| Event::Pool { small }),
        1 => Just(Event::Restart),
    ]
}

fn play(cluster: &mut Cluster, event: &Event) {
    match *event {
        Event::Apply { service, port, ask } => {
            let mut object = web(NAMES[service]);
            object.ports[0].port = port;
            if let Some(ask) = ask {
                let ip = format!("172.30.0.{ask}");
                object.annotations.insert("fairlead.dev/load-balancer-ips".into(), ip.into());
            }
            cluster.apply(object);
        }
        Event::ToClusterIp(service) => {
            if cluster.api.service(&name(NAMES[service])).is_some() {
                let mut object = web(NAMES[service]);
                object.service_type = ServiceType::ClusterIp;
                object.load_balancer_class = None;
                cluster.apply(object);
            }
        }
        Event::Delete(service) => cluster.delete(&name(NAMES[service])),
        Event::TearOff { service, delete } => cluster.tear_off(&name(NAMES[service]), delete),
        Event::Reconcile { service, batches } => {
            cluster.reconcile(&name(NAMES[service]), batches.map_or(Until::End, Until::Batches));
        }
        Event::TalkToHosts => cluster.talk_to_hosts(),
        // Hosts are polled every two seconds, whatever else happens.
        Event::Seconds(seconds) => {
            for _ in 0..seconds.div_ceil(2) {
                cluster.now += std::time::Duration::from_secs(2);
                cluster.talk_to_hosts();
            }
        }
        Event::Host { host, down, slow } => {
            let host = cluster.hosts.values_mut().nth(host).unwrap();
            (host.down, host.slow) = (down, slow);
            host.stale |= down;
        }
        Event::Pool { small } => {
            cluster.set_pool("default", Some(pool(if small { "172.30.0.200/31" } else { POOL })));
        }
        Event::Restart => cluster.restart(),
    }
}

/// The address of each Service that is served now and carries both marks, by UID.
fn addresses(cluster: &Cluster) -> BTreeMap<String, IpAddr> {
    let served = |s: &&service_model::Service| {
        !s.deleting && s.service_type == ServiceType::LoadBalancer && s.has_finalizer("fairlead.dev/metal")
    };
    let recorded = |s: &service_model::Service| Some((s.uid.to_string(), cluster.recorded(&s.name)?));
    cluster.api.services().filter(served).filter_map(recorded).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_address_is_given_twice_and_none_changes_and_all_settles(
        events in proptest::collection::vec(event(), 1..60),
    ) {
        let mut cluster = Cluster::new(POOL);
        let mut before = BTreeMap::new();
        for event in events {
            // A Service that was another type meanwhile, or lost its record, may get another address.
            if let Event::ToClusterIp(service) | Event::TearOff { service, .. } = &event
                && let Some(object) = cluster.api.service(&name(NAMES[*service]))
            {
                before.remove(&object.uid.to_string());
            }
            play(&mut cluster, &event);
            cluster.check_safety();
            let after = addresses(&cluster);
            for (uid, ip) in &after {
                prop_assert!(before.get(uid).is_none_or(|b| b == ip), "{uid} had {before:?}, has {ip}");
            }
            before.extend(after);
        }
        for host in cluster.hosts.values_mut() {
            (host.down, host.slow) = (false, false);
        }
        cluster.set_pool("default", Some(pool(POOL)));
        cluster.settle();
        cluster.check_safety();
        cluster.check_settled();

        let (held, writes) = (addresses(&cluster), cluster.writes);
        cluster.restart();
        cluster.settle();
        prop_assert_eq!(addresses(&cluster), held, "a restart keeps every address");
        prop_assert_eq!(cluster.writes, writes, "a restart with nothing to do writes nothing");
    }
}
