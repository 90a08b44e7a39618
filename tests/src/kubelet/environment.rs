//! The environment of a container: its own variables and those of the Services that exist
//! (kubernetes.io/docs/tutorials/services/connect-applications-service, "Environment Variables").

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, Service};
use kube::{Api, api::ListParams};

use super::Shared;

pub(super) async fn of(
    shared: &Shared,
    pod: &Pod,
    container: &Container,
    ip: &str,
) -> BTreeMap<String, String> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let spec = pod.spec.clone().unwrap_or_default();
    let name = pod.metadata.name.clone().unwrap_or_default();
    let mut variables = BTreeMap::new();
    if spec.enable_service_links != Some(false) {
        variables.extend(service_variables(shared, &namespace).await);
    }
    variables.insert("HOSTNAME".into(), spec.hostname.clone().unwrap_or_else(|| name.clone()));
    variables.insert("POD_NAME".into(), name.clone());
    variables.insert("POD_NAMESPACE".into(), namespace.clone());
    variables.insert("POD_IP".into(), ip.to_owned());
    variables.insert("NODE_NAME".into(), spec.node_name.clone().unwrap_or_default());
    for variable in container.env.iter().flatten() {
        let source =
            variable.value_from.as_ref().and_then(|v| v.field_ref.as_ref()).map(|f| f.field_path.as_str());
        let value = match source {
            Some("metadata.name") => Some(name.clone()),
            Some("metadata.namespace") => Some(namespace.clone()),
            Some("status.podIP") => Some(ip.to_owned()),
            Some("spec.nodeName") => spec.node_name.clone(),
            Some(_) => None,
            None => variable.value.clone(),
        };
        variables.extend(value.map(|v| (variable.name.clone(), v)));
    }
    variables
}

async fn service_variables(shared: &Shared, namespace: &str) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let own = Api::<Service>::namespaced(shared.client.clone(), namespace).list(&ListParams::default()).await;
    let kubernetes = Api::<Service>::namespaced(shared.client.clone(), "default").get("kubernetes").await;
    for service in own.map(|l| l.items).unwrap_or_default().into_iter().chain(kubernetes) {
        variables.extend(variables_of(&service));
    }
    variables
}

/// `MY_SERVICE_SERVICE_HOST`, `…_PORT`, and the variables of Docker links.
fn variables_of(service: &Service) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let Some(spec) = &service.spec else { return variables };
    let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else {
        return variables;
    };
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let name = upper(service.metadata.name.as_deref().unwrap_or_default());
    variables.insert(format!("{name}_SERVICE_HOST"), ip.to_owned());
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        let number = port.port;
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        let (lower, url) = (protocol.to_lowercase(), format!("{}://{ip}:{number}", protocol.to_lowercase()));
        if i == 0 {
            variables.insert(format!("{name}_SERVICE_PORT"), number.to_string());
            variables.insert(format!("{name}_PORT"), url.clone());
        }
        if let Some(port_name) = &port.name {
            variables.insert(format!("{name}_SERVICE_PORT_{}", upper(port_name)), number.to_string());
        }
        let link = format!("{name}_PORT_{number}_{protocol}");
        variables.insert(format!("{link}_ADDR"), ip.to_owned());
        variables.insert(format!("{link}_PORT"), number.to_string());
        variables.insert(format!("{link}_PROTO"), lower);
        variables.insert(link, url);
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_becomes_the_variables_that_the_documentation_shows() {
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "redis-primary"},
            "spec": {"clusterIP": "10.0.0.11", "ports": [{"port": 6379, "protocol": "TCP"}]}
        }))
        .unwrap();
        let expected = [
            ("REDIS_PRIMARY_PORT", "tcp://10.0.0.11:6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP", "tcp://10.0.0.11:6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP_ADDR", "10.0.0.11"),
            ("REDIS_PRIMARY_PORT_6379_TCP_PORT", "6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP_PROTO", "tcp"),
            ("REDIS_PRIMARY_SERVICE_HOST", "10.0.0.11"),
            ("REDIS_PRIMARY_SERVICE_PORT", "6379"),
        ];
        let variables = variables_of(&service);
        let seen: Vec<_> = variables.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(seen, expected);
    }
}
