//! Plans as text. `UPDATE_GOLDEN=1 cargo test -p node-agent --test golden` rewrites them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::Command;

#[test]
fn every_fixture_has_the_plan_that_stands_beside_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let case = entry.unwrap().path();
        if !case.is_dir() {
            continue;
        }
        let done = Command::new(env!("CARGO_BIN_EXE_node-agent"))
            .args(["plan", "--hostname-override", "node-1", "--cluster-cidr", "10.244.0.0/16"])
            .arg("--source")
            .arg(format!("dir:{}", case.display()))
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let plan = String::from_utf8(done.stdout).unwrap();
        let golden = case.join("plan.txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &plan).unwrap();
        }
        assert_eq!(plan, std::fs::read_to_string(&golden).unwrap(), "{}", golden.display());
        seen += 1;
    }
    assert!(seen > 0, "no fixtures in {}", folder.display());
}
