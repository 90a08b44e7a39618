//! What docs/operations says of flags, metrics and Events is what the programs have: no more, no
//! less. The pages' tables are read; `--help`, a scrape and the source are the judges. And what any
//! page of the repository refers to is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::traffic::Client;
use lab::{Lab, programs, wait};

const WEB: &str = include_str!("../fixtures/web.yaml");
const PROGRAMS: [&str; 3] = ["cloud-controller", "metal-lb", "node-agent"];
const LIMIT: Duration = Duration::from_secs(20);

/// The rows of the tables in the section under that heading, as cells. Rules and the tables' own
/// headings are left out.
fn rows(program: &str, heading: &str) -> Result<Vec<Vec<String>>> {
    let path = programs::workspace().join(format!("docs/operations/{program}.md"));
    let page = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let section = page.split("\n## ").find(|section| section.lines().next() == Some(heading));
    let section = section.with_context(|| format!("{} has no section {heading:?}", path.display()))?;
    let cells = |line: &str| line.trim_matches('|').split('|').map(|c| c.trim().to_owned()).collect();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    Ok(rows.map(cells).collect())
}

/// What stands between the first pair of backticks.
fn code(cell: &str) -> Option<&str> {
    cell.split('`').nth(1)
}

fn help(program: &str, verb: Option<&str>) -> Result<String> {
    let output = Command::new(programs::ours(program)?).args(verb).arg("--help").output()?;
    Ok(String::from_utf8(output.stdout)?)
}

/// The verbs of a program, as its `--help` lists them.
fn verbs(program: &str) -> Result<Vec<String>> {
    let help = help(program, None)?;
    let (_, listed) = help.split_once("Commands:\n").context("the program has verbs")?;
    let words = listed.lines().map_while(|line| line.strip_prefix("  ")?.split(' ').next());
    Ok(words.filter(|verb| *verb != "help").map(str::to_owned).collect())
}

/// The flags of a verb with their defaults; `required` where the usage demands one.
fn flags(program: &str, verb: &str) -> Result<BTreeMap<String, String>> {
    let help = help(program, Some(verb))?;
    let usage = help.lines().find(|line| line.starts_with("Usage:")).context("a usage line")?;
    let mut flags = BTreeMap::new();
    let mut current: Option<String> = None;
    for line in help.lines().map(str::trim_start) {
        // Behind a short form.
        let dashed =
            line.split_once(", ").filter(|(short, _)| short.len() == 2).map_or(line, |(_, long)| long);
        if dashed.starts_with("--") {
            let name: String = dashed.split([' ', '=', '[']).next().unwrap_or_default().to_owned();
            let required = usage.contains(&format!(" {name} <"));
            current = (name != "--help" && name != "--version").then(|| name.clone());
            if let Some(name) = &current {
                flags.insert(name.clone(), if required { "required" } else { "" }.to_owned());
            }
        }
        let default = line.split("[default: ").nth(1).and_then(|rest| rest.split(']').next());
        if let (Some(name), Some(default)) = (&current, default) {
            flags.insert(name.clone(), default.trim_matches('"').to_owned());
        }
    }
    Ok(flags)
}

/// In a table of flags: flag, default, the verbs that have it.
#[test]
fn every_flag_stands_in_the_page_with_its_default_and_no_other_does() -> Result<()> {
    for program in PROGRAMS {
        let mut described: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for row in rows(program, "Flags")? {
            let flag = code(&row[0]).context("a flag")?;
            let default = if row[1] == "required" { "required" } else { code(&row[1]).unwrap_or_default() };
            for verb in row[2].split(' ') {
                described.entry(verb.to_owned()).or_default().insert(flag.to_owned(), default.to_owned());
            }
        }
        for verb in verbs(program)? {
            let real = flags(program, &verb)?;
            let page = described.remove(&verb).unwrap_or_default();
            ensure!(real == page, "{program} {verb}\n  --help: {real:?}\n  page:   {page:?}");
            ensure!(!real.is_empty() || verb == "cleanup", "{program} {verb} --help lists no flag");
        }
        ensure!(described.is_empty(), "{program} has no such verbs: {described:?}");
    }
    Ok(())
}

fn files_in(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files_in(&path, extension, found)?;
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    Ok(())
}

/// The string literal that a text begins with, after white space.
fn literal(text: &str) -> Option<&str> {
    text.trim_start().strip_prefix('"')?.split('"').next()
}

/// Every reason with the severity of its Event, from the constructors of notes in the source.
fn reasons_in_the_source() -> Result<BTreeSet<(String, String)>> {
    let mut files = Vec::new();
    files_in(&programs::workspace().join("cloud-controller/src"), "rs", &mut files)?;
    let mut reasons = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (constructor, severity) in [("Note::warning(", "Warning"), ("Note::normal(", "Normal")] {
            for call in code.split(constructor).skip(1) {
                let computed = call.trim_start().starts_with("error.reason()");
                ensure!(
                    computed || literal(call).is_some(),
                    "{}: a note's reason is no literal: {:.60}",
                    file.display(),
                    call
                );
                reasons.extend(literal(call).map(|reason| (reason.to_owned(), severity.to_owned())));
            }
        }
        // Those that `error.reason()` computes.
        for body in code.split("fn reason(&self) -> &'static str {").skip(1) {
            let arms = body.split("\n    }").next().unwrap_or_default();
            reasons.extend(
                arms.split("=> ").skip(1).filter_map(literal).map(|r| (r.to_owned(), "Warning".to_owned())),
            );
        }
    }
    Ok(reasons)
}

