//! The kernel's rules in our terms: the opposite of [`compile`](super::compile).
//!
//! Which rules there are depends on the configuration that wrote them, and whoever asks may not
//! know it. So what the kernel lists is looked up in a dictionary of all that this version can
//! write; only what holds a free parameter (a network, an interface) is parsed.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use nfnetlink::Expr;
use nfnetlink::expr::CmpOp;
use service_model::IpFamily;

use super::affinity::AffinityKey;
use super::layout::MasqueradeMark;
use super::ruleset::{Action, Chain, ChainName, Match, Rule, Ruleset};
use super::{affinity_rules, compile};
use crate::config::{ClusterCidrs, Config};
use crate::local::{DetectLocal, InterfaceName, Interfaces};

/// What this version can write in one family.
#[derive(Debug)]
pub struct Dictionary {
    family: IpFamily,
    chains: BTreeMap<String, ChainName>,
    matches: Vec<(Vec<Expr>, Match)>,
    actions: Vec<(Vec<Expr>, Action)>,
    /// Chains that there are whatever the configuration.
    always: BTreeSet<ChainName>,
}

/// A family's chains as the kernel has them.
#[derive(Debug)]
pub struct Decompiled {
    pub ruleset: Ruleset,
    /// What this version does not write, or misses; one sentence each.
    pub oddities: Vec<String>,
}

impl Dictionary {
    pub fn new(family: IpFamily) -> Self {
        let rulesets: Vec<Ruleset> =
            every_kind_of_config().iter().map(|config| Ruleset::new(family, config)).collect();
        let (mut matches, mut actions) = (Vec::new(), Vec::new());
        for rule in rulesets.iter().flat_map(|r| &r.chains).flat_map(|c| &c.rules) {
            for matched in &rule.matches {
                push_new(&mut matches, compile::matched(family, matched), matched.clone());
            }
            push_new(&mut actions, compile::action(family, rule.action), rule.action);
        }
        for mark in MasqueradeMark::all() {
            let marked = Match::Marked(mark);
            push_new(&mut matches, compile::matched(family, &marked), marked);
            for action in [Action::Mark(mark), Action::UnmarkAndMasquerade(mark)] {
                push_new(&mut actions, compile::action(family, action), action);
            }
        }
        let names = |ruleset: &Ruleset| ruleset.chains.iter().map(|c| c.name).collect::<BTreeSet<_>>();
        let all: BTreeSet<ChainName> = rulesets.iter().flat_map(names).collect();
        let always = all.iter().filter(|name| rulesets.iter().all(|r| r.chain(**name).is_some())).copied();
        Self {
            family,
            always: always.collect(),
            chains: all.into_iter().map(|name| (name.to_string(), name)).collect(),
            matches,
            actions,
        }
    }

    /// All chains that this version knows.
    pub(super) fn chains(&self) -> impl Iterator<Item = ChainName> {
        self.chains.values().copied()
    }

    /// One match or action of each kind: of those that differ in a name or a number only, the first.
    pub(super) fn kinds_of_expressions(&self) -> Vec<&[Expr]> {
        let mut seen = BTreeSet::new();
        let matches = self.matches.iter().map(|(exprs, _)| exprs);
        let all = matches.chain(self.actions.iter().map(|(exprs, _)| exprs));
        all.filter(|exprs| seen.insert(exprs.iter().map(kind).collect::<Vec<_>>()))
            .map(Vec::as_slice)
            .collect()
    }

