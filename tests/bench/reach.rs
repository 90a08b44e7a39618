//! From `kubectl apply` of a Service to the first answer through its VIP, in the whole lab.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use lab::Lab;
use tokio::time::{sleep, timeout};

use crate::figures::{Row, Samples, Unit};
use crate::progress;

const WEB: &str = include_str!("../fixtures/web.yaml");
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two requests to a VIP that does not answer yet.
const PAUSE: Duration = Duration::from_millis(2);

/// When something was seen, counted from the start of kubectl.
#[derive(Debug, Clone, Copy)]
struct Seen {
    created: Duration,
    address: Duration,
    answer: Duration,
}

pub(crate) async fn measure(rounds: usize) -> Result<Vec<Row>> {
    progress("starting a whole cluster: control plane, 3 nodes, 2 balancers, the controller");
    let lab = Lab::builder("bench").start().await?;
    lab.apply(WEB).await?;
    lab.pods_ready("app=web", 2).await?;
    lab.endpoints_ready("web", 2).await?;
    let mut samples = [const { Samples::new() }; 4];
    for round in 0..rounds {
        let name = format!("round-{round}");
        let seen = timeout(PATIENCE, apply_and_reach(&lab, &name))
            .await
            .with_context(|| format!("{name} does not answer within {PATIENCE:?}"))??;
        progress(&format!(
            "Service {} of {rounds}: first 200 after {:.0} ms",
            round + 1,
            seen.answer.as_secs_f64() * 1e3
        ));
        let times = [seen.created, seen.address, seen.answer, seen.answer.saturating_sub(seen.created)];
        samples.iter_mut().zip(times).for_each(|(samples, time)| samples.add_time(time));
        lab.kubectl(&format!("delete service {name}")).await?;
    }
    let what = [
        "`kubectl apply` of a Service: from its start until the API server has the Service",
        "… until its EXTERNAL-IP is in the API",
        "… until the first HTTP 200 through the VIP",
        "… of that, from the Service in the API to the first 200",
    ];
    let row =
        |(what, ours): (&str, Samples)| Row { what: what.into(), unit: Unit::Milliseconds, ours, peer: None };
    Ok(what.into_iter().zip(samples).map(row).collect())
}

async fn apply_and_reach(lab: &Lab, name: &str) -> Result<Seen> {
    let manifest = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{type: LoadBalancer, \
         selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}}}"
    );
    let services: Api<Service> = Api::default_namespaced(lab.control_plane.client.clone());
    let known = services.list(&ListParams::default()).await?.metadata.resource_version.unwrap_or_default();
    let start = Instant::now();
    let seen = async {
        let (created, ip) = follow(&services, &known, name).await?;
        let address = Instant::now();
        let vip = SocketAddr::new(ip, 80);
        while lab.client().get(vip).await.is_err() {
            sleep(PAUSE).await;
        }
        Ok(Seen { created: created - start, address: address - start, answer: start.elapsed() })
    };
    let (applied, seen) = tokio::join!(lab.apply(&manifest), seen);
    applied.and(seen)
}

/// When the Service was there, and its first address.
async fn follow(services: &Api<Service>, known: &str, name: &str) -> Result<(Instant, IpAddr)> {
    let parameters = WatchParams::default().fields(&format!("metadata.name={name}"));
    let mut events = pin!(services.watch(&parameters, known).await?);
    let mut created = None;
    while let Some(event) = events.try_next().await? {
        let (WatchEvent::Added(service) | WatchEvent::Modified(service)) = event else { continue };
        let created = *created.get_or_insert_with(Instant::now);
        let name = service.name_any();
        let ingress = service.status.and_then(|status| status.load_balancer?.ingress).unwrap_or_default();
        if let Some(ip) = ingress.into_iter().find_map(|ingress| ingress.ip) {
            return Ok((created, ip.parse().with_context(|| format!("the address of {name}"))?));
        }
    }
    bail!("the API server ended the watch of {name}")
}
