//! Kubernetes' objects from a sketch. Names and addresses come later: `Case::numbered`.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::sketch::{
    Condition, Endpoint, Endpoints, Families, Hints, Ingress, Kind, Label, NodeName, Policies, Port, SLICES,
    Sketch,
};
use crate::cases::{Case, State};
use crate::endpoints::PORTS;
use crate::flows::OTHER_PROXY;
use crate::legacy;
use crate::shared;
use crate::twin::{self, ELSEWHERE, LOCAL, NODE};
use crate::zone::ZONE;

const FIRST_PORT: usize = 80;

pub(crate) fn case(sketch: &Sketch) -> Case {
    let ports = numbered(&sketch.ports);
    let state = |ports: &[NumberedPort], endpoints, policies| {
        let families = sketch.families.each().into_iter();
        let mut state = State {
            service: service(sketch, ports, policies),
            slices: families.flat_map(|family| slices(sketch, family, endpoints)).collect(),
        };
        if sketch.legacy {
            legacy::spell(&mut state);
        }
        state
    };
    let before = sketch.before.as_ref().map(|before| {
        let fewer = if before.lacks_port && ports.len() > 1 { 1 } else { 0 };
        state(&ports[..ports.len() - fewer], &before.endpoints, before.policies)
    });
    Case { before, now: state(&ports, &sketch.endpoints, sketch.policies) }
}

struct NumberedPort {
    name: String,
    number: usize,
    protocol: &'static str,
    target: usize,
}

fn numbered(ports: &[Port]) -> Vec<NumberedPort> {
    let mut numbered: Vec<NumberedPort> = Vec::new();
    for (nth, port) in ports.iter().enumerate() {
        let protocol = if port.udp { "UDP" } else { "TCP" };
        let beside = numbered.last().filter(|last| port.same_number && last.protocol != protocol);
        // Of three in a row, the third would meet the first.
        let beside = beside.filter(|last| numbered.iter().filter(|p| p.number == last.number).count() == 1);
        let number = beside.map_or(FIRST_PORT + nth, |last| last.number);
        // Only a Service's single port can do without a name.
        let name = if ports.len() == 1 && port.same_number { String::new() } else { format!("p{nth}") };
        numbered.push(NumberedPort { name, number, protocol, target: port.target });
    }
    numbered
}

fn service(sketch: &Sketch, ports: &[NumberedPort], policies: Policies) -> Service {
    let external = sketch.kind != Kind::Headless
        && (sketch.external_ips || matches!(sketch.kind, Kind::NodePort | Kind::LoadBalancer));
    let policy = |local| if local { "Local" } else { "Cluster" };
    let mut spec = json!({
        "type": match sketch.kind {
            Kind::ClusterIp | Kind::Headless => "ClusterIP",
            Kind::NodePort => "NodePort",
            Kind::LoadBalancer => "LoadBalancer",
        },
        "ipFamilies": sketch.families.names(),
        "ipFamilyPolicy": if sketch.families.each().len() == 2 { "RequireDualStack" } else { "SingleStack" },
        "ports": ports.iter().map(|port| json!({
            "name": port.name, "protocol": port.protocol, "port": port.number,
        })).collect::<Vec<_>>(),
        "internalTrafficPolicy": policy(policies.internal_local),
        "sessionAffinity": if sketch.affinity.is_some() { "ClientIP" } else { "None" },
    });
    if let Some(Some(seconds)) = sketch.affinity {
        spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
    }
    if sketch.kind == Kind::Headless {
        spec["clusterIP"] = "None".into();
    }
    if external {
        spec["externalTrafficPolicy"] = policy(policies.external_local).into();
    }
    if sketch.external_ips {
        spec["externalIPs"] = external_families(sketch).into_iter().map(Family::unspecified).collect();
    }
    if sketch.odd {
        spec["publishNotReadyAddresses"] = true.into();
    }
    let mut status = json!({});
    if sketch.kind == Kind::LoadBalancer {
        spec["loadBalancerSourceRanges"] = json!(sketch.source_ranges);
        spec["allocateLoadBalancerNodePorts"] = (!sketch.odd).into();
        status = json!({"loadBalancer": {"ingress": ingress(sketch)}});
    }
    let labels = match sketch.label {
        Label::OtherProxy => json!({OTHER_PROXY: "somebody"}),
        Label::Headless => json!({HEADLESS: ""}),
        _ => json!({}),
    };
    let annotations = match sketch.shares && sketch.kind == Kind::LoadBalancer {
        true => json!({shared::SHARES: "with the one before"}),
        false => json!({}),
    };
    let metadata = json!({"labels": labels, "annotations": annotations});
    from_json(json!({"metadata": metadata, "spec": spec, "status": status}))
}

/// Nobody keeps an external IP to the families of its Service.
fn external_families(sketch: &Sketch) -> Vec<Family> {
    if sketch.odd { vec![Family::V4, Family::V6] } else { sketch.families.each() }
}

const HEADLESS: &str = "service.kubernetes.io/headless";

