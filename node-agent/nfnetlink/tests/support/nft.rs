//! The host's `nft`, as a second opinion.

use std::process::Command;

/// Runs the host's `nft` in the thread's namespace and returns what it prints.
pub(crate) fn nft(args: &[&str]) -> String {
    let output = Command::new("nft")
        .args(args)
        .output()
        .expect("these tests need the `nft` program (Debian: nftables)");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft {args:?}: {}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}
