//! What the kernel can do of all that our tables need.
//!
//! One batch has everything that this version writes: the sets, a chain at each hook, and a rule
//! for each kind of match and action. It goes to a table of its own name, and ends in a request
//! that no kernel grants: so nothing of it is ever in force, and nobody is notified. The kernel
//! complains of each message that it does not understand, and what the message is made of names
//! the kernel's option.

use std::collections::BTreeMap;
use std::fmt;

use nfnetlink::{Batch, Error, Expr, Failure, Reg, Socket, Table, TableRef};
use service_model::IpFamily;

use super::decompile::Dictionary;
use super::layout::SetName;
use super::{affinity_rules, compile};

const TABLE: &str = "fairlead-preflight";
/// What the batch asks to be deleted, and there is not.
const NO_CHAIN: &str = "that-is-not-there";
/// The chain of the rules that are tried.
const TRIED: &str = "tried";

/// A part of the kernel, by the names that its builders know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Feature {
    pub name: &'static str,
    /// The kernel's configuration option.
    pub option: &'static str,
    pub module: &'static str,
    /// The version of Linux that brought it.
    pub since: &'static str,
}

/// What a family's tables need and the kernel lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    pub feature: Feature,
    /// What the kernel said, of what.
    pub answer: String,
}

/// What each message of the batch needs beside nf_tables itself.
type Trials = BTreeMap<usize, Vec<Feature>>;

/// Tries all that a family's tables need. Nothing is changed. An empty answer is a good one.
///
/// # Errors
/// When the kernel has no nf_tables at all, we have no CAP_NET_ADMIN, or there was no memory for an
/// answer: that says nothing of what the kernel can do.
pub fn probe(socket: &mut Socket, family: IpFamily) -> nfnetlink::Result<Vec<Lack>> {
    let (batch, trials) = trials(family);
    read(socket.commit(&batch), &trials, batch.len() - 1)
}

/// `last` is the message that no kernel grants.
fn read(answer: nfnetlink::Result<()>, trials: &Trials, last: usize) -> nfnetlink::Result<Vec<Lack>> {
    match answer {
        Err(Error::Rejected(rejection)) if !rejection.is_of_the_host() => {
            Ok(lacks(&rejection.failures, trials, last))
        }
        Err(error) => Err(error),
        Ok(()) => Err(Error::Protocol("a chain was deleted that is not there")),
    }
}

fn trials(of: IpFamily) -> (Batch, Trials) {
    let table = TableRef::new(compile::family(of), TABLE);
    let (mut batch, mut trials) = (Batch::new(), Trials::new());
    let mut note = |message, feature| {
        trials.insert(message, vec![feature]);
    };
    note(batch.add_table(&Table::new(table.family, TABLE)), family_feature(of));
    for name in SetName::all(of) {
        let set = compile::set(of, name);
        let rule_filled = set == affinity_rules::set_of_clients(of);
        note(batch.add_set(table, &set), if rule_filled { DYNAMIC_SETS } else { SETS });
    }
    note(batch.add_chain(table, &nfnetlink::Chain::regular(TRIED)), CHAINS);
    let dictionary = Dictionary::new(of);
    for name in dictionary.chains() {
        let feature = if name.hook().is_some_and(|hook| hook.nat) { NAT_CHAINS } else { CHAINS };
        note(batch.add_chain(table, &compile::chain(name)), feature);
    }
    // Alone, since rules use it together with others.
    note(batch.add_rule(table, &nfnetlink::Rule::new(TRIED, [Expr::random(2, Reg::R1)])), NUMGEN);
    for exprs in dictionary.kinds_of_expressions() {
        let mut needs: Vec<Feature> = exprs.iter().filter_map(|expr| feature_of(of, expr)).collect();
        if needs.is_empty() {
            needs.push(CHAINS);
        }
        let rule = nfnetlink::Rule::new(TRIED, exprs.iter().cloned());
        trials.insert(batch.add_rule(table, &rule), needs);
    }
    batch.delete_chain(table, NO_CHAIN);
    (batch, trials)
}

