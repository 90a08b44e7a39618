//! Files for kube-proxy, which node-agent takes over.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| node_agent::fuzzing::configuration(bytes));
