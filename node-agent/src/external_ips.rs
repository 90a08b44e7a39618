//! Which Services have external IPs. Whoever may write a Service could take traffic to
//! any address by naming it there (CVE-2020-8554).

use std::collections::BTreeSet;
use std::net::IpAddr;

use service_model::Service;

/// How long a label of a host's name may be (RFC 1123), and so a namespace's.
const LONGEST_NAMESPACE: usize = 63;

/// Whose external IPs are heeded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ExternalIps {
    #[default]
    All,
    /// Those of the Services in these namespaces (`--external-ips-namespaces`).
    In(BTreeSet<Box<str>>),
    /// kube-proxy's gate `AllowServiceExternalIPs` is off.
    None,
}

impl ExternalIps {
    /// Takes from the Service what is not heeded, and returns it.
    pub fn restrict(&self, service: &mut Service) -> Vec<IpAddr> {
        let heeded = match self {
            Self::All => true,
            Self::In(namespaces) => namespaces.contains(service.name.namespace()),
            Self::None => false,
        };
        if heeded { Vec::new() } else { std::mem::take(&mut service.external_ips) }
    }
}

/// A namespace's name, as a list on the command line has it.
///
/// # Errors
/// What to write instead.
pub fn namespace(text: &str) -> Result<Box<str>, String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if text.is_empty() {
        return Err("a name is empty: leave the flag out for all namespaces, or switch the feature gate \
                    AllowServiceExternalIPs off for none"
            .to_owned());
    }
    let is_label = text.len() <= LONGEST_NAMESPACE
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if is_label {
        Ok(text.into())
    } else {
        Err(format!(
            "no namespace can have that name: write up to {LONGEST_NAMESPACE} lower-case letters, digits and '-' between \
             them, and nothing but ',' between two names"
        ))
    }
}

#[cfg(test)]
mod tests {
    use service_model::ServiceName;

    use super::*;

    fn service(namespace: &str, name: &str, external_ips: &[&str]) -> Service {
        let mut service = Service::new(ServiceName::new(namespace, name));
        service.cluster_ips = vec!["10.96.0.1".parse().unwrap()];
        service.external_ips = ips(external_ips);
        service
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn only(namespaces: &[&str]) -> ExternalIps {
        ExternalIps::In(namespaces.iter().map(|name| (*name).into()).collect())
    }

    #[test]
    fn external_ips_are_heeded_everywhere_in_some_namespaces_or_nowhere() {
        for (external_ips, namespace, heeded) in [
            (ExternalIps::default(), "shop", true),
            (only(&["edge", "shop"]), "shop", true),
            (only(&["edge", "shop"]), "edge", true),
            (only(&["edge", "shop"]), "edg", false),
            (only(&["edge", "shop"]), "default", false),
            (ExternalIps::None, "shop", false),
        ] {
            let mut restricted = service(namespace, "web", &["192.0.2.1", "2001:db8::1"]);
            let (kept, left_out) = if heeded {
                (restricted.external_ips.clone(), Vec::new())
            } else {
                (Vec::new(), restricted.external_ips.clone())
            };
            assert_eq!(external_ips.restrict(&mut restricted), left_out, "{external_ips:?}, {namespace}");
            assert_eq!(restricted.external_ips, kept, "{external_ips:?}, {namespace}");
            assert_eq!(restricted.cluster_ips, ips(&["10.96.0.1"]));
        }
    }

    #[test]
    fn a_namespaces_name_is_one_that_the_api_server_would_take() {
        let longest = "a".repeat(63);
        for right in ["a", "kube-system", "0", "a--b", &longest] {
            assert_eq!(&*namespace(right).unwrap(), right);
        }
        let too_long = "a".repeat(64);
        for wrong in ["Shop", "-a", "a-", "a.b", "a_b", " a", "a b", "a;b", "ä", "*", &too_long] {
            let error = namespace(wrong).unwrap_err();
            assert!(error.contains("lower-case letters"), "{wrong:?}: {error}");
        }
        assert!(namespace("").unwrap_err().contains("leave the flag out for all"));
    }
}
