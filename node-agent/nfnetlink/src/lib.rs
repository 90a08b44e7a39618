//! nf_tables over netlink: batches out, dumps and notifications in, without the `nft`
//! program; what conntrack needs of the same ([`conntrack`]); and an end to what proxies over IPVS
//! leave ([`ipvs`]).
//!
//! ```text
//! Batch ──commit──▶ Socket ──▶ kernel      all changes or none; errors name the change
//!   Table Chain Rule(Expr…) Set Element
//!   Listed<…>  ◀──dump── Socket ◀── kernel what was written compares equal
//! Event ◀──receive── Monitor ◀── kernel    who changed what
//! ```
//!
//! Rules and sets are written as `nft` 1.0.6 writes them, comments and `typeof`
//! included, so that `nft list ruleset` shows what is in force.
//!
//! ```no_run
//! use nfnetlink::{Batch, Chain, ChainKind, Element, Expr, Family, Field, Hook, Reg, Rule, Set, Socket, Table, Value};
//!
//! # fn main() -> nfnetlink::Result<()> {
//! let table = Table::new(Family::Ip, "example");
//! let mut batch = Batch::new();
//! batch.add_table(&table);
//! batch.add_set(table.id(), &Set::new("blocked", [Field::IP_SADDR]));
//! batch.add_chain(table.id(), &Chain::base("input", ChainKind::Filter, Hook::Input, 0));
//! let drop_blocked = [Expr::saddr(Family::Ip, Reg::R1), Expr::in_set("blocked", Reg::R1), nfnetlink::Verdict::Drop.into()];
//! batch.add_rule(table.id(), &Rule::new("input", drop_blocked));
//! batch.add_elements(table.id(), "blocked").push(&Element::key(Value::new().ipv4([192, 0, 2, 1].into()).bytes()));
//! Socket::open()?.commit(&batch)
//! # }
//! ```

mod batch;
mod chain;
pub mod conntrack;
mod data_types;
mod dump;
mod element;
mod error;
pub mod expr;
mod field;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod ipvs;
mod monitor;
mod rule;
mod set;
mod socket;
mod table;
mod uapi;
mod userdata;
mod wire;
mod witness;

pub use batch::{Batch, Elements};
pub use chain::{BaseChain, Chain, ChainKind, Hook, Policy};
pub use data_types::{Family, Reg, Value, Verdict};
pub use dump::{Dumped, Generation};
pub use element::{Element, ElementData};
pub use error::{Error, Failure, Rejection, Result};
pub use expr::Expr;
pub use field::{DataType, Field, MapData, Origin};
pub use monitor::{Change, Event, Monitor, ObjectKind};
pub use rule::Rule;
pub use set::Set;
pub use socket::Socket;
pub use table::{Listed, Table, TableRef};
pub use userdata::COMMENT_MAX;
