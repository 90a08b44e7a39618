//! The rules of a load balancer's own ("frontend") security group: each listener's port, open to
//! the source ranges. Why it is one group a Service: docs/design/0003-aws-security-groups.md.

use std::collections::BTreeSet;

use super::desired::Desired;
use super::resources::{Protocol, Rule, Source};

/// What clients may reach.
pub fn frontend_rules(desired: &Desired) -> BTreeSet<Rule> {
    let mut rules = BTreeSet::new();
    for listener in desired.listeners.values() {
        for protocol in transports(listener.protocol) {
            let ports = (listener.port, listener.port);
            rules.extend(
                desired.source_ranges.iter().map(|range| Rule::new(protocol, ports, Source::Cidr(*range))),
            );
        }
    }
    rules
}

/// As EC2 writes them.
pub(super) fn transports(protocol: Protocol) -> &'static [&'static str] {
    match protocol {
        Protocol::Tcp => &["tcp"],
        Protocol::Udp => &["udp"],
        Protocol::TcpUdp => &["tcp", "udp"],
        Protocol::Other => &[],
    }
}

/// The wanted rules that are missing, and those there that are not wanted.
pub fn difference<'a>(
    wanted: &'a BTreeSet<Rule>,
    there: impl Iterator<Item = &'a Rule> + Clone,
) -> (Vec<Rule>, Vec<Rule>) {
    let missing = wanted.iter().filter(|w| !there.clone().any(|t| t.allows_same(w))).cloned().collect();
    let surplus = there.filter(|t| !wanted.iter().any(|w| w.allows_same(t))).cloned().collect();
    (missing, surplus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_differ_by_what_they_allow_and_not_by_their_description() {
        let rule = |port, source: &str| Rule::new("tcp", (port, port), Source::Cidr(source.parse().unwrap()));
        let wanted = BTreeSet::from([rule(80, "0.0.0.0/0"), rule(443, "0.0.0.0/0")]);
        let there =
            [Rule { description: "by hand".to_owned(), ..rule(80, "0.0.0.0/0") }, rule(22, "10.0.0.0/8")];
        let (missing, surplus) = difference(&wanted, there.iter());
        assert_eq!(missing, [rule(443, "0.0.0.0/0")]);
        assert_eq!(surplus, [rule(22, "10.0.0.0/8")]);
    }
}
