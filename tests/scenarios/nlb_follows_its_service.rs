//! On AWS: a Service gets a network load balancer, its targets follow the nodes, and it goes with the
//! Service, also when the controller dies at the worst time.

mod support;

use anyhow::{Context, Result, ensure};
use lab::aws::Aws;
use lab::{Lab, Provider, wait};
use nix::sys::signal::Signal;
use support::LIMIT;

const NLB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, loadBalancerClass: service.k8s.aws/nlb, ports: [{port: 80}]}
";

#[tokio::test(flavor = "multi_thread")]
async fn the_targets_follow_the_nodes_and_all_goes_with_the_service() -> Result<()> {
    let lab = Lab::builder("nlb").provider(Provider::Aws).start().await?;
    let aws = lab.aws.as_ref().context("a lab with moto")?;
    lab.apply(NLB).await?;
    await_hostname(&lab).await?;
    await_targets(&lab, aws, &["node-1", "node-2", "node-3"]).await?;
    let made = aws.made().await?;
    ensure!(made.len() == 3, "a load balancer, a target group, a security group: {made:?}");

    // What takes a node out of load balancers in every cloud: documented with Services.
    let label = "node.kubernetes.io/exclude-from-external-load-balancers";
    lab.kubectl(&format!("label node node-2 {label}=")).await?;
    await_targets(&lab, aws, &["node-1", "node-3"]).await?;
    lab.kubectl(&format!("label node node-2 {label}-")).await?;
    await_targets(&lab, aws, &["node-1", "node-2", "node-3"]).await?;

    // Deleted while the controller is dead, created again at once under the same name.
    let controller = lab.controller()?;
    controller.signal(Signal::SIGKILL)?;
    lab.kubectl("delete service web --wait=false").await?;
    lab.kubectl("wait --for=delete service/web --timeout=30s").await?;
    nothing_is_left(aws).await?;
    lab.apply(NLB).await?;
    await_hostname(&lab).await?;
    controller.signal_and_await_restart(Signal::SIGKILL).await?;
    await_targets(&lab, aws, &["node-1", "node-2", "node-3"]).await?;

    // A Service that is no load balancer any more keeps nothing of it.
    lab.kubectl(
        "patch service web --type=merge -p {\"spec\":{\"type\":\"ClusterIP\",\"loadBalancerClass\":null}}",
    )
    .await?;
    nothing_is_left(aws).await?;
    wait::until("the finalizer is gone", LIMIT, async || {
        let service = lab.service("web").await?;
        ensure!(service.object().metadata.finalizers.is_none() && service.hostnames().is_empty());
        Ok(())
    })
    .await
}

async fn await_hostname(lab: &Lab) -> Result<String> {
    wait::until("the Service has a host name", LIMIT, async || {
        let (service, events) = (lab.service("web").await?, lab.events_of("web").await?);
        service.hostnames().first().cloned().with_context(|| format!("its events: {events:?}"))
    })
    .await
}

/// The instances of exactly these nodes, on the Service's NodePort.
async fn await_targets(lab: &Lab, aws: &Aws, nodes: &[&str]) -> Result<()> {
    let port = lab.service("web").await?.node_port()?;
    let mut wanted = Vec::new();
    for node in nodes {
        let id = lab.kubectl(&format!("get node {node} -o jsonpath={{.spec.providerID}}")).await?;
        wanted.push(format!("{}:{port}", id.rsplit('/').next().unwrap_or_default()));
    }
    wanted.sort_unstable();
    wait::until(&format!("the targets are {nodes:?}"), LIMIT, async || {
        let targets = aws.targets().await?;
        ensure!(targets == wanted, "{targets:?}, not {wanted:?}");
        Ok(())
    })
    .await
}

async fn nothing_is_left(aws: &Aws) -> Result<()> {
    wait::until("nothing is left in AWS", LIMIT, async || {
        let left = aws.made().await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}
