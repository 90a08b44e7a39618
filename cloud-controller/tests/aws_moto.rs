//! The AWS provider against moto: the wire format as a third party reads it.
//!
//! moto is no NLB (it forgets duplicate names, dependencies and target validation), so behaviour is
//! judged on the fake; here the same stories have to come through the SDK and back.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod aws_moto_support;
mod aws_suite;
mod aws_support;

use std::process::Command;

use aws_moto_support::{Moto, MotoSite, REGION};
use aws_suite::Story;

#[tokio::test]
async fn the_stories_that_the_fake_tells_too() {
    let moto = Moto::start().await;
    let site = MotoSite::build(&moto).await;
    for story in Story::ALL {
        story.play(&site).await;
    }
}

/// Flags, the default chain of credentials and plain HTTP, as in the demo.
#[tokio::test]
async fn the_plan_verb_reads_the_account_with_credentials_from_the_environment() {
    let moto = Moto::start().await;
    let site = MotoSite::build(&moto).await;
    let folder = tempfile::tempdir().unwrap();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/aws");
    let nodes = std::fs::read_to_string(format!("{golden}/nodes.yaml")).unwrap();
    let nodes = nodes.replace("/i-1", &format!("/{}", site.instances[0]));
    std::fs::write(folder.path().join("nodes.yaml"), nodes).unwrap();
    std::fs::copy(format!("{golden}/create.yaml"), folder.path().join("service.yaml")).unwrap();
    let source = format!("dir:{}", folder.path().display());
    let planned = Command::new(env!("CARGO_BIN_EXE_cloud-controller"))
        .args(["plan", "--cluster-name", "my-cluster", "--source", &source])
        .args(["--aws-region", REGION, "--aws-vpc-id", &site.vpc, "--aws-endpoint", &moto.url])
        .envs([("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")])
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&planned.stdout), String::from_utf8_lossy(&planned.stderr));
    assert!(planned.status.success(), "{err}");
    for line in [
        "default/web",
        "create load balancer k8s-default-web-6b0ba8ff70: internal, in subnet-",
        "let k8s-default-web-1caaa375f0 reach the nodes behind nodes",
        &format!("{}:30080", site.instances[0]),
    ] {
        assert!(out.contains(line), "{line} is not in\n{out}\n{err}");
    }
}

#[test]
fn without_credentials_the_plan_verb_says_where_it_looked() {
    let golden = format!("dir:{}", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/aws"));
    let home = tempfile::tempdir().unwrap();
    // Nothing listens there, and nothing is asked without credentials.
    let planned = Command::new(env!("CARGO_BIN_EXE_cloud-controller"))
        .args(["plan", "--cluster-name", "my-cluster", "--source", &golden])
        .args(["--aws-region", REGION, "--aws-vpc-id", "vpc-1", "--aws-endpoint", "http://127.0.0.1:9"])
        .env_clear()
        .envs([("HOME", home.path().to_str().unwrap()), ("AWS_EC2_METADATA_DISABLED", "true")])
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&planned.stdout);
    assert!(out.contains("NoCredentials") && out.contains("Environment:"), "{out}");
}
