//! Which chains of iptables are kube-proxy's, and what goes with them.

use std::collections::BTreeSet;

/// The tables of iptables in which kube-proxy works.
pub const TABLES: [&str; 3] = ["nat", "filter", "mangle"];

/// Chains to which kube-proxy jumps from the kernel's own (`iptablesJumpChains`,
/// `iptablesCleanupOnlyChains` in iptables/proxier.go, `iptablesJumpChain` in ipvs/proxier.go).
const JUMPED_TO: [&str; 10] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-NODE-PORT",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];
/// Chains to which only its own chains jump, or nothing.
const INNER: [&str; 3] = ["KUBE-MARK-MASQ", "KUBE-LOAD-BALANCER", "KUBE-PROXY-CANARY"];
/// One chain for each port of a Service and each endpoint (`isServiceChainName`).
const PREFIXES: [&str; 5] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-"];

/// A rule of a table, by whatever its reader deletes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule<Id> {
    pub chain: String,
    /// The chain to which it jumps or goes.
    pub target: Option<String>,
    pub id: Id,
}

/// What is to go from one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal<Id> {
    /// Rules of the kernel's own chains.
    pub rules: Vec<Rule<Id>>,
    /// To be emptied first, since they name each other.
    pub chains: BTreeSet<String>,
    /// Chains of kube-proxy's that others jump to: they stay as they are.
    pub in_use: BTreeSet<String>,
}

/// KUBE-FIREWALL, which the kubelet makes too, and all other names are not.
fn is_kube_proxys(chain: &str) -> bool {
    JUMPED_TO.contains(&chain)
        || INNER.contains(&chain)
        || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// Chains are kube-proxy's by their names, rules of others are only where they jump to them. A chain
/// that somebody else's rule jumps to is left with all that it needs: some network plugins use
/// KUBE-MARK-MASQ.
pub fn plan<Id: Clone>(
    chains: &BTreeSet<String>,
    is_base: impl Fn(&str) -> bool,
    rules: &[Rule<Id>],
) -> Removal<Id> {
    let mut removal = Removal {
        rules: Vec::new(),
        chains: chains.iter().filter(|chain| is_kube_proxys(chain)).cloned().collect(),
        in_use: BTreeSet::new(),
    };
    let mut pending = Vec::new();
    for rule in rules.iter().filter(|rule| !removal.chains.contains(&rule.chain)) {
        let Some(target) = rule.target.as_ref().filter(|target| removal.chains.contains(*target)) else {
            continue;
        };
        if is_base(&rule.chain) && JUMPED_TO.contains(&target.as_str()) {
            removal.rules.push(rule.clone());
        } else {
            pending.push(target.clone());
        }
    }
    while let Some(chain) = pending.pop() {
        if removal.chains.remove(&chain) {
            pending.extend(
                rules.iter().filter(|rule| rule.chain == chain).filter_map(|rule| rule.target.clone()),
            );
            removal.in_use.insert(chain);
        }
    }
    let in_use = &removal.in_use;
    removal.rules.retain(|rule| rule.target.as_ref().is_none_or(|target| !in_use.contains(target)));
    removal
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

    /// `chain>target`, or `chain` for a rule that jumps nowhere.
    fn planned(rules: &str) -> (Vec<String>, Vec<String>, Vec<String>) {
        let rules: Vec<Rule<usize>> = rules
            .split(' ')
            .enumerate()
            .map(|(id, rule)| match rule.split_once('>') {
                Some((chain, target)) => Rule { chain: chain.into(), target: Some(target.into()), id },
                None => Rule { chain: rule.into(), target: None, id },
            })
            .collect();
        let named = rules.iter().flat_map(|rule| [Some(rule.chain.clone()), rule.target.clone()]);
        let removal = plan(&named.flatten().collect(), |chain| BASE.contains(&chain), &rules);
        let jumps =
            removal.rules.iter().map(|r| format!("{}>{}", r.chain, r.target.clone().unwrap())).collect();
        (jumps, removal.chains.into_iter().collect(), removal.in_use.into_iter().collect())
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn what_is_kube_proxys_goes_and_the_kubelets_and_everybody_elses_stays() {
        for (what, rules, jumps, chains, in_use) in [
            (
                "all of it",
                "PREROUTING>KUBE-SERVICES KUBE-SERVICES>KUBE-SVC-A KUBE-SVC-A>KUBE-SEP-B KUBE-SVC-A>KUBE-MARK-MASQ KUBE-SEP-B",
                "PREROUTING>KUBE-SERVICES",
                "KUBE-MARK-MASQ KUBE-SEP-B KUBE-SERVICES KUBE-SVC-A",
                "",
            ),
            (
                "the kubelet's",
                "INPUT>KUBE-FIREWALL KUBE-FIREWALL KUBE-KUBELET-CANARY KUBE-IPTABLES-HINT INPUT>KUBE-NODEPORTS",
                "INPUT>KUBE-NODEPORTS",
                "KUBE-NODEPORTS",
                "",
            ),
            ("others'", "FORWARD>DOCKER-USER DOCKER-USER POSTROUTING>CNI-1 CNI-1", "", "", ""),
            (
                "a plugin's rule keeps what it jumps to",
                "POSTROUTING>KUBE-POSTROUTING KUBE-POSTROUTING CNI-DN>KUBE-MARK-MASQ KUBE-MARK-MASQ KUBE-SEP-B>KUBE-MARK-MASQ",
                "POSTROUTING>KUBE-POSTROUTING",
                "KUBE-POSTROUTING KUBE-SEP-B",
                "KUBE-MARK-MASQ",
            ),
            (
                "and what that needs",
                "MINE>KUBE-SERVICES OUTPUT>KUBE-SERVICES KUBE-SERVICES>KUBE-SVC-A KUBE-SVC-A KUBE-SVC-B",
                "",
                "KUBE-SVC-B",
                "KUBE-SERVICES KUBE-SVC-A",
            ),
        ] {
            assert_eq!(planned(rules), (words(jumps), words(chains), words(in_use)), "{what}");
        }
    }
}