    /// Reads a table's chains; `chains` has the name and the rules of each, in the kernel's order.
    pub fn decompile<'a>(
        &self,
        chains: impl IntoIterator<Item = (&'a str, &'a [nfnetlink::Rule])>,
    ) -> Decompiled {
        let (mut found, mut oddities) = (Vec::new(), Vec::new());
        for (text, listed) in chains {
            let Some(name) = self.chains.get(text) else {
                // Part of the mirror: there is one for each Service port that asks for it.
                let key = AffinityKey::parse(self.family, text);
                if key.is_some_and(|key| affinity_rules::parse(&key, listed).is_some()) {
                    continue;
                }
                oddities.push(format!("chain {text} is none of ours; the answer leaves it out"));
                continue;
            };
            let mut rules = Vec::new();
            for (number, rule) in listed.iter().enumerate() {
                match self.rule(&rule.exprs) {
                    Some(rule) => rules.push(rule),
                    None => oddities.push(format!(
                        "rule {} of chain {text} is not one that this version writes; the answer leaves it out",
                        number + 1
                    )),
                }
            }
            found.push(Chain { name: *name, rules });
        }
        let missing = self.always.iter().filter(|name| !found.iter().any(|chain| chain.name == **name));
        oddities.extend(missing.map(|name| format!("chain {name} is missing")));
        Decompiled { ruleset: Ruleset { family: self.family, chains: found }, oddities }
    }

    fn rule(&self, exprs: &[Expr]) -> Option<Rule> {
        if let Some((_, action)) = self.actions.iter().find(|(compiled, _)| compiled == exprs) {
            return Some(Rule { matches: Vec::new(), action: *action });
        }
        let known =
            self.matches.iter().map(|(compiled, matched)| (compiled.len(), matched.clone(), compiled));
        let known = known.filter(|(_, _, compiled)| exprs.starts_with(compiled));
        let known = known.map(|(length, matched, _)| (length, matched));
        known.chain(self.network(exprs)).chain(self.interface(exprs)).find_map(|(length, matched)| {
            let mut rule = self.rule(exprs.get(length..)?)?;
            rule.matches.insert(0, matched);
            Some(rule)
        })
    }

    /// A match of the source or destination against any network, and how many expressions it takes.
    fn network(&self, exprs: &[Expr]) -> Option<(usize, Match)> {
        let (mask, cmp, length) = match exprs {
            [Expr::Payload(_), Expr::Bitwise(masked), Expr::Cmp(cmp), ..] => (Some(&masked.mask), cmp, 3),
            [Expr::Payload(_), Expr::Cmp(cmp), ..] => (None, cmp, 2),
            _ => return None,
        };
        let ip = |bytes| Some(compile::parse_ip(self.family, bytes)?.0);
        let address = ip(cmp.value.bytes())?;
        let network = match mask {
            Some(mask) => IpNet::with_netmask(address, ip(mask.bytes())?).ok()?,
            None => IpNet::from(address),
        };
        let candidates = match cmp.op {
            CmpOp::Equal => vec![Match::From(network), Match::ToNetwork(network)],
            CmpOp::NotEqual => vec![Match::NotFrom(network)],
            _ => return None,
        };
        // What else the expressions say, such as which field they load, must agree as well.
        let agrees = |matched: &Match| exprs.starts_with(&compile::matched(self.family, matched));
        candidates.into_iter().find(agrees).map(|matched| (length, matched))
    }

    /// A match of the interface that the packet came in by, and how many expressions it takes.
    fn interface(&self, exprs: &[Expr]) -> Option<(usize, Match)> {
        let [Expr::Meta(_), Expr::Cmp(cmp), ..] = exprs else { return None };
        let bytes = cmp.value.bytes();
        let name: InterfaceName = std::str::from_utf8(bytes).ok()?.trim_end_matches('\0').parse().ok()?;
        let whole = bytes.len() == InterfaceName::SIZE;
        let interfaces = if whole { Interfaces::Named(name) } else { Interfaces::Beginning(name) };
        let matched = match cmp.op {
            CmpOp::Equal => Match::FromInterface(interfaces),
            CmpOp::NotEqual => Match::NotFromInterface(interfaces),
            _ => return None,
        };
        exprs.starts_with(&compile::matched(self.family, &matched)).then_some((2, matched))
    }
}

