//! The node's zone, which it gets only when both programs run.
//!
//! kube-proxy 1.37.2 may miss the zone that its Node has when it starts, for as long as it runs: it
//! asks for Node events first and names who wants them second (`NewNodeTopologyConfig` and
//! `RegisterEventHandler` in cmd/kube-proxy/app/server.go), and later events change nothing.
//! A change of the label it takes in.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Service};
use kube::Api;
use kube::api::{Patch, PatchParams};
use lab::wait;
use serde_json::json;
use service_model::Protocol;

use crate::cases::Case;
use crate::lab_of_two::LabOfTwo;
use crate::probe::Call;
use crate::twin::{self, LOCAL, NODE, Source, Twin};
use crate::verdict::Outcome;

/// For hints. Before, the node is in a zone that no hint names.
pub(crate) const ZONE: &str = "zone-a";
pub(crate) const ZONE_BEFORE: &str = "zone-before";

/// One that is in the zone and one that is not: tries that all meet the first are chance once in a
/// million times.
const TRIES: usize = 20;

const PATIENCE: Duration = Duration::from_secs(2);

impl LabOfTwo {
    /// Moves the node into its zone; returns once both programs follow its hints.
    ///
    /// # Errors
    /// When one does not.
    pub(crate) async fn enter_zone(&self) -> Result<()> {
        let hinted = Case::from_yaml(include_str!("fixtures/zone-hints-keep-traffic-in-the-zone.yaml"))?.0;
        let service = self.load(&[hinted]).await?.pop().context("one case makes one Service")?;
        let nodes: Api<Node> = Api::all(self.control_plane.client.clone());
        let label = Patch::Merge(json!({"metadata": {"labels": {"topology.kubernetes.io/zone": ZONE}}}));
        nodes.patch(NODE, &PatchParams::default(), &label).await?;
        for twin in self.twins() {
            for (ip, in_zone) in cluster_ips(&service)?.into_iter().zip(twin::endpoint(LOCAL)) {
                let what = format!("{} knows its zone", twin.node.netns.name());
                wait::until(&what, Duration::from_secs(20), async || stays_in_zone(twin, ip, in_zone).await)
                    .await?;
            }
        }
        Ok(())
    }
}

async fn stays_in_zone(twin: &Twin, service: IpAddr, in_zone: IpAddr) -> Result<()> {
    let call = Call { source: None, destination: SocketAddr::new(service, 80), protocol: Protocol::Tcp };
    for _ in 0..TRIES {
        let outcome = twin.handle(Source::Node).spawn(call.once(PATIENCE)).await?;
        let there = matches!(outcome, Outcome::Reached { endpoint, .. } if endpoint.ip() == in_zone);
        ensure!(there, "{outcome}");
    }
    Ok(())
}

/// In the order of its families.
fn cluster_ips(service: &Service) -> Result<Vec<IpAddr>> {
    let ips = service.spec.as_ref().and_then(|spec| spec.cluster_ips.as_ref()).context("it has addresses")?;
    ips.iter().map(|ip| Ok(ip.parse()?)).collect()
}
