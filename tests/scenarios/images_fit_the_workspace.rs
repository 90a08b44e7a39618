//! The Containerfiles in deploy/ build what this workspace has, into images of the names that the
//! manifests use. No image is built here: nothing but the text is checked, and the libraries.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::programs;
use serde::Deserialize;
use serde_yaml_ng::Value;

const PROGRAMS: [&str; 3] = ["cloud-controller", "metal-lb", "node-agent"];

/// What gcr.io/distroless/cc-debian12 has of what a Rust program may be linked with.
const IN_THE_BASE_IMAGE: [&str; 8] = [
    "linux-vdso.so.1",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "libgcc_s.so.1",
];

fn read(path: &str) -> Result<String> {
    fs::read_to_string(programs::workspace().join(path)).with_context(|| format!("reading {path}"))
}

fn containerfile(program: &str) -> Result<String> {
    read(&format!("deploy/{program}/Containerfile"))
}

/// The arguments of every instruction of that name, lines that go on joined.
fn instructions<'t>(containerfile: &'t str, name: &'t str) -> impl Iterator<Item = String> + 't {
    let joined = containerfile.replace("\\\n", " ");
    let lines: Vec<String> =
        joined.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    lines.into_iter().filter_map(move |line| Some(line.strip_prefix(name)?.strip_prefix(' ')?.to_owned()))
}

fn images(manifest: &Value, found: &mut BTreeSet<String>) {
    match manifest {
        Value::Mapping(fields) => {
            for (key, value) in fields {
                match (key.as_str(), value.as_str()) {
                    (Some("image"), Some(image)) => _ = found.insert(image.to_owned()),
                    _ => images(value, found),
                }
            }
        }
        Value::Sequence(items) => items.iter().for_each(|item| images(item, found)),
        _ => {}
    }
}

#[test]
fn every_path_that_is_copied_exists_and_every_member_of_the_workspace_is_copied() -> Result<()> {
    let manifest = read("Cargo.toml")?;
    let (_, members) = manifest.split_once("members = [").context("the workspace has members")?;
    let (members, _) = members.split_once(']').context("the list of members ends")?;
    let members: Vec<&str> =
        members.split(',').map(|m| m.trim().trim_matches('"')).filter(|m| !m.is_empty()).collect();
    for program in PROGRAMS {
        let mut copied = Vec::new();
        for copy in instructions(&containerfile(program)?, "COPY") {
            let mut words: Vec<&str> = copy.split(' ').collect();
            ensure!(words.len() >= 2, "{program}: COPY {copy}");
            words.pop();
            if !words[0].starts_with("--from=") {
                copied.extend(words.into_iter().map(str::to_owned));
            }
        }
        for path in &copied {
            ensure!(
                programs::workspace().join(path).exists(),
                "{program}: COPY {path}, which does not exist"
            );
        }
        for member in &members {
            let there = copied.iter().any(|path| member == path || member.starts_with(&format!("{path}/")));
            ensure!(
                there,
                "{program}: the member {member} is not copied, so that cargo cannot read the workspace"
            );
        }
    }
    Ok(())
}

#[test]
fn an_image_starts_the_program_that_it_builds_with_the_toolchain_of_this_workspace() -> Result<()> {
    let toolchain = read("rust-toolchain.toml")?;
    let channel = toolchain.split("channel = \"").nth(1).and_then(|rest| rest.split('"').next());
    let channel = channel.context("rust-toolchain.toml names a channel")?;
    for program in PROGRAMS {
        let text = containerfile(program)?;
        let bases: Vec<String> = instructions(&text, "FROM").collect();
        ensure!(
            bases[0] == format!("docker.io/library/rust:{channel}-slim-bookworm AS build"),
            "{program}: {bases:?}"
        );
        for base in &bases {
            let image = base.split(' ').next().unwrap_or_default();
            let tag = image.rsplit('/').next().and_then(|name| name.split_once(':'));
            ensure!(tag.is_some_and(|(_, tag)| tag != "latest"), "{program}: {image} has no tag of its own");
        }
        let build = format!("cargo build --locked --release -p {program} --bin {program}");
        ensure!(instructions(&text, "RUN").any(|run| run == build), "{program}: no RUN {build}");
        let copy = format!("--from=build /src/target/release/{program} /usr/local/bin/{program}");
        ensure!(instructions(&text, "COPY").any(|c| c == copy), "{program}: no COPY {copy}");
        let entrypoint = format!("[\"/usr/local/bin/{program}\"]");
        ensure!(instructions(&text, "ENTRYPOINT").eq([entrypoint]), "{program}: another entrypoint");
        programs::ours(program)?;
    }
    Ok(())
}

#[test]
fn the_manifests_name_the_images_that_the_containerfiles_say_how_to_build() -> Result<()> {
    let mut used = BTreeSet::new();
    for program in PROGRAMS {
        let folder = programs::workspace().join("deploy").join(program);
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "yaml") {
                for document in serde_yaml_ng::Deserializer::from_str(&fs::read_to_string(path)?) {
                    images(&Value::deserialize(document)?, &mut used);
                }
            }
        }
    }
    let built: BTreeSet<String> =
        PROGRAMS.iter().map(|p| format!("fairlead/{p}:{}", env!("CARGO_PKG_VERSION"))).collect();
    ensure!(used == built, "used: {used:?}, built: {built:?}");
    for program in PROGRAMS {
        let tag = format!(
            "-f deploy/{program}/Containerfile -t fairlead/{program}:{} .",
            env!("CARGO_PKG_VERSION")
        );
        ensure!(containerfile(program)?.contains(&tag), "{program}: its comment does not say {tag}");
    }
    Ok(())
}

#[test]
fn an_image_has_every_library_that_its_program_is_linked_with() -> Result<()> {
    for program in PROGRAMS {
        let text = containerfile(program)?;
        let listed = Command::new("ldd").arg(programs::ours(program)?).output().context("starting ldd")?;
        let listed = String::from_utf8(listed.stdout)?;
        let libraries = listed.lines().filter_map(|line| line.split_whitespace().next());
        for library in libraries.map(|path| path.rsplit('/').next().unwrap_or(path)) {
            let brought = text.contains(&format!("$1 == \"{library}\""));
            ensure!(
                brought || IN_THE_BASE_IMAGE.contains(&library),
                "{program}: {library} is not in its image"
            );
        }
        ensure!(listed.contains("libc.so.6"), "{program}: {listed}");
    }
    Ok(())
}
