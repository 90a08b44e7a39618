//! `discovery.k8s.io/v1.EndpointSlice` to [`EndpointSlice`].

use std::time::SystemTime;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use service_model::{Endpoint, EndpointPort, EndpointSlice, Hints, IpFamily, ObjectName};

use super::parse::{Problems, exact, family, has_label, list, object_name, parse_ip, port_number, protocol};
use super::{Detail, HEADLESS_LABEL, Names};
use crate::wire;

/// `EndpointsLastChangeTriggerTime` (k8s.io/api/core/v1/annotation_key_constants.go), RFC 3339.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

pub(super) const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// `None` when the slice belongs to no Service, holds names instead of addresses, or serves DNS
/// only and nothing but routing matters. Node and zone names are shared through `names`.
pub(crate) fn endpoint_slice(
    wire: wire::EndpointSlice,
    detail: Detail,
    names: &mut Names,
    problems: &mut Problems,
) -> Option<EndpointSlice> {
    if detail == Detail::Dataplane && has_label(&wire.metadata, HEADLESS_LABEL) {
        return None;
    }
    let owner = wire.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    let family = family(&wire.address_type)?;
    let name = object_name(&wire.metadata, problems)?;
    let service = ObjectName::new(name.namespace(), owner);
    let ports = exact(wire.ports.into_iter().filter_map(endpoint_port));
    let endpoints = exact(wire.endpoints.into_iter().filter_map(|e| endpoint(family, e, names, problems)));
    let triggered = (detail == Detail::Dataplane).then(|| triggered(&wire.metadata)).flatten();
    Some(EndpointSlice { name, service, family, ports, endpoints, triggered })
}

fn triggered(metadata: &ObjectMeta) -> Option<SystemTime> {
    let time: Timestamp = metadata.annotations.as_ref()?.get(TRIGGER_TIME)?.parse().ok()?;
    Some(time.into())
}

/// A port without a number means all ports, which no proxy serves: it is skipped, as by kube-proxy.
/// An absent name is the empty one (the API server's default, `discovery/v1/defaults.go`).
fn endpoint_port(wire: wire::EndpointPort) -> Option<EndpointPort> {
    Some(EndpointPort {
        name: wire.name.unwrap_or_default().into(),
        protocol: protocol(wire.protocol.as_deref())?,
        port: wire.port.and_then(port_number)?,
    })
}

fn endpoint(
    family: IpFamily,
    wire: wire::Endpoint,
    names: &mut Names,
    problems: &mut Problems,
) -> Option<Endpoint> {
    let address = list(problems, "endpoint address", wire.addresses.first(), parse_ip).pop()?;
    if IpFamily::of(address) != family {
        problems.push(format!("endpoint address {address} is not {family} and is left out"));
        return None;
    }
    Some(Endpoint {
        address,
        node: wire.node_name.map(|n| names.shared(n)),
        ready: wire.conditions.ready.unwrap_or(true),
        serving: wire.conditions.serving.unwrap_or(true),
        terminating: wire.conditions.terminating.unwrap_or(false),
        hints: hints(wire.hints, names),
    })
}

