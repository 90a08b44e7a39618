//! The parts of the story that every provider shares: what the nodes do, and what the programs say.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use kube::ResourceExt;
use lab::{Lab, netns};

use crate::show::Show;

pub(crate) async fn node_ports(show: &mut Show, lab: &Lab) -> Result<()> {
    show.chapter("NodePort on every node");
    let port = lab.service("web").await?.node_port()?;
    let pods = lab.pods("app=web").await?;
    let hosts: BTreeSet<&str> =
        pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.as_deref()).collect();
    for node in &lab.nodes {
        let target = SocketAddr::new(node.host.v4().into(), port);
        let name = &node.host.name;
        let place = if hosts.contains(name.as_str()) { "which runs a pod" } else { "which runs none" };
        let answers = lab.client().http(target, 30).await;
        let good = answers.failures.is_empty() && answers.by_pod().len() == 2;
        show.claim(&format!("{target} on {name}, {place}"), held(good, &answers));
    }
    Ok(())
}

pub(crate) async fn cluster_ip(show: &mut Show, lab: &Lab) -> Result<()> {
    show.chapter("ClusterIP from a pod, found by the environment");
    let pods = lab.pods_ready("app=web", 2).await?;
    let pod = pods.first().context("there are two")?;
    let address =
        pod.status.as_ref().and_then(|status| status.pod_ip.clone()).context("a ready pod has an address")?;
    let answer = lab.inside(pod)?.get(SocketAddr::new(address.parse()?, 8080)).await?;
    let variable = |name: &str| answer.environment.get(name).cloned().with_context(|| format!("no {name}"));
    let (host, port) = (variable("WEB_SERVICE_HOST")?, variable("WEB_SERVICE_PORT")?);
    show.say(format!("{} has WEB_SERVICE_HOST={host} WEB_SERVICE_PORT={port}", pod.name_any()));
    let netns = netns::Netns::open(&format!("fl-{}-{}", lab.id(), pod.name_any()))?;
    show.shell(&netns, &format!("curl -s http://{host}:{port}/ | cut -c1-160"))?;
    for target in lab.service("web").await?.all_cluster()? {
        let answers = lab.inside(pod)?.http(target, 30).await;
        let good = answers.failures.is_empty() && answers.by_pod().len() == 2;
        show.claim(&format!("both pods answer at {target}"), held(good, &answers));
    }
    Ok(())
}

pub(crate) fn plans(show: &Show, lab: &Lab) {
    show.chapter("What each program did, in its own words");
    for program in lab.programs() {
        let log = program.log();
        let plan = plan_lines(&log);
        show.command(&format!("grep default/web {}", program.log_path().display()), &plan);
    }
}

/// The lines of a log that are about our Service, without colours and dates.
fn plan_lines(log: &str) -> String {
    log.lines().filter(|line| line.contains("default/web")).take(12).map(|line| format!("{line}\n")).collect()
}

pub(crate) fn held(good: bool, seen: &impl std::fmt::Display) -> Result<String> {
    if good { Ok(seen.to_string()) } else { bail!("{seen}") }
}
