//! The verbs that only look.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::{Command, Output};

fn check(document: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tier.json");
    std::fs::write(&path, document).unwrap();
    Command::new(env!("CARGO_BIN_EXE_metal-lb")).arg("check").arg("--config").arg(path).output().unwrap()
}

/// The document in the README.
fn example() -> String {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let json = readme.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    json.replace("64 hexadecimal digits, the same on every host", &"5a".repeat(32))
}

#[test]
fn the_document_in_the_readme_is_valid() {
    let output = check(&example());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.ends_with("generation 1.1, 1 listeners\n"), "{output:?}");
}

#[test]
fn a_mistake_is_told_with_its_path_and_a_failure() {
    let output = check(&example().replace("\"port\": 80", "\"port\": 99999"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("listeners[0].port: "), "{output:?}");
}

#[test]
fn a_certificate_that_is_missing_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_metal-lb"))
        .args(["state", "--endpoint", "127.0.0.1:1", "--tls-cert", "x", "--tls-key", "x", "--tls-ca", "x"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("x holds no PEM"), "{output:?}");
}