fn hints(wire: wire::EndpointHints, names: &mut Names) -> Option<Box<Hints>> {
    let hints = Hints {
        zones: wire.for_zones.into_iter().map(|h| names.shared(h.name)).collect(),
        nodes: wire.for_nodes.into_iter().map(|h| names.shared(h.name)).collect(),
    };
    (hints != Hints::default()).then(|| Box::new(hints))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn read(object: Value, detail: Detail) -> (Option<EndpointSlice>, Problems) {
        let mut problems = Vec::new();
        let wire = serde_json::from_value(object).unwrap();
        (endpoint_slice(wire, detail, &mut Names::default(), &mut problems), problems)
    }

    #[test]
    fn what_triggered_a_slice_is_read_for_the_data_plane_only() {
        let of = |time: &str, detail| {
            let object = json!({
                "metadata": {
                    "name": "web-1", "namespace": "shop", "labels": {SERVICE_NAME_LABEL: "web"},
                    "annotations": {TRIGGER_TIME: time}
                },
                "addressType": "IPv4"
            });
            read(object, detail).0.unwrap().triggered
        };
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(60);
        assert_eq!(of("1970-01-01T00:01:00Z", Detail::Dataplane), Some(time));
        assert_eq!(of("1970-01-01T00:01:00Z", Detail::Full), None);
        assert_eq!(of("a minute ago", Detail::Dataplane), None);
    }

    #[test]
    fn unset_endpoint_conditions_mean_ready_serving_and_not_terminating() {
        let (slice, problems) = read(
            json!({
                "metadata": {"name": "web-1", "namespace": "shop", "labels": {SERVICE_NAME_LABEL: "web"}},
                "addressType": "IPv4",
                "ports": [{"port": 80}, {"name": "none"}, {"name": null, "port": 0}],
                "endpoints": [
                    {"addresses": ["10.0.0.1", "10.0.0.2"], "conditions": null, "hints": null},
                    {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "terminating": true}, "nodeName": "n"},
                    {"addresses": ["10.0.0.4"], "conditions": {"ready": false, "serving": false}},
                    {"addresses": ["10.0.0.005"]},
                    {"addresses": ["fd00::1"]}, {"addresses": ["x"]}, {"addresses": []}, {"addresses": null}
                ]
            }),
            Detail::Dataplane,
        );
        let slice = slice.unwrap();
        assert_eq!(slice.service.as_str(), "shop/web");
        assert_eq!(slice.ports.len(), 1, "a port without a number is skipped");
        assert_eq!(&*slice.ports[0].name, "", "an absent name is the empty one");
        let seen: Vec<_> = slice
            .endpoints
            .iter()
            .map(|e| (e.address.to_string(), e.ready, e.serving, e.terminating))
            .collect();
        assert_eq!(
            seen,
            [
                ("10.0.0.1".to_owned(), true, true, false),
                ("10.0.0.3".to_owned(), false, true, true),
                ("10.0.0.4".to_owned(), false, false, false),
                ("10.0.0.5".to_owned(), true, true, false),
            ]
        );
        assert_eq!(
            problems,
            [
                "endpoint address fd00::1 is not IPv4 and is left out",
                "endpoint address \"x\" cannot be read and is left out",
            ]
        );
    }

    #[test]
    fn a_slice_without_a_service_or_with_names_for_addresses_is_not_ours() {
        for object in [
            json!({"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": null}),
            json!({"metadata": {"name": "a", "labels": {SERVICE_NAME_LABEL: "web"}}, "addressType": "FQDN"}),
            json!({"metadata": {"name": "a", "labels": {SERVICE_NAME_LABEL: "web"}}}),
        ] {
            assert_eq!(read(object.clone(), Detail::Full), (None, Problems::new()), "{object}");
        }
    }

    #[test]
    fn slices_of_headless_services_are_kept_in_full_detail_only() {
        let object = json!({
            "metadata": {"name": "a", "labels": {SERVICE_NAME_LABEL: "web", HEADLESS_LABEL: ""}},
            "addressType": "IPv6"
        });
        assert_eq!(read(object.clone(), Detail::Dataplane).0, None);
        assert_eq!(read(object, Detail::Full).0.unwrap().family, IpFamily::V6);
    }

    #[test]
    fn endpoints_of_one_node_share_its_name() {
        let on = |node: &str| {
            json!({
                "addresses": ["10.0.0.1"], "nodeName": node,
                "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": node}]}
            })
        };
        let (slice, _) = read(
            json!({
                "metadata": {"name": "a", "labels": {SERVICE_NAME_LABEL: "web"}}, "addressType": "IPv4",
                "endpoints": [on("n1"), on("n1")]
            }),
            Detail::Dataplane,
        );
        let [first, second] = slice.unwrap().endpoints.try_into().unwrap();
        let node = first.node.clone().unwrap();
        assert!(
            Arc::ptr_eq(&node, second.node.as_ref().unwrap()) && Arc::ptr_eq(&node, &second.node_hints()[0])
        );
        assert!(Arc::ptr_eq(&first.zone_hints()[0], &second.zone_hints()[0]));
    }
}
