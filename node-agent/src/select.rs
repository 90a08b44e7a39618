//! Which endpoints a Service port's traffic may go to, on this node: kube-proxy's
//! `CategorizeEndpoints` (pkg/proxy/topology.go).
//!
//! Ready endpoints count. Where there are none, those that are terminating but still serve do
//! (KEP-1669), for all endpoints and for the local ones apart. Hints narrow the ready ones to this
//! node (KEP-3015) or zone (KEP-2433, KEP-4444), never the local ones.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use service_model::{Endpoint, EndpointSlice, IpFamily, ServicePort};

use crate::nft::layout::Target;

/// Where this node stands in the cluster.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub node: &'a str,
    pub zone: Option<&'a str>,
}

/// The endpoints of one Service port of one family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// For traffic that may go anywhere; sorted.
    pub cluster: Vec<Target>,
    /// For traffic that must stay on this node; sorted.
    pub local: Vec<Target>,
    /// Whether there is a usable endpoint anywhere. Decides between refusing and dropping.
    pub any: bool,
}

struct Candidate<'a> {
    target: Target,
    endpoint: &'a Endpoint,
    local: bool,
}

enum Topology {
    None,
    SameNode,
    SameZone,
}

/// The port's endpoints from all slices of its Service. Only addresses of `family` count.
pub fn select<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: &ServicePort,
    family: IpFamily,
    place: Place<'_>,
) -> Selection {
    let candidates = candidates(slices, port, family, place.node);
    let topology = topology(&candidates, place);
    let cluster = first_of([
        targets(&candidates, |c| c.endpoint.ready && allows(&topology, c.endpoint, place)),
        targets(&candidates, |c| still_serves(c.endpoint)),
    ]);
    let local = first_of([
        targets(&candidates, |c| c.local && c.endpoint.ready),
        targets(&candidates, |c| c.local && still_serves(c.endpoint)),
    ]);
    // Hints are followed only if they leave an endpoint, so any usable one shows in `cluster`.
    let any = !cluster.is_empty();
    Selection { cluster, local, any }
}

/// The port's endpoints that serve, whatever policies and topology say; sorted. One that is to be
/// published while it is not ready (`publishNotReadyAddresses`) is ready, but is not said to serve.
pub fn serving<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: &ServicePort,
    family: IpFamily,
) -> Vec<Target> {
    targets(&candidates(slices, port, family, ""), |c| c.endpoint.ready || c.endpoint.serving)
}

/// The endpoints on this node that are ready, whatever the port: what a load balancer's health
/// check of the node asks for. Distinct addresses; terminating ones never count, nor those of slices
/// without a port (`EndpointSliceCache.endpointInfoByServicePort`). An endpoint of a dual-stack
/// Service has an address in either family and counts once.
pub fn ready_local_endpoints<'a>(slices: impl Iterator<Item = &'a EndpointSlice>, node: &str) -> usize {
    let mut addresses: BTreeMap<IpFamily, BTreeSet<IpAddr>> = BTreeMap::new();
    let with_port = slices.filter(|slice| slice.ports.iter().any(|port| port.port != 0));
    for endpoint in with_port.flat_map(|slice| &slice.endpoints) {
        if endpoint.ready && endpoint.node.as_deref() == Some(node) {
            addresses.entry(IpFamily::of(endpoint.address)).or_default().insert(endpoint.address);
        }
    }
    addresses.values().map(BTreeSet::len).max().unwrap_or(0)
}

/// Sorted, one entry a target. An address can be that of a pod that terminates and of one that got
/// it after that, which wins (`EndpointSliceCache.addEndpoints`); then a local one.
fn candidates<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: &ServicePort,
    family: IpFamily,
    node: &str,
) -> Vec<Candidate<'a>> {
    let mut candidates = Vec::new();
    for slice in slices.filter(|slice| slice.family == family) {
        let ports =
            slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol && p.port != 0);
        for target_port in ports {
            let endpoints = slice.endpoints.iter().filter(|e| IpFamily::of(e.address) == family);
            candidates.extend(endpoints.map(|endpoint| Candidate {
                target: Target { ip: endpoint.address, port: target_port.port },
                endpoint,
                local: endpoint.node.as_deref() == Some(node),
            }));
        }
    }
    candidates.sort_by_key(|c| (c.target, c.endpoint.terminating, !c.local));
    candidates.dedup_by_key(|c| c.target);
    candidates
}

