//! Our names and rules in nf_tables' terms: sets, keys, expressions.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nfnetlink::expr::{Bitwise, Cmp, CmpOp, Counter, CtState, Reject};
use nfnetlink::{Chain, ChainKind, Expr, Family, Field, Hook, MapData, Reg, Rule, Set, TableRef, Value};
use service_model::{IpFamily, Protocol};

use super::affinity_rules;
use super::layout::{Frontend, MAX_TARGETS, SetName, Shape, TABLE, Target};
use super::ruleset::{Action, ChainName, HookPoint, Match, Rule as OurRule};
use super::source_ranges::{PrefixLength, SourceNetwork};
use super::step::Hairpin;
use crate::local::Interfaces;
use crate::nodeport_addresses::loopback;

/// `IPS_DST_NAT` (linux/netfilter/nf_conntrack_common.h)
const DESTINATION_TRANSLATED: u32 = 0x20;

pub fn family(family: IpFamily) -> Family {
    match family {
        IpFamily::V4 => Family::Ip,
        IpFamily::V6 => Family::Ip6,
    }
}

pub fn table(of: IpFamily) -> TableRef<'static> {
    TableRef::new(family(of), TABLE)
}

/// The definition of a set, as the kernel lists it.
pub fn set(of: IpFamily, name: SetName) -> Set {
    let fam = family(of);
    let key = |shape| match shape {
        Shape::Vip => vec![Field::daddr(fam), Field::L4PROTO, Field::TH_DPORT],
        Shape::NodePort => vec![Field::L4PROTO, Field::TH_DPORT],
    };
    let text = name.to_string();
    match name {
        SetName::Group(shape, _) => Set::new(&text, key(shape)),
        SetName::Endpoints(shape, _) => {
            let indexed = [key(shape), vec![Field::random(MAX_TARGETS as u32)]].concat();
            Set::map(&text, indexed, [Field::daddr(fam), Field::TH_DPORT])
        }
        SetName::Affinity(shape, _) => Set { data: Some(MapData::Verdict), ..Set::new(&text, key(shape)) },
        SetName::AffinityClients => affinity_rules::set_of_clients(of),
        SetName::ClusterIps => Set::new(&text, [Field::daddr(fam)]),
        SetName::NodeAddresses => Set::new(&text, [Field::daddr(fam)]),
        SetName::SourceRanges(_) => Set::new(&text, [key(Shape::Vip), vec![Field::saddr(fam)]].concat()),
        SetName::Hairpin => {
            Set::new(&text, [Field::saddr(fam), Field::daddr(fam), Field::L4PROTO, Field::TH_DPORT])
        }
    }
}

pub fn chain(name: ChainName) -> Chain {
    let text = name.to_string();
    match name.hook() {
        None => Chain::regular(&text),
        Some(hook) => {
            let kind = if hook.nat { ChainKind::Nat } else { ChainKind::Filter };
            let point = match hook.point {
                HookPoint::Prerouting => Hook::Prerouting,
                HookPoint::Input => Hook::Input,
                HookPoint::Forward => Hook::Forward,
                HookPoint::Output => Hook::Output,
                HookPoint::Postrouting => Hook::Postrouting,
            };
            Chain::base(&text, kind, point, hook.priority)
        }
    }
}

pub fn rule(of: IpFamily, chain: ChainName, rule: &OurRule) -> Rule {
    let mut exprs = Vec::new();
    for matched in &rule.matches {
        expressions_of_match(of, matched, &mut exprs);
    }
    expressions_of_action(of, rule.action, &mut exprs);
    Rule::new(&chain.to_string(), exprs)
}

/// The expressions of one match alone.
pub(super) fn matched(of: IpFamily, matched: &Match) -> Vec<Expr> {
    let mut exprs = Vec::new();
    expressions_of_match(of, matched, &mut exprs);
    exprs
}

/// The expressions of an action alone.
pub(super) fn action(of: IpFamily, action: Action) -> Vec<Expr> {
    let mut exprs = Vec::new();
    expressions_of_action(of, action, &mut exprs);
    exprs
}

