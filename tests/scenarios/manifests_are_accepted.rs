//! Every manifest in deploy/ is one that the API server takes, strictly and without a warning; and
//! so is every pod that it stands for.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lab::{Lab, Provider, programs};
use serde::Deserialize;
use serde_yaml_ng::{Mapping, Value};

const STRICTLY: [&str; 6] =
    ["apply", "--dry-run=server", "--validate=strict", "--warnings-as-errors", "-f", "-"];

fn manifests_below(folder: &Path, found: &mut BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            manifests_below(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            found.insert(path);
        }
    }
    Ok(())
}

/// The pod that a workload would create.
fn pod_of(workload: &Value, namespace: &str) -> Result<String> {
    let template = &workload["spec"]["template"];
    let owner = workload["metadata"]["name"].as_str().context("a workload has a name")?;
    let mut metadata: Mapping = serde_yaml_ng::from_value(template["metadata"].clone())?;
    metadata.insert("name".into(), format!("{owner}-tried").into());
    metadata.insert("namespace".into(), namespace.into());
    let mut pod = Mapping::new();
    pod.insert("apiVersion".into(), "v1".into());
    pod.insert("kind".into(), "Pod".into());
    pod.insert("metadata".into(), metadata.into());
    pod.insert("spec".into(), template["spec"].clone());
    Ok(serde_yaml_ng::to_string(&pod)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_manifest_and_every_pod_of_theirs_passes_a_strict_dry_run() -> Result<()> {
    let lab = Lab::builder("manifests").provider(Provider::None).nodes(1).start().await?;
    let kubectl = &lab.control_plane.kubectl;
    let deploy = programs::workspace().join("deploy");
    // What the others stand in. The lab has applied deploy/crds and deploy/rbac.
    lab.apply(&fs::read_to_string(deploy.join("namespace.yaml"))?).await?;
    let mut paths = BTreeSet::new();
    manifests_below(&deploy, &mut paths)?;
    let (mut objects, mut workloads) = (0, Vec::new());
    for path in &paths {
        let text = fs::read_to_string(path)?;
        let said = kubectl.say(&STRICTLY, Some(&text)).await?;
        ensure!(said.status.success() && said.stderr.is_empty(), "{}: {}", path.display(), said.stderr);
        objects += said.stdout.lines().count();
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let document = Value::deserialize(document)?;
            if document["spec"].get("template").is_some() {
                workloads.push(document);
            }
        }
    }
    ensure!(paths.len() >= 7 && objects > paths.len(), "{objects} objects in {} files", paths.len());
    ensure!(workloads.len() == 3, "{} workloads", workloads.len());
    for workload in &workloads {
        let pod = pod_of(workload, "fairlead-system")?;
        let said = kubectl.say(&STRICTLY, Some(&pod)).await?;
        ensure!(said.status.success() && said.stderr.is_empty(), "{}\n{pod}", said.stderr);
    }

    // The namespace's labels are what lets the pods on the hosts' network in, and only they need it.
    lab.kubectl("create namespace strict").await?;
    lab.kubectl("create serviceaccount node-agent --namespace=strict").await?;
    lab.kubectl("create serviceaccount cloud-controller --namespace=strict").await?;
    for level in ["baseline", "restricted"] {
        lab.kubectl(&format!(
            "label namespace strict --overwrite pod-security.kubernetes.io/enforce={level}"
        ))
        .await?;
        for workload in &workloads {
            let name = workload["metadata"]["name"].as_str().unwrap_or_default();
            let pod = pod_of(workload, "strict")?;
            let said = kubectl.say(&STRICTLY, Some(&pod)).await?;
            ensure!(
                said.status.success() == (name == "cloud-controller"),
                "{name} under Pod Security {level}: {}{}",
                said.stdout,
                said.stderr
            );
        }
    }
    Ok(())
}
