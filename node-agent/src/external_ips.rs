//! Which Services have external IPs, and who is told that they have none. Whoever may write a Service could take traffic to
//! any address by naming it there (CVE-2020-8554).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use service_model::{Service, ServiceName};

use crate::nft::desired::is_served;

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

    /// What the owner of a Service is told, by each node alike. The addresses come last, since a long text is cut.
    pub fn told(&self, service: &ServiceName, ips: &BTreeSet<IpAddr>) -> String {
        let (cause, remedy) = match self {
            Self::None => {
                ("the feature gate AllowServiceExternalIPs is off".to_owned(), "the gate switched on")
            }
            Self::All | Self::In(_) => (
                format!("--external-ips-namespaces does not name {}", service.namespace()),
                "the namespace added to that flag of node-agent",
            ),
        };
        let ips: Vec<String> = ips.iter().map(IpAddr::to_string).collect();
        format!(
            "These external IPs are not served, as {cause}: take them out of the Service, use type \
             LoadBalancer, or have {remedy}: {}",
            ips.join(", ")
        )
    }
}

/// Services whose external IPs are left out, and which those are: told when it begins to be so, and again from time to
/// time, as long as it is.
#[derive(Debug, Default)]
pub struct LeftOut {
    of: BTreeMap<ServiceName, BTreeSet<IpAddr>>,
    untold: BTreeSet<ServiceName>,
}

impl LeftOut {
    /// All that the Service lost by [`ExternalIps::restrict`].
    pub fn update(&mut self, service: &Service, ips: Vec<IpAddr>) {
        let (name, ips) = (&service.name, BTreeSet::from_iter(ips));
        // Who has nothing here misses nothing.
        if ips.is_empty() || !is_served(service) {
            self.forget(name);
        } else if self.of.get(name) != Some(&ips) {
            tracing::info!(service = name.as_str(), ?ips, "external IPs are left out");
            self.of.insert(name.clone(), ips);
            self.untold.insert(name.clone());
        }
    }

    pub fn has(&self, service: &ServiceName) -> bool {
        self.of.contains_key(service)
    }

    pub fn forget(&mut self, service: &ServiceName) {
        self.of.remove(service);
        self.untold.remove(service);
    }

    /// All is told again. Not before all was told once: where Events are slow, the same few would come first each time.
    pub fn repeat(&mut self) {
        if self.untold.is_empty() {
            self.untold.extend(self.of.keys().cloned());
        }
    }

    pub fn has_more(&self) -> bool {
        !self.untold.is_empty()
    }

    /// The next that is to be told.
    pub fn pop(&mut self) -> Option<(ServiceName, &BTreeSet<IpAddr>)> {
        let name = self.untold.pop_first()?;
        let ips = self.of.get(&name).expect("only what is left out is to be told");
        Some((name, ips))
    }
}

/// A namespace's name, as a list on the command line has it.
///
/// # Errors
/// What to write instead.
pub fn namespace(text: &str) -> Result<Box<str>, String> {
    if text.is_empty() {
        return Err("a name is empty: leave the flag out for all namespaces, or switch the feature gate \
                    AllowServiceExternalIPs off for none"
            .to_owned());
    }
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
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
    use service_model::ServiceType;

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

    /// What is popped until nothing is left, without the namespace.
    fn popped(left_out: &mut LeftOut) -> Vec<String> {
        std::iter::from_fn(|| left_out.pop().map(|(name, ips)| format!("{} {ips:?}", name.name()))).collect()
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
    fn what_is_left_out_is_told_until_it_is_otherwise_and_anew_when_the_addresses_change() {
        let mut left_out = LeftOut::default();
        let web = service("shop", "web", &[]);
        left_out.update(&web, ips(&["192.0.2.1", "192.0.2.2"]));
        assert_eq!(popped(&mut left_out), ["web {192.0.2.1, 192.0.2.2}"]);
        left_out.update(&web, ips(&["192.0.2.2", "192.0.2.1"]));
        assert!(popped(&mut left_out).is_empty(), "they are the same");
        left_out.update(&web, ips(&["192.0.2.2"]));
        assert_eq!(popped(&mut left_out), ["web {192.0.2.2}"]);
        left_out.repeat();
        assert_eq!(popped(&mut left_out), ["web {192.0.2.2}"]);
        left_out.update(&web, Vec::new());
        left_out.repeat();
        assert!(popped(&mut left_out).is_empty(), "it names none any more");
        left_out.update(&web, ips(&["192.0.2.2"]));
        left_out.forget(&web.name);
        left_out.repeat();
        assert!(popped(&mut left_out).is_empty(), "it is gone");
        assert!(left_out.of.is_empty() && !left_out.has_more());
    }

    #[test]
    fn nothing_is_told_twice_before_all_is_told_once() {
        let mut left_out = LeftOut::default();
        for name in ["a", "b", "c"] {
            left_out.update(&service("shop", name, &[]), ips(&["192.0.2.1"]));
        }
        assert_eq!(left_out.pop().unwrap().0.name(), "a");
        left_out.repeat();
        assert!(left_out.has_more());
        assert_eq!(popped(&mut left_out), ["b {192.0.2.1}", "c {192.0.2.1}"]);
        left_out.repeat();
        assert_eq!(popped(&mut left_out).len(), 3);
    }

    #[test]
    fn nothing_is_kept_of_services_without_external_ips_or_without_a_cluster_ip() {
        let mut left_out = LeftOut::default();
        left_out.update(&service("shop", "web", &[]), Vec::new());
        let mut headless = service("shop", "headless", &[]);
        headless.cluster_ips.clear();
        left_out.update(&headless, ips(&["192.0.2.1"]));
        let mut alias = service("shop", "alias", &[]);
        alias.service_type = ServiceType::ExternalName;
        left_out.update(&alias, ips(&["192.0.2.1"]));
        assert!(left_out.of.is_empty() && !left_out.has_more());
    }

    #[test]
    fn who_is_told_reads_which_addresses_why_and_what_to_do() {
        let addresses = ips(&["192.0.2.1", "2001:db8::1"]).into_iter().collect();
        let told =
            |external_ips: &ExternalIps| external_ips.told(&ServiceName::new("shop", "web"), &addresses);
        assert_eq!(
            told(&only(&["edge"])),
            "These external IPs are not served, as --external-ips-namespaces does not name shop: take them \
             out of the Service, use type LoadBalancer, or have the namespace added to that flag of node-agent: \
             192.0.2.1, 2001:db8::1"
        );
        assert_eq!(
            told(&ExternalIps::None),
            "These external IPs are not served, as the feature gate AllowServiceExternalIPs is off: take \
             them out of the Service, use type LoadBalancer, or have the gate switched on: 192.0.2.1, 2001:db8::1"
        );
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
