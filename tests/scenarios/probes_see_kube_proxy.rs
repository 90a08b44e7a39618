//! Dashboards, alerts and load balancers that know kube-proxy find node-agent in its place: the
//! same metrics with the same types and labels, the same health answers. The real one is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Lab, NodeProxy, Provider, wait};
use serde_json::Value;

const WEB: &str = include_str!("../fixtures/web-nodeport.yaml");
const LIMIT: Duration = Duration::from_secs(20);

/// What kube-proxy has and node-agent has not, and why.
const NOT_OURS: [(&str, &str); 1] = [(
    "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total",
    "there is no chain per Service, hence no clean-up of chains that could fail",
)];

/// Of one metric.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shape {
    kind: String,
    labels: BTreeSet<String>,
}

/// The metrics of a page that have samples, by the name that queries use: `_total` for counters,
/// nothing for histograms.
fn shapes(page: &str) -> BTreeMap<String, Shape> {
    let mut shapes = BTreeMap::new();
    let mut current: Option<(String, String)> = None;
    for line in page.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            current = Some((name.trim_end_matches("_total").to_owned(), kind.to_owned()));
            continue;
        }
        let (Some((base, kind)), false) = (&current, line.starts_with('#')) else { continue };
        let sample = line.split([' ', '{']).next().unwrap_or_default();
        let name = if kind == "histogram" { base } else { sample };
        let inside = line.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(i, _)| i);
        let labels = inside.split(',').filter_map(|pair| Some(pair.split_once('=')?.0.to_owned()));
        let labels = labels.filter(|label| label != "le").collect();
        shapes.insert(name.to_owned(), Shape { kind: kind.clone(), labels });
    }
    shapes
}

/// The keys of an answer, with those of objects inside.
fn keys(value: &Value, path: &str) -> BTreeSet<String> {
    let object = value.as_object().into_iter().flatten();
    object
        .flat_map(|(key, value)| {
            let path = format!("{path}/{key}");
            keys(value, &path).into_iter().chain([path])
        })
        .collect()
}

/// What a program answers to those who ask.
struct Probed {
    metrics: BTreeMap<String, Shape>,
    /// Of the health server, by path.
    answers: BTreeMap<&'static str, Told>,
    /// The same of a node that is about to be removed.
    going: BTreeMap<&'static str, Told>,
    /// Of the other server, by path: status and headers, and the body.
    own: BTreeMap<&'static str, (BTreeSet<String>, String)>,
}

/// An answer without what depends on the moment.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    status_and_headers: BTreeSet<String>,
    keys: BTreeSet<String>,
    healthy: Value,
    node_eligible: Value,
}

impl Told {
    fn of(head: &str, body: &str) -> Result<Self> {
        let body: Value = serde_json::from_str(body)?;
        let said = |key: &str| body.get(key).cloned().unwrap_or_default();
        Ok(Self {
            status_and_headers: status_and_headers(head),
            keys: keys(&body, ""),
            healthy: said("healthy"),
            node_eligible: said("nodeEligible"),
        })
    }
}

const HEALTH: u16 = 10256;
const OWN: u16 = 10249;

