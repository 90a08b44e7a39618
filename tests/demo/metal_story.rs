//! The story on bare metal, one chapter a function.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use lab::{Lab, wait};

use crate::cluster_story::{cluster_ip, held, node_ports, plans};
use crate::show::Show;

const WEB: &str = include_str!("web.yaml");

/// Long enough for a loaded machine; what is claimed about times is measured apart.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn tell(show: &mut Show, lab: &Lab) -> Result<()> {
    show.kubectl(lab, "get nodes -o wide").await?;
    let ip = an_address_at_once(show, lab).await?;
    let vip = SocketAddr::new(ip, 80);
    the_pods_answer(show, lab, vip).await?;
    scaling_loses_no_request(show, lab, vip).await?;
    an_unready_pod_leaves(show, lab, vip).await?;
    node_ports(show, lab).await?;
    cluster_ip(show, lab).await?;
    plans(show, lab);
    Ok(())
}

async fn an_address_at_once(show: &mut Show, lab: &Lab) -> Result<IpAddr> {
    show.chapter("A Deployment of 2 and a Service of type LoadBalancer");
    show.command("cat web.yaml", WEB);
    let applied = Instant::now();
    show.kubectl_reading(lab, "apply -f -", Some(WEB)).await?;
    let (ip, _) = lab.external_ip("web", PATIENCE).await?;
    let waited = applied.elapsed();
    let ready = lab.pods("app=web").await?.iter().filter(|pod| is_ready(pod)).count();
    show.kubectl(lab, "get svc web").await?;
    show.claim("EXTERNAL-IP within 1 s of apply", {
        let seen = format!("{ip} {} ms after kubectl was started", waited.as_millis());
        if waited < Duration::from_secs(1) { Ok(seen) } else { Err(anyhow::anyhow!(seen)) }
    });
    show.claim(
        "before any pod is ready",
        match ready {
            0 => Ok("none is"),
            some => Err(anyhow::anyhow!("{some} are already")),
        },
    );
    lab.pods_ready("app=web", 2).await?;
    lab.endpoints_ready("web", 2).await?;
    show.kubectl(lab, "get pods -o wide").await?;
    show.kubectl(lab, "get endpointslices").await?;
    Ok(ip)
}

async fn the_pods_answer(show: &mut Show, lab: &Lab, vip: SocketAddr) -> Result<()> {
    show.chapter("The client outside reaches the pods");
    lab.client().http_eventually(vip, 1).await?;
    show.shell(&lab.client_host.netns, &format!("curl -s http://{vip}/ | cut -c1-160"))?;
    let answers = lab.client().http(vip, 100).await;
    let counts = answers.by_pod();
    let spread =
        counts.len() == 2 && counts.values().all(|count| *count >= 10) && answers.failures.is_empty();
    show.claim("of 100 new connections each pod answers at least 10", held(spread, &answers));
    Ok(())
}

async fn scaling_loses_no_request(show: &mut Show, lab: &Lab, vip: SocketAddr) -> Result<()> {
    show.chapter("Scaling to 5 and to 2 while the client asks every 10 ms");
    let curler = lab.client().curl_along(vip);
    show.kubectl(lab, "scale deployment web --replicas=5").await?;
    lab.pods_ready("app=web", 5).await?;
    wait::until("all 5 pods answer", PATIENCE, async || match curler.so_far().by_pod.len() {
        5 => Ok(()),
        _ => bail!("{}", curler.so_far()),
    })
    .await?;
    show.kubectl(lab, "get pods").await?;
    show.kubectl(lab, "scale deployment web --replicas=2").await?;
    show.say("  … the pods serve for 5 s after SIGTERM, then they are gone");
    wait::until("the surplus pods are gone", PATIENCE, async || {
        let all = lab.kubectl("get pods -l app=web -o name").await?;
        ensure!(all.lines().count() == 2, "{all}");
        Ok(())
    })
    .await?;
    let story = curler.stop().await;
    show.kubectl(lab, "get pods").await?;
    show.claim("no request failed while scaling", held(story.failures.is_empty(), &story));
    Ok(())
}

async fn an_unready_pod_leaves(show: &mut Show, lab: &Lab, vip: SocketAddr) -> Result<()> {
    show.chapter("A pod turns NotReady and leaves");
    let pods = lab.pods_ready("app=web", 2).await?;
    let pod = pods.first().context("there are two")?;
    let node = lab.node(pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default())?;
    let address =
        pod.status.as_ref().and_then(|status| status.pod_ip.clone()).context("a ready pod has an address")?;
    let curler = lab.client().curl_along(vip);
    show.shell(&node.host.netns, &format!("curl -s -X POST 'http://{address}:8080/ready?value=false'"))?;
    lab.endpoints_ready("web", 1).await?;
    show.kubectl(lab, "get pods").await?;
    let left = wait::until("only the other pod answers", PATIENCE, async || {
        let answers = lab.client().http(vip, 30).await;
        ensure!(
            answers.failures.is_empty() && !answers.by_pod().contains_key(pod.name_any().as_str()),
            "{answers}"
        );
        Ok(answers.to_string())
    });
    show.claim("it gets no new connection", left.await);
    lab.set_ready(pod, true).await?;
    lab.endpoints_ready("web", 2).await?;
    let back = wait::until("both pods answer", PATIENCE, async || {
        let answers = lab.client().http(vip, 30).await;
        ensure!(answers.by_pod().len() == 2, "{answers}");
        Ok(answers.to_string())
    });
    show.claim("ready again, it is back", back.await);
    let story = curler.stop().await;
    show.claim("no request failed meanwhile", held(story.failures.is_empty(), &story));
    Ok(())
}

pub(crate) async fn nothing_remains(show: &mut Show, lab: &Lab) -> Result<()> {
    show.chapter("Deleting it leaves nothing behind");
    let (ip, _) = lab.external_ip("web", PATIENCE).await?;
    show.kubectl(lab, "delete service web").await?;
    let gone = wait::until("the address is silent", PATIENCE, async || {
        match lab.client().get(SocketAddr::new(ip, 80)).await {
            Err(error) => Ok(format!("{error:#}")),
            Ok(answer) => bail!("{} still answers", answer.pod),
        }
    });
    show.claim("the address is given back", gone.await);
    Ok(())
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
