//! The real kubectl, as a person uses it.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::programs;

/// kubectl with an administrator's kubeconfig.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

/// What a command printed.
#[derive(Debug, Clone)]
pub struct Said {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Kubectl {
    /// # Errors
    /// When kubectl was not built.
    pub fn new(kubeconfig: PathBuf, folder: &Path) -> Result<Self> {
        Ok(Self {
            program: programs::kubernetes("kubectl")?,
            kubeconfig,
            cache: folder.join("kubectl-cache"),
        })
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Runs `kubectl ARGUMENTS`, with `input` on its standard input.
    ///
    /// # Errors
    /// When it cannot be started; what it says, also a failure, is the answer.
    pub async fn say(&self, arguments: &[&str], input: Option<&str>) -> Result<Said> {
        let mut child = Command::new(&self.program)
            .arg("--cache-dir")
            .arg(&self.cache)
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // kubectl may have failed already, and then says so itself.
            let _ = stdin.write_all(input.unwrap_or_default().as_bytes()).await;
        }
        let output = child.wait_with_output().await?;
        Ok(Said {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs `kubectl ARGUMENTS` and returns what it printed.
    ///
    /// # Errors
    /// When kubectl fails; with what it complained about.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        let said = self.say(arguments, None).await?;
        ensure!(said.status.success(), "kubectl {} failed: {}", arguments.join(" "), said.stderr.trim());
        Ok(said.stdout)
    }

    /// `kubectl apply -f -` with these manifests.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub async fn apply(&self, manifests: &str) -> Result<String> {
        let said = self.say(&["apply", "-f", "-"], Some(manifests)).await?;
        ensure!(said.status.success(), "kubectl apply failed: {}\n{manifests}", said.stderr.trim());
        Ok(said.stdout)
    }
}
