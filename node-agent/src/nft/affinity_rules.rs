//! The chains of session affinity in nf_tables' terms, and back.

use std::net::IpAddr;
use std::time::Duration;

use nfnetlink::expr::{Dynset, DynsetOp};
use nfnetlink::{Expr, Field, Reg, Rule, Set, Value};
use service_model::IpFamily;

use super::affinity::{AffinityChain, AffinityKey, NumberedTarget};
use super::compile;
use super::layout::{SetName, Target};

/// The most clients of a family that are remembered, a client of two Service ports being two unless
/// those know their pods by the same numbers. What comes then is spread as if there were no affinity.
/// It bounds what forged addresses can take: some 100 MB of the kernel's memory.
const MOST_CLIENTS: u32 = 1 << 20;
/// How often those that expired make room. The kernel's own choice, each second, would walk the whole
/// set each second.
const CLEARED_EVERY: Duration = Duration::from_secs(10);

/// `(client . number)`, filled by packets.
pub fn set_of_clients(of: IpFamily) -> Set {
    let name = SetName::AffinityClients.to_string();
    Set {
        flags: Set::DYNAMIC | Set::TIMEOUT,
        size: Some(MOST_CLIENTS),
        gc_interval: Some(CLEARED_EVERY),
        ..Set::new(&name, [Field::saddr(compile::family(of)), Field::random(u32::MAX)])
    }
}

/// The key of a client in that set.
pub fn client_key(client: IpAddr, number: u32) -> Value {
    Value::new().ip(client).u32(number)
}

/// First the clients that are known, then a draw for the others: the nth of N endpoints has one
/// chance in N - n, so that all have the same.
pub fn rules(key: &AffinityKey, chain: &AffinityChain) -> Vec<Rule> {
    let (of, name) = (key.family, key.to_string());
    let known = chain.endpoints.iter().map(|endpoint| {
        let mut exprs = client(of, endpoint.number);
        exprs.push(Expr::in_set(&SetName::AffinityClients.to_string(), Reg::R1));
        exprs
    });
    let drawn = (1..=chain.endpoints.len() as u32).rev().map(|left| match left {
        1 => Vec::new(),
        _ => vec![Expr::random(left, Reg::R1), Expr::eq(Reg::R1, Value::new().u32(0))],
    });
    let endpoints = chain.endpoints.iter().chain(&chain.endpoints);
    known
        .chain(drawn)
        .zip(endpoints)
        .map(|(mut exprs, endpoint)| {
            keep(of, chain, endpoint, &mut exprs);
            Rule::new(&name, exprs)
        })
        .collect()
}

/// The chain that has these rules, which are all of it; `None` if none of ours has.
pub fn parse(key: &AffinityKey, rules: &[Rule]) -> Option<AffinityChain> {
    let mut chain = AffinityChain::empty();
    for rule in &rules[..rules.len() / 2] {
        let (mut number, mut values) = (None, Vec::new());
        for expr in &rule.exprs {
            match expr {
                Expr::Numgen(numgen) => number = Some(numgen.offset),
                Expr::Dynset(dynset) => chain.timeout = u32::try_from(dynset.timeout.as_secs()).ok()?,
                Expr::Cmp(cmp) => {
                    chain.protocol = compile::parse_protocol(*cmp.value.bytes().first()?)?;
                }
                Expr::Immediate(immediate) => values.push(immediate.value),
                _ => {}
            }
        }
        let [ip, port] = values.as_slice() else { return None };
        let (ip, []) = compile::parse_ip(key.family, ip.bytes())? else { return None };
        let target = Target { ip, port: u16::from_be_bytes(port.bytes().try_into().ok()?) };
        chain.endpoints.push(NumberedTarget { target, number: number? });
    }
    self::rules(key, &chain).iter().eq(rules).then_some(chain)
}

/// Loads `(client . number)` from the first register on.
fn client(of: IpFamily, number: u32) -> Vec<Expr> {
    let bytes = if of == IpFamily::V4 { 4 } else { 16 };
    let after = Reg::R1.after(bytes).expect("the key takes at most five of sixteen words");
    vec![Expr::saddr(compile::family(of), Reg::R1), Expr::number(number, after)]
}

/// Remembers the client, or that it was here again, and sends it on. A set that is full ends the rule.
fn keep(of: IpFamily, chain: &AffinityChain, endpoint: &NumberedTarget, exprs: &mut Vec<Expr>) {
    let NumberedTarget { target, number } = endpoint;
    // `nft` takes a port to translate to only where the protocol is known.
    exprs.extend([Expr::l4proto(Reg::R1), Expr::eq(Reg::R1, Value::new().u8(chain.protocol.number()))]);
    exprs.extend(client(of, *number));
    exprs.push(
        Dynset {
            set: SetName::AffinityClients.to_string(),
            op: DynsetOp::Update,
            sreg_key: Reg::R1,
            sreg_data: None,
            timeout: Duration::from_secs(chain.timeout.into()),
        }
        .into(),
    );
    exprs.push(Expr::immediate(Reg::R1, Value::new().ip(target.ip)));
    exprs.push(Expr::immediate(Reg::R2, Value::new().port(target.port)));
    exprs.push(Expr::dnat(compile::family(of), Reg::R1, Some(Reg::R2)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::layout::Pool;
    use service_model::Protocol;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn rules_are_read_back_unless_somebody_changed_them() {
        for (family, ip) in [
            (IpFamily::V4, IpAddr::from(Ipv4Addr::new(10, 244, 1, 5))),
            (IpFamily::V6, Ipv6Addr::LOCALHOST.into()),
        ] {
            let key = AffinityKey { family, pool: Pool::Local, name: "shop/web/http/udp".into() };
            for count in [0, 1, 2, 3, 17] {
                let endpoint = |number: u16| NumberedTarget {
                    target: Target { ip, port: 8000 + number },
                    number: u32::MAX - u32::from(number),
                };
                let chain = AffinityChain {
                    protocol: if count == 0 { Protocol::Tcp } else { Protocol::Udp },
                    timeout: count.into(),
                    endpoints: (0..count).map(endpoint).collect(),
                };
                let mut rules = rules(&key, &chain);
                assert_eq!(rules.len(), 2 * usize::from(count));
                assert_eq!(parse(&key, &rules), Some(chain));
                rules.insert(
                    0,
                    Rule::new("x", [0; 2].map(|_| Expr::immediate(Reg::R1, Value::new().field(&[0; 64])))),
                );
                assert_eq!(parse(&key, &rules), None);
            }
        }
    }
}
