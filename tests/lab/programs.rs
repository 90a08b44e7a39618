//! Where the programs are that the lab starts.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

/// The repository that this lab was built from.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the lab lives in a folder of the workspace")
}

/// A program of this workspace: from `FAIRLEAD_BIN`, or the folder that the running test or demo
/// was built into.
///
/// # Errors
/// When it was not built.
pub fn ours(name: &str) -> Result<PathBuf> {
    let chosen = env::var_os("FAIRLEAD_BIN").map(PathBuf::from);
    chosen
        .into_iter()
        .chain([build_folder()?])
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not built: run `cargo build --workspace --bins`"))
}

/// The folder that the running test or demo was built into: `target/debug`.
///
/// # Errors
/// When the running program has no path.
pub fn build_folder() -> Result<PathBuf> {
    let myself = env::current_exe().context("finding the running program")?;
    let folder = myself.parent().context("a program lies in a folder")?;
    Ok(if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder }.to_owned())
}

/// A program of Kubernetes, or etcd: from `FAIRLEAD_KUBE_BIN`, `KUBEBUILDER_ASSETS`, or what
/// scripts/setup built.
///
/// # Errors
/// When it is in none of these places.
pub fn kubernetes(name: &str) -> Result<PathBuf> {
    let mut folders: Vec<PathBuf> =
        ["FAIRLEAD_KUBE_BIN", "KUBEBUILDER_ASSETS"].iter().filter_map(env::var_os).map(Into::into).collect();
    folders.push(built_by_setup()?);
    match folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("{name} is missing in {folders:?}: run scripts/setup, which builds it"),
    }
}

/// The Python environment that has moto: `FAIRLEAD_VENV`, or `.venv` in the workspace.
///
/// # Errors
/// When moto is not there.
pub fn moto_server() -> Result<PathBuf> {
    let venv = env::var_os("FAIRLEAD_VENV").map_or_else(|| workspace().join(".venv"), PathBuf::from);
    let server = venv.join("bin/moto_server");
    ensure!(server.is_file(), "{} is missing: run scripts/setup, which installs it", server.display());
    Ok(server)
}

/// The folder that scripts/setup names after the module files.
fn built_by_setup() -> Result<PathBuf> {
    let modules = workspace().join("tests/kube");
    let mut hash = Sha256::new();
    for file in ["go.mod", "go.sum"] {
        let path = modules.join(file);
        hash.update(fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
    }
    let key: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    let cache = match env::var_os("XDG_CACHE_HOME") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env::var_os("HOME").context("neither HOME nor XDG_CACHE_HOME is set")?)
            .join(".cache"),
    };
    Ok(cache.join("fairlead/kube").join(key))
}
