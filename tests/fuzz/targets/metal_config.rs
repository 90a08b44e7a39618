//! The document that drives a balancer tier. What is accepted says the same when it is sent on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use metal_lb_api::Config;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(config) = Config::parse(bytes) {
        assert_eq!(Config::parse(config.to_json().as_bytes()).ok(), Some(config));
    }
});
