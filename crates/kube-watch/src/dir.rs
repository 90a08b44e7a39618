//! The second source: a folder of YAML files, for dry runs, tests and nodes without an API server.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_yaml_ng::Value;
use service_model::{Change, NodeName};
use tokio::sync::mpsc::Sender;

use crate::changes::{self, Changes, Convert, Listing, ServiceCidrs, Services, Slices};
use crate::config::{Nodes, WatchConfig};
use crate::wire;

const POLL: Duration = Duration::from_secs(1);

/// Sends the folder's objects as one list a kind, and again whenever a file changes. A mistake that
/// comes later leaves what was read before in force.
pub(crate) async fn watch_dir(path: &Path, config: &WatchConfig, tx: &Sender<Change>) -> anyhow::Result<()> {
    let mut folder = Folder::new(config);
    let mut seen = fingerprint(path)?;
    let mut changes = folder.read(&seen)?;
    loop {
        for change in std::mem::take(&mut changes) {
            if tx.send(change).await.is_err() {
                return Ok(());
            }
        }
        tokio::select! {
            () = tx.closed() => return Ok(()),
            () = tokio::time::sleep(POLL) => {}
        }
        let read = fingerprint(path).and_then(|now| {
            if now == seen {
                return Ok(Vec::new());
            }
            seen = now;
            folder.read(&seen)
        });
        match read {
            Ok(read) => changes = read,
            Err(error) => tracing::warn!("what was read before stays in force: {error:#}"),
        }
    }
}

/// The folder's objects as changes: a full list of every kind that is asked for. Other kinds of
/// objects are passed over.
///
/// # Errors
/// A file that cannot be read or is not YAML; the message names it.
pub fn read_dir(path: &Path, config: &WatchConfig) -> anyhow::Result<Vec<Change>> {
    Folder::new(config).read(&fingerprint(path)?)
}

/// As [`read_dir`], of a folder with this file alone.
#[cfg(fuzzing)]
pub(crate) fn read_text(text: &str, config: &WatchConfig) -> anyhow::Result<Vec<Change>> {
    let mut objects = Objects::default();
    objects.add_text(text, Path::new("fuzzed.yaml"))?;
    Ok(Folder::new(config).changes(objects))
}

/// A file with what tells that it changed.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct File {
    path: PathBuf,
    changed: SystemTime,
    bytes: u64,
}

/// Converts what the files hold, and remembers what was said about it.
struct Folder {
    services: Option<Changes<Services>>,
    slices: Option<Changes<Slices>>,
    nodes: Option<Changes<changes::Nodes>>,
    service_cidrs: Option<Changes<ServiceCidrs>>,
    only_node: Option<NodeName>,
}

#[derive(Default)]
struct Objects {
    services: Vec<wire::Service>,
    slices: Vec<wire::EndpointSlice>,
    nodes: Vec<wire::Node>,
    service_cidrs: Vec<wire::ServiceCidr>,
}

impl Folder {
    fn new(config: &WatchConfig) -> Self {
        let only_node = match &config.nodes {
            Nodes::One(name) => Some(name.clone()),
            Nodes::All | Nodes::None => None,
        };
        Self {
            services: config.services.then(|| Changes::new(Services(config.detail))),
            slices: config.slices.then(|| Changes::new(Slices::new(config.detail))),
            nodes: (config.nodes != Nodes::None).then(|| Changes::new(changes::Nodes)),
            service_cidrs: config.service_cidrs.then(|| Changes::new(ServiceCidrs)),
            only_node,
        }
    }

    fn read(&mut self, files: &[File]) -> anyhow::Result<Vec<Change>> {
        let mut objects = Objects::default();
        for File { path, .. } in files {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            objects.add_text(&text, path)?;
        }
        Ok(self.changes(objects))
    }

    fn changes(&mut self, mut objects: Objects) -> Vec<Change> {
        if let Some(name) = &self.only_node {
            objects.nodes.retain(|n| n.metadata.name.as_deref() == Some(name));
        }
        let mut changes = Vec::new();
        list(&mut self.services, objects.services, &mut changes);
        list(&mut self.slices, objects.slices, &mut changes);
        list(&mut self.nodes, objects.nodes, &mut changes);
        list(&mut self.service_cidrs, objects.service_cidrs, &mut changes);
        changes
    }
}

impl Objects {
    fn add_text(&mut self, text: &str, file: &Path) -> anyhow::Result<()> {
        for document in serde_yaml_ng::Deserializer::from_str(text) {
            let value =
                Value::deserialize(document).with_context(|| format!("{} is not YAML", file.display()))?;
            self.add(value, file);
        }
        Ok(())
    }

    fn add(&mut self, value: Value, file: &Path) {
        let text = |key| value.get(key).and_then(Value::as_str).unwrap_or_default();
        // Without an apiVersion it is taken for ours: other groups have a Service, too.
        let (kind, group) = (text("kind").to_owned(), text("apiVersion"));
        let of = |ours: &str| group.is_empty() || group == ours;
        let added = match kind.as_str() {
            "Service" if of("v1") => push(&mut self.services, value),
            "EndpointSlice" if of("discovery.k8s.io/v1") => push(&mut self.slices, value),
            "Node" if of("v1") => push(&mut self.nodes, value),
            "ServiceCIDR" if of("networking.k8s.io/v1") => push(&mut self.service_cidrs, value),
            "List" | "ServiceList" | "EndpointSliceList" | "NodeList" | "ServiceCIDRList" => {
                let items = value.get("items").and_then(Value::as_sequence);
                for item in items.into_iter().flatten() {
                    self.add(item.clone(), file);
                }
                Ok(())
            }
            _ => Ok(()),
        };
        if let Err(error) = added {
            tracing::warn!(file = %file.display(), "a {kind} is not of the expected shape and is passed over: {error}");
        }
    }
}

