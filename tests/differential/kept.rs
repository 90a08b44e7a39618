//! When two verdicts on a client that is kept at an endpoint (session affinity) count as the same.
//!
//! Each twin draws the endpoint, so that alone may differ. That an endpoint may be drawn at all, and
//! whom it takes for its client, is not left to chance: node-agent's evaluator says what there is to
//! draw from, and the twins must agree on the client wherever both drew endpoints in like places.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;

use crate::cases::Case;
use crate::flows::Flow;
use crate::foretold::Opinion;
use crate::meant;
use crate::twin::{self, LOCAL, Source};
use crate::verdict::{Outcome, Verdict};

/// Whether the twins agree with each other and with the evaluator.
pub(crate) fn same(
    case: &Case,
    service: &Service,
    flow: &Flow,
    verdicts: [&Verdict; 2],
    opinion: &Opinion<'_>,
) -> bool {
    as_many(case, service, flow, verdicts)
        && verdicts.iter().all(|verdict| opinion.admits(flow, verdict))
        && same_clients(flow.source, verdicts)
}

/// Whether both kept the client at as many endpoints, and agree on everything else.
fn as_many(case: &Case, service: &Service, flow: &Flow, [theirs, ours]: [&Verdict; 2]) -> bool {
    // Both masquerade what comes back to its source only where a slice puts that on this node: whoever
    // draws itself without being there on paper hears nothing, and stays with that.
    let draws_silence = case.misplaces(flow.source);
    let is_drawn = |outcome: &Outcome| match outcome {
        Outcome::Reached { .. } => true,
        Outcome::Silent => draws_silence,
        _ => false,
    };
    // Each keeps a client at an endpoint, and draws which.
    let rest = |verdict: &Verdict| -> Vec<Outcome> {
        verdict.0.iter().filter(|outcome| !is_drawn(outcome)).cloned().collect()
    };
    // One that may be kept at an endpoint of either pool soon is kept at both. Then the first of them in
    // the program's order takes over flows that the other had.
    let many = |count: usize| if meant::has_two_pools(service) { count.min(1) } else { count };
    // A silence may be one more endpoint, or none: tries end with it.
    let bounds = |verdict: &Verdict| {
        let drawn = verdict.0.iter().filter(|outcome| is_drawn(outcome)).count();
        many(verdict.reached().count())..=many(drawn)
    };
    let (theirs_drawn, ours_drawn) = (bounds(theirs), bounds(ours));
    rest(theirs) == rest(ours)
        && theirs_drawn.start() <= ours_drawn.end()
        && ours_drawn.start() <= theirs_drawn.end()
}

/// Where an endpoint is, seen from its client: the node masquerades with the address that it has
/// towards there, and masquerades who comes back to itself whoever else it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Itself,
    OnTheNode,
    Elsewhere,
}

/// Whether endpoints in the same place saw the same client.
fn same_clients(source: Source, verdicts: [&Verdict; 2]) -> bool {
    let [theirs, ours] = verdicts.map(|verdict| clients(source, verdict));
    theirs.iter().all(|(place, clients)| ours.get(place).is_none_or(|ours| ours == clients))
}

fn clients(source: Source, verdict: &Verdict) -> BTreeMap<Place, BTreeSet<IpAddr>> {
    let mut clients = BTreeMap::<_, BTreeSet<_>>::new();
    for outcome in &verdict.0 {
        if let Outcome::Reached { endpoint, client } = outcome {
            clients.entry(Place::of(endpoint.ip(), source)).or_default().insert(*client);
        }
    }
    clients
}

