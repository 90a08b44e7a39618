//! A node has kube-proxy. node-agent is started beside it with the very same command line and file,
//! kube-proxy is stopped, its rules go; and the way back. Clients outside and on the node notice
//! nothing, on new connections or on old ones.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::traffic::{Curler, Heartbeat};
use lab::{Lab, NodeProxy, Provider, programs, wait};

const WEB: &str = include_str!("../fixtures/web-nodeport.yaml");
const NODE: &str = "node-1";
const LIMIT: Duration = Duration::from_secs(30);

/// Each asks again and again on new connections, and holds one.
struct Load(Vec<(Curler, Heartbeat)>);

impl Load {
    /// Time enough for trouble to show.
    async fn goes_on(&self, what: &str) -> Result<()> {
        for (curler, heartbeat) in &self.0 {
            let goal = curler.so_far().requests + 50;
            wait::until("more requests", LIMIT, async || {
                let seen = curler.so_far().requests;
                ensure!(seen >= goal, "{seen} of {goal}");
                Ok(())
            })
            .await?;
            let story = curler.so_far();
            ensure!(story.failures.is_empty(), "{what}: {story}");
            heartbeat.alive().with_context(|| what.to_owned())?;
        }
        Ok(())
    }
}

/// What the node's tables say: nf_tables, and iptables in its own words.
fn rules(lab: &Lab) -> Result<String> {
    let netns = &lab.node(NODE)?.host.netns;
    let mut text = netns.tool("nft", &["list", "ruleset"])?;
    for program in ["iptables-save", "ip6tables-save"] {
        text += &netns.tool(program, &[])?;
    }
    Ok(text)
}

async fn until_rules(lab: &Lab, what: &str, holds: impl Fn(&str) -> bool) -> Result<()> {
    wait::until(what, LIMIT, async || {
        let rules = rules(lab)?;
        ensure!(holds(&rules), "{rules}");
        Ok(())
    })
    .await
}

/// `theirs`: a sign of kube-proxy's rules; `service_known`: what Services' addresses stand behind.
async fn change_over(name: &str, proxy: NodeProxy, theirs: &str, service_known: &str) -> Result<()> {
    let lab = Lab::builder(name).nodes(2).node_proxy(proxy).provider(Provider::None).start().await?;
    lab.apply(WEB).await?;
    lab.pods_ready("app=web", 2).await?;
    lab.endpoints_ready("web", 2).await?;
    let service = lab.service("web").await?;
    let node = lab.node(NODE)?;
    let mut load = Load(Vec::new());
    for (client, target) in [
        (lab.client(), SocketAddr::new(node.host.v4().into(), service.node_port()?)),
        (lab.client_on(NODE)?, service.cluster()?),
    ] {
        client.http_spread(target, 20, 2).await?;
        let heartbeat = client.stay_connected(target).await?;
        load.0.push((client.curl_along(target), heartbeat));
    }
    load.goes_on("kube-proxy serves").await?;

    let agent = lab.start_beside_kube_proxy(NODE).await?;
    let cluster_ip = service.cluster()?.ip().to_string();
    until_rules(&lab, "our rules stand beside kube-proxy's", |rules| {
        let ours = rules.split("table ip fairlead").nth(1).unwrap_or_default();
        ours.contains(&format!("{cluster_ip} . tcp . 80 comment"))
    })
    .await?;
    load.goes_on("both run").await?;
    ensure!(rules(&lab)?.contains(theirs), "kube-proxy runs, and its rules were taken away");

    node.proxy.stop().await?;
    until_rules(&lab, "kube-proxy's rules are gone", |rules| {
        !rules.contains("table ip kube-proxy") && !rules.contains("KUBE-S")
    })
    .await?;
    load.goes_on("node-agent serves").await?;
    ensure!(agent.restarts() == 0, "node-agent was restarted");

    agent.stop().await?;
    node.proxy.resume().await?;
    until_rules(&lab, "kube-proxy's rules are back", |rules| {
        let here = rules.split_once(service_known);
        rules.contains(theirs) && here.is_some_and(|(_, rest)| rest.contains(&cluster_ip))
    })
    .await?;
    let node_agent = programs::ours("node-agent")?;
    node.host.netns.tool(&node_agent.to_string_lossy(), &["cleanup"])?;
    ensure!(!rules(&lab)?.contains("fairlead"), "something of ours is left");
    load.goes_on("kube-proxy serves again").await?;
    for (curler, _) in load.0 {
        let story = curler.stop().await;
        eprintln!("{name}: {story}");
        ensure!(story.failures.is_empty(), "{story}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn from_nftables_mode_and_back_no_connection_is_lost() -> Result<()> {
    change_over("over-nft", NodeProxy::KubeProxy, "table ip kube-proxy", "map service-ips").await
}

#[tokio::test(flavor = "multi_thread")]
async fn from_iptables_mode_and_back_no_connection_is_lost() -> Result<()> {
    change_over("over-ipt", NodeProxy::KubeProxyWithIptables, "-A KUBE-SERVICES", "-A KUBE-SERVICES -d ")
        .await
}