async fn probe(name: &str, proxy: NodeProxy) -> Result<Probed> {
    let lab = Lab::builder(name).nodes(1).node_proxy(proxy).provider(Provider::None).start().await?;
    lab.apply(WEB).await?;
    lab.endpoints_ready("web", 2).await?;
    let client = lab.client_on(&lab.nodes[0].host.name)?;
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut answers = BTreeMap::new();
    for path in ["/healthz", "/livez"] {
        let (head, body) = wait::until("the proxy is healthy", LIMIT, async || {
            let (head, body) = client.answer(at(HEALTH), path).await?;
            ensure!(head.contains(" 200 ") && body.contains("IPv6"), "{head}\n{body}");
            Ok((head, body))
        })
        .await?;
        answers.insert(path, Told::of(&head, &body)?);
    }
    // What triggers a change is told to the second, so that the first may be older than the program.
    let mut replicas = 2;
    let metrics = wait::until("the endpoints' programming was measured", LIMIT, async || {
        replicas += 1;
        lab.scale("web", replicas).await?;
        lab.endpoints_ready("web", replicas).await?;
        let mut metrics = shapes(&client.answer(at(OWN), "/metrics").await?.1);
        metrics.retain(|name, _| name.starts_with("kubeproxy_"));
        ensure!(metrics.contains_key("kubeproxy_network_programming_duration_seconds"), "{metrics:#?}");
        Ok(metrics)
    })
    .await?;
    let author = match proxy {
        NodeProxy::KubeProxy | NodeProxy::KubeProxyWithIptables => "kube-proxy",
        NodeProxy::NodeAgent => "fairlead.dev/node-agent",
    };
    wait::until("an Event says that it started", LIMIT, async || {
        let starts = "get events --field-selector involvedObject.kind=Node,reason=Starting \
                      -o jsonpath={.items[*].reportingComponent}";
        let authors = lab.kubectl(starts).await?;
        ensure!(authors.split_whitespace().any(|name| name == author), "by {authors:?}");
        Ok(())
    })
    .await?;
    let mut own = BTreeMap::new();
    for path in ["/proxyMode", "/healthz"] {
        let (head, body) = client.answer(at(OWN), path).await?;
        own.insert(path, (status_and_headers(&head), body));
    }
    let node = &lab.nodes[0].host.name;
    lab.kubectl(&format!("taint node {node} ToBeDeletedByClusterAutoscaler=1:NoSchedule")).await?;
    wait::until("balancers are told to leave the node", LIMIT, async || {
        let (head, body) = client.answer(at(HEALTH), "/healthz").await?;
        ensure!(head.contains(" 503 "), "{head}\n{body}");
        Ok(())
    })
    .await?;
    let mut going = BTreeMap::new();
    for path in ["/healthz", "/livez"] {
        let (head, body) = client.answer(at(HEALTH), path).await?;
        going.insert(path, Told::of(&head, &body)?);
    }
    Ok(Probed { metrics, answers, going, own })
}

fn status_and_headers(head: &str) -> BTreeSet<String> {
    let lines = head.lines().map(|line| line.trim_start_matches("HTTP/1.0 ").trim_start_matches("HTTP/1.1 "));
    let lines = lines.map(str::to_lowercase);
    let passing =
        |line: &String| ["date:", "content-length:", "connection:"].iter().any(|p| line.starts_with(p));
    lines.filter(|line| !passing(line)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_health_answers_are_those_of_the_real_kube_proxy() -> Result<()> {
    let theirs = probe("probes-theirs", NodeProxy::KubeProxy).await?;
    let ours = probe("probes-ours", NodeProxy::NodeAgent).await?;
    ensure!(theirs.metrics.len() > 10, "only {:?} were found", theirs.metrics);
    let left_out = |name: &str| NOT_OURS.iter().any(|(prefix, _)| name.starts_with(prefix));
    for (name, shape) in theirs.metrics.iter().filter(|(name, _)| !left_out(name)) {
        let own = ours.metrics.get(name).with_context(|| format!("{name} is missing: {shape:?}"))?;
        ensure!(own == shape, "{name} is {own:?}, and kube-proxy's is {shape:?}");
    }
    for (name, why) in NOT_OURS {
        let ours = ours.metrics.keys().find(|metric| metric.starts_with(name));
        ensure!(ours.is_none(), "{name} is said to be left out ({why}), but it is there");
    }
    ensure!(ours.answers == theirs.answers, "{:#?}\nkube-proxy: {:#?}", ours.answers, theirs.answers);
    ensure!(ours.going == theirs.going, "{:#?}\nkube-proxy: {:#?}", ours.going, theirs.going);
    ensure!(ours.own == theirs.own, "{:#?}\nkube-proxy: {:#?}", ours.own, theirs.own);
    Ok(())
}