impl Place {
    fn of(endpoint: IpAddr, source: Source) -> Self {
        let is_pod = |number: u8| twin::endpoint(number).contains(&endpoint);
        match source {
            Source::Pod(number) if is_pod(number - 1) => Self::Itself,
            _ if (0..LOCAL).any(is_pod) => Self::OnTheNode,
            _ => Self::Elsewhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use service_model::Protocol;

    use super::*;
    use crate::flows::Frontend;
    use crate::foretold::Foretold;

    /// Every endpoint of the Service below, with port 8080: two on the node, one elsewhere.
    const ENDPOINTS: [&str; 3] = ["10.244.1.2", "10.244.1.3", "10.244.2.2"];
    const NODE: &str = "172.30.0.11";
    /// What the node has towards its pods.
    const GATEWAY: &str = "10.244.1.1";
    const OUTSIDE: &str = "172.30.0.100";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn case() -> Case {
        Case::from_yaml(include_str!("fixtures/a-client-stays-with-its-endpoint.yaml")).unwrap().0
    }

    fn flow(source: Source) -> Flow {
        let destination = SocketAddr::new(ip("198.18.0.1"), 80);
        Flow { case: 0, source, frontend: Frontend::ExternalIp, destination, protocol: Protocol::Tcp }
    }

    fn reached(endpoint: &str, client: &str) -> Verdict {
        let endpoint = SocketAddr::new(ip(endpoint), 8080);
        Verdict([Outcome::Reached { endpoint, client: ip(client) }].into())
    }

    fn silent() -> Verdict {
        Verdict([Outcome::Silent].into())
    }

    /// As the evaluator has it: a client that is always masqueraded or never, and a pod that hears
    /// nothing of itself where `silent` says so.
    fn judge(case: &Case, source: Source, masqueraded: bool, verdicts: [&Verdict; 2]) -> bool {
        let host = BTreeSet::from([ip(NODE), ip(GATEWAY)]);
        let own = twin::endpoint(0)[0];
        let foretold = ENDPOINTS.map(|endpoint| match (ip(endpoint) == own, source) {
            (true, Source::Pod(1)) if case.misplaces(source) && !masqueraded => Foretold::Silent,
            (true, Source::Pod(1)) => Foretold::Reached(own, 8080, Some(true)),
            (_, Source::Node) => Foretold::Reached(ip(endpoint), 8080, None),
            _ => Foretold::Reached(ip(endpoint), 8080, Some(masqueraded)),
        });
        let opinion = Opinion::new(foretold.into(), &host);
        same(case, &case.now.service, &flow(source), verdicts, &opinion)
    }

    #[test]
    fn which_endpoint_keeps_a_client_is_chance() {
        let [one, other] = [reached("10.244.1.2", GATEWAY), reached("10.244.2.2", NODE)];
        assert!(judge(&case(), Source::Outside, true, [&one, &one]));
        assert!(judge(&case(), Source::Outside, true, [&one, &other]));
        assert!(judge(&case(), Source::Outside, true, [&other, &one]));
    }

    #[test]
    fn an_endpoint_that_nobody_may_draw_is_found() {
        let ours = reached("10.244.1.2", GATEWAY);
        for wrong in ["10.244.1.4", "10.244.2.3"] {
            let wrong = reached(wrong, if wrong == "10.244.1.4" { GATEWAY } else { NODE });
            assert!(!judge(&case(), Source::Outside, true, [&wrong, &ours]), "{wrong}");
            assert!(!judge(&case(), Source::Outside, true, [&ours, &wrong]), "{wrong}");
        }
        let other_port = SocketAddr::new(ip("10.244.1.2"), 9090);
        let theirs = Verdict([Outcome::Reached { endpoint: other_port, client: ip(GATEWAY) }].into());
        assert!(!judge(&case(), Source::Outside, true, [&theirs, &ours]));
    }

    #[test]
    fn a_client_that_one_twin_masquerades_and_the_other_does_not_is_found() {
        // The same endpoint, another in the same place, and one in another place: only what is
        // foretold tells of the last.
        for theirs in ENDPOINTS {
            let theirs = reached(theirs, OUTSIDE);
            let ours = reached("10.244.1.2", GATEWAY);
            assert!(!judge(&case(), Source::Outside, true, [&theirs, &ours]), "{theirs}");
        }
        for theirs in ENDPOINTS {
            let theirs = reached(theirs, GATEWAY);
            let ours = reached("10.244.1.2", OUTSIDE);
            assert!(!judge(&case(), Source::Outside, false, [&theirs, &ours]), "{theirs}");
        }
    }

    #[test]
    fn the_address_that_the_node_itself_is_seen_with_is_compared_where_the_endpoints_are_alike() {
        let [plain, masqueraded] = [reached("10.244.1.2", NODE), reached("10.244.1.3", GATEWAY)];
        assert!(!judge(&case(), Source::Node, false, [&plain, &masqueraded]));
        let alike = reached("10.244.1.3", NODE);
        assert!(judge(&case(), Source::Node, false, [&plain, &alike]));
    }

    #[test]
    fn a_pod_is_masqueraded_on_its_way_to_itself_alone() {
        let [itself, another] = [reached("10.244.1.2", GATEWAY), reached("10.244.1.3", "10.244.1.2")];
        assert!(judge(&case(), Source::Pod(1), false, [&itself, &another]));
        let masqueraded = reached("10.244.1.3", GATEWAY);
        assert!(!judge(&case(), Source::Pod(1), false, [&masqueraded, &itself]));
    }

    #[test]
    fn only_a_pod_that_its_slice_puts_elsewhere_may_draw_silence() {
        let another = reached("10.244.1.3", "10.244.1.2");
        assert!(!judge(&case(), Source::Pod(1), false, [&silent(), &another]));
        let mut misplaced = case();
        misplaced.now.slices[0].endpoints.as_mut().unwrap()[0].node_name = Some(twin::ELSEWHERE.to_owned());
        assert!(judge(&misplaced, Source::Pod(1), false, [&silent(), &another]));
        assert!(judge(&misplaced, Source::Pod(1), false, [&another, &silent()]));
        // It hears of itself if all are masqueraded, wherever it is said to be.
        assert!(!judge(&misplaced, Source::Pod(1), true, [&silent(), &silent()]));
    }
}
