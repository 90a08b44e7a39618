//! What a Service asks the address management for: annotations and `spec.loadBalancerIP`, parsed.
//! The `metallb.io` spellings count too, so that manifests can move over as they are.

use std::net::IpAddr;

use service_model::{IpFamily, Service};

use crate::plan::Note;

/// What a Service asks for; both `None` means "any address".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    pub ip: Option<IpAddr>,
    pub pool: Option<Box<str>>,
    /// What was asked for and is not done.
    pub notes: Vec<Note>,
}

/// A request that cannot be read, or that contradicts itself. The text names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("{field}: {value:?} is not an IP address")]
    NotAnAddress { field: &'static str, value: String },
    #[error("{first} asks for {one} and {second} for {other}: keep one of them")]
    Contradiction { first: &'static str, one: String, second: &'static str, other: String },
    #[error("{field}: {value:?} names no IPv4 address, and the NAT path of metal-lb serves IPv4 so far")]
    NoIpv4 { field: &'static str, value: String },
    #[error("{field}: asks for several IPv4 addresses; a Service gets one")]
    Several { field: &'static str },
    #[error(
        "the Service is IPv6 only (spec.ipFamilies), and the NAT path of metal-lb serves IPv4 so far: \
         add IPv4 to spec.ipFamilies"
    )]
    Ipv6Only,
}

pub const LOAD_BALANCER_IPS: [&str; 3] =
    ["fairlead.dev/load-balancer-ips", "metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"];
pub const ADDRESS_POOL: [&str; 3] =
    ["fairlead.dev/address-pool", "metallb.io/address-pool", "metallb.universe.tf/address-pool"];
const SHARED_IP: [&str; 3] =
    ["fairlead.dev/allow-shared-ip", "metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"];
const LOAD_BALANCER_IP: &str = "spec.loadBalancerIP";

impl Request {
    /// # Errors
    /// What the user has to correct first.
    pub fn of(service: &Service) -> Result<Self, RequestError> {
        let mut request = Self::default();
        let families = &service.ip_families;
        if !families.is_empty() && !families.contains(&IpFamily::V4) {
            return Err(RequestError::Ipv6Only);
        }
        if families.contains(&IpFamily::V6) {
            request.notes.push(Note::normal(
                "OnlyIPv4",
                "the Service is dual stack; it gets its IPv4 address now, and none for IPv6: \
                 the NAT path of metal-lb serves IPv4 so far",
            ));
        }
        if let Some(key) = SHARED_IP.into_iter().find(|k| service.annotation(k).is_some()) {
            request.notes.push(Note::warning(
                "SharingNotServed",
                format!(
                    "{key}: sharing an address between Services is not served yet; this one gets its own"
                ),
            ));
        }
        request.ip = wanted_ip(service)?;
        request.pool = wanted_pool(service)?;
        Ok(request)
    }
}

