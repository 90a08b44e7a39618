//! Datagrams of the kernel: dumps, notifications, answers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| nfnetlink::fuzzing::datagram(bytes));
