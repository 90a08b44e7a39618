//! Compiles BPF programs written in C, for build scripts.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// The compilers that are tried, best first.
const COMPILERS: [&str; 4] = ["clang-16", "clang-19", "clang-18", "clang"];

/// Compiles `source` into `OUT_DIR/NAME.o`, where NAME is the file's name up to its first dot.
/// Headers beside it are watched too.
///
/// # Errors
/// When no clang is installed, or the program does not compile.
pub fn compile(source: &Path) -> anyhow::Result<PathBuf> {
    let folder = source.parent().context("the source has no folder")?;
    println_cargo(&format!("rerun-if-changed={}", folder.display()));
    let name = source.file_name().and_then(|n| n.to_str()).and_then(|n| n.split('.').next());
    let out_dir = std::env::var_os("OUT_DIR").context("OUT_DIR is not set: call this from a build script")?;
    let object = Path::new(&out_dir).join(name.context("the source has no name")?).with_extension("o");

    let clang = compiler()?;
    let mut command = Command::new(clang);
    command.args(["-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3"]);
    command.arg("-fdebug-prefix-map=".to_owned() + &folder.display().to_string() + "=.");
    command.arg("-I").arg(folder).arg("-c").arg(source).arg("-o").arg(&object);
    let status = command.status().with_context(|| format!("starting {clang}"))?;
    if !status.success() {
        bail!("{clang} could not compile {}", source.display());
    }
    Ok(object)
}

fn compiler() -> anyhow::Result<&'static str> {
    COMPILERS
        .into_iter()
        .find(|c| Command::new(c).arg("--version").output().is_ok_and(|o| o.status.success()))
        .context("no clang found: install clang-16 (scripts/setup does on Debian 12)")
}

#[expect(clippy::print_stdout, reason = "this is how a build script talks to cargo")]
fn println_cargo(line: &str) {
    println!("cargo:{line}");
}
