//! Rules.

use crate::data_types::Family;
use crate::expr::{self, Expr};
use crate::table::Listed;
use crate::uapi::{
    NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_HANDLE, NFTA_RULE_TABLE, NFTA_RULE_USERDATA,
};
use crate::userdata;
use crate::wire::{Message, Writer, be64, name};

/// A rule of a chain: instructions that run until one ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Name of its chain.
    pub chain: String,
    /// What it does. The kernel takes at most 128 expressions.
    pub exprs: Vec<Expr>,
    /// Shown by `nft`.
    pub comment: Option<String>,
}

impl Rule {
    /// A rule without a comment.
    pub fn new(chain: &str, exprs: impl IntoIterator<Item = Expr>) -> Self {
        Self { chain: chain.to_owned(), exprs: exprs.into_iter().collect(), comment: None }
    }

    /// The rule with a comment.
    #[must_use]
    pub fn comment(mut self, comment: &str) -> Self {
        self.comment = Some(comment.to_owned());
        self
    }

    pub(crate) fn encode(&self, table: &str, w: &mut Writer) {
        w.name(NFTA_RULE_TABLE, table);
        w.name(NFTA_RULE_CHAIN, &self.chain);
        expr::encode_list(NFTA_RULE_EXPRESSIONS, &self.exprs, w);
        if let Some(comment) = &self.comment {
            userdata::encode_comment(NFTA_RULE_USERDATA, comment, w);
        }
    }

    pub(crate) fn decode(message: &Message<'_>) -> Option<Listed<Self>> {
        let (mut rule, mut table, mut handle) = (Self::new("", []), "", 0);
        for (kind, value) in message.attrs() {
            match kind {
                NFTA_RULE_TABLE => table = name(value)?,
                NFTA_RULE_CHAIN => rule.chain = name(value)?.to_owned(),
                NFTA_RULE_HANDLE => handle = be64(value)?,
                NFTA_RULE_EXPRESSIONS => rule.exprs = expr::decode_list(value),
                NFTA_RULE_USERDATA => rule.comment = userdata::decode_comment(value).map(str::to_owned),
                _ => {}
            }
        }
        let family = Family::from_number(message.family())?;
        Some(Listed { family, table: table.to_owned(), handle, item: rule })
    }
}
