//! Expressions: the instructions of a rule, one file a kind.
//!
//! Each kind writes exactly the attributes that `nft` 1.0.6 writes for it, so that
//! `nft list ruleset` can print the rule, and reads what the kernel lists back into
//! the same value: what was written compares equal to what a dump returns.

mod bitwise;
mod cmp;
mod counter;
mod ct;
mod dynset;
mod fib;
mod immediate;
mod lookup;
mod meta;
mod nat;
mod numgen;
mod payload;
mod reject;
mod shorthand;

pub use bitwise::Bitwise;
pub use cmp::{Cmp, CmpOp};
pub use counter::Counter;
pub use ct::{Ct, CtKey, CtState, CtStatus};
pub use dynset::{Dynset, DynsetOp};
pub use fib::{AddressType, Fib, FibResult};
pub use immediate::Immediate;
pub use lookup::Lookup;
pub use meta::{Meta, MetaKey, MetaSet};
pub use nat::{Masquerade, Nat, NatFlags, NatKind};
pub use numgen::{Numgen, NumgenKind};
pub use payload::{Payload, PayloadBase};
pub use reject::{IcmpxCode, Reject};

use crate::data_types::Verdict;
use crate::uapi::{NFTA_EXPR_DATA, NFTA_EXPR_NAME, NFTA_LIST_ELEM};
use crate::wire::{Attrs, Writer, name};

/// The wire form of one kind of expression.
pub(crate) trait Wire: Sized {
    /// The kernel's name of the kind.
    const NAME: &'static str;
    /// Writes the attributes inside `NFTA_EXPR_DATA`.
    fn encode(&self, w: &mut Writer);
    /// Reads them; `None` for what this type cannot express.
    fn decode(data: &[u8]) -> Option<Self>;
}

/// One instruction of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expr {
    /// Load bytes of the packet.
    Payload(Payload),
    /// Load a property of the packet.
    Meta(Meta),
    /// Set a property of the packet.
    MetaSet(MetaSet),
    /// Load a property of the packet's connection.
    Ct(Ct),
    /// Ask the routing tables.
    Fib(Fib),
    /// Compare a register, and end the rule unless it holds.
    Cmp(Cmp),
    /// Mask and flip bits of a register.
    Bitwise(Bitwise),
    /// Load a constant.
    Immediate(Immediate),
    /// End the rule with a verdict.
    Verdict(Verdict),
    /// Look a key up in a set or map.
    Lookup(Lookup),
    /// Load a number, random or counting.
    Numgen(Numgen),
    /// Translate an address.
    Nat(Nat),
    /// Translate the source to the outgoing interface's address.
    Masquerade(Masquerade),
    /// Refuse with an ICMP error or a TCP reset.
    Reject(Reject),
    /// Add the packet's key to a set.
    Dynset(Dynset),
    /// Count packets.
    Counter(Counter),
    /// Something that this library does not write. Met only in dumps; in a batch it is
    /// an error.
    Other {
        /// The kernel's name of the kind.
        name: String,
    },
}

macro_rules! kinds {
    ($($variant:ident($kind:ty)),* $(,)?) => {
        $(impl From<$kind> for Expr {
            fn from(expr: $kind) -> Self {
                Self::$variant(expr)
            }
        })*

        fn encode_data(expr: &Expr, w: &mut Writer) {
            match expr {
                $(Expr::$variant(expr) => named(expr, w),)*
                Expr::Other { .. } => w.set_fault("an expression read from a dump as unknown cannot be written"),
            }
        }
    };
}

kinds! {
    Payload(Payload), Meta(Meta), MetaSet(MetaSet), Ct(Ct), Fib(Fib), Cmp(Cmp), Bitwise(Bitwise),
    Immediate(Immediate), Verdict(Verdict), Lookup(Lookup), Numgen(Numgen), Nat(Nat),
    Masquerade(Masquerade), Reject(Reject), Dynset(Dynset), Counter(Counter),
}

fn named<T: Wire>(expr: &T, w: &mut Writer) {
    w.name(NFTA_EXPR_NAME, T::NAME);
    w.nest(NFTA_EXPR_DATA, |w| expr.encode(w));
}

/// Writes the attribute `kind` with a list of expressions inside.
pub(crate) fn encode_list(kind: u16, exprs: &[Expr], w: &mut Writer) {
    w.nest(kind, |w| {
        for expr in exprs {
            w.nest(NFTA_LIST_ELEM, |w| encode_data(expr, w));
        }
    });
}

/// Reads a list of expressions.
pub(crate) fn decode_list(payload: &[u8]) -> Vec<Expr> {
    Attrs::new(payload)
        .filter(|(kind, _)| *kind == NFTA_LIST_ELEM)
        .map(|(_, element)| decode(element))
        .collect()
}

fn decode(element: &[u8]) -> Expr {
    let (mut kind, mut data) = ("", &[][..]);
    for (attr, value) in Attrs::new(element) {
        match attr {
            NFTA_EXPR_NAME => kind = name(value).unwrap_or_default(),
            NFTA_EXPR_DATA => data = value,
            _ => {}
        }
    }
    let known = match kind {
        Payload::NAME => Payload::decode(data).map(Expr::Payload),
        Meta::NAME => Meta::decode(data).map(Expr::Meta).or_else(|| MetaSet::decode(data).map(Expr::MetaSet)),
        Ct::NAME => Ct::decode(data).map(Expr::Ct),
        Fib::NAME => Fib::decode(data).map(Expr::Fib),
        Cmp::NAME => Cmp::decode(data).map(Expr::Cmp),
        Bitwise::NAME => Bitwise::decode(data).map(Expr::Bitwise),
        Immediate::NAME => Immediate::decode(data)
            .map(Expr::Immediate)
            .or_else(|| Verdict::decode_expr(data).map(Expr::Verdict)),
        Lookup::NAME => Lookup::decode(data).map(Expr::Lookup),
        Numgen::NAME => Numgen::decode(data).map(Expr::Numgen),
        Nat::NAME => Nat::decode(data).map(Expr::Nat),
        Masquerade::NAME => Masquerade::decode(data).map(Expr::Masquerade),
        Reject::NAME => Reject::decode(data).map(Expr::Reject),
        Dynset::NAME => Dynset::decode(data).map(Expr::Dynset),
        Counter::NAME => Counter::decode(data).map(Expr::Counter),
        _ => None,
    };
    known.unwrap_or_else(|| Expr::Other { name: kind.to_owned() })
}

/// The kernel's number of a variant, by a table that lists them all.
fn number<T: Copy + PartialEq>(table: &[(T, u32)], wanted: T) -> u32 {
    let entry = table.iter().find(|entry| entry.0 == wanted);
    entry.expect("the table lists every variant").1
}

/// The variant with the kernel's number.
fn named_number<T: Copy>(table: &[(T, u32)], number: u32) -> Option<T> {
    table.iter().find(|entry| entry.1 == number).map(|entry| entry.0)
}

#[cfg(test)]
mod tests;
