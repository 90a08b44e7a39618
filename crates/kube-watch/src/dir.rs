//! The second source: a folder of YAML files, for dry runs, tests and nodes without an API server.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use serde::Deserialize;
use service_model::Change;
use tokio::sync::mpsc::Sender;

use crate::watch::{Listing, Nodes, WatchConfig, node_change, service_change, slice_change};
use crate::wire;

const POLL: Duration = Duration::from_secs(1);

/// Sends the folder's objects as one list a kind, and again whenever a file changes.
pub(crate) async fn watch_dir(path: &Path, config: &WatchConfig, tx: &Sender<Change>) -> anyhow::Result<()> {
    let mut seen = None;
    loop {
        let now = fingerprint(path)?;
        if seen.as_ref() != Some(&now) {
            for change in read_dir(path, config)? {
                if tx.send(change).await.is_err() {
                    return Ok(());
                }
            }
            seen = Some(now);
        }
        tokio::select! {
            () = tx.closed() => return Ok(()),
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

/// The folder's objects as changes: a full list of every kind that is asked for. Other kinds of
/// objects are passed over.
///
/// # Errors
/// A file that cannot be read or is not YAML; the message names it.
pub fn read_dir(path: &Path, config: &WatchConfig) -> anyhow::Result<Vec<Change>> {
    let mut objects = Objects::default();
    for (file, _) in fingerprint(path)? {
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let value = serde_yaml_ng::Value::deserialize(document)
                .with_context(|| format!("{} is not YAML", file.display()))?;
            objects.add(value).with_context(|| format!("in {}", file.display()))?;
        }
    }
    Ok(objects.into_changes(config))
}

#[derive(Default)]
struct Objects {
    services: Vec<wire::Service>,
    slices: Vec<wire::EndpointSlice>,
    nodes: Vec<wire::Node>,
}

impl Objects {
    fn add(&mut self, value: serde_yaml_ng::Value) -> anyhow::Result<()> {
        let kind = value.get("kind").and_then(|k| k.as_str()).unwrap_or_default().to_owned();
        let parse_error = || format!("a {kind} is not of the expected shape");
        match kind.as_str() {
            "List" => {
                for item in value.get("items").and_then(|i| i.as_sequence()).into_iter().flatten() {
                    self.add(item.clone())?;
                }
            }
            "Service" => self.services.push(serde_yaml_ng::from_value(value).with_context(parse_error)?),
            "EndpointSlice" => self.slices.push(serde_yaml_ng::from_value(value).with_context(parse_error)?),
            "Node" => self.nodes.push(serde_yaml_ng::from_value(value).with_context(parse_error)?),
            _ => {}
        }
        Ok(())
    }

    fn into_changes(self, config: &WatchConfig) -> Vec<Change> {
        let mut changes = Vec::new();
        if config.services {
            changes.extend(list(self.services).map(|l| service_change(l, config.detail)));
        }
        if config.slices {
            changes.extend(list(self.slices).map(slice_change));
        }
        let wanted = |node: &wire::Node| match &config.nodes {
            Nodes::One(name) => node.metadata.name.as_deref() == Some(name),
            Nodes::All | Nodes::None => true,
        };
        if config.nodes != Nodes::None {
            changes.extend(list(self.nodes.into_iter().filter(wanted).collect()).map(node_change));
        }
        changes
    }
}

fn list<W>(objects: Vec<W>) -> impl Iterator<Item = Listing<W>> {
    let applies = objects.into_iter().map(Listing::Apply);
    std::iter::once(Listing::Started).chain(applies).chain(std::iter::once(Listing::Ended))
}

/// The YAML files by name, with their times.
fn fingerprint(path: &Path) -> anyhow::Result<Vec<(PathBuf, SystemTime)>> {
    let mut files = Vec::new();
    let entries =
        std::fs::read_dir(path).with_context(|| format!("reading the folder {}", path.display()))?;
    for entry in entries {
        let file = entry?.path();
        if file.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            let changed = std::fs::metadata(&file).and_then(|m| m.modified());
            files.push((file.clone(), changed.with_context(|| format!("reading {}", file.display()))?));
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
        WatchConfig { services: true, slices: true, nodes: Nodes::One("n1".into()), detail: Detail::Full }
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
}
