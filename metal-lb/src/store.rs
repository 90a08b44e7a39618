//! The document in force: accepted in order, kept on disk, replayed at start.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use metal_lb_api::{Config, Generation};

/// Why a valid document was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("generation {offered} is not newer than {current}, which is in force")]
    Older { offered: Generation, current: Generation },
    #[error("this host obeys the file {0}; stop passing --config to let a controller steer it")]
    FileInForce(String),
    #[error("keeping the document failed: {0:#}")]
    Disk(anyhow::Error),
}

/// Keeps the document with mode 0600: it holds a key.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    current: Option<Arc<Config>>,
}

impl Store {
    /// Opens the folder and reads the document that was in force.
    ///
    /// # Errors
    /// When the folder cannot be used. A document that cannot be read is reported and left out:
    /// the controller sends a new one.
    pub fn open(dir: &Path) -> anyhow::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("creating {}: choose a writable --state-dir", dir.display()))?;
        let path = dir.join("config.json");
        let current = match fs::read(&path) {
            Ok(json) => match Config::parse(&json) {
                Ok(config) => Some(Arc::new(config)),
                Err(error) => {
                    tracing::error!(%error, path = %path.display(), "the kept document cannot be read; waiting for a new one");
                    None
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        Ok(Self { path, current })
    }

    pub fn current(&self) -> Option<Arc<Config>> {
        self.current.clone()
    }

    /// Takes a newer document, on disk first. The same document again is fine.
    ///
    /// # Errors
    /// See [`Refusal`]; the one in force stays.
    pub fn accept(&mut self, config: Config) -> Result<Arc<Config>, Refusal> {
        if let Some(current) = &self.current {
            if **current == config {
                return Ok(Arc::clone(current));
            }
            if config.generation <= current.generation {
                return Err(Refusal::Older { offered: config.generation, current: current.generation });
            }
        }
        self.write(&config).map_err(Refusal::Disk)?;
        let config = Arc::new(config);
        self.current = Some(Arc::clone(&config));
        Ok(config)
    }

    fn write(&self, config: &Config) -> anyhow::Result<()> {
        let partial = self.path.with_extension("partial");
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)
            .with_context(|| format!("writing {}", partial.display()))?;
        file.write_all(config.to_json().as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, &self.path)?;
        let folder = self.path.parent().context("the document has no folder")?;
        Ok(File::open(folder)?.sync_all()?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn config(counter: u64, owner: &str) -> Config {
        let json = serde_json::json!({
            "schema": 1, "owner": owner, "generation": {"term": 1, "counter": counter},
            "member_key": "ab".repeat(32), "hosts": [], "nodes": [], "node_sets": [], "listeners": []
        });
        Config::parse(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_document_is_kept_private_and_replayed() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(&dir.path().join("state")).unwrap();
        assert!(store.current().is_none());
        store.accept(config(1, "lab")).unwrap();
        let mode = fs::metadata(&store.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = Store::open(&dir.path().join("state")).unwrap();
        assert_eq!(again.current(), store.current());
    }

    #[test]
    fn an_older_document_and_another_one_of_the_same_generation_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path()).unwrap();
        store.accept(config(5, "lab")).unwrap();
        store.accept(config(5, "lab")).unwrap();
        assert!(matches!(store.accept(config(4, "lab")), Err(Refusal::Older { .. })));
        assert!(matches!(store.accept(config(5, "other")), Err(Refusal::Older { .. })));
        assert_eq!(store.current().unwrap().owner, "lab");
        store.accept(config(6, "other")).unwrap();
    }

    #[test]
    fn a_damaged_file_is_left_out_not_fatal() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), "{").unwrap();
        assert!(Store::open(dir.path()).unwrap().current().is_none());
    }
}