/// The kind of an expression, and what of it the kernel may know or not.
fn kind(expr: &Expr) -> String {
    let text = format!("{expr:?}");
    let name = text.split(['(', ' ']).next().unwrap_or_default();
    match expr {
        Expr::Meta(meta) => format!("{name} {:?}", meta.key),
        Expr::Ct(ct) => format!("{name} {:?}", ct.key),
        _ => name.to_owned(),
    }
}

/// Between them they have every match and action that rules are made of, apart from parameters.
fn every_kind_of_config() -> Vec<Config> {
    let cidrs: ClusterCidrs = "10.244.0.0/16,fd00:10:244::/56".parse().expect("two networks");
    let networks: BTreeSet<IpNet> =
        ["10.96.0.0/12", "fd00:10:96::/112"].map(|network| network.parse().expect("a network")).into();
    let mut configs = Vec::new();
    for nodeport_addresses in ["primary", "all", "all,localhost"] {
        for masquerade_all in [false, true] {
            configs.push(Config {
                masquerade_all,
                nodeport_addresses: nodeport_addresses.parse().expect("keywords"),
                service_networks: networks.clone(),
                ..Config::new("any", DetectLocal::ClusterCidr(cidrs))
            });
        }
    }
    configs
}

fn push_new<T: PartialEq>(known: &mut Vec<(Vec<Expr>, T)>, exprs: Vec<Expr>, what: T) {
    if !known.iter().any(|(_, other)| *other == what) {
        known.push((exprs, what));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::layout::FAMILIES;

    #[test]
    fn every_ruleset_reads_back_as_itself() {
        let cidrs = ["", "10.0.0.0/8", "192.0.2.7/32,fd00::/48", "0.0.0.0/0,2001:db8::1/128"];
        let cidrs = cidrs.map(|cidrs| DetectLocal::ClusterCidr(cidrs.parse().unwrap()));
        let name = |name: &str| name.parse().unwrap();
        let interfaces = [
            DetectLocal::BridgeInterface(name("cni0")),
            DetectLocal::BridgeInterface(name("fifteen-bytes-1")),
            DetectLocal::InterfaceNamePrefix(name("veth")),
            DetectLocal::InterfaceNamePrefix(name("fifteen-bytes-1")),
        ];
        let modes: Vec<DetectLocal> = cidrs.into_iter().chain(interfaces).collect();
        for family in FAMILIES {
            let dictionary = Dictionary::new(family);
            for (mode, mut config) in
                modes.iter().flat_map(|m| every_kind_of_config().into_iter().map(move |k| (m, k)))
            {
                config.detect_local = *mode;
                config.masquerade_mark = MasqueradeMark::of_bit(31).unwrap();
                let ruleset = Ruleset::new(family, &config);
                let compiled = |chain: &Chain| -> Vec<nfnetlink::Rule> {
                    chain.rules.iter().map(|rule| compile::rule(family, chain.name, rule)).collect()
                };
                let listed: Vec<(String, Vec<nfnetlink::Rule>)> =
                    ruleset.chains.iter().map(|chain| (chain.name.to_string(), compiled(chain))).collect();
                let read = dictionary.decompile(listed.iter().map(|(name, rules)| (&**name, &**rules)));
                assert_eq!(read.oddities, Vec::<String>::new());
                assert_eq!(read.ruleset, ruleset);
            }
        }
    }

    #[test]
    fn what_is_not_ours_is_told() {
        let dictionary = Dictionary::new(IpFamily::V4);
        let foreign = [nfnetlink::Rule::new("services", [Expr::mark(nfnetlink::Reg::R1)])];
        let read = dictionary.decompile([("services", &foreign[..]), ("mine", &[][..])]);
        assert_eq!(
            read.oddities[..2],
            [
                "rule 1 of chain services is not one that this version writes; the answer leaves it out",
                "chain mine is none of ours; the answer leaves it out"
            ]
        );
        assert!(read.oddities.contains(&"chain nat-prerouting is missing".to_owned()), "{:?}", read.oddities);
    }
}
