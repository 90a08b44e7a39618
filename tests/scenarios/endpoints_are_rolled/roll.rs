//! The Service's EndpointSlices, as a controller would write them during a rollout.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::fleet::{self, Fleet};
use crate::stage::Stage;

pub(crate) const ENDPOINTS: u32 = 500;
const SLICES: u32 = 5;
const SERVICE: &str = "rolled";

pub(crate) struct Rolling<'a> {
    vip: SocketAddr,
    slices: Vec<Slice<'a>>,
}

struct Slice<'a> {
    fleet: &'a Fleet,
    api: Api<EndpointSlice>,
    name: String,
    /// The oldest first.
    endpoints: Vec<Endpoint>,
    /// What the next endpoint's number is, in a sequence of this slice's own.
    next: u32,
}

#[derive(Debug, Clone, Copy)]
struct Endpoint {
    address: Ipv4Addr,
    /// Terminates, and ends then.
    ends: Option<Instant>,
}

impl<'a> Rolling<'a> {
    /// The Service with its first endpoints, all ready.
    pub(crate) async fn begin(stage: &'a Stage) -> Result<Self> {
        let client = &stage.control_plane.client;
        let services: Api<Service> = Api::default_namespaced(client.clone());
        let service = json!({"metadata": {"name": SERVICE}, "spec": {"ports": [{"port": 80}]}});
        let service = services.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
        let ip = service.spec.and_then(|spec| spec.cluster_ip).context("a Service has an address")?;
        let slice = |nth| Slice {
            fleet: &stage.fleet,
            api: Api::default_namespaced(client.clone()),
            name: format!("{SERVICE}-{nth}"),
            endpoints: Vec::new(),
            next: nth,
        };
        let mut slices: Vec<Slice<'_>> = (0..SLICES).map(slice).collect();
        try_join_all(slices.iter_mut().map(Slice::fill)).await?;
        Ok(Self { vip: SocketAddr::new(ip.parse()?, 80), slices })
    }

    pub(crate) fn vip(&self) -> SocketAddr {
        self.vip
    }

    /// The endpoints that should get connections.
    pub(crate) fn ready(&self) -> BTreeSet<Ipv4Addr> {
        let all = self.slices.iter().flat_map(|slice| &slice.endpoints);
        all.filter(|endpoint| endpoint.ends.is_none()).map(|endpoint| endpoint.address).collect()
    }

    /// Replaces so many endpoints, one a period, each by a write of its own; those before serve on
    /// for the grace. Returns how many a second it were, once the last is gone.
    pub(crate) async fn roll(&mut self, count: u32, period: Duration, grace: Duration) -> Result<f64> {
        let started = Instant::now();
        // As a controller would, no slice waits for another.
        let each = self.slices.iter_mut().map(|slice| slice.roll(count / SLICES, period * SLICES, grace));
        try_join_all(each).await?;
        let rate = f64::from(count) / started.elapsed().as_secs_f64();
        try_join_all(self.slices.iter_mut().map(Slice::end_all)).await?;
        Ok(rate)
    }
}

impl Slice<'_> {
    async fn fill(&mut self) -> Result<()> {
        (0..ENDPOINTS / SLICES).for_each(|_| self.add());
        self.api.create(&PostParams::default(), &self.object()?).await.context("creating a slice")?;
        Ok(())
    }

    async fn roll(&mut self, count: u32, period: Duration, grace: Duration) -> Result<()> {
        let mut pace = interval(period);
        pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for _ in 0..count {
            pace.tick().await;
            let oldest = self.endpoints.iter_mut().find(|endpoint| endpoint.ends.is_none());
            let oldest = oldest.context("a slice has endpoints")?;
            oldest.ends = Some(Instant::now() + grace);
            let leaving = oldest.address;
            self.add();
            self.end_what_is_due();
            self.write().await?;
            self.fleet.leaves(leaving);
        }
        Ok(())
    }

    /// A new endpoint, which serves before anybody hears of it.
    fn add(&mut self) {
        let address = fleet::address(self.next);
        self.fleet.serve(address);
        self.endpoints.push(Endpoint { address, ends: None });
        self.next += SLICES;
    }

    /// It stops serving, and is in no slice after the next write.
    fn end_what_is_due(&mut self) {
        let now = Instant::now();
        let due = self.endpoints.extract_if(.., |endpoint| endpoint.ends.is_some_and(|ends| ends <= now));
        due.for_each(|endpoint| self.fleet.stop(endpoint.address));
    }

    async fn end_all(&mut self) -> Result<()> {
        if let Some(last) = self.endpoints.iter().filter_map(|endpoint| endpoint.ends).max() {
            sleep_until(last.into()).await;
        }
        self.end_what_is_due();
        self.write().await
    }

    async fn write(&self) -> Result<()> {
        let object = self.object()?;
        self.api.replace(&self.name, &PostParams::default(), &object).await.context("writing a slice")?;
        Ok(())
    }

    fn object(&self) -> Result<EndpointSlice> {
        let endpoints = self.endpoints.iter().map(|endpoint| {
            let ready = endpoint.ends.is_none();
            let conditions = json!({"ready": ready, "serving": true, "terminating": !ready});
            json!({"addresses": [endpoint.address], "nodeName": "node-2", "conditions": conditions})
        });
        Ok(serde_json::from_value(json!({
            "metadata": {"name": self.name, "labels": {"kubernetes.io/service-name": SERVICE}},
            "addressType": "IPv4",
            "ports": [{"name": "", "protocol": "TCP", "port": fleet::PORT}],
            "endpoints": endpoints.collect::<Vec<_>>(),
        }))?)
    }
}
