//! Chains.

use crate::data_types::Family;
use crate::table::Listed;
use crate::uapi::{
    NF_ACCEPT, NF_DROP, NFT_CHAIN_BINDING, NFTA_CHAIN_FLAGS, NFTA_CHAIN_HANDLE, NFTA_CHAIN_HOOK,
    NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_CHAIN_TABLE, NFTA_CHAIN_TYPE, NFTA_CHAIN_USERDATA,
    NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY,
};
use crate::userdata;
use crate::wire::{Attrs, Message, Writer, be32, be64, name};

/// What a base chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Judge packets.
    Filter,
    /// Translate addresses: sees the first packet of each connection.
    Nat,
    /// Reroute packets of this host after a change.
    Route,
}

impl ChainKind {
    const NAMES: [(Self, &'static str); 3] =
        [(Self::Filter, "filter"), (Self::Nat, "nat"), (Self::Route, "route")];

    fn name(self) -> &'static str {
        Self::NAMES.iter().find(|entry| entry.0 == self).map_or("", |entry| entry.1)
    }

    fn from_name(text: &str) -> Option<Self> {
        Self::NAMES.iter().find(|entry| entry.1 == text).map(|entry| entry.0)
    }
}

/// Where packets enter a base chain of family `ip`, `ip6` or `inet` (`NF_INET_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

impl Hook {
    const ALL: [Self; 5] = [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting];

    fn number(self) -> u32 {
        self as u32
    }

    fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }
}

/// What happens to packets that reach the end of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// They go on.
    Accept,
    /// They are discarded.
    Drop,
}

/// What makes a chain see packets. None of it can be changed later but the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChain {
    /// What it may do.
    pub kind: ChainKind,
    /// Where.
    pub hook: Hook,
    /// In which order among the chains of a hook, lowest first.
    pub priority: i32,
    /// The end of the chain.
    pub policy: Policy,
}

/// A chain of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name, unique within the table.
    pub name: String,
    /// Where packets enter; `None` for a chain that is only jumped to.
    pub base: Option<BaseChain>,
    /// Shown by `nft`.
    pub comment: Option<String>,
    /// It is part of the rule that jumps to it (`jump { … }`), and goes with it. Only read.
    pub anonymous: bool,
}

impl Chain {
    /// A chain to jump to.
    pub fn regular(name: &str) -> Self {
        Self { name: name.to_owned(), base: None, comment: None, anonymous: false }
    }

    /// A chain that sees packets, with policy accept.
    pub fn base(name: &str, kind: ChainKind, hook: Hook, priority: i32) -> Self {
        let base = BaseChain { kind, hook, priority, policy: Policy::Accept };
        Self { base: Some(base), ..Self::regular(name) }
    }

    pub(crate) fn encode(&self, table: &str, w: &mut Writer) {
        w.name(NFTA_CHAIN_TABLE, table);
        w.name(NFTA_CHAIN_NAME, &self.name);
        if let Some(base) = self.base {
            w.name(NFTA_CHAIN_TYPE, base.kind.name());
            w.u32(NFTA_CHAIN_POLICY, if base.policy == Policy::Drop { NF_DROP } else { NF_ACCEPT } as u32);
            w.nest(NFTA_CHAIN_HOOK, |w| {
                w.u32(NFTA_HOOK_HOOKNUM, base.hook.number());
                w.attr(NFTA_HOOK_PRIORITY, &base.priority.to_be_bytes());
            });
        }
        if let Some(comment) = &self.comment {
            userdata::encode_comment(NFTA_CHAIN_USERDATA, comment, w);
        }
    }

    /// Base chains of hooks and kinds that this library does not write (devices,
    /// bridges) read as none.
    pub(crate) fn decode(message: &Message<'_>) -> Option<Listed<Self>> {
        let (mut chain, mut table, mut handle) = (Self::regular(""), "", 0);
        let (mut kind_of, mut hook, mut policy) = (None, None, Policy::Accept);
        for (kind, value) in message.attrs() {
            match kind {
                NFTA_CHAIN_TABLE => table = name(value)?,
                NFTA_CHAIN_NAME => chain.name = name(value)?.to_owned(),
                NFTA_CHAIN_HANDLE => handle = be64(value)?,
                NFTA_CHAIN_TYPE => kind_of = Some(ChainKind::from_name(name(value)?)?),
                NFTA_CHAIN_HOOK => hook = Some(decode_hook(value)?),
                NFTA_CHAIN_POLICY if be32(value)? == NF_DROP as u32 => policy = Policy::Drop,
                NFTA_CHAIN_FLAGS => chain.anonymous = be32(value)? & NFT_CHAIN_BINDING != 0,
                NFTA_CHAIN_USERDATA => chain.comment = userdata::decode_comment(value).map(str::to_owned),
                _ => {}
            }
        }
        if let Some((hook, priority)) = hook {
            chain.base = Some(BaseChain { kind: kind_of?, hook, priority, policy });
        }
        let family = Family::from_number(message.family())?;
        Some(Listed { family, table: table.to_owned(), handle, item: chain })
    }
}

fn decode_hook(payload: &[u8]) -> Option<(Hook, i32)> {
    let (mut hook, mut priority) = (None, None);
    for (kind, value) in Attrs::new(payload) {
        match kind {
            NFTA_HOOK_HOOKNUM => hook = Hook::from_number(be32(value)?),
            NFTA_HOOK_PRIORITY => priority = be32(value).map(|number| number as i32),
            _ => {}
        }
    }
    Some((hook?, priority?))
}
