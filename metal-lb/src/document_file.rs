//! A document in a file that is obeyed instead of a controller's, and read again when it changes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use metal_lb_api::Config;
use tokio::sync::watch;

const POLL: Duration = Duration::from_secs(1);

/// A file, and what it looked like when it was last read.
#[derive(Debug)]
pub struct DocumentFile {
    path: PathBuf,
    seen: Option<Look>,
}

/// Differs when the content was changed in place, or the file replaced by another.
type Look = (SystemTime, u64, u64);

impl DocumentFile {
    pub fn new(path: PathBuf) -> Self {
        Self { path, seen: None }
    }

    /// The document, if the file has changed since the last call.
    ///
    /// # Errors
    /// When it cannot be read, or the JSON path of the mistake in it; once for each change.
    pub fn poll(&mut self) -> anyhow::Result<Option<Config>> {
        let metadata =
            std::fs::metadata(&self.path).with_context(|| format!("reading {}", self.path.display()))?;
        let look = (metadata.modified()?, metadata.len(), metadata.ino());
        if self.seen == Some(look) {
            return Ok(None);
        }
        self.seen = Some(look);
        read(&self.path).map(Some)
    }

    /// Puts every change into force. A mistake leaves the last good document there.
    ///
    /// # Errors
    /// When the first one cannot be read.
    pub async fn follow(mut self, accepted: watch::Sender<Option<Arc<Config>>>) -> anyhow::Result<()> {
        let put = |config: Option<Config>| {
            if let Some(config) = config {
                accepted.send_replace(Some(Arc::new(config)));
            }
        };
        put(self.poll()?);
        let mut told = None;
        while !accepted.is_closed() {
            tokio::time::sleep(POLL).await;
            match self.poll() {
                Ok(config) => {
                    put(config);
                    told = None;
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if told.as_ref() != Some(&error) {
                        tracing::error!(%error, "the last good document stays in force");
                    }
                    told = Some(error);
                }
            }
        }
        Ok(())
    }
}

/// # Errors
/// When the file cannot be read, or the JSON path of the mistake in it.
pub fn read(path: &Path) -> anyhow::Result<Config> {
    let json = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Config::parse(&json).with_context(|| format!("{} is not a valid document", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(counter: u64) -> String {
        serde_json::json!({
            "schema": 1, "owner": "lab", "generation": {"term": 1, "counter": counter},
            "member_key": "ab".repeat(32), "hosts": [], "nodes": [], "node_sets": [], "listeners": []
        })
        .to_string()
    }

    #[test]
    fn a_file_is_read_once_for_each_change_and_a_mistake_told_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metal-lb.json");
        let mut file = DocumentFile::new(path.clone());
        assert!(file.poll().is_err(), "there is none yet");
        std::fs::write(&path, document(1)).unwrap();
        assert_eq!(file.poll().unwrap().unwrap().generation.counter, 1);
        assert_eq!(file.poll().unwrap(), None);

        // Replaced by another of the same size, as editors and kubelets do.
        let next = dir.path().join("next");
        std::fs::write(&next, document(2)).unwrap();
        std::fs::rename(&next, &path).unwrap();
        assert_eq!(file.poll().unwrap().unwrap().generation.counter, 2);

        std::fs::write(&path, document(3).replace("\"schema\":1", "\"schema\":77")).unwrap();
        let error = format!("{:#}", file.poll().unwrap_err());
        assert!(error.contains("schema: 77"), "{error}");
        assert_eq!(file.poll().unwrap(), None, "told once");
    }
}
