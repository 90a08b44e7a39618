//! Plans as text: each `golden/aws/CASE.yaml` gives `CASE.plan`, from an empty account or from one
//! where `CASE.before.yaml` stands. `UPDATE_GOLDEN=1 cargo test` writes the plans anew.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod aws_support;

use std::fs;
use std::path::{Path, PathBuf};

use aws_support::{CLUSTER, account, provider, settle};
use kube_watch::{Detail, Nodes, WatchConfig};
use service_model::{Service, World};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/aws")
}

/// The file's Service among the nodes that all cases share.
fn read(case: &Path) -> (Service, World) {
    let both = tempfile::tempdir().unwrap();
    for file in [case, &folder().join("nodes.yaml")] {
        fs::copy(file, both.path().join(file.file_name().unwrap())).unwrap();
    }
    let config = WatchConfig {
        services: true,
        slices: false,
        nodes: Nodes::All,
        service_cidrs: false,
        detail: Detail::Full,
    };
    let mut world = World::default();
    for change in kube_watch::read_dir(both.path(), &config).unwrap() {
        world.apply(change);
    }
    let service = world.services().next().unwrap_or_else(|| panic!("no Service in {}", case.display()));
    (service.clone(), world)
}

async fn plan(case: &Path) -> String {
    let aws = provider(account());
    let before = case.with_extension("before.yaml");
    if before.exists() {
        let (service, world) = read(&before);
        settle(&aws, &service, &world).await;
    }
    let (service, world) = read(case);
    let plan = if service.deleting {
        aws.plan_release(&service).await.unwrap()
    } else {
        aws.plan(&service, &world).await.unwrap()
    };
    // Tags that every resource carries would drown the rest.
    let everywhere = format!("elbv2.k8s.aws/cluster={CLUSTER} fairlead.dev/service-uid={} ", service.uid);
    plan.to_string().replace(&everywhere, "")
}

#[tokio::test]
async fn plans_read_as_they_did() {
    let mut cases: Vec<PathBuf> = fs::read_dir(folder()).unwrap().map(|e| e.unwrap().path()).collect();
    cases.retain(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.ends_with(".yaml") && !name.ends_with(".before.yaml") && name != "nodes.yaml"
    });
    cases.sort();
    assert!(cases.len() >= 8, "{cases:?}");
    let mut differing = Vec::new();
    for case in cases {
        let (golden, planned) = (case.with_extension("plan"), plan(&case).await);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &planned).unwrap();
        }
        let written = fs::read_to_string(&golden).unwrap_or_default();
        if written != planned {
            differing.push(format!("{}:\n{planned}", golden.display()));
        }
    }
    assert!(differing.is_empty(), "other plans than before:\n{}", differing.join("\n"));
}
