//! What `deploy/` holds is what the code understands.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

use std::path::{Path, PathBuf};

use clap::Parser;
use cloud_controller::args::{Cli, Verb};
use cloud_controller::desired::Provider;
use cloud_controller::metal::crds;
use cloud_controller::{election, metal};
use serde::Deserialize;
use serde_yaml_ng::Value;

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

fn documents(path: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(deploy(path)).unwrap();
    serde_yaml_ng::Deserializer::from_str(&text).map(|d| Value::deserialize(d).unwrap()).collect()
}

#[test]
fn the_crds_in_deploy_are_those_of_the_code() {
    let folder = deploy("crds");
    for (name, definition) in crds::definitions() {
        let yaml = serde_yaml_ng::to_string(&definition).unwrap();
        let file = folder.join(name);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&file, &yaml).unwrap();
        }
        let found = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(found == yaml, "{}: run UPDATE_GOLDEN=1 cargo test -p cloud-controller", file.display());
    }
}

#[test]
fn the_flags_of_the_deployment_are_flags_of_the_program() {
    let documents = documents("cloud-controller/deployment.yaml");
    let container = &documents[0]["spec"]["template"]["spec"]["containers"][0];
    let args = container["args"].as_sequence().unwrap().iter().map(|a| a.as_str().unwrap());
    let Verb::Run(run) = Cli::try_parse_from(["cloud-controller"].into_iter().chain(args)).unwrap().verb
    else {
        panic!("the Deployment must run")
    };
    assert_eq!(run.cluster.classes().unwrap().enabled, [Provider::Metal].into());
    assert_eq!(run.cluster.metal_setup().unwrap().unwrap().endpoints.len(), 2);
}

#[test]
fn the_named_rights_are_for_the_names_that_the_code_uses() {
    let documents = documents("rbac/cloud-controller.yaml");
    let role = documents.iter().find(|d| d["kind"] == "Role").unwrap();
    let mut names: Vec<&str> =
        role["rules"].as_sequence().unwrap().iter().filter_map(|r| r["resourceNames"][0].as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, [election::LEASE_NAME, metal::member_key::SECRET_NAME]);
}