/// One lack a feature. What builds on a table or a set that is missing is not told besides.
fn lacks(failures: &[Failure], trials: &Trials, last: usize) -> Vec<Lack> {
    let mut lacks: BTreeMap<Feature, Lack> = BTreeMap::new();
    let whole = [NF_TABLES];
    let needs = |failure: &Failure| match failure.message {
        Some(message) => trials.get(&message).map_or(&whole[..], Vec::as_slice),
        None => &whole,
    };
    let mut failures: Vec<&Failure> = failures.iter().filter(|f| f.message != Some(last)).collect();
    // What needs one thing alone says for sure that it is missing.
    failures.sort_by_key(|failure| needs(failure).len());
    for failure in failures {
        let needs = needs(failure);
        let Some(feature) = needs.last().filter(|_| !needs.iter().any(|f| lacks.contains_key(f))) else {
            continue;
        };
        let answer = format!("{}: {}", failure.what, std::io::Error::from_raw_os_error(failure.errno));
        lacks.insert(*feature, Lack { feature: *feature, answer });
    }
    let roots = [NF_TABLES, NF_TABLES_IPV4, NF_TABLES_IPV6, SETS];
    match roots.iter().find_map(|root| lacks.remove(root)) {
        Some(root) => vec![root],
        None => lacks.into_values().collect(),
    }
}

macro_rules! features {
    ($($name:ident: $text:literal, $option:literal, $module:literal, $since:literal;)*) => {
        $(const $name: Feature = Feature { name: $text, option: $option, module: $module, since: $since };)*
    };
}

// Options as of Linux 6.18, net/netfilter/Kconfig and net/ipv{4,6}/netfilter/Kconfig.
features! {
    NF_TABLES: "nf_tables", "CONFIG_NF_TABLES", "nf_tables", "3.13";
    NF_TABLES_IPV4: "nf_tables for IPv4", "CONFIG_NF_TABLES_IPV4", "nf_tables", "3.13";
    NF_TABLES_IPV6: "nf_tables for IPv6", "CONFIG_NF_TABLES_IPV6", "nf_tables", "3.13";
    SETS: "sets and maps with concatenated keys", "CONFIG_NF_TABLES", "nf_tables", "4.1";
    DYNAMIC_SETS: "sets that packets fill, with timeouts", "CONFIG_NF_TABLES", "nf_tables", "4.1";
    CHAINS: "filter chains", "CONFIG_NF_TABLES", "nf_tables", "3.13";
    NAT_CHAINS: "nat chains", "CONFIG_NFT_NAT", "nft_chain_nat", "3.13";
    NAT: "destination NAT", "CONFIG_NFT_NAT", "nft_nat", "3.13";
    MASQUERADE: "masquerading", "CONFIG_NFT_MASQ", "nft_masq", "3.18";
    REJECT_V4: "reject for IPv4", "CONFIG_NFT_REJECT_IPV4", "nft_reject_ipv4", "3.14";
    REJECT_V6: "reject for IPv6", "CONFIG_NFT_REJECT_IPV6", "nft_reject_ipv6", "3.14";
    FIB_V4: "route look-ups for IPv4", "CONFIG_NFT_FIB_IPV4", "nft_fib_ipv4", "4.10";
    FIB_V6: "route look-ups for IPv6", "CONFIG_NFT_FIB_IPV6", "nft_fib_ipv6", "4.10";
    NUMGEN: "random numbers", "CONFIG_NFT_NUMGEN", "nft_numgen", "4.9";
    CONNTRACK: "connection tracking", "CONFIG_NFT_CT", "nft_ct", "3.13";
}

fn family_feature(of: IpFamily) -> Feature {
    if of == IpFamily::V4 { NF_TABLES_IPV4 } else { NF_TABLES_IPV6 }
}

