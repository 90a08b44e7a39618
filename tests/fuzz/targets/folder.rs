//! YAML files of a `dir:` source, and what an empty node would be given for them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_agent::fuzzing::FakeNode;

fuzz_target!(|text: &str| {
    let mut node = FakeNode::default();
    if let Ok(changes) = kube_watch::fuzzing::yaml(text, &node.watches()) {
        node.follow(changes);
    }
});
