//! `cloud-controller plan --source dir:…`: every reason that metal knows, in words.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::path::Path;
use std::process::Command;

const FLAGS: [&str; 4] = ["--cluster-name", "lab", "--metal-endpoint", "lb-1=172.30.0.21:7443"];

fn plan(service: Option<&str>) -> std::process::Output {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/metal");
    Command::new(env!("CARGO_BIN_EXE_cloud-controller"))
        .arg("plan")
        .args(service)
        .args(["--source", &format!("dir:{}", fixtures.display())])
        .args(FLAGS)
        .output()
        .unwrap()
}

#[test]
fn the_plan_of_a_whole_cluster_reads_as_before() {
    let output = plan(None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/metal-cluster.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&golden).unwrap_or_default(), text, "UPDATE_GOLDEN=1 rewrites it");
}

#[test]
fn one_service_is_planned_as_it_would_be_among_all() {
    let text = String::from_utf8(plan(Some("shop/b-asks-for-an-address")).stdout).unwrap();
    assert!(text.starts_with("shop/b-asks-for-an-address\n  allocate 172.30.0.200"), "{text}");
    assert_eq!(text.matches("shop/").count(), text.matches("shop/b-asks-for-an-address").count());
}

#[test]
fn a_service_that_is_not_there_is_an_error() {
    let output = plan(Some("shop/nothing"));
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no Service shop/nothing"));
}

#[test]
fn a_cluster_that_cannot_be_reached_is_an_error_that_says_so() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    let config = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, clusters: [{{name: c, cluster: {{server: \"http://{address}\"}}}}], \
         users: [{{name: u, user: {{}}}}], contexts: [{{name: c, context: {{cluster: c, user: u}}}}]}}"
    );
    std::fs::write(&file, config).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_cloud-controller"))
        .args(["plan", "--cluster-name", "lab", "--kubeconfig"])
        .arg(&file)
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && error.contains("API server"), "{error}");
}
