//! A client stays with one endpoint of a Service port, whichever of its addresses it asks.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use service_model::{IpFamily, Protocol};

use super::{Asked, PATIENCE};
use crate::difference::Difference;
use crate::flows::{self, Flow};
use crate::lab_of_two::LabOfTwo;
use crate::meant;
use crate::twin::Source;

/// A client and a Service port, by its number.
type Visit = (usize, Source, i32, Protocol, IpFamily);

impl LabOfTwo {
    /// Where node-agent's clients are at several endpoints of a Service port all the same. Each is
    /// known by now: one that asked several addresses at the same moment may have been given several
    /// endpoints, of which one has kept it from then on.
    pub(super) async fn wanderers(&self, services: &[Service], asked: &[Asked]) -> Result<Vec<Difference>> {
        let stays = |asked: &&Asked| {
            let service = &services[asked.flow.case];
            // The node asks each address from another of its own.
            meant::is_sticky(service)
                && !meant::has_two_pools(service)
                && asked.flow.source != Source::Node
                && asked.verdicts.iter().all(|verdict| verdict.reached().next().is_some())
        };
        let mut again: Vec<Asked> = asked.iter().filter(stays).map(|asked| Asked::new(asked.flow)).collect();
        self.ask(&mut again, PATIENCE).await?;
        let mut visits: BTreeMap<Visit, Asked> = BTreeMap::new();
        for Asked { flow, verdicts: [theirs, ours] } in again {
            let Some(visit) = visit(&flow, &services[flow.case])? else { continue };
            let all = visits.entry(visit).or_insert_with(|| Asked::new(flow));
            all.verdicts[0].0.extend(theirs.0);
            all.verdicts[1].0.extend(ours.0);
        }
        let wanders = |visit: &Asked| visit.verdicts[1].reached().collect::<BTreeSet<_>>().len() > 1;
        let wanderers = visits.into_values().filter(wanders);
        Ok(wanderers.map(|visit| Difference::of_twins(visit.flow, visit.verdicts.each_ref())).collect())
    }
}

fn visit(flow: &Flow, service: &Service) -> Result<Option<Visit>> {
    let number = i32::from(flow.destination.port());
    let is_meant = |port: &&ServicePort| -> Result<bool> {
        let named = port.port == number || port.node_port == Some(number);
        Ok(named && flows::protocol(port)? == flow.protocol)
    };
    for port in service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()) {
        if is_meant(&port)? {
            let family = IpFamily::of(flow.destination.ip());
            return Ok(Some((flow.case, flow.source, port.port, flow.protocol, family)));
        }
    }
    Ok(None)
}
