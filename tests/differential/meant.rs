//! When two verdicts count as the same, and which differences are meant.

use k8s_openapi::api::core::v1::Service;

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
pub(crate) fn same(service: &Service, theirs: &Verdict, ours: &Verdict) -> bool {
    let sticky =
        service.spec.as_ref().is_some_and(|spec| spec.session_affinity.as_deref() == Some("ClientIP"));
    if !sticky {
        return theirs == ours;
    }
    // Each keeps a client at an endpoint, and draws which.
    let rest = |verdict: &Verdict| -> Vec<Outcome> {
        verdict.0.iter().filter(|outcome| !matches!(outcome, Outcome::Reached { .. })).cloned().collect()
    };
    theirs.reached().count() == ours.reached().count() && rest(theirs) == rest(ours)
}

/// The heading of the exception that covers a difference, if one does.
pub(crate) fn exception(service: &Service, flow: &Flow, verdicts: &[&Verdict; 2]) -> Option<&'static str> {
    EXCEPTIONS
        .iter()
        .find(|exception| (exception.applies)(service, flow, verdicts))
        .map(|exception| exception.heading)
}
