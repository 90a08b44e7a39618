//! The preflight against the real nf_tables, and a node whose kernel lacks one family.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::{Duration, Instant};

use node_agent::config::{Config, Families};
use node_agent::engine::Engine;
use node_agent::nft::kernel::Kernel;
use node_agent::preflight;
use support::kernel::{in_namespace, nft};
use support::*;

#[test]
fn this_kernel_has_all_that_is_needed_and_is_left_as_it_was() {
    in_namespace(|| {
        let before = Kernel::open().unwrap().generation().unwrap();
        let report = preflight::check().unwrap();
        assert_eq!(report.lacks(), "");
        assert_eq!(report.families().unwrap(), Families::default());
        let told = report.warnings.join("\n");
        assert!(!told.contains("UDP") && !told.contains("SCTP"), "it has what these need: {told}");
        assert_eq!(nft(&["list", "tables"]), "");
        assert_eq!(Kernel::open().unwrap().generation().unwrap(), before, "nothing was committed");
    });
}

#[test]
fn without_ipv6_the_other_family_is_served() {
    in_namespace(|| {
        let config = Config { families: Families { v4: true, v6: false }, ..config() };
        let (mut agent, mut engine) = (Agent::new(), Engine::new(config).unwrap());
        agent.happen(&Happening::Apply(Spec {
            number: 1,
            node_port: Some(1),
            affinity: Some(9),
            endpoints: vec![(5, true)],
            ..Spec::default()
        }));
        engine.mark(agent.world.take_dirty().services);
        engine.sync(&agent.world, Instant::now()).unwrap();
        engine.sync(&agent.world, Instant::now() + Duration::from_secs(2)).unwrap();
        assert_eq!(nft(&["list", "tables"]), "table ip fairlead\n");
        assert!(nft(&["list", "set", "ip", "fairlead", "service-vips"]).contains("10.96.0.1"));
    });
}
