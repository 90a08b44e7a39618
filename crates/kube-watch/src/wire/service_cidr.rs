//! `networking.k8s.io/v1.ServiceCIDR`

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;

use super::{nullable, slim_meta};

#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = k8s_openapi::api::networking::v1::ServiceCIDR)]
pub struct ServiceCidr {
    #[serde(deserialize_with = "slim_meta")]
    pub metadata: ObjectMeta,
    #[serde(default, deserialize_with = "nullable")]
    pub spec: ServiceCidrSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ServiceCidrSpec {
    #[serde(deserialize_with = "nullable")]
    pub cidrs: Vec<String>,
}