pub fn key(frontend: Frontend) -> Value {
    match frontend {
        Frontend::Vip { ip, protocol, port } => Value::new().ip(ip).u8(protocol.number()).port(port),
        Frontend::NodePort { protocol, port, .. } => Value::new().u8(protocol.number()).port(port),
    }
}

pub fn data(target: Target) -> Value {
    Value::new().ip(target.ip).port(target.port)
}

pub fn hairpin_key(hairpin: Hairpin) -> Value {
    let Hairpin { target, protocol } = hairpin;
    Value::new().ip(target.ip).ip(target.ip).u8(protocol.number()).port(target.port)
}

pub fn source_key(frontend: Frontend, network: SourceNetwork) -> Value {
    key(frontend).ip(network.address())
}

/// The opposite of [`source_key`]; `None` where the address has more bits than the length.
pub fn parse_source(of: IpFamily, length: PrefixLength, bytes: &[u8]) -> Option<(Frontend, SourceNetwork)> {
    let (frontend, rest) = parse_key(of, Shape::Vip, bytes)?;
    let (address, _) = parse_ip(of, rest)?;
    let network = length.network_of(address);
    (network.address() == address).then_some((frontend, network))
}

/// The opposite of [`key`]; the rest of the bytes is what follows the frontend.
pub fn parse_key(of: IpFamily, shape: Shape, bytes: &[u8]) -> Option<(Frontend, &[u8])> {
    match shape {
        Shape::Vip => {
            let (ip, rest) = parse_ip(of, bytes)?;
            let (protocol, port, rest) = parse_port(rest)?;
            Some((Frontend::Vip { ip, protocol, port }, rest))
        }
        Shape::NodePort => {
            let (protocol, port, rest) = parse_port(bytes)?;
            Some((Frontend::NodePort { family: of, protocol, port }, rest))
        }
    }
}

/// The opposite of [`data`].
pub fn parse_data(of: IpFamily, bytes: &[u8]) -> Option<Target> {
    let (ip, rest) = parse_ip(of, bytes)?;
    Some(Target { ip, port: u16::from_be_bytes(rest.get(..2)?.try_into().ok()?) })
}

/// The opposite of [`hairpin_key`]; `None` where it leads from one address to another.
pub fn parse_hairpin(of: IpFamily, bytes: &[u8]) -> Option<Hairpin> {
    let (ip, rest) = parse_ip(of, bytes)?;
    let (to, rest) = parse_ip(of, rest)?;
    let (protocol, port, _) = parse_port(rest)?;
    (ip == to).then_some(Hairpin { target: Target { ip, port }, protocol })
}

pub fn parse_ip(of: IpFamily, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    match of {
        IpFamily::V4 => {
            let (ip, rest) = bytes.split_first_chunk::<4>()?;
            Some((Ipv4Addr::from(*ip).into(), rest))
        }
        IpFamily::V6 => {
            let (ip, rest) = bytes.split_first_chunk::<16>()?;
            Some((Ipv6Addr::from(*ip).into(), rest))
        }
    }
}

/// A protocol and a port, each in a word of its own.
fn parse_port(bytes: &[u8]) -> Option<(Protocol, u16, &[u8])> {
    let (words, rest) = bytes.split_at_checked(8).or_else(|| Some((bytes, &[][..])))?;
    let protocol = parse_protocol(*words.first()?)?;
    Some((protocol, u16::from_be_bytes(words.get(4..6)?.try_into().ok()?), rest))
}

/// The opposite of [`Protocol::number`].
pub fn parse_protocol(number: u8) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.number() == number)
}

/// The registers of a key that starts at the first: what is behind each field.
struct KeyRegisters {
    protocol: Reg,
    port: Reg,
    index: Reg,
}

fn registers(of: IpFamily, shape: Shape) -> KeyRegisters {
    let after = |reg: Reg, bytes| reg.after(bytes).expect("a key takes at most ten of sixteen words");
    let address = match (shape, of) {
        (Shape::NodePort, _) => 0,
        (Shape::Vip, IpFamily::V4) => 4,
        (Shape::Vip, IpFamily::V6) => 16,
    };
    let protocol = if address == 0 { Reg::R1 } else { after(Reg::R1, address) };
    let port = after(protocol, 1);
    KeyRegisters { protocol, port, index: after(port, 2) }
}

