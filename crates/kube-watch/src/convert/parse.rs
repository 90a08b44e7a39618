//! Texts to values, as tolerant as kube-proxy.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use service_model::{IpFamily, ObjectName, Protocol};

/// What could not be read of an object, one sentence each, for its user.
pub(crate) type Problems = Vec<String>;

/// An address as Kubernetes has ever accepted it: decimal with leading zeros (`172.30.0.041`, read
/// as decimal, as Go did before 1.17), and IPv4 mapped into IPv6.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    match text.parse::<IpAddr>() {
        Ok(ip) => Some(ip.to_canonical()),
        Err(_) => legacy_ipv4(text).map(IpAddr::V4),
    }
}

fn legacy_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = decimal(parts.next()?)?;
    }
    parts.next().is_none().then(|| octets.into())
}

/// A network; a length with leading zeros counts, host bits are cut.
pub(super) fn cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.trim().split_once('/')?;
    Some(IpNet::new(parse_ip(address)?, decimal(length)?).ok()?.trunc())
}

/// Digits only (no sign), with any number of leading zeros.
fn decimal(text: &str) -> Option<u8> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.trim_start_matches('0') {
        _ if !digits => None,
        "" => Some(0),
        rest => rest.parse().ok(),
    }
}

/// The entries that can be read; the others become problems.
pub(super) fn list<'a, T>(
    problems: &mut Problems,
    field: &str,
    texts: impl IntoIterator<Item = &'a String>,
    parse: impl Fn(&str) -> Option<T>,
) -> Vec<T> {
    let read = |text: &'a String| {
        let value = parse(text);
        if value.is_none() {
            problems.push(format!("{field} {text:?} cannot be read and is left out"));
        }
        value
    };
    exact(texts.into_iter().filter_map(read))
}

/// Collected without spare room: what the World keeps, it keeps for long. (A `Vec` that is collected
/// from a `Vec` may keep the allocation of the latter, whose elements are larger.)
pub(super) fn exact<T>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.shrink_to_fit();
    items
}

pub(super) fn object_name(meta: &ObjectMeta, problems: &mut Problems) -> Option<ObjectName> {
    let Some(name) = meta.name.as_deref().filter(|n| !n.is_empty()) else {
        problems.push("it has no metadata.name and is left out".to_owned());
        return None;
    };
    Some(ObjectName::new(meta.namespace.as_deref().unwrap_or("default"), name))
}

pub(super) fn has_label(meta: &ObjectMeta, key: &str) -> bool {
    meta.labels.as_ref().is_some_and(|l| l.contains_key(key))
}

pub(super) fn boxed_map(map: Option<BTreeMap<String, String>>) -> BTreeMap<Box<str>, Box<str>> {
    map.unwrap_or_default().into_iter().map(|(k, v)| (k.into(), v.into())).collect()
}

pub(super) fn family(text: &str) -> Option<IpFamily> {
    match text {
        "IPv4" => Some(IpFamily::V4),
        "IPv6" => Some(IpFamily::V6),
        _ => None,
    }
}

pub(super) fn protocol(text: Option<&str>) -> Option<Protocol> {
    text.unwrap_or("TCP").parse().ok()
}

/// 0 is how Go writes "none".
pub(super) fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|p| *p != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_older_api_servers_accepted_are_read_as_they_were_meant() {
        let table = [
            ("10.0.0.1", Some("10.0.0.1")),
            ("172.30.0.041", Some("172.30.0.41")),
            ("203.0.113.000", Some("203.0.113.0")),
            ("0010.00.0.1", Some("10.0.0.1")),
            (" 10.0.0.1 ", Some("10.0.0.1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("FD00::1", Some("fd00::1")),
            ("10.0.0.256", None),
            ("10.0.0.+1", None),
            ("10.0.0", None),
            ("10.0.0.1.2", None),
            ("10..0.1", None),
            ("fe80::1%eth0", None),
            ("", None),
        ];
        for (text, ip) in table {
            assert_eq!(parse_ip(text), ip.map(|ip| ip.parse().unwrap()), "{text:?}");
        }
    }

    #[test]
    fn networks_lose_white_space_leading_zeros_and_host_bits() {
        let table = [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            (" 203.0.113.7/025 ", Some("203.0.113.0/25")),
            ("203.0.113.000/025", Some("203.0.113.0/25")),
            ("fd00::1/64", Some("fd00::/64")),
            ("0.0.0.0/00", Some("0.0.0.0/0")),
            ("203.0.113.7/33", None),
            ("203.0.113.7/+8", None),
            ("203.0.113.7/", None),
            ("203.0.113.7", None),
        ];
        for (text, net) in table {
            assert_eq!(cidr(text), net.map(|n| n.parse().unwrap()), "{text:?}");
        }
    }
}