fn wanted_ip(service: &Service) -> Result<Option<IpAddr>, RequestError> {
    let annotated = LOAD_BALANCER_IPS.into_iter().filter_map(|k| Some((k, service.annotation(k)?)));
    let spec = service.load_balancer_ip.as_deref().map(|ip| (LOAD_BALANCER_IP, ip));
    let mut found: Option<(&'static str, IpAddr)> = None;
    for (field, text) in annotated.chain(spec) {
        let Some(ip) = ipv4_of_list(field, text)? else { continue };
        match found {
            Some((first, one)) if one != ip => {
                let (one, other) = (one.to_string(), ip.to_string());
                return Err(RequestError::Contradiction { first, one, second: field, other });
            }
            _ => found = Some((field, ip)),
        }
    }
    Ok(found.map(|(_, ip)| ip))
}

/// The IPv4 address of a comma list that can name one per family; an empty one asks for nothing.
fn ipv4_of_list(field: &'static str, text: &str) -> Result<Option<IpAddr>, RequestError> {
    let mut values = text.split(',').map(str::trim).filter(|v| !v.is_empty()).peekable();
    if values.peek().is_none() {
        return Ok(None);
    }
    let mut found = None;
    for value in values {
        let ip: IpAddr =
            value.parse().map_err(|_| RequestError::NotAnAddress { field, value: value.to_owned() })?;
        if ip.is_ipv4() && found.replace(ip).is_some() {
            return Err(RequestError::Several { field });
        }
    }
    found.map(Some).ok_or_else(|| RequestError::NoIpv4 { field, value: text.to_owned() })
}

fn wanted_pool(service: &Service) -> Result<Option<Box<str>>, RequestError> {
    let mut found: Option<(&'static str, &str)> = None;
    for field in ADDRESS_POOL {
        let Some(pool) = service.annotation(field).map(str::trim).filter(|p| !p.is_empty()) else { continue };
        match found {
            Some((first, one)) if one != pool => {
                let (one, other) = (one.to_owned(), pool.to_owned());
                return Err(RequestError::Contradiction { first, one, second: field, other });
            }
            _ => found = Some((field, pool)),
        }
    }
    Ok(found.map(|(_, pool)| pool.into()))
}

#[cfg(test)]
mod tests {
    use service_model::ObjectName;

    use super::*;

    fn service(annotations: &[(&str, &str)]) -> Service {
        let mut service = Service::new(ObjectName::new("shop", "web"));
        service.annotations = annotations.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        service
    }

    #[test]
    fn requests_are_read_from_every_spelling() {
        type Row<'a> = (&'a [(&'a str, &'a str)], Option<&'a str>, Option<&'a str>);
        let table: &[Row<'_>] = &[
            (&[], None, None),
            (&[("fairlead.dev/load-balancer-ips", ""), ("metallb.io/loadBalancerIPs", " , ")], None, None),
            (&[("fairlead.dev/load-balancer-ips", "10.0.0.1")], Some("10.0.0.1"), None),
            (&[("metallb.io/loadBalancerIPs", " 10.0.0.1 , fd00::1")], Some("10.0.0.1"), None),
            (&[("metallb.universe.tf/loadBalancerIPs", "10.0.0.1")], Some("10.0.0.1"), None),
            (
                &[("fairlead.dev/load-balancer-ips", "10.0.0.1"), ("metallb.io/loadBalancerIPs", "10.0.0.1")],
                Some("10.0.0.1"),
                None,
            ),
            (&[("fairlead.dev/address-pool", "gold")], None, Some("gold")),
            (&[("metallb.io/address-pool", "gold")], None, Some("gold")),
        ];
        for (annotations, ip, pool) in table {
            let request = Request::of(&service(annotations)).unwrap();
            assert_eq!(request.ip, ip.map(|ip| ip.parse().unwrap()), "{annotations:?}");
            assert_eq!(request.pool.as_deref(), *pool, "{annotations:?}");
        }
    }

    #[test]
    fn spec_load_balancer_ip_is_a_request_too_and_must_agree() {
        let mut asked = service(&[]);
        asked.load_balancer_ip = Some("10.0.0.1".into());
        assert_eq!(Request::of(&asked).unwrap().ip, Some("10.0.0.1".parse().unwrap()));
        asked.annotations.insert(LOAD_BALANCER_IPS[0].into(), "10.0.0.2".into());
        let error = Request::of(&asked).unwrap_err().to_string();
        assert!(error.contains("spec.loadBalancerIP") && error.contains("10.0.0.2"), "{error}");
    }

    #[test]
    fn an_unreadable_request_names_its_field() {
        let table: &[(&str, &str, &str)] = &[
            ("fairlead.dev/load-balancer-ips", "ten", "not an IP"),
            ("metallb.io/loadBalancerIPs", "10.0.0.1,10.0.0.2", "several"),
            ("fairlead.dev/load-balancer-ips", "fd00::1", "no IPv4 address"),
        ];
        for (field, value, part) in table {
            let error = Request::of(&service(&[(field, value)])).unwrap_err().to_string();
            assert!(error.contains(field) && error.contains(part), "{error}");
        }
    }

    #[test]
    fn ipv6_is_refused_alone_and_noted_in_dual_stack() {
        let mut asked = service(&[]);
        asked.ip_families = vec![IpFamily::V6];
        assert_eq!(Request::of(&asked), Err(RequestError::Ipv6Only));
        asked.ip_families.push(IpFamily::V4);
        assert_eq!(Request::of(&asked).unwrap().notes[0].reason, "OnlyIPv4");
    }

    #[test]
    fn ip_sharing_is_answered_with_a_warning() {
        let request = Request::of(&service(&[("metallb.io/allow-shared-ip", "key")])).unwrap();
        assert_eq!(request.notes[0].reason, "SharingNotServed");
    }
}
