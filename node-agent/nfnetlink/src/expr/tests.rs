use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::data_types::{Family, Reg, Value};
use crate::uapi::NFTA_RULE_EXPRESSIONS;

fn reg() -> impl Strategy<Value = Reg> {
    (0_u8..16).prop_map(|index| Reg::word(index).unwrap())
}

fn value() -> impl Strategy<Value = Value> {
    proptest::collection::vec(any::<u8>(), 1..=64).prop_map(|bytes| Value::from_bytes(&bytes).unwrap())
}

fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9/_.-]{0,60}"
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Continue),
        Just(Verdict::Break),
        Just(Verdict::Return),
        name().prop_map(Verdict::Jump),
        name().prop_map(Verdict::Goto),
    ]
}

fn flags() -> impl Strategy<Value = NatFlags> {
    let flags = [NatFlags::NONE, NatFlags::RANDOM, NatFlags::PERSISTENT, NatFlags::FULLY_RANDOM];
    (prop::sample::select(flags.to_vec()), prop::sample::select(flags.to_vec())).prop_map(|(a, b)| a.with(b))
}

fn reject() -> impl Strategy<Value = Reject> {
    prop_oneof![
        any::<u8>().prop_map(Reject::Icmp),
        prop::sample::select(vec![
            IcmpxCode::NoRoute,
            IcmpxCode::PortUnreachable,
            IcmpxCode::AdminProhibited
        ])
        .prop_map(Reject::Icmpx),
        Just(Reject::TcpReset),
    ]
}

fn loads() -> impl Strategy<Value = Expr> {
    let bases = vec![PayloadBase::Link, PayloadBase::Network, PayloadBase::Transport];
    let keys = vec![MetaKey::Mark, MetaKey::IifName, MetaKey::OifName, MetaKey::Nfproto, MetaKey::L4proto];
    let ct_keys = vec![CtKey::State, CtKey::Status, CtKey::Direction, CtKey::Mark];
    let results = vec![FibResult::AddressType, FibResult::Oif, FibResult::OifName];
    let kinds = vec![NumgenKind::Incremental, NumgenKind::Random];
    prop_oneof![
        (prop::sample::select(bases), any::<u32>(), any::<u32>(), reg())
            .prop_map(|(base, offset, len, dreg)| Payload { base, offset, len, dreg }.into()),
        (prop::sample::select(keys), reg()).prop_map(|(key, dreg)| Meta { key, dreg }.into()),
        (prop::sample::select(vec![MetaKey::Mark, MetaKey::PktType]), reg())
            .prop_map(|(key, sreg)| MetaSet { key, sreg }.into()),
        (prop::sample::select(ct_keys), reg()).prop_map(|(key, dreg)| Ct { key, dreg }.into()),
        (prop::sample::select(results), any::<u32>(), reg()).prop_map(|(result, flags, dreg)| Fib {
            result,
            flags,
            dreg
        }
        .into()),
        (prop::sample::select(kinds), any::<u32>(), any::<u32>(), reg())
            .prop_map(|(kind, modulus, offset, dreg)| Numgen { kind, modulus, offset, dreg }.into()),
    ]
}

fn operations() -> impl Strategy<Value = Expr> {
    let ops = vec![CmpOp::Equal, CmpOp::NotEqual, CmpOp::Less, CmpOp::LessOrEqual, CmpOp::Greater];
    let dynset_ops = vec![DynsetOp::Add, DynsetOp::Update, DynsetOp::Delete];
    let sides = vec![NatKind::Source, NatKind::Destination];
    let families = vec![Family::Ip, Family::Ip6];
    prop_oneof![
        (reg(), prop::sample::select(ops), value())
            .prop_map(|(sreg, op, value)| Cmp { sreg, op, value }.into()),
        (reg(), reg(), value()).prop_map(|(sreg, dreg, mask)| Bitwise { sreg, dreg, mask, xor: mask }.into()),
        (reg(), value()).prop_map(|(dreg, value)| Immediate { dreg, value }.into()),
        verdict().prop_map(Expr::from),
        (name(), reg(), prop::option::of(prop_oneof![reg(), Just(Reg::VERDICT)]), any::<bool>())
            .prop_map(|(set, sreg, dreg, inverted)| Lookup { set, sreg, dreg, inverted }.into()),
        (
            prop::sample::select(sides),
            prop::sample::select(families),
            prop::option::of(reg()),
            prop::option::of(reg()),
            flags()
        )
            .prop_map(|(kind, family, address, port, flags)| Nat {
                kind,
                family,
                address,
                port,
                flags
            }
            .into()),
        flags().prop_map(|flags| Masquerade { flags }.into()),
        reject().prop_map(Expr::from),
        (name(), prop::sample::select(dynset_ops), reg(), prop::option::of(reg()), any::<u32>()).prop_map(
            |(set, op, sreg_key, sreg_data, millis)| {
                let timeout = Duration::from_millis(millis.into());
                Dynset { set, op, sreg_key, sreg_data, timeout }.into()
            }
        ),
        (any::<u64>(), any::<u64>()).prop_map(|(packets, bytes)| Counter { packets, bytes }.into()),
    ]
}

fn expr() -> impl Strategy<Value = Expr> {
    prop_oneof![loads(), operations()]
}

fn encoded(exprs: &[Expr]) -> (Vec<u8>, Option<&'static str>) {
    let mut w = Writer::default();
    encode_list(NFTA_RULE_EXPRESSIONS, exprs, &mut w);
    let fault = w.take_fault();
    (w.buffer.split_off(4), fault)
}

proptest! {
    #[test]
    fn every_expression_reads_back_as_it_was_written(exprs in proptest::collection::vec(expr(), 0..6)) {
        let (bytes, fault) = encoded(&exprs);
        prop_assert_eq!(fault, None);
        prop_assert_eq!(decode_list(&bytes), exprs);
    }

    #[test]
    fn arbitrary_bytes_read_as_something(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        decode_list(&bytes);
    }

    /// Nearly right is harder than random: it reaches the innermost decoders.
    #[test]
    fn damaged_expressions_read_as_something(
        exprs in proptest::collection::vec(expr(), 1..4),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        keep in any::<prop::sample::Index>(),
    ) {
        let (mut bytes, _) = encoded(&exprs);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(keep.index(bytes.len()) + 1);
        decode_list(&bytes);
    }
}

#[test]
fn a_range_that_the_kernel_lists_for_a_single_address_is_no_range() {
    // As a dump shows `dnat to`: maxima equal to the minima, and derived flags.
    let mut w = Writer::default();
    for (kind, value) in [(1, 1), (2, 2), (3, 1), (4, 1), (5, 9), (6, 9), (7, 3)] {
        w.u32(kind, value);
    }
    let nat = Nat {
        kind: NatKind::Destination,
        family: Family::Ip,
        address: Some(Reg::R1),
        port: Some(Reg::R32_01),
        flags: NatFlags::NONE,
    };
    assert_eq!(Nat::decode(&w.buffer), Some(nat));
    w.u32(4, 2);
    assert_eq!(Nat::decode(&w.buffer), None, "a true range is not ours");
}

#[test]
fn an_unknown_expression_keeps_its_name_and_cannot_be_written() {
    let mut w = Writer::default();
    w.nest(NFTA_LIST_ELEM, |w| w.name(NFTA_EXPR_NAME, "quota"));
    let exprs = decode_list(&w.buffer);
    assert_eq!(exprs, [Expr::Other { name: "quota".to_owned() }]);
    assert!(encoded(&exprs).1.is_some());
}