/// The part of the kernel that an expression needs beside nf_tables itself.
fn feature_of(of: IpFamily, expr: &Expr) -> Option<Feature> {
    let v4 = of == IpFamily::V4;
    match expr {
        Expr::Ct(_) => Some(CONNTRACK),
        Expr::Fib(_) => Some(if v4 { FIB_V4 } else { FIB_V6 }),
        Expr::Numgen(_) => Some(NUMGEN),
        Expr::Nat(_) => Some(NAT),
        Expr::Masquerade(_) => Some(MASQUERADE),
        Expr::Reject(_) => Some(if v4 { REJECT_V4 } else { REJECT_V6 }),
        Expr::Dynset(_) => Some(DYNAMIC_SETS),
        _ => None,
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Feature { name, option, module, since } = self.feature;
        write!(f, "{name}: needs {option} (module {module}, Linux {since}); {}", self.answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nfnetlink::Rejection;
    use nix::errno::Errno;

    fn failure(message: Option<usize>) -> Failure {
        Failure { message, what: "add rule".to_owned(), errno: 2, text: None, offset: None }
    }

    fn of(features: &[Feature]) -> Trials {
        features.iter().map(|feature| vec![*feature]).enumerate().collect()
    }

    #[test]
    fn a_lack_is_named_once_and_not_what_follows_from_it() {
        let trials = of(&[NF_TABLES_IPV6, SETS, FIB_V6, FIB_V6, NUMGEN]);
        let lacking = |messages: &[usize]| -> Vec<&str> {
            let failures: Vec<Failure> = messages.iter().map(|m| failure(Some(*m))).collect();
            lacks(&failures, &trials, 5).iter().map(|lack| lack.feature.option).collect()
        };
        assert_eq!(lacking(&[5]), Vec::<&str>::new(), "the last request is meant to fail");
        assert_eq!(lacking(&[2, 3, 4, 5]), ["CONFIG_NFT_NUMGEN", "CONFIG_NFT_FIB_IPV6"]);
        assert_eq!(lacking(&[0, 1, 2, 3, 4, 5]), ["CONFIG_NF_TABLES_IPV6"]);
        let mut dnat = trials.clone();
        dnat.insert(3, vec![NUMGEN, NAT]);
        let failures = [3, 4].map(|message| failure(Some(message)));
        let told: Vec<Feature> = lacks(&failures, &dnat, 5).iter().map(|lack| lack.feature).collect();
        assert_eq!(told, [NUMGEN], "destination NAT may be there");
        let whole = lacks(&[failure(None)], &trials, 5);
        assert_eq!(
            whole[0].to_string(),
            "nf_tables: needs CONFIG_NF_TABLES (module nf_tables, Linux 3.13); add rule: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn a_host_that_is_short_of_memory_says_nothing_of_what_its_kernel_lacks() {
        let trials = of(&[NF_TABLES_IPV6, SETS]);
        let answer = |errnos: &[(usize, i32)]| {
            let failures = errnos.iter().map(|(m, errno)| Failure { errno: *errno, ..failure(Some(*m)) });
            read(Err(Error::Rejected(Rejection { failures: failures.collect() })), &trials, 2)
        };
        assert_eq!(answer(&[(1, 2), (2, 2)]).unwrap()[0].feature, SETS);
        for errno in [Errno::ENOMEM, Errno::ENOBUFS, Errno::EPERM, Errno::EAGAIN] {
            let told = answer(&[(1, errno as i32), (2, 2)]);
            assert!(matches!(told, Err(Error::Rejected(_))), "{errno}: {told:?}");
        }
    }

    #[test]
    fn every_kind_of_expression_that_the_kernel_may_lack_is_tried() {
        for family in super::super::layout::FAMILIES {
            let (_, trials) = trials(family);
            let tried: Vec<Feature> = trials.values().flatten().copied().collect();
            let (reject, fib) = match family {
                IpFamily::V4 => (REJECT_V4, FIB_V4),
                IpFamily::V6 => (REJECT_V6, FIB_V6),
            };
            for feature in [SETS, DYNAMIC_SETS, NAT_CHAINS, NAT, MASQUERADE, reject, fib, NUMGEN, CONNTRACK] {
                assert!(tried.contains(&feature), "{feature:?} is not tried for {family}");
            }
        }
    }
}