/// In the tables of Events: reason, type, what to do.
#[test]
fn every_reason_of_an_event_stands_in_the_page_and_no_other_does() -> Result<()> {
    let real = reasons_in_the_source()?;
    let mut described = BTreeSet::new();
    for row in rows("cloud-controller", "Events")? {
        ensure!(row.len() == 3 && !row[2].is_empty(), "{row:?} does not say what to do");
        described.insert((code(&row[0]).context("a reason")?.to_owned(), row[1].clone()));
    }
    let missing: Vec<_> = real.difference(&described).collect();
    let surplus: Vec<_> = described.difference(&real).collect();
    ensure!(missing.is_empty() && surplus.is_empty(), "missing: {missing:?}, surplus: {surplus:?}");
    Ok(())
}

/// node-agent has its reasons in one list.
#[test]
fn every_reason_of_node_agent_stands_in_its_page_and_no_other_does() -> Result<()> {
    let source = fs::read_to_string(programs::workspace().join("node-agent/src/events.rs"))?;
    let mut real = BTreeSet::new();
    for constant in source.split("Reason { name: ").skip(1) {
        let severity = constant.split("Severity::").nth(1).and_then(|rest| rest.split([' ', '}']).next());
        let Some(name) = literal(constant) else { continue };
        real.insert((name.to_owned(), severity.context("a reason has a severity")?.to_owned()));
    }
    let mut described = BTreeSet::new();
    for row in rows("node-agent", "Events")? {
        ensure!(row.len() == 3 && !row[2].is_empty(), "{row:?} does not say what to do");
        described.insert((code(&row[0]).context("a reason")?.to_owned(), row[1].clone()));
    }
    ensure!(real.len() > 3 && real == described, "source: {real:?}, page: {described:?}");
    Ok(())
}

/// The names that a query uses: of a counter with `_total`, of a histogram without its suffixes.
fn names_in(page: &str) -> BTreeSet<String> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| format!("{name}{}", if kind == "counter" { "_total" } else { "" })).collect()
}

fn described(program: &str, heading: &str) -> Result<BTreeSet<String>> {
    rows(program, heading)?.iter().map(|row| Ok(code(&row[0]).context("a name")?.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_stands_in_the_page_and_no_other_does() -> Result<()> {
    let lab = Lab::builder("metrics").start().await?;
    lab.apply(WEB).await?;
    lab.external_ip("web", LIMIT).await?;
    lab.endpoints_ready("web", 2).await?;
    let node = &lab.nodes[0].host;
    let here = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    // A counter with a label stands on the page once it has counted.
    let on_the_node = lab.client_on(&node.name)?;
    wait::until("node-agent lives", LIMIT, async || on_the_node.request(here(10256), "GET", "/livez").await)
        .await?;
    let balancer = lab.balancer("lb-1")?.host.netns.clone();
    let places = [
        ("node-agent", on_the_node, 10249),
        ("metal-lb", Client::in_netns(balancer), 7473),
        ("cloud-controller", Client::in_netns(lab.control_plane.host.netns.clone()), 8080),
    ];
    for (program, client, port) in &places {
        let page = described(program, "Metrics")?;
        wait::until(&format!("{program}'s metrics are those of its page"), LIMIT, async || {
            let real = names_in(&client.request(here(*port), "GET", "/metrics").await?);
            let missing: Vec<_> = real.difference(&page).collect();
            let surplus: Vec<_> = page.difference(&real).collect();
            ensure!(missing.is_empty() && surplus.is_empty(), "missing: {missing:?}, surplus: {surplus:?}");
            Ok(())
        })
        .await?;
    }
    let scraped = places[1].1.request(here(7473), "GET", "/metrics").await?;
    let of_packets =
        scraped.lines().filter_map(|l| l.strip_prefix("metal_lb_refused_packets_total{reason=\""));
    let real: BTreeSet<String> = of_packets.filter_map(|l| Some(l.split_once('"')?.0.to_owned())).collect();
    let page = described("metal-lb", "Refused packets")?;
    ensure!(!real.is_empty() && real == page, "scraped: {real:?}, page: {page:?}");
    Ok(())
}

/// Folders whose names begin the paths that pages write in backticks.
const FOLDERS: [&str; 6] = ["deploy", "docs", "terraform", "tests", "scripts", "crates"];

#[test]
fn every_link_and_every_path_in_a_page_leads_somewhere() -> Result<()> {
    let root = programs::workspace();
    let mut pages: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md"].map(|page| root.join(page)).into();
    for folder in FOLDERS.into_iter().chain(PROGRAMS) {
        files_in(&root.join(folder), "md", &mut pages)?;
    }
    let mut followed = 0;
    for page in &pages {
        let (text, folder) = (fs::read_to_string(page)?, page.parent().context("a page lies in a folder")?);
        let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for link in links.filter(|link| !link.is_empty() && !link.contains("://")) {
            ensure!(folder.join(link).exists(), "{} links to {link}", page.display());
            followed += 1;
        }
        let words = text.split('`').skip(1).step_by(2).filter(|code| !code.contains('\n'));
        for path in words.filter(|code| !code.contains(['*', ' ', '<', ':'])) {
            let ours = path.split_once('/').is_some_and(|(first, _)| FOLDERS.contains(&first));
            let there = root.join(path).exists() || folder.join(path).exists();
            ensure!(!ours || there, "{} speaks of {path}", page.display());
            followed += usize::from(ours);
        }
    }
    ensure!(followed > 30, "only {followed} links and paths were found");
    Ok(())
}
