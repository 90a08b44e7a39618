//! The three tests that every target owes, for metal: golden, settles, crash-safe.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod support;

use service_model::ServiceType;
use support::{Cluster, Until, name, pool, web};

const POOL: &str = "172.30.0.200-172.30.0.239";

/// One change of a Service that has settled.
type Change = fn(&mut Cluster);

/// Every kind of plan: what happens to a settled `web`.
const CHANGES: [(&str, Change); 5] = [
    ("create", |_| {}),
    ("port", |c| {
        let mut service = web("web");
        service.ports[0].port = 8080;
        c.apply(service);
    }),
    ("cluster-ip", |c| {
        let mut service = web("web");
        service.service_type = ServiceType::ClusterIp;
        service.load_balancer_class = None;
        c.apply(service);
    }),
    ("delete", |c| c.delete(&name("web"))),
    ("recreate", |c| {
        c.delete(&name("web"));
        c.settle();
        c.apply(web("web"));
    }),
];

/// A cluster in which `change` is what is left to do.
fn before(change: &str, apply: Change) -> Cluster {
    let mut cluster = Cluster::new(POOL);
    cluster.apply(web("web"));
    if change != "create" {
        cluster.settle();
    }
    apply(&mut cluster);
    cluster
}

fn golden(file: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, text, "{}: UPDATE_GOLDEN=1 rewrites it", path.display());
}

#[test]
fn the_plan_of_each_change_reads_as_before() {
    let mut text = String::new();
    for (change, apply) in CHANGES {
        let plan = before(change, apply).plan(&name("web")).unwrap();
        text += &format!("# {change}\n{plan}\n");
    }
    golden("metal-changes.txt", &text);
}

#[test]
fn each_change_settles() {
    for (change, apply) in CHANGES {
        let mut cluster = before(change, apply);
        cluster.settle();
        cluster.check_safety();
        cluster.check_settled();
        let writes = cluster.writes;
        cluster.settle();
        assert_eq!(cluster.writes, writes, "{change}: settled, and still written");
    }
}

#[test]
fn a_crash_after_any_batch_of_any_change_still_settles_without_a_leak() {
    for (change, apply) in CHANGES {
        for crash_at in 0..8 {
            for hosts_heard in [false, true] {
                let mut cluster = before(change, apply);
                cluster.reconcile(&name("web"), Until::Batches(crash_at));
                if hosts_heard {
                    cluster.talk_to_hosts();
                    cluster.reconcile(&name("web"), Until::Batches(crash_at));
                }
                cluster.restart();
                cluster.check_safety();
                cluster.settle();
                cluster.check_safety();
                cluster.check_settled();
                let served = cluster.recorded(&name("web")).is_some();
                assert_eq!(served, !["cluster-ip", "delete"].contains(&change), "{change} at {crash_at}");
            }
        }
    }
}

#[test]
fn an_address_is_recorded_before_a_host_hears_of_it_and_programmed_before_the_status_shows_it() {
    let mut cluster = Cluster::new(POOL);
    cluster.apply(web("web"));
    for batches in 0..3 {
        cluster.reconcile(&name("web"), Until::Batches(batches));
        let in_document = cluster.tier.document().entry(&name("web")).is_some();
        assert!(!in_document || cluster.recorded(&name("web")).is_some());
    }
    for host in cluster.hosts.values_mut() {
        host.slow = true;
    }
    cluster.settle();
    assert_eq!(cluster.shown(&name("web")), None, "no host has programmed it");
    cluster.hosts.get_mut("lb-2").unwrap().slow = false;
    cluster.settle();
    assert_eq!(cluster.shown(&name("web")), cluster.recorded(&name("web")), "one host is enough");
}

#[test]
fn a_restart_with_nothing_to_do_writes_nothing_and_changes_no_document() {
    let mut cluster = Cluster::new(POOL);
    for service in ["a", "b", "c"] {
        cluster.apply(web(service));
    }
    cluster.settle();
    let (writes, before) = (cluster.writes, cluster.hosts["lb-1"].document.clone().unwrap());
    cluster.restart();
    cluster.settle();
    let after = cluster.hosts["lb-1"].document.clone().unwrap();
    assert_eq!(cluster.writes, writes);
    assert!(after.generation > before.generation, "a new leader numbers anew");
    assert_eq!((after.listeners, after.nodes), (before.listeners, before.nodes));
}

#[test]
fn a_deleted_service_keeps_its_finalizer_until_every_live_host_let_go_of_it() {
    let mut cluster = Cluster::new(POOL);
    cluster.apply(web("web"));
    cluster.settle();
    cluster.hosts.get_mut("lb-2").unwrap().down = true;
    cluster.delete(&name("web"));
    cluster.reconcile(&name("web"), Until::End);
    cluster.talk_to_hosts();
    cluster.reconcile(&name("web"), Until::End);
    assert!(cluster.api.service(&name("web")).is_some(), "lb-2 answered a moment ago and may serve it");
    assert_eq!(cluster.shown(&name("web")), None);
    cluster.settle();
    assert!(cluster.api.service(&name("web")).is_none(), "a host that is lost is not waited for");
}

