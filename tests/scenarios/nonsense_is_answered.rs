//! A Service that cannot be served gets an Event that says why and what to do; nobody else is
//! affected; what is somebody else's is left alone.

mod support;

use anyhow::{Result, ensure};
use lab::{Lab, wait};
use support::{LIMIT, UnderLoad};

/// A pool with one address that only who asks for it gets, and a Service that has it.
const TINY: &str = "
apiVersion: fairlead.dev/v1alpha1
kind: IPAddressPool
metadata: {name: tiny}
spec: {addresses: [172.30.0.240/32], autoAssign: false}
---
apiVersion: v1
kind: Service
metadata: {name: first, annotations: {fairlead.dev/address-pool: tiny}}
spec: {type: LoadBalancer, ports: [{port: 80}]}
";

/// A Service: its name, annotations, what its spec has beside type and ports; and words of the Event
/// that it must get.
const NONSENSE: [(&str, &str, &str, &[&str]); 6] = [
    (
        "misspelt",
        "",
        "loadBalancerClass: fairlead.dev/metall",
        &["fairlead.dev/metall", "fairlead.dev/metal"],
    ),
    ("outside", "", "loadBalancerIP: 10.1.2.3", &["10.1.2.3", "outside every IPAddressPool"]),
    ("portless", "", "allocateLoadBalancerNodePorts: false", &["NodePort"]),
    ("cloudy", "", "loadBalancerClass: service.k8s.aws/nlb", &["service.k8s.aws/nlb"]),
    (
        "illegible",
        "fairlead.dev/load-balancer-ips: 172.30.0",
        "",
        &["fairlead.dev/load-balancer-ips", "172.30.0"],
    ),
    ("late", "fairlead.dev/address-pool: tiny", "", &["no address is free", "tiny", "add addresses"]),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_mistake_gets_an_event_and_nobody_else_is_affected() -> Result<()> {
    let lab = Lab::builder("nonsense").start().await?;
    let load = UnderLoad::start(&lab).await?;
    lab.apply(TINY).await?;
    lab.external_ip("first", LIMIT).await?;
    for (name, annotations, spec, words) in NONSENSE {
        lab.apply(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, annotations: {{{annotations}}}}}, \
             spec: {{type: LoadBalancer, ports: [{{port: 80}}], {spec}}}}}"
        ))
        .await?;
        wait::until(&format!("{name} gets an Event with {words:?}"), LIMIT, async || {
            let events = lab.events_of(name).await?;
            let told = events.iter().any(|e| e.starts_with("Warning") && words.iter().all(|w| e.contains(w)));
            ensure!(told, "{events:?}");
            Ok(())
        })
        .await?;
        ensure!(lab.service(name).await?.external_ips().is_empty(), "{name} has an address");
    }
    let foreign = "{apiVersion: v1, kind: Service, metadata: {name: foreign}, \
        spec: {type: LoadBalancer, loadBalancerClass: example.com/other, ports: [{port: 80}]}}";
    lab.apply(foreign).await?;

    // Everything after it was seen too, so it has been looked at.
    lab.apply("{apiVersion: v1, kind: Service, metadata: {name: sane}, spec: {type: LoadBalancer, ports: [{port: 80}]}}")
        .await?;
    lab.external_ip("sane", LIMIT).await?;
    let foreign = lab.service("foreign").await?;
    ensure!(lab.events_of("foreign").await?.is_empty(), "a foreign class got an Event");
    let meta = &foreign.object().metadata;
    ensure!(
        meta.finalizers.is_none()
            && meta.annotations.as_ref().is_none_or(|a| !a.contains_key("fairlead.dev/allocated-ips"))
    );
    load.nothing_failed("while others wrote nonsense").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_turns_away_or_is_deleted_leaves_nothing_behind() -> Result<()> {
    let lab = Lab::builder("turn").start().await?;
    let service = |kind| {
        format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: turn}}, spec: {{type: {kind}, ports: [{{port: 80}}]}}}}"
        )
    };
    lab.apply(&service("LoadBalancer")).await?;
    let (first, _) = lab.external_ip("turn", LIMIT).await?;
    lab.apply(&service("ClusterIP")).await?;
    wait::until("nothing of ours is left on it", LIMIT, async || {
        let seen = lab.service("turn").await?;
        let meta = &seen.object().metadata;
        ensure!(seen.external_ips().is_empty() && meta.finalizers.is_none(), "{:?}", seen.object());
        Ok(())
    })
    .await?;
    for balancer in lab.tier.iter().flat_map(|tier| &tier.balancers) {
        wait::until("no host knows the address", LIMIT, async || {
            let log = balancer.program.log();
            ensure!(log.contains(&format!("forget {first}")), "{}", balancer.program.log_tail(5));
            Ok(())
        })
        .await?;
    }

    lab.apply(&service("LoadBalancer")).await?;
    lab.external_ip("turn", LIMIT).await?;
    lab.kubectl("delete service turn --wait=true").await?;
    lab.apply(&service("LoadBalancer")).await?;
    lab.external_ip("turn", LIMIT).await?;
    Ok(())
}
