//! When two verdicts count as the same, and which differences are meant.

use k8s_openapi::api::core::v1::Service;

use crate::cases::Case;
use crate::flows::Flow;
use crate::verdict::{Outcome, Verdict};

/// A difference that docs/design/0004-where-we-differ-from-kube-proxy.md gives the reason for.
struct Exception {
    /// The heading there.
    heading: &'static str,
    applies: fn(&Service, &Flow, &[&Verdict; 2]) -> bool,
}

/// None of those that are meant shows in a flow of a Service that is generated.
const EXCEPTIONS: &[Exception] = &[];

/// Whether the twins agree on a flow.
pub(crate) fn same(case: &Case, service: &Service, flow: &Flow, verdicts: [&Verdict; 2]) -> bool {
    let [theirs, ours] = verdicts;
    if !is_sticky(service) {
        return theirs == ours;
    }
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
    let many = |count: usize| if has_two_pools(service) { count.min(1) } else { count };
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

/// Whether a client stays with its endpoint.
pub(crate) fn is_sticky(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.session_affinity.as_deref() == Some("ClientIP"))
}

/// Whether some of its addresses lead to all endpoints, and others only to those on the node.
pub(crate) fn has_two_pools(service: &Service) -> bool {
    let policies =
        service.spec.iter().flat_map(|spec| [&spec.external_traffic_policy, &spec.internal_traffic_policy]);
    policies.into_iter().any(|policy| policy.as_deref() == Some("Local"))
}

/// The heading of the exception that covers a difference, if one does.
pub(crate) fn exception(service: &Service, flow: &Flow, verdicts: &[&Verdict; 2]) -> Option<&'static str> {
    EXCEPTIONS
        .iter()
        .find(|exception| (exception.applies)(service, flow, verdicts))
        .map(|exception| exception.heading)
}
