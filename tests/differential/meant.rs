//! When two verdicts count as the same, and which differences are meant.

use k8s_openapi::api::core::v1::Service;

use crate::cases::Case;
use crate::flows::Flow;
use crate::foretold::Opinion;
use crate::kept;
use crate::verdict::Verdict;

/// A difference that docs/design/0004-where-we-differ-from-kube-proxy.md gives the reason for.
struct Exception {
    /// The heading there.
    heading: &'static str,
    applies: fn(&Service, &Flow, &[&Verdict; 2]) -> bool,
}

/// None of those that are meant shows in a flow of a Service that is generated.
const EXCEPTIONS: &[Exception] = &[];

/// Whether the twins agree on a flow. `opinion` is what node-agent's evaluator says of it: of a client
/// that is kept, the twins alone do not tell enough.
pub(crate) fn same<'a>(
    case: &Case,
    service: &Service,
    flow: &Flow,
    verdicts: [&Verdict; 2],
    opinion: impl FnOnce() -> Opinion<'a>,
) -> bool {
    match is_sticky(service) {
        true => kept::same(case, service, flow, verdicts, &opinion()),
        false => verdicts[0] == verdicts[1],
    }
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
