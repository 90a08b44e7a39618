//! `networking.k8s.io/v1.ServiceCIDR` to [`ServiceCidr`].

use service_model::ServiceCidr;

use super::parse::{Problems, cidr, list, object_name};
use crate::wire;

/// `None` when it has no name.
pub(crate) fn service_cidr(wire: &wire::ServiceCidr, problems: &mut Problems) -> Option<ServiceCidr> {
    let name = object_name(&wire.metadata, problems)?.name().into();
    Some(ServiceCidr { name, networks: list(problems, "cidr", &wire.spec.cidrs, cidr) })
}
