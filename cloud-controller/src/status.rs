//! The one writer of `status.loadBalancer`. It patches only what differs.

use k8s_openapi::api::core::v1;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use service_model::{Ingress, IpMode, Service};

use crate::marks::{MarkError, answer};

#[derive(Clone)]
pub struct StatusWriter {
    client: Client,
}

impl StatusWriter {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Makes the status show `ingress`; no call when it does. Answers whether it wrote.
    ///
    /// # Errors
    /// [`MarkError`]; a Service that is gone needs no status and is not an error.
    pub async fn write(&self, service: &Service, ingress: &[Ingress]) -> Result<bool, MarkError> {
        let Some(patch) = patch(service, ingress) else { return Ok(false) };
        let api = Api::<v1::Service>::namespaced(self.client.clone(), service.name.namespace());
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        match answer(api.patch_status(service.name.name(), &params, &patch)).await {
            Ok(_) => Ok(true),
            Err(MarkError::Gone) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The merge patch that makes the status show `ingress`; `None` when it does. The UID keeps a
/// later Service of the same name from being meant.
fn patch(service: &Service, ingress: &[Ingress]) -> Option<Value> {
    if service.ingress == ingress {
        return None;
    }
    let entries: Value = if ingress.is_empty() { Value::Null } else { ingress.iter().map(entry).collect() };
    Some(json!({
        "metadata": { "uid": service.uid },
        "status": { "loadBalancer": { "ingress": entries } },
    }))
}

fn entry(ingress: &Ingress) -> Value {
    let mut entry = json!({});
    if let Some(ip) = ingress.ip {
        entry["ip"] = json!(ip);
    }
    if let Some(hostname) = &ingress.hostname {
        entry["hostname"] = json!(hostname);
    }
    if let Some(mode) = ingress.ip_mode {
        entry["ipMode"] = json!(match mode {
            IpMode::Vip => "VIP",
            IpMode::Proxy => "Proxy",
        });
    }
    if !ingress.ports.is_empty() {
        let ports = ingress.ports.iter();
        entry["ports"] =
            ports.map(|p| json!({ "port": p.port, "protocol": p.protocol.to_string() })).collect();
    }
    entry
}

impl std::fmt::Debug for StatusWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StatusWriter")
    }
}

#[cfg(test)]
mod tests {
    use service_model::{IngressPort, ObjectName, Protocol};

    use super::*;

    fn shown() -> Ingress {
        Ingress {
            ip: Some("10.0.0.1".parse().unwrap()),
            hostname: None,
            ip_mode: Some(IpMode::Proxy),
            ports: vec![IngressPort { port: 80, protocol: Protocol::Tcp }],
        }
    }

    #[test]
    fn the_status_is_patched_only_when_it_differs() {
        let mut service = Service::new(ObjectName::new("shop", "web"));
        service.uid = "u-1".into();
        let written = patch(&service, &[shown()]).unwrap();
        assert_eq!(
            written,
            json!({
                "metadata": {"uid": "u-1"},
                "status": {"loadBalancer": {"ingress": [
                    {"ip": "10.0.0.1", "ipMode": "Proxy", "ports": [{"port": 80, "protocol": "TCP"}]}
                ]}},
            })
        );
        service.ingress = vec![shown()];
        assert_eq!(patch(&service, &[shown()]), None);
        assert_eq!(patch(&service, &[]).unwrap()["status"]["loadBalancer"]["ingress"], Value::Null);
    }
}
