//! The instructions that most rules are made of, by short names.

use super::{
    AddressType, Bitwise, Cmp, CmpOp, Ct, CtKey, Expr, Fib, FibResult, Immediate, Lookup, Masquerade, Meta,
    MetaKey, MetaSet, Nat, NatFlags, NatKind, Numgen, NumgenKind, Payload, PayloadBase,
};
use crate::data_types::{Family, Reg, Value, Verdict};

impl Expr {
    /// `ip saddr`.
    pub fn ip_saddr(dreg: Reg) -> Self {
        Self::network(12, 4, dreg)
    }

    /// `ip daddr`.
    pub fn ip_daddr(dreg: Reg) -> Self {
        Self::network(16, 4, dreg)
    }

    /// `ip6 saddr`.
    pub fn ip6_saddr(dreg: Reg) -> Self {
        Self::network(8, 16, dreg)
    }

    /// `ip6 daddr`.
    pub fn ip6_daddr(dreg: Reg) -> Self {
        Self::network(24, 16, dreg)
    }

    /// The source address, in a table of family `ip` or `ip6`.
    pub fn saddr(family: Family, dreg: Reg) -> Self {
        if family == Family::Ip6 { Self::ip6_saddr(dreg) } else { Self::ip_saddr(dreg) }
    }

    /// The destination address, in a table of family `ip` or `ip6`.
    pub fn daddr(family: Family, dreg: Reg) -> Self {
        if family == Family::Ip6 { Self::ip6_daddr(dreg) } else { Self::ip_daddr(dreg) }
    }

    /// `th dport`.
    pub fn th_dport(dreg: Reg) -> Self {
        Payload { base: PayloadBase::Transport, offset: 2, len: 2, dreg }.into()
    }

    /// `meta l4proto`.
    pub fn l4proto(dreg: Reg) -> Self {
        Meta { key: MetaKey::L4proto, dreg }.into()
    }

    /// `meta mark`.
    pub fn mark(dreg: Reg) -> Self {
        Meta { key: MetaKey::Mark, dreg }.into()
    }

    /// `meta mark set`.
    pub fn set_mark(sreg: Reg) -> Self {
        MetaSet { key: MetaKey::Mark, sreg }.into()
    }

    /// `meta iifname`.
    pub fn iifname(dreg: Reg) -> Self {
        Meta { key: MetaKey::IifName, dreg }.into()
    }

    /// `ct state`.
    pub fn ct_state(dreg: Reg) -> Self {
        Ct { key: CtKey::State, dreg }.into()
    }

    /// `ct status`.
    pub fn ct_status(dreg: Reg) -> Self {
        Ct { key: CtKey::Status, dreg }.into()
    }

    /// `numgen random mod MODULUS`.
    pub fn random(modulus: u32, dreg: Reg) -> Self {
        Numgen { kind: NumgenKind::Random, modulus, offset: 0, dreg }.into()
    }

    /// `numgen random mod 1 offset NUMBER`: the number, as a field of a concatenation. `nft` 1.0.6
    /// lists an [`Immediate`] there without its type, and cannot read it again.
    pub fn number(number: u32, dreg: Reg) -> Self {
        Numgen { kind: NumgenKind::Random, modulus: 1, offset: number, dreg }.into()
    }

    /// Ends the rule unless `sreg` equals the value.
    pub fn eq(sreg: Reg, value: Value) -> Self {
        Cmp { sreg, op: CmpOp::Equal, value }.into()
    }

    /// Ends the rule unless `sreg` differs from the value.
    pub fn ne(sreg: Reg, value: Value) -> Self {
        Cmp { sreg, op: CmpOp::NotEqual, value }.into()
    }

    /// `register = (register & mask) ^ xor` for 32 bits in host byte order.
    pub fn mask32(register: Reg, mask: u32, xor: u32) -> Self {
        let (mask, xor) = (Value::new().u32(mask), Value::new().u32(xor));
        Bitwise { sreg: register, dreg: register, mask, xor }.into()
    }

    /// Ends the rule unless one of `bits` is set in the 32 bits (host byte order) at
    /// `register`, which is changed.
    pub fn any_bit(register: Reg, bits: u32) -> [Self; 2] {
        [Self::mask32(register, bits, 0), Self::ne(register, Value::new().u32(0))]
    }

    /// `fib daddr type local`: ends the rule unless the destination is an address of
    /// this host. Uses register 1.
    pub fn daddr_is_local() -> [Self; 2] {
        Self::fib_is_local(Fib::DADDR)
    }

    /// `fib saddr type local`: ends the rule unless the source is an address of this
    /// host. Uses register 1.
    pub fn saddr_is_local() -> [Self; 2] {
        Self::fib_is_local(Fib::SADDR)
    }

    /// Ends the rule unless the key at `sreg` is in the set.
    pub fn in_set(set: &str, sreg: Reg) -> Self {
        Lookup { set: set.to_owned(), sreg, dreg: None, inverted: false }.into()
    }

    /// Ends the rule if the key at `sreg` is in the set.
    pub fn not_in_set(set: &str, sreg: Reg) -> Self {
        Lookup { set: set.to_owned(), sreg, dreg: None, inverted: true }.into()
    }

    /// Loads the datum of the key at `sreg`; ends the rule if there is none.
    pub fn map(map: &str, sreg: Reg, dreg: Reg) -> Self {
        Lookup { set: map.to_owned(), sreg, dreg: Some(dreg), inverted: false }.into()
    }

    /// Loads a constant.
    pub fn immediate(dreg: Reg, value: Value) -> Self {
        Immediate { dreg, value }.into()
    }

    /// `dnat to ADDRESS : PORT`, both in registers.
    pub fn dnat(family: Family, address: Reg, port: Option<Reg>) -> Self {
        Nat { kind: NatKind::Destination, family, address: Some(address), port, flags: NatFlags::NONE }.into()
    }

    /// `masquerade fully-random`.
    pub fn masquerade_fully_random() -> Self {
        Masquerade { flags: NatFlags::FULLY_RANDOM }.into()
    }

    /// `jump CHAIN`.
    pub fn jump(chain: &str) -> Self {
        Verdict::Jump(chain.to_owned()).into()
    }

    /// `goto CHAIN`.
    pub fn goto(chain: &str) -> Self {
        Verdict::Goto(chain.to_owned()).into()
    }

    fn network(offset: u32, len: u32, dreg: Reg) -> Self {
        Payload { base: PayloadBase::Network, offset, len, dreg }.into()
    }

    fn fib_is_local(flags: u32) -> [Self; 2] {
        let fib = Fib { result: FibResult::AddressType, flags, dreg: Reg::R1 };
        [fib.into(), Self::eq(Reg::R1, Value::new().u32(AddressType::LOCAL))]
    }
}
