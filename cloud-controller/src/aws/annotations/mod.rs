//! The annotations under `service.beta.kubernetes.io/aws-load-balancer-`, parsed once into values
//! that cannot be wrong. Every mistake is a Note that names key, value and what is allowed, and a
//! Service with a mistake keeps the load balancer it has.

mod attributes;
mod known;
mod values;

use std::collections::BTreeMap;

use ipnet::IpNet;
use service_model::Service;

use super::names::{TAG_CLUSTER, TAG_RESOURCE, TAG_SERVICE_UID, TAG_STACK};
use super::resources::{Attributes, HealthProtocol, Scheme, Tags};
use crate::plan::Note;
use known::{Known, PREFIX};

const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// AWS allows 50 on a resource, and four are ours.
const TAGS_AT_MOST: usize = 46;
const OWN_TAGS: [&str; 4] = [TAG_CLUSTER, TAG_STACK, TAG_RESOURCE, TAG_SERVICE_UID];

/// What the annotations ask for; `None` and empty where they say nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    pub name: Option<String>,
    pub scheme: Option<Scheme>,
    /// Ids or values of the tag `Name`, in the order written.
    pub subnets: Option<Vec<String>>,
    pub tags: Tags,
    pub attributes: Attributes,
    pub target_group_attributes: Attributes,
    /// By Service port, over `target_group_attributes`.
    pub target_group_attributes_of: BTreeMap<u16, Attributes>,
    pub health: Health,
    /// Labels that a node must have to become a target.
    pub node_labels: BTreeMap<String, String>,
    pub source_ranges: Option<Vec<IpNet>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    pub protocol: Option<HealthProtocol>,
    pub port: Option<PortRef>,
    pub path: Option<String>,
    pub success_codes: Option<String>,
    pub interval: Option<u16>,
    pub timeout: Option<u16>,
    pub healthy: Option<u16>,
    pub unhealthy: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortRef {
    Traffic,
    Number(u16),
    /// The NodePort of the Service port of that number (it was written by name).
    NodePortOf(u16),
}

/// # Errors
/// Every mistake.
pub fn parse(service: &Service) -> Result<Annotations, Vec<Note>> {
    let mut reader = Reader { service, notes: Vec::new() };
    reader.check_keys();
    let parsed = reader.read_all();
    if reader.notes.is_empty() { Ok(parsed) } else { Err(reader.notes) }
}

/// The full key.
pub fn key(suffix: &str) -> String {
    format!("{PREFIX}{suffix}")
}

/// A Note about a value that is not allowed.
pub fn mistake(key: &str, value: &str, allowed: &str) -> Note {
    Note::warning("InvalidAnnotation", format!("{key}: {value:?} is not valid; allowed: {allowed}. {STAYS}"))
}

const STAYS: &str = "Until this is corrected, the load balancer stays as it is, or is not made";

struct Reader<'a> {
    service: &'a Service,
    notes: Vec<Note>,
}

