//! What is shipped in deploy/metal-lb fits the program.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/shipped.rs"]
mod shipped;

use clap::Parser;
use metal_lb::args::{Cli, RunArgs, Verb};
use serde_yaml_ng::Value;

fn parse(arguments: impl IntoIterator<Item = String>) -> RunArgs {
    let arguments = std::iter::once("metal-lb".to_owned()).chain(arguments);
    match Cli::try_parse_from(arguments).unwrap_or_else(|error| panic!("{error}")).verb {
        Verb::Run(args) => *args,
        other => panic!("{other:?}"),
    }
}

/// The container of the Deployment, and its pod.
fn pod() -> (Value, Value) {
    let deployment: Value = serde_yaml_ng::from_str(&shipped::read("deployment.yaml")).unwrap();
    let pod = deployment["spec"]["template"]["spec"].clone();
    (pod["containers"][0].clone(), pod)
}

fn strings(list: &Value) -> Vec<String> {
    list.as_sequence().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_unit_starts_the_program_with_arguments_that_it_takes() {
    let command = shipped::unit("ExecStart");
    let words = command.split(' ').skip(1).filter(|w| *w != "$METAL_LB_OPTIONS");
    let args = parse(words.map(|w| w.replace("${METAL_LB_INTERFACE}", "eth0").replace("%H", "lb-1")));
    assert_eq!((args.name.as_str(), args.path.interface.as_str()), ("lb-1", "eth0"));
    assert_eq!(args.state_dir.to_str(), Some(&*format!("/var/lib/{}", shipped::unit("StateDirectory"))));
    assert!(args.path.bpf_dir.starts_with(shipped::unit("ReadWritePaths")), "{:?}", args.path.bpf_dir);
}

#[test]
fn the_deployment_starts_the_program_with_arguments_that_it_takes_and_mounts_what_it_needs() {
    let (container, pod) = pod();
    let args = parse(strings(&container["args"]));
    let mounts: Vec<&str> = container["volumeMounts"]
        .as_sequence()
        .unwrap()
        .iter()
        .map(|m| m["mountPath"].as_str().unwrap())
        .collect();
    for path in [&args.tls_cert, &args.tls_key, &args.tls_client_ca, &args.state_dir, &args.path.bpf_dir] {
        assert!(mounts.iter().any(|m| path.starts_with(m)), "nothing is mounted for {}", path.display());
    }
    let ports: Vec<u64> = container["ports"]
        .as_sequence()
        .unwrap()
        .iter()
        .map(|p| p["containerPort"].as_u64().unwrap())
        .collect();
    // Where the documents of cloud-controller have the hosts probe one another.
    let members = 7947;
    assert_eq!(ports, [args.listen.port(), members, args.metrics_listen.port()].map(u64::from));
    assert_eq!(pod["hostNetwork"], Value::from(true));
}

#[test]
fn host_and_pod_have_the_same_rights() {
    let (container, _) = pod();
    let added = strings(&container["securityContext"]["capabilities"]["add"]);
    let unit: Vec<String> = shipped::capabilities().map(|c| c.to_uppercase()).collect();
    assert_eq!(added, unit);
}
