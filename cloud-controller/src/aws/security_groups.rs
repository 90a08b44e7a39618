//! Who may reach what: each load balancer has a security group of its own, open to the source
//! ranges on the listeners' ports, and the nodes' groups let that group in. Why it is so:
//! docs/design/0003-aws-security-groups.md.

use std::collections::{BTreeMap, BTreeSet};

use super::desired::Desired;
use super::names::TAG_CLUSTER;
use super::resources::{Protocol, Rule, SecurityGroup, Source};

const NODE_RULE: &str = "fairlead.dev/cloud-controller: from the load balancer to its targets";

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

/// On the nodes: everything that comes from the load balancer with that security group, which is
/// what it forwards and its health checks, and never more.
pub fn node_rule(group: &str) -> Rule {
    Rule {
        protocol: "-1".to_owned(),
        from: -1,
        to: -1,
        source: Source::Group(group.to_owned()),
        description: NODE_RULE.to_owned(),
    }
}

/// Whether a rule lets the group in and is ours to take away.
pub fn is_our_node_rule(rule: &Rule, group: &str) -> bool {
    rule.allows_same(&node_rule(group)) && rule.description == NODE_RULE
}

/// The security groups that protect this cluster's nodes: those that carry its tag, as EKS, kops
/// and the usual modules set it.
pub fn of_nodes<'a>(
    groups: &'a BTreeMap<String, SecurityGroup>,
    cluster: &str,
) -> impl Iterator<Item = &'a SecurityGroup> {
    let tag = node_tag(cluster);
    groups.values().filter(move |g| g.tags.contains_key(&tag) && !g.tags.contains_key(TAG_CLUSTER))
}

pub fn node_tag(cluster: &str) -> String {
    format!("kubernetes.io/cluster/{cluster}")
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
