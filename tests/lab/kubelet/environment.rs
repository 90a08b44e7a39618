//! What a container finds in its environment.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EnvVarSource, ObjectFieldSelector, Pod, Service};
use kube::ResourceExt;

/// The variables of every Service that a pod of that namespace sees: `WEB_SERVICE_HOST`,
/// `WEB_SERVICE_PORT`, one per named port, and the ones that Docker links had. The Service
/// `kubernetes` is there for all. As `k8s.io/kubernetes/pkg/kubelet/envvars` builds them.
pub(super) fn of_services<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let mut own = Vec::new();
    for service in services {
        let home = service.namespace().unwrap_or_default();
        if home == "default" && service.name_any() == "kubernetes" {
            add_service(&mut variables, service);
        } else if home == namespace && links {
            own.push(service);
        }
    }
    // A namesake of `kubernetes` in the pod's own namespace wins.
    own.iter().for_each(|service| add_service(&mut variables, service));
    variables
}

fn add_service(variables: &mut BTreeMap<String, String>, service: &Service) {
    let Some(spec) = &service.spec else { return };
    let Some(address) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else {
        return;
    };
    let Some(ports) = spec.ports.as_deref().filter(|ports| !ports.is_empty()) else { return };
    let name = variable_name(&service.name_any());
    variables.insert(format!("{name}_SERVICE_HOST"), address.to_owned());
    variables.insert(format!("{name}_SERVICE_PORT"), ports[0].port.to_string());
    for (nth, port) in ports.iter().enumerate() {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            variables
                .insert(format!("{name}_SERVICE_PORT_{}", variable_name(port_name)), port.port.to_string());
        }
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let scheme = protocol.to_lowercase();
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let url = format!("{scheme}://{host}:{}", port.port);
        if nth == 0 {
            variables.insert(format!("{name}_PORT"), url.clone());
        }
        let link = format!("{name}_PORT_{}_{}", port.port, protocol.to_uppercase());
        variables.insert(format!("{link}_PROTO"), scheme);
        variables.insert(format!("{link}_PORT"), port.port.to_string());
        variables.insert(format!("{link}_ADDR"), address.to_owned());
        variables.insert(link, url);
    }
}

fn variable_name(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

/// A variable's value from the pod itself (the downward API); none for what the lab does not
/// model, such as resource limits.
pub(super) fn of_field(
    source: &EnvVarSource,
    pod: &Pod,
    pod_ips: &[String],
    host_ips: &[String],
) -> Option<String> {
    let ObjectFieldSelector { field_path, .. } = source.field_ref.as_ref()?;
    let spec = pod.spec.as_ref();
    match field_path.as_str() {
        "metadata.name" => pod.metadata.name.clone(),
        "metadata.namespace" => pod.metadata.namespace.clone(),
        "metadata.uid" => pod.metadata.uid.clone(),
        "spec.nodeName" => spec?.node_name.clone(),
        "spec.serviceAccountName" => spec?.service_account_name.clone(),
        "status.hostIP" => host_ips.first().cloned(),
        "status.hostIPs" => Some(host_ips.join(",")),
        "status.podIP" => pod_ips.first().cloned(),
        "status.podIPs" => Some(pod_ips.join(",")),
        path => {
            let (map, key) = path.strip_suffix("']")?.split_once("['")?;
            match map {
                "metadata.labels" => pod.labels().get(key).cloned(),
                "metadata.annotations" => pod.annotations().get(key).cloned(),
                _ => None,
            }
        }
    }
}

/// Replaces `$(NAME)` by the value of an earlier variable; `$$` stands for one dollar sign, and an
/// unknown name stays as it is.
pub(super) fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        rest = after;
        if let Some(escaped) = after.strip_prefix('$') {
            expanded.push('$');
            rest = escaped;
        } else if let Some((value, tail)) = after
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'))
            .and_then(|(name, tail)| Some((variables.get(name)?, tail)))
        {
            expanded.push_str(value);
            rest = tail;
        } else {
            expanded.push('$');
        }
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(yaml: &str) -> Service {
        serde_yaml_ng::from_str(yaml).unwrap()
    }

    #[test]
    fn a_pod_learns_the_services_of_its_namespace_and_the_api_server() {
        let services = [
            service(
                "{metadata: {name: kubernetes, namespace: default}, spec: {clusterIP: 10.96.0.1, ports: [{name: https, port: 443, protocol: TCP}]}}",
            ),
            service(
                "{metadata: {name: my-dns, namespace: shop}, spec: {clusterIP: 'fd00:10:96::9', ports: [{name: dns, port: 53, protocol: UDP}]}}",
            ),
            service(
                "{metadata: {name: headless, namespace: shop}, spec: {clusterIP: None, ports: [{port: 80}]}}",
            ),
            service(
                "{metadata: {name: elsewhere, namespace: other}, spec: {clusterIP: 10.96.0.5, ports: [{port: 80}]}}",
            ),
        ];
        let variables = of_services(&services, "shop", true);
        let expected = [
            ("KUBERNETES_PORT", "tcp://10.96.0.1:443"),
            ("KUBERNETES_PORT_443_TCP", "tcp://10.96.0.1:443"),
            ("KUBERNETES_PORT_443_TCP_ADDR", "10.96.0.1"),
            ("KUBERNETES_PORT_443_TCP_PORT", "443"),
            ("KUBERNETES_PORT_443_TCP_PROTO", "tcp"),
            ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
            ("KUBERNETES_SERVICE_PORT", "443"),
            ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
            ("MY_DNS_PORT", "udp://[fd00:10:96::9]:53"),
            ("MY_DNS_PORT_53_UDP", "udp://[fd00:10:96::9]:53"),
            ("MY_DNS_PORT_53_UDP_ADDR", "fd00:10:96::9"),
            ("MY_DNS_PORT_53_UDP_PORT", "53"),
            ("MY_DNS_PORT_53_UDP_PROTO", "udp"),
            ("MY_DNS_SERVICE_HOST", "fd00:10:96::9"),
            ("MY_DNS_SERVICE_PORT", "53"),
            ("MY_DNS_SERVICE_PORT_DNS", "53"),
        ];
        let expected: BTreeMap<String, String> =
            expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        assert_eq!(variables, expected);
        assert_eq!(of_services(&services, "shop", false).len(), 8, "links off: only the API server's");
    }

    #[test]
    fn references_to_other_variables_are_expanded() {
        let variables = BTreeMap::from([("HOST".to_owned(), "web".to_owned())]);
        for (text, expanded) in [
            ("http://$(HOST):80", "http://web:80"),
            ("$$(HOST)", "$(HOST)"),
            ("$(NONE) $", "$(NONE) $"),
            ("", ""),
        ] {
            assert_eq!(expand(text, &variables), expanded);
        }
    }
}