fn ingress(sketch: &Sketch) -> Vec<Value> {
    let families = sketch.families.each();
    let of_ip = |mode: &str| -> Vec<Value> {
        families.iter().map(|family| json!({"ip": family.unspecified(), "ipMode": mode})).collect()
    };
    match sketch.ingress {
        Ingress::Ip => of_ip("VIP"),
        Ingress::Proxy => of_ip("Proxy"),
        Ingress::Mixed => {
            [of_ip("VIP"), vec![json!({"hostname": "balancer.example.com"})], of_ip("Proxy")].concat()
        }
        Ingress::HostName => vec![json!({"hostname": "balancer.example.com"})],
        Ingress::Pending => Vec::new(),
    }
}

fn slices(sketch: &Sketch, family: Family, endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let ports = numbered(&sketch.ports);
    let fills = |nth: usize, endpoint: &Endpoint| endpoint.is_in(nth) || endpoint.ghost_in(nth).is_some();
    let nonempty = |nth: usize| nth == 0 || endpoints.values().any(|endpoint| fills(nth, endpoint));
    let slice = |nth: usize| {
        let traits = sketch.slices[nth];
        let fewer = usize::from(traits.lacks_port && ports.len() > 1);
        let ports: Vec<Value> = ports[..ports.len() - fewer]
            .iter()
            .map(|port| {
                let target = PORTS[(port.target + traits.shift) % PORTS.len()];
                json!({"name": port.name, "protocol": port.protocol, "port": target})
            })
            .collect();
        let members = endpoints.iter().filter(|(_, endpoint)| endpoint.is_in(nth));
        let mut members: Vec<Value> =
            members.map(|(number, endpoint)| member(*number, *endpoint, family)).collect();
        members.extend(endpoints.iter().filter_map(|(number, endpoint)| {
            endpoint.ghost_in(nth).map(|ghost| member(*number, ghost, family))
        }));
        let labels = match sketch.label {
            Label::OtherProxyOnSlices => json!({OTHER_PROXY: "somebody"}),
            Label::HeadlessOnSlices => json!({HEADLESS: ""}),
            _ => json!({}),
        };
        from_json(json!({
            "metadata": {"labels": labels},
            "addressType": family.name(),
            "ports": ports,
            "endpoints": members,
        }))
    };
    (0..SLICES).filter(|nth| nonempty(*nth)).map(slice).collect()
}

fn member(number: u8, endpoint: Endpoint, family: Family) -> Value {
    let conditions = |ready: bool, serving: bool, terminating: bool| json!({"ready": ready, "serving": serving, "terminating": terminating});
    let mut value = json!({
        "addresses": [family.of(twin::endpoint(number))],
        "conditions": match endpoint.state {
            Condition::Ready => conditions(true, true, false),
            Condition::Unsaid => json!({}),
            Condition::ReadyAnyway => conditions(true, true, true),
            Condition::NotReady => conditions(false, false, false),
            Condition::ServesUnready => conditions(false, true, false),
            Condition::Terminating => conditions(false, true, true),
            Condition::Gone => conditions(false, false, true),
        },
        "hints": hints(number, endpoint.hints),
    });
    let here = number < LOCAL;
    match endpoint.node {
        NodeName::None => {}
        named => value["nodeName"] = node(here == (named == NodeName::Own)).into(),
    }
    value
}

fn hints(number: u8, hints: Hints) -> Value {
    let here = number < LOCAL;
    // Endpoints elsewhere are in this node's zone or in another.
    let zone = if here || number.is_multiple_of(2) { ZONE } else { "zone-b" };
    let zones = |names: &[&str]| -> Value { names.iter().map(|name| json!({"name": name})).collect() };
    match hints {
        Hints::None => json!({}),
        Hints::Zone => json!({"forZones": zones(&[zone])}),
        Hints::Node => json!({"forZones": zones(&[zone]), "forNodes": [{"name": node(here)}]}),
        Hints::ElsewhereZone => json!({"forZones": zones(&["zone-b"])}),
        Hints::BothZones => json!({"forZones": zones(&[ZONE, "zone-b"])}),
    }
}

fn node(here: bool) -> &'static str {
    if here { NODE } else { ELSEWHERE }
}

fn from_json<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("objects are made after Kubernetes' own")
}

impl Endpoint {
    fn is_in(&self, slice: usize) -> bool {
        self.slices & 1 << slice != 0
    }

    /// The pod that had the address before. Two that terminate would contradict each other.
    fn ghost_in(&self, slice: usize) -> Option<Self> {
        let terminates =
            matches!(self.state, Condition::Terminating | Condition::Gone | Condition::ReadyAnyway);
        let ghost = self.ghost.filter(|ghost| ghost.slice == slice && !terminates)?;
        Some(Self { state: Condition::Terminating, node: ghost.node, ..*self })
    }
}

#[derive(Debug, Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn of(self, [v4, v6]: [IpAddr; 2]) -> IpAddr {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }

    /// Stands for an address until the case is numbered.
    fn unspecified(self) -> &'static str {
        match self {
            Self::V4 => "198.18.0.1",
            Self::V6 => "fd00:198:18::1",
        }
    }
}

impl Families {
    fn each(self) -> Vec<Family> {
        match self {
            Self::V4 => vec![Family::V4],
            Self::V6 => vec![Family::V6],
            Self::V4V6 => vec![Family::V4, Family::V6],
            Self::V6V4 => vec![Family::V6, Family::V4],
        }
    }

    fn names(self) -> Vec<&'static str> {
        self.each().into_iter().map(Family::name).collect()
    }
}