#[test]
fn an_address_that_was_given_back_is_not_given_out_while_a_host_serves_it() {
    let mut cluster = Cluster::new("172.30.0.200/32");
    cluster.apply(web("first"));
    cluster.settle();
    // Somebody tore the finalizer off: the Service is gone before anything was withdrawn.
    cluster.tear_off(&name("first"), true);
    cluster.apply(web("second"));
    cluster.reconcile(&name("first"), Until::End);
    cluster.reconcile(&name("second"), Until::End);
    let why = cluster.notes[&name("second")].last().unwrap().to_string();
    assert!(why.contains("0 of 1 used, 1 being withdrawn"), "{why}");
    cluster.check_safety();
    cluster.settle();
    cluster.check_settled();
    assert!(cluster.shown(&name("second")).is_some());
}

#[test]
fn a_service_that_waits_for_an_address_gets_one_when_the_pool_grows() {
    let mut cluster = Cluster::new("172.30.0.200/32");
    cluster.apply(web("a"));
    cluster.apply(web("b"));
    cluster.settle();
    assert_eq!(cluster.recorded(&name("b")), None);
    cluster.set_pool("default", Some(pool(POOL)));
    assert!(cluster.tier.take_due().contains(&name("b")));
    cluster.settle();
    assert!(cluster.shown(&name("b")).is_some());
}

#[test]
fn a_pool_that_vanishes_takes_no_address_away() {
    let mut cluster = Cluster::new(POOL);
    cluster.apply(web("web"));
    cluster.settle();
    let ip = cluster.shown(&name("web"));
    cluster.set_pool("default", None);
    cluster.settle();
    cluster.restart();
    cluster.settle();
    assert_eq!(cluster.shown(&name("web")), ip);
    assert_eq!(cluster.notes[&name("web")][0].reason, "AddressOutsidePool");
}

#[test]
fn a_host_that_is_ahead_of_a_lease_that_counts_anew_is_still_steered() {
    let mut cluster = Cluster::new(POOL);
    cluster.apply(web("web"));
    cluster.settle();
    let host = cluster.hosts.get_mut("lb-1").unwrap();
    host.document.as_mut().unwrap().generation.term = 900;
    cluster.delete(&name("web"));
    cluster.settle();
    cluster.check_settled();
    let generation = cluster.hosts["lb-1"].document.as_ref().unwrap().generation;
    assert_eq!(generation.term, 900);
}

#[test]
fn a_namesake_that_was_created_before_the_deletion_was_noticed_is_another_service() {
    let mut cluster = Cluster::new(POOL);
    cluster.apply(web("web"));
    cluster.settle();
    cluster.tear_off(&name("web"), true);
    let mut namesake = web("web");
    namesake.annotations.insert("fairlead.dev/load-balancer-ips".into(), "172.30.0.220".into());
    cluster.apply(namesake);
    cluster.settle();
    cluster.check_settled();
    assert_eq!(cluster.shown(&name("web")), Some("172.30.0.220".parse().unwrap()));
}

#[test]
fn an_address_of_a_machine_is_never_given_out_and_costs_no_other_service_anything() {
    // node-1 is .11, lb-1 and lb-2 are .20 and .21: hosts refuse a document with such a VIP as a whole.
    let mut cluster = Cluster::new("172.30.0.11-172.30.0.12");
    let mut asking = web("asking");
    asking.annotations.insert("fairlead.dev/load-balancer-ips".into(), "172.30.0.11".into());
    cluster.apply(asking);
    cluster.apply(web("web"));
    cluster.settle();
    assert_eq!(cluster.shown(&name("web")), Some("172.30.0.12".parse().unwrap()));
    assert_eq!(cluster.recorded(&name("asking")), None);
    let why = cluster.notes[&name("asking")].last().unwrap().to_string();
    assert!(why.contains("AddressOfMachine") && why.contains("172.30.0.11 is node node-1's"), "{why}");
}

#[test]
fn a_node_that_comes_with_the_address_of_a_service_costs_that_service_alone() {
    let mut cluster = Cluster::new(POOL);
    for service in ["a", "b"] {
        cluster.apply(web(service));
    }
    cluster.settle();
    cluster.set_node("node-2", Some(cluster.shown(&name("a")).unwrap()));
    cluster.apply(web("c"));
    cluster.settle();
    assert!(cluster.shown(&name("c")).is_some(), "others go on");
    assert_eq!(cluster.notes[&name("a")].last().unwrap().reason, "AddressOfMachine");
    for restart in [false, true] {
        if restart {
            cluster.restart();
            cluster.settle();
        }
        let told = &cluster.hosts["lb-1"].document.as_ref().unwrap().listeners;
        assert_eq!(told.iter().map(|l| &*l.service).collect::<Vec<_>>(), ["ns/b", "ns/c"]);
    }
    cluster.set_node("node-2", None);
    assert!(cluster.tier.take_due().contains(&name("a")));
    cluster.settle();
    cluster.check_settled();
}

#[test]
fn a_copied_manifest_with_both_marks_takes_no_address_from_whom_it_is_published() {
    let mut cluster = Cluster::new(POOL);
    cluster.apply(web("web"));
    cluster.settle();
    let ip = cluster.shown(&name("web"));
    // kubectl get -o yaml | sed | kubectl apply, while no controller runs; the status is not copied.
    let mut copy = cluster.service(&name("web")).clone();
    copy.name = name("a-copy");
    copy.ingress.clear();
    cluster.apply(copy);
    cluster.restart();
    cluster.settle();
    assert_eq!(cluster.shown(&name("web")), ip);
    assert_ne!(cluster.shown(&name("a-copy")), ip);
    cluster.check_safety();
    cluster.check_settled();
}