impl Reader<'_> {
    fn check_keys(&mut self) {
        for key in self.service.annotations.keys() {
            let Some(suffix) = key.strip_prefix(PREFIX) else { continue };
            let value = &self.service.annotations[key];
            let note = match known::look_up(suffix) {
                Known::Supported => continue,
                Known::NotYet => Note::warning(
                    "UnsupportedAnnotation",
                    format!(
                        "{key}: {value:?} is not supported by this version; remove the annotation. {STAYS}"
                    ),
                ),
                Known::Classic => Note::warning(
                    "UnsupportedAnnotation",
                    format!(
                        "{key}: {value:?} is of classic load balancers and means nothing to a network load \
                         balancer; remove the annotation. {STAYS}"
                    ),
                ),
                Known::Unknown => {
                    let meant = known::nearest(suffix).map_or_else(
                        || "see the list of annotations in the documentation".to_owned(),
                        |meant| format!("did you mean {PREFIX}{meant}?"),
                    );
                    Note::warning(
                        "UnknownAnnotation",
                        format!("{key} (value {value:?}) is not an annotation that exists: {meant} {STAYS}"),
                    )
                }
            };
            self.notes.push(note);
        }
    }

    fn read_all(&mut self) -> Annotations {
        self.check_fixed();
        let internal = self.read("internal", "true, false", values::boolean);
        let scheme = self.read("scheme", "internal, internet-facing", |text| {
            [Scheme::Internal, Scheme::InternetFacing].into_iter().find(|s| s.as_str() == text)
        });
        let scheme_of = |internal: bool| if internal { Scheme::Internal } else { Scheme::InternetFacing };
        let labels = self.read("target-node-labels", "label=value,label=value", values::map);
        let ranges = self.source_ranges();
        Annotations {
            name: self.name(),
            scheme: scheme.or_else(|| internal.map(scheme_of)),
            subnets: self.read("subnets", "a list of subnet ids or Name tags", |text| {
                Some(values::list(text)).filter(|list| !list.is_empty())
            }),
            tags: self.tags(),
            attributes: self.load_balancer_attributes(),
            target_group_attributes: self.target_group_attributes(),
            target_group_attributes_of: self.target_group_attributes_of(),
            health: self.health(),
            node_labels: labels.unwrap_or_default(),
            source_ranges: ranges,
        }
    }

    /// Annotations of which we take only what we do anyway.
    fn check_fixed(&mut self) {
        self.read("type", "external", |text| matches!(text, "external" | "nlb" | "nlb-ip").then_some(()));
        self.read("nlb-target-type", "instance, ip", |text| matches!(text, "instance" | "ip").then_some(()));
        self.read("ip-address-type", "ipv4, dualstack", |text| {
            matches!(text, "ipv4" | "dualstack").then_some(())
        });
        self.read("enable-tcp-udp-listener", "true, false", values::boolean);
        for (suffix, value, why) in [
            ("nlb-target-type", "ip", "targets are instances; choose \"instance\""),
            ("ip-address-type", "dualstack", "load balancers are IPv4; choose \"ipv4\""),
            ("type", "nlb-ip", "targets are instances; choose \"external\" and nlb-target-type \"instance\""),
        ] {
            if self.text(suffix) == Some(value) {
                self.notes.push(Note::warning(
                    "UnsupportedAnnotation",
                    format!("{}: {value:?} is not supported by this version: {why}. {STAYS}", key(suffix)),
                ));
            }
        }
    }

    /// AWS: at most 32 letters, digits and hyphens, no hyphen at either end, not `internal-…`.
    fn name(&mut self) -> Option<String> {
        let allowed =
            "1 to 32 letters, digits and hyphens, no hyphen at either end, not beginning with internal-";
        self.read("name", allowed, |text| {
            let characters = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            let ends = !text.starts_with('-') && !text.ends_with('-') && !text.starts_with("internal-");
            ((1..=32).contains(&text.len()) && characters && ends).then(|| text.to_owned())
        })
    }

    fn tags(&mut self) -> Tags {
        let allowed = format!(
            "key=value,key=value with at most {TAGS_AT_MOST} keys of 1 to 128 characters, values of at most \
             256, no key beginning with aws: and none of {}",
            OWN_TAGS.join(", ")
        );
        let fits = |(key, value): (&String, &String)| {
            (1..=128).contains(&key.chars().count())
                && value.chars().count() <= 256
                && !key.starts_with("aws:")
                && !OWN_TAGS.contains(&&**key)
        };
        let tags = self.read("additional-resource-tags", &allowed, |text| {
            values::map(text).filter(|tags| tags.len() <= TAGS_AT_MOST && tags.iter().all(fits))
        });
        tags.unwrap_or_default()
    }

    fn load_balancer_attributes(&mut self) -> Attributes {
        let mut parsed = self.attributes("attributes", attributes::LOAD_BALANCER);
        if let Some(on) = self.read("cross-zone-load-balancing-enabled", "true, false", values::boolean) {
            parsed.insert("load_balancing.cross_zone.enabled".to_owned(), on.to_string());
        }
        parsed
    }

    fn target_group_attributes(&mut self) -> Attributes {
        let mut parsed = self.attributes("target-group-attributes", attributes::TARGET_GROUP);
        if self.read("proxy-protocol", "*", |text| (text == "*").then_some(())).is_some() {
            parsed.insert("proxy_protocol_v2.enabled".to_owned(), "true".to_owned());
        }
        parsed
    }

    fn target_group_attributes_of(&mut self) -> BTreeMap<u16, Attributes> {
        let service = self.service;
        let base = key("target-group-attributes.");
        let mut by_port = BTreeMap::new();
        for (key, value) in &service.annotations {
            let Some(written) = key.strip_prefix(&base) else { continue };
            let port = written.parse().ok().filter(|n| service.ports.iter().any(|p| p.port == *n));
            let Some(port) = port else {
                let ports: Vec<String> = service.ports.iter().map(|p| p.port.to_string()).collect();
                let allowed = format!("a key ending in a port of the Service ({})", ports.join(", "));
                self.notes.push(mistake(key, value, &allowed));
                continue;
            };
            match attributes::parse(value, attributes::TARGET_GROUP) {
                Ok(attributes) => _ = by_port.insert(port, attributes),
                Err(allowed) => self.notes.push(mistake(key, value, &allowed)),
            }
        }
        by_port
    }

    fn attributes(&mut self, suffix: &str, table: &attributes::Table) -> Attributes {
        let Some(text) = self.text(suffix) else { return Attributes::new() };
        match attributes::parse(text, table) {
            Ok(attributes) => attributes,
            Err(allowed) => {
                self.notes.push(mistake(&key(suffix), text, &allowed));
                Attributes::new()
            }
        }
    }

    fn health(&mut self) -> Health {
        let ports = &self.service.ports;
        let port = |text: &str| match text {
            "traffic-port" => Some(PortRef::Traffic),
            _ => match text.parse() {
                Ok(0) => None,
                Ok(number) => Some(PortRef::Number(number)),
                Err(_) => ports.iter().find(|p| &*p.name == text).map(|p| PortRef::NodePortOf(p.port)),
            },
        };
        // The bounds are ELBv2's, CreateTargetGroup.
        Health {
            protocol: self.read("healthcheck-protocol", "tcp, http, https", |text| {
                HealthProtocol::of_aws(&text.to_ascii_uppercase())
            }),
            port: self.read("healthcheck-port", "traffic-port, a port number, the name of a port", port),
            path: self.read(
                "healthcheck-path",
                "a path that begins with /, at most 1024 characters",
                |text| (text.starts_with('/') && text.len() <= 1024).then(|| text.to_owned()),
            ),
            success_codes: self.read(
                "healthcheck-success-codes",
                "codes from 200 to 599, such as 200-399",
                |text| is_codes(text).then(|| text.to_owned()),
            ),
            interval: self.read("healthcheck-interval", "5 to 300", |text| values::number(text, &(5..=300))),
            timeout: self.read("healthcheck-timeout", "2 to 120", |text| values::number(text, &(2..=120))),
            healthy: self
                .read("healthcheck-healthy-threshold", "2 to 10", |text| values::number(text, &(2..=10))),
            unhealthy: self
                .read("healthcheck-unhealthy-threshold", "2 to 10", |text| values::number(text, &(2..=10))),
        }
    }

    fn source_ranges(&mut self) -> Option<Vec<IpNet>> {
        let text = self.service.annotation(SOURCE_RANGES)?;
        let parsed: Option<Vec<IpNet>> = values::list(text).iter().map(|item| item.parse().ok()).collect();
        if parsed.is_none() {
            self.notes.push(mistake(SOURCE_RANGES, text, "a list of CIDRs, such as 10.0.0.0/8,192.0.2.7/32"));
        }
        parsed.filter(|ranges| !ranges.is_empty())
    }

    fn text(&self, suffix: &str) -> Option<&'_ str> {
        self.service.annotation(&key(suffix)).map(str::trim)
    }

    fn read<T>(&mut self, suffix: &str, allowed: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let text = self.text(suffix)?;
        let parsed = parse(text);
        if parsed.is_none() {
            let note = mistake(&key(suffix), text, allowed);
            self.notes.push(note);
        }
        parsed
    }
}