fn push<W: DeserializeOwned>(objects: &mut Vec<W>, value: Value) -> Result<(), serde_yaml_ng::Error> {
    objects.push(serde_yaml_ng::from_value(value)?);
    Ok(())
}

fn list<C: Convert>(converter: &mut Option<Changes<C>>, objects: Vec<C::Wire>, changes: &mut Vec<Change>) {
    let Some(converter) = converter else { return };
    let applies = objects.into_iter().map(Listing::Apply);
    let listing = std::iter::once(Listing::Started).chain(applies).chain(std::iter::once(Listing::Ended));
    changes.extend(listing.map(|l| converter.of(l)));
}

/// The YAML files, by name.
fn fingerprint(path: &Path) -> anyhow::Result<Vec<File>> {
    let mut files = Vec::new();
    let entries =
        std::fs::read_dir(path).with_context(|| format!("reading the folder {}", path.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            let meta = std::fs::metadata(&path).with_context(|| format!("reading {}", path.display()))?;
            files.push(File { changed: meta.modified()?, bytes: meta.len(), path });
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use service_model::{ObjectName, World};

    use super::*;
    use crate::Detail;

    fn config() -> WatchConfig {
        WatchConfig {
            services: true,
            slices: true,
            nodes: Nodes::One("n1".into()),
            service_cidrs: false,
            detail: Detail::Full,
        }
    }

    const WEB: &str = "
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
---
kind: List
items:
- kind: EndpointSlice
  metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
  addressType: IPv4
- {kind: Node, metadata: {name: n1}}
- {kind: Node, metadata: {name: n2}}
- {kind: ConfigMap, metadata: {name: other}}
";

    #[tokio::test]
    async fn a_folder_is_listed_and_listed_again_when_a_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("web.yaml"), WEB).unwrap();
        std::fs::write(dir.path().join("notes.txt"), "not yaml: [").unwrap();
        let (tx, mut rx) = tokio::sync::mpsc::channel(16);
        let path = dir.path().to_owned();
        let watching = tokio::spawn(async move { watch_dir(&path, &config(), &tx).await });

        let mut world = World::default();
        while !world.has_synced(&config().kinds()) {
            world.apply(rx.recv().await.unwrap());
        }
        let web = ObjectName::new("shop", "web");
        assert!(world.service(&web).is_some());
        assert_eq!(world.slices_of(&web).count(), 1);
        assert_eq!(world.nodes().map(|n| &*n.name).collect::<Vec<_>>(), ["n1"]);

        std::fs::remove_file(dir.path().join("web.yaml")).unwrap();
        while world.service(&web).is_some() {
            world.apply(rx.recv().await.unwrap());
        }
        drop(rx);
        watching.await.unwrap().unwrap();
    }

    #[test]
    fn an_unreadable_file_is_named_in_the_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("bad.yaml"), "kind: Service\nmetadata: [").unwrap();
        assert!(read_dir(dir.path(), &config()).unwrap_err().to_string().contains("bad.yaml"));
    }

    #[tokio::test]
    async fn a_mistake_that_comes_later_leaves_what_was_read_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("web.yaml");
        std::fs::write(&file, WEB).unwrap();
        let (tx, mut rx) = tokio::sync::mpsc::channel(64);
        let path = dir.path().to_owned();
        let mut watching = tokio::task::JoinSet::new();
        watching.spawn(async move { watch_dir(&path, &config(), &tx).await });
        let mut world = World::default();
        while !world.has_synced(&config().kinds()) {
            world.apply(rx.recv().await.unwrap());
        }
        std::fs::write(&file, "kind: Service\nmetadata: [").unwrap();
        let nothing = tokio::time::timeout(POLL * 2, rx.recv()).await;
        assert!(nothing.is_err() && watching.try_join_next().is_none(), "{nothing:?}");

        std::fs::write(&file, "kind: Node\nmetadata: {name: n1}").unwrap();
        let web = ObjectName::new("shop", "web");
        while world.service(&web).is_some() {
            world.apply(rx.recv().await.unwrap());
        }
    }

    #[test]
    fn one_object_of_another_shape_or_of_another_group_does_not_hide_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let text = "
{kind: Service, apiVersion: serving.knative.dev/v1, metadata: {name: foreign}}
---
{kind: Service, apiVersion: v1, metadata: {name: odd}, spec: {ports: many}}
---
# nothing
---
{kind: ServiceList, items: [{kind: Service, apiVersion: v1, metadata: {name: web}}]}
";
        std::fs::write(dir.path().join("all.yml"), text).unwrap();
        let mut world = World::default();
        for change in read_dir(dir.path(), &config()).unwrap() {
            world.apply(change);
        }
        assert_eq!(world.services().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["default/web"]);
        assert!(world.has_synced(&config().kinds()));
    }
}