fn load_key(of: IpFamily, shape: Shape, exprs: &mut Vec<Expr>) {
    let at = registers(of, shape);
    if shape == Shape::Vip {
        exprs.push(Expr::daddr(family(of), Reg::R1));
    }
    exprs.extend([Expr::l4proto(at.protocol), Expr::th_dport(at.port)]);
}

fn expressions_of_match(of: IpFamily, matched: &Match, exprs: &mut Vec<Expr>) {
    let fam = family(of);
    match matched {
        Match::New => {
            exprs.push(Expr::ct_state(Reg::R1));
            exprs.extend(Expr::any_bit(Reg::R1, CtState::NEW));
        }
        Match::To(shape, group) => {
            load_key(of, *shape, exprs);
            exprs.push(Expr::in_set(&SetName::Group(*shape, *group).to_string(), Reg::R1));
        }
        Match::ToClusterIp => {
            exprs.push(Expr::daddr(fam, Reg::R1));
            exprs.push(Expr::in_set(&SetName::ClusterIps.to_string(), Reg::R1));
        }
        Match::ToNetwork(network) => {
            exprs.push(Expr::daddr(fam, Reg::R1));
            compare_network(*network, CmpOp::Equal, exprs);
        }
        Match::ToNodeAddress => {
            exprs.push(Expr::daddr(fam, Reg::R1));
            exprs.push(Expr::in_set(&SetName::NodeAddresses.to_string(), Reg::R1));
        }
        Match::ToThisHost => {
            exprs.extend(Expr::daddr_is_local());
            exprs.push(Expr::daddr(fam, Reg::R1));
            compare_network(loopback(of), CmpOp::NotEqual, exprs);
        }
        Match::From(network) => {
            exprs.push(Expr::saddr(fam, Reg::R1));
            compare_network(*network, CmpOp::Equal, exprs);
        }
        Match::NotFrom(network) => {
            exprs.push(Expr::saddr(fam, Reg::R1));
            compare_network(*network, CmpOp::NotEqual, exprs);
        }
        Match::ToLoopback => {
            exprs.push(Expr::daddr(fam, Reg::R1));
            compare_network(loopback(of), CmpOp::Equal, exprs);
        }
        Match::Over(protocol) => {
            exprs.push(Expr::l4proto(Reg::R1));
            exprs.push(Expr::eq(Reg::R1, Value::new().u8(protocol.number())));
        }
        Match::FromInterface(interfaces) => compare_interface(*interfaces, CmpOp::Equal, exprs),
        Match::NotFromInterface(interfaces) => compare_interface(*interfaces, CmpOp::NotEqual, exprs),
        Match::FromItsRanges(length) => {
            load_key(of, Shape::Vip, exprs);
            let source = registers(of, Shape::Vip).index;
            exprs.push(Expr::saddr(fam, source));
            exprs.extend(keep_prefix(of, length.bits(), source));
            exprs.push(Expr::in_set(&SetName::SourceRanges(*length).to_string(), Reg::R1));
        }
        Match::FromThisHost => exprs.extend(Expr::saddr_is_local()),
        Match::Marked(mark) => {
            exprs.push(Expr::mark(Reg::R1));
            exprs.extend(Expr::any_bit(Reg::R1, mark.value()));
        }
        Match::Hairpin => {
            exprs.push(Expr::ct_status(Reg::R1));
            exprs.extend(Expr::any_bit(Reg::R1, DESTINATION_TRANSLATED));
            let address = if of == IpFamily::V4 { 4 } else { 16 };
            let after =
                |reg: Reg, bytes| reg.after(bytes).expect("the key takes at most ten of sixteen words");
            let (destination, protocol) = (after(Reg::R1, address), after(Reg::R1, 2 * address));
            exprs.extend([Expr::saddr(fam, Reg::R1), Expr::daddr(fam, destination)]);
            exprs.extend([Expr::l4proto(protocol), Expr::th_dport(after(protocol, 1))]);
            exprs.push(Expr::in_set(&SetName::Hairpin.to_string(), Reg::R1));
        }
    }
}