/// `200`, `200-399`, `200,204`
fn is_codes(text: &str) -> bool {
    let code = |text: &str| values::number(text.trim(), &(200..=599)).is_some();
    text.split(',').all(|part| part.split_once('-').map_or_else(|| code(part), |(a, b)| code(a) && code(b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use service_model::{Protocol, ServicePort};

    fn service(annotations: &[(&str, &str)]) -> Service {
        let mut service = Service::new("shop/web".parse().unwrap());
        let port = |name: &str, port| ServicePort {
            name: name.into(),
            protocol: Protocol::Tcp,
            port,
            node_port: Some(30_000 + port),
        };
        service.ports = vec![port("http", 80), port("admin", 8080)];
        service.annotations =
            annotations.iter().map(|(suffix, value)| (key(suffix).into(), (*value).into())).collect();
        service
    }

    #[test]
    fn what_is_written_right_is_understood() {
        let parsed = parse(&service(&[
            ("type", "external"),
            ("nlb-target-type", "instance"),
            ("name", "shop"),
            ("internal", "false"),
            ("subnets", "subnet-1, public-b"),
            ("additional-resource-tags", "team=shop,stage=test"),
            ("attributes", "deletion_protection.enabled=true"),
            ("target-group-attributes", "deregistration_delay.timeout_seconds=30"),
            ("target-group-attributes.80", "preserve_client_ip.enabled=false"),
            ("proxy-protocol", "*"),
            ("healthcheck-protocol", "http"),
            ("healthcheck-port", "admin"),
            ("healthcheck-path", "/up"),
            ("healthcheck-success-codes", "200,204-299"),
            ("target-node-labels", "pool=edge"),
        ]))
        .unwrap();
        assert_eq!((parsed.name.as_deref(), parsed.scheme), (Some("shop"), Some(Scheme::InternetFacing)));
        assert_eq!(parsed.subnets.unwrap(), ["subnet-1", "public-b"]);
        assert_eq!(parsed.health.port, Some(PortRef::NodePortOf(8080)));
        assert_eq!(parsed.health.protocol, Some(HealthProtocol::Http));
        assert_eq!(parsed.target_group_attributes.len(), 2);
        assert_eq!(parsed.target_group_attributes_of[&80]["preserve_client_ip.enabled"], "false");
        assert_eq!(parsed.tags["team"], "shop");
    }

    #[test]
    fn every_mistake_names_key_value_and_what_is_allowed() {
        for (suffix, value, expected) in [
            ("scheme", "public", "allowed: internal, internet-facing"),
            ("name", "internal-web", "1 to 32 letters"),
            ("name", "a-name-that-is-much-longer-than-32-characters", "1 to 32 letters"),
            ("healthcheck-interval", "4", "5 to 300"),
            ("healthcheck-port", "nosuch", "the name of a port"),
            ("healthcheck-success-codes", "100", "200 to 599"),
            ("additional-resource-tags", "elbv2.k8s.aws/cluster=x", "none of elbv2.k8s.aws/cluster"),
            ("attributes", "deletion_protection.enabled=on", "true or false"),
            ("target-group-attributes.81", "stickiness.enabled=true", "a port of the Service (80, 8080)"),
            ("nlb-target-type", "ip", "targets are instances"),
            ("nlb-target-type", "lambda", "instance, ip"),
            ("ssl-cert", "arn:aws:acm:x", "not supported by this version"),
            ("shceme", "internal", "did you mean service.beta.kubernetes.io/aws-load-balancer-scheme?"),
        ] {
            let notes = parse(&service(&[(suffix, value)])).unwrap_err();
            assert_eq!(notes.len(), 1, "{suffix}={value}: {notes:?}");
            let message = &notes[0].message;
            for part in [&key(suffix), value, expected, "the load balancer stays as it is"] {
                assert!(message.contains(part), "{message} lacks {part}");
            }
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let notes =
            parse(&service(&[("scheme", "x"), ("nane", "y"), ("healthcheck-timeout", "z")])).unwrap_err();
        let reasons: Vec<&str> = notes.iter().map(|n| n.reason).collect();
        assert_eq!(reasons, ["UnknownAnnotation", "InvalidAnnotation", "InvalidAnnotation"]);
    }
}
