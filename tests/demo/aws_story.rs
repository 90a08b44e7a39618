//! The story on AWS: the same Service, and the NLB that moto gets for it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::aws::{Api, Aws, tag, tags};
use lab::{Lab, wait};

use crate::cluster_story;
use crate::show::Show;

const WEB: &str = include_str!("web-aws.yaml");

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn tell(show: &mut Show, lab: &Lab) -> Result<()> {
    let aws = lab.aws.as_ref().context("this story needs the AWS provider")?;
    show.kubectl(lab, "get nodes -o custom-columns=NAME:.metadata.name,INSTANCE:.spec.providerID").await?;
    a_balancer(show, lab, aws).await?;
    lab.pods_ready("app=web", 2).await?;
    lab.endpoints_ready("web", 2).await?;
    // There the NLB sends its connections.
    cluster_story::node_ports(show, lab).await?;
    cluster_story::cluster_ip(show, lab).await?;
    cluster_story::plans(show, lab);
    Ok(())
}

async fn a_balancer(show: &mut Show, lab: &Lab, aws: &Aws) -> Result<()> {
    show.chapter("A Deployment of 2 and a Service of type LoadBalancer");
    show.command("cat web.yaml", WEB);
    show.kubectl_reading(lab, "apply -f -", Some(WEB)).await?;
    let hostname = wait::until("the Service has a host name", PATIENCE, async || {
        let service = lab.service("web").await?;
        let events = lab.events_of("web").await?;
        service
            .hostnames()
            .first()
            .cloned()
            .with_context(|| format!("none in its status; its events: {events:?}"))
    })
    .await?;
    show.kubectl(lab, "get svc web").await?;
    show.claim("kubectl get svc shows the NLB's host name", Ok(hostname));

    show.chapter("What AWS has now");
    let balancers = aws.call(Api::Elbv2, "DescribeLoadBalancers", &[]).await?;
    let balancer = tag(&balancers, "LoadBalancerArn")?;
    let name = tag(&balancers, "LoadBalancerName")?;
    show.command(
        "elbv2 DescribeLoadBalancers",
        &summary(&balancers, &["LoadBalancerName", "Type", "Scheme", "DNSName"]),
    );
    show.claim(
        "one network load balancer",
        match tags(&balancers, "Type").collect::<Vec<_>>()[..] {
            ["network"] => Ok(name.to_owned()),
            ref other => Err(anyhow::anyhow!("{other:?}")),
        },
    );
    let listeners = aws.call(Api::Elbv2, "DescribeListeners", &[("LoadBalancerArn", balancer)]).await?;
    show.command("elbv2 DescribeListeners", &summary(&listeners, &["Protocol", "Port"]));
    let groups = aws.call(Api::Elbv2, "DescribeTargetGroups", &[("LoadBalancerArn", balancer)]).await?;
    show.command(
        "elbv2 DescribeTargetGroups",
        &summary(&groups, &["TargetGroupName", "Protocol", "Port", "TargetType"]),
    );
    let port = lab.service("web").await?.node_port()?;
    let targets = wait::until("every instance is a target", PATIENCE, async || {
        let targets = aws.targets().await?;
        let on_port = targets.iter().all(|target| target.ends_with(&format!(":{port}")));
        ensure!(targets.len() == lab.nodes.len() && on_port, "targets {targets:?}, NodePort {port}");
        Ok(targets.join(", "))
    });
    show.claim("the target group has the three instances on the NodePort", targets.await);
    Ok(())
}

pub(crate) async fn nothing_remains(show: &mut Show, lab: &Lab) -> Result<()> {
    let aws = lab.aws.as_ref().context("this story needs the AWS provider")?;
    show.chapter("Deleting it leaves nothing behind");
    show.kubectl(lab, "delete service web").await?;
    let gone = wait::until("nothing is left", PATIENCE, async || {
        let left = aws.made().await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok("none is left")
    });
    show.claim("load balancers, target groups and security groups", gone.await);
    Ok(())
}

/// The elements of these names, one a line.
fn summary(xml: &str, names: &[&str]) -> String {
    names.iter().flat_map(|name| tags(xml, name).map(move |text| format!("{name}: {text}\n"))).collect()
}