/// The whole name with its padding, or just the bytes of its beginning: so `nft` writes and lists
/// `iifname "veth*"`. What this host sends has the empty name.
fn compare_interface(interfaces: Interfaces, op: CmpOp, exprs: &mut Vec<Expr>) {
    exprs.push(Expr::iifname(Reg::R1));
    let value = match &interfaces {
        Interfaces::Named(name) => Value::from_bytes(name.padded()),
        Interfaces::Beginning(prefix) => Value::from_bytes(prefix.as_bytes()),
    };
    exprs.push(Cmp { sreg: Reg::R1, op, value: value.expect("at most 16 bytes") }.into());
}

/// Masks the address in the first register and compares it.
fn compare_network(network: IpNet, op: CmpOp, exprs: &mut Vec<Expr>) {
    exprs.extend(keep_prefix(IpFamily::of(network.addr()), network.prefix_len(), Reg::R1));
    exprs.push(Cmp { sreg: Reg::R1, op, value: Value::new().ip(network.network()) }.into());
}

/// Clears all but the first bits of the address in the register; nothing for all bits.
fn keep_prefix(of: IpFamily, bits: u8, reg: Reg) -> Option<Expr> {
    let cleared = |width: u32| width.checked_sub(bits.into()).filter(|bits| *bits > 0);
    let (mask, xor) = match of {
        IpFamily::V4 => {
            let mask = u32::MAX.checked_shl(cleared(u32::BITS)?).unwrap_or(0);
            (Value::new().ipv4(mask.into()), Value::new().ipv4(Ipv4Addr::UNSPECIFIED))
        }
        IpFamily::V6 => {
            let mask = u128::MAX.checked_shl(cleared(u128::BITS)?).unwrap_or(0);
            (Value::new().ipv6(mask.into()), Value::new().ipv6(Ipv6Addr::UNSPECIFIED))
        }
    };
    Some(Bitwise { sreg: reg, dreg: reg, mask, xor }.into())
}

fn expressions_of_action(of: IpFamily, action: Action, exprs: &mut Vec<Expr>) {
    let fam = family(of);
    match action {
        Action::Goto(chain) => exprs.push(Expr::goto(&chain.to_string())),
        Action::Accept => exprs.push(nfnetlink::Verdict::Accept.into()),
        Action::Mark(mark) => {
            let set_bit = Expr::mask32(Reg::R1, !mark.value(), mark.value());
            exprs.extend([Expr::mark(Reg::R1), set_bit, Expr::set_mark(Reg::R1)]);
        }
        Action::Count => exprs.push(Counter::default().into()),
        Action::Dnat { shape, pool, modulus } => {
            let at = registers(of, shape);
            load_key(of, shape, exprs);
            exprs.push(Expr::random(modulus, at.index));
            exprs.push(Expr::map(&SetName::Endpoints(shape, pool).to_string(), Reg::R1, Reg::R1));
            let address = if of == IpFamily::V4 { 4 } else { 16 };
            exprs.push(Expr::dnat(fam, Reg::R1, Reg::R1.after(address)));
        }
        Action::Keep { shape, pool } => {
            load_key(of, shape, exprs);
            exprs.push(Expr::map(&SetName::Affinity(shape, pool).to_string(), Reg::R1, Reg::VERDICT));
        }
        Action::Masquerade => exprs.push(Expr::masquerade_fully_random()),
        Action::UnmarkAndMasquerade(mark) => {
            let flip_bit = Expr::mask32(Reg::R1, !0, mark.value());
            exprs.extend([Expr::mark(Reg::R1), flip_bit, Expr::set_mark(Reg::R1)]);
            exprs.push(Expr::masquerade_fully_random());
        }
        Action::Reset => exprs.push(Reject::TcpReset.into()),
        Action::Reject => exprs.push(Reject::port_unreachable(fam).into()),
        Action::Drop => exprs.push(nfnetlink::Verdict::Drop.into()),
    }
}