fn targets(candidates: &[Candidate<'_>], usable: impl Fn(&Candidate<'_>) -> bool) -> Vec<Target> {
    candidates.iter().filter(|c| usable(c)).map(|c| c.target).collect()
}

fn first_of([preferred, otherwise]: [Vec<Target>; 2]) -> Vec<Target> {
    if preferred.is_empty() { otherwise } else { preferred }
}

fn still_serves(endpoint: &Endpoint) -> bool {
    endpoint.serving && endpoint.terminating
}

/// A single ready endpoint without a hint turns that kind of hint off for the whole Service.
fn topology(candidates: &[Candidate<'_>], place: Place<'_>) -> Topology {
    let ready = || candidates.iter().map(|c| c.endpoint).filter(|e| e.ready);
    if ready().all(|e| !e.node_hints().is_empty()) && ready().any(|e| hinted_here(e, place)) {
        return Topology::SameNode;
    }
    if ready().all(|e| !e.zone_hints().is_empty()) && ready().any(|e| hinted_for_zone(e, place)) {
        return Topology::SameZone;
    }
    Topology::None
}

fn allows(topology: &Topology, endpoint: &Endpoint, place: Place<'_>) -> bool {
    match topology {
        Topology::None => true,
        Topology::SameNode => hinted_here(endpoint, place),
        Topology::SameZone => hinted_for_zone(endpoint, place),
    }
}

fn hinted_here(endpoint: &Endpoint, place: Place<'_>) -> bool {
    endpoint.node_hints().iter().any(|node| **node == *place.node)
}

fn hinted_for_zone(endpoint: &Endpoint, place: Place<'_>) -> bool {
    place.zone.is_some_and(|zone| endpoint.zone_hints().iter().any(|hint| **hint == *zone))
}

#[cfg(test)]
mod tests {
    use super::*;
    use service_model::{EndpointPort, ObjectName, Protocol};

    const HERE: Place<'static> = Place { node: "here", zone: Some("zone-a") };

    fn port() -> ServicePort {
        ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }
    }

    fn slice(endpoints: Vec<Endpoint>) -> EndpointSlice {
        EndpointSlice {
            name: ObjectName::new("ns", "s"),
            service: ObjectName::new("ns", "web"),
            family: IpFamily::V4,
            ports: vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
            endpoints,
            triggered: None,
        }
    }

    /// `1@here ready`: the endpoint 10.0.0.1 on the node "here". Further words: `terminating`
    /// (still serving), `dead`, `published` (as a terminating pod is that fails its readiness probe, of a
    /// Service with `publishNotReadyAddresses`), `node=N`, `zone=Z`.
    fn endpoint(text: &str) -> Endpoint {
        let mut words = text.split(' ');
        let (last, node) = words.next().unwrap().split_once('@').unwrap();
        let mut endpoint = Endpoint::ready(format!("10.0.0.{last}").parse().unwrap());
        endpoint.node = (!node.is_empty()).then(|| node.into());
        for word in words {
            match word.split_once('=') {
                Some(("node", node)) => endpoint.hints.get_or_insert_default().nodes.push(node.into()),
                Some(("zone", zone)) => endpoint.hints.get_or_insert_default().zones.push(zone.into()),
                _ if word == "terminating" => (endpoint.ready, endpoint.terminating) = (false, true),
                _ if word == "dead" => (endpoint.ready, endpoint.serving) = (false, false),
                _ if word == "published" => (endpoint.serving, endpoint.terminating) = (false, true),
                _ => panic!("{word}"),
            }
        }
        endpoint
    }

    fn lasts(targets: &[Target]) -> String {
        let last = |t: &Target| t.ip.to_string().rsplit('.').next().unwrap().to_owned();
        targets.iter().map(last).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn endpoints_are_chosen_as_kube_proxy_does() {
        // endpoints; the cluster set; the local set; whether there is any
        let cases: &[(&str, &[&str], &str, &str, bool)] = &[
            ("nothing", &[], "", "", false),
            ("ready ones", &["2@there", "1@here"], "1 2", "1", true),
            ("not those that are not ready", &["1@here dead", "2@there"], "2", "", true),
            ("none usable", &["1@here dead"], "", "", false),
            ("terminating only where none is ready", &["1@here terminating", "2@there"], "2", "1", true),
            ("terminating ones if that is all", &["1@here terminating", "2@there dead"], "1", "1", true),
            (
                "the local fall-back is apart",
                &["1@there terminating", "2@there terminating"],
                "1 2",
                "",
                true,
            ),
            ("published ones are ready", &["1@here published", "2@there"], "1 2", "1", true),
            ("before those that terminate", &["1@here published", "2@here terminating"], "1", "1", true),
            ("zone hints", &["1@here zone=zone-b", "2@there zone=zone-a"], "2", "1", true),
            ("one zone hint missing", &["1@here", "2@there zone=zone-a"], "1 2", "1", true),
            ("no hint for this zone", &["1@here zone=b", "2@there zone=c"], "1 2", "1", true),
            (
                "node hints before zone hints",
                &["1@x node=here zone=b", "2@y node=y zone=zone-a"],
                "1",
                "",
                true,
            ),
            ("no hint for this node", &["1@x node=x zone=zone-a", "2@y node=y zone=b"], "1", "", true),
            (
                "hints of those not ready do not count",
                &["1@x dead", "2@y zone=zone-a", "3@y zone=b"],
                "2",
                "",
                true,
            ),
        ];
        for (what, endpoints, cluster, local, any) in cases {
            let slices = [slice(endpoints.iter().map(|e| endpoint(e)).collect())];
            let selection = select(slices.iter(), &port(), IpFamily::V4, HERE);
            assert_eq!(
                (lasts(&selection.cluster).as_str(), lasts(&selection.local).as_str(), selection.any),
                (*cluster, *local, *any),
                "{what}"
            );
        }
    }

    #[test]
    fn flows_to_what_is_published_while_it_is_not_ready_are_not_stale() {
        let slices = [slice(["1@here published", "2@here dead", "3@here terminating"].map(endpoint).into())];
        assert_eq!(lasts(&serving(slices.iter(), &port(), IpFamily::V4)), "1 3");
    }

    #[test]
    fn of_duplicates_in_several_slices_the_local_one_counts() {
        let slices = [slice(vec![endpoint("1@")]), slice(vec![endpoint("1@here")])];
        let selection = select(slices.iter(), &port(), IpFamily::V4, HERE);
        assert_eq!((lasts(&selection.cluster).as_str(), lasts(&selection.local).as_str()), ("1", "1"));
    }

    #[test]
    fn a_pod_that_has_the_address_of_one_that_terminates_counts_in_its_place() {
        for pods in [["1@here terminating", "1@here"], ["1@here", "1@here terminating"]] {
            let slices = [slice([pods[0], pods[1], "2@there"].map(endpoint).into())];
            let selection = select(slices.iter(), &port(), IpFamily::V4, HERE);
            assert_eq!((lasts(&selection.cluster).as_str(), lasts(&selection.local).as_str()), ("1 2", "1"));
        }
    }

    #[test]
    fn only_the_ports_name_protocol_and_family_match() {
        let slices = [slice(vec![endpoint("1@here")])];
        let select = |port: &ServicePort, family| select(slices.iter(), port, family, HERE).cluster.len();
        assert_eq!(select(&port(), IpFamily::V4), 1);
        assert_eq!(select(&port(), IpFamily::V6), 0);
        assert_eq!(select(&ServicePort { name: "other".into(), ..port() }, IpFamily::V4), 0);
        assert_eq!(select(&ServicePort { protocol: Protocol::Udp, ..port() }, IpFamily::V4), 0);
    }

    #[test]
    fn the_health_check_counts_endpoints_that_are_ready_here() {
        let slices = [
            slice(vec![endpoint("1@here"), endpoint("2@there"), endpoint("3@here terminating")]),
            slice(vec![endpoint("1@here"), endpoint("4@here")]),
        ];
        assert_eq!(ready_local_endpoints(slices.iter(), "here"), 2);
        let mut portless = [slice(vec![endpoint("5@here")]), slice(vec![endpoint("6@here")])];
        portless[0].ports.clear();
        portless[1].ports[0].port = 0;
        assert_eq!(ready_local_endpoints(portless.iter(), "here"), 0, "nothing can be sent there");
        let also = |ip: &str| Endpoint { address: ip.parse().unwrap(), ..endpoint("1@here") };
        let v6 = EndpointSlice { family: IpFamily::V6, ..slice(["fd00::1", "fd00::4"].map(also).into()) };
        let both = slices.into_iter().chain([v6]).collect::<Vec<_>>();
        assert_eq!(ready_local_endpoints(both.iter(), "here"), 2, "each has an address in either family");
    }
}
