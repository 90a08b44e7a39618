//! Lines of an API server's watches, each of which is followed at once, as node-agent would.
#![no_main]

use libfuzzer_sys::fuzz_target;
use node_agent::fuzzing::FakeNode;

fuzz_target!(|bytes: &[u8]| {
    let mut node = FakeNode::default();
    let mut watches = kube_watch::fuzzing::Watches::new(&node.watches());
    for line in bytes.split(|byte| *byte == b'\n') {
        let page = watches.page(line);
        node.follow(watches.line(line).into_iter().chain(page));
    }
});
