//! Reading the ruleset.
//!
//! The kernel lists in several datagrams, and the ruleset may change in between. A listing counts if
//! what it lists did not ([`crate::witness`] says how that is known), and is begun anew otherwise: so
//! what is returned was in force at one moment.

use std::hash::{BuildHasher, RandomState};

use crate::chain::Chain;
use crate::data_types::Family;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::rule::Rule;
use crate::set::Set;
use crate::socket::{Answer, Socket, receive, send};
use crate::table::{Listed, Table, TableRef};
use crate::uapi::*;
use crate::wire::{Attrs, Message, Messages, Writer, be32, lossy_name, read_u32};
use crate::witness::Scope;

/// Sequence numbers of questions have this bit, those of batches have not.
pub(crate) const FIRST_SEQUENCE: u32 = 1 << 31;

/// A state of the ruleset of a network namespace: every commit, whoever makes it,
/// makes a new one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Generation {
    /// Its number.
    pub id: u32,
    /// The thread that made it, by its number in the *initial* PID namespace; 0 if the
    /// kernel does not say.
    pub pid: u32,
    /// That thread's name (`comm`, at most 15 bytes, of any kind: what is no UTF-8 is replaced).
    pub process: String,
}

impl Generation {
    /// The number of the generation after `id`: it wraps, and 0 is left out.
    pub fn next(id: u32) -> u32 {
        id.checked_add(1).unwrap_or(1)
    }

    pub(crate) fn decode(message: &Message<'_>) -> Option<Self> {
        let mut generation = Self::default();
        for (kind, value) in message.attrs() {
            match kind {
                NFTA_GEN_ID => generation.id = be32(value)?,
                NFTA_GEN_PROC_PID => generation.pid = be32(value)?,
                NFTA_GEN_PROC_NAME => generation.process = lossy_name(value),
                _ => {}
            }
        }
        (generation.id != 0).then_some(generation)
    }
}

/// What [`Socket::elements`] tells.
#[derive(Debug, PartialEq, Eq)]
pub enum Dumped<'a> {
    /// The ruleset changed meanwhile: forget the elements so far, they come again.
    Restart,
    /// An element.
    Element(Element<'a>),
    /// One that this library cannot express: a catch-all, which has no key.
    Other,
}

impl Socket {
    /// The ruleset's generation. `pid` and `process` are those of the asker.
    pub fn generation(&mut self) -> Result<Generation> {
        let mut found = None;
        self.query(
            "the generation",
            NFT_MSG_GETGEN,
            None,
            |_| {},
            |message| found = Generation::decode(message),
        )?;
        found.ok_or(Error::Protocol("no generation in the answer"))
    }

    /// The tables of a family, or of all.
    pub fn tables(&mut self, family: Option<Family>) -> Result<Vec<Listed<Table>>> {
        self.list("tables", NFT_MSG_GETTABLE, family, Scope::Everything, |_| {}, Table::decode)
    }

    /// One table, if it exists. Its handle differs from before if it was deleted and
    /// created anew.
    pub fn table(&mut self, table: TableRef<'_>) -> Result<Option<Listed<Table>>> {
        let tables = self.tables(Some(table.family))?;
        Ok(tables.into_iter().find(|listed| listed.table() == table))
    }

    /// The chains of a table; none if the table does not exist.
    pub fn chains(&mut self, table: TableRef<'_>) -> Result<Vec<Listed<Chain>>> {
        let filter = |w: &mut Writer| w.name(NFTA_CHAIN_TABLE, table.name);
        // The kernel lists the family's, and counts them all to find where it was.
        let mut chains = self.list(
            "chains",
            NFT_MSG_GETCHAIN,
            Some(table.family),
            Scope::Everything,
            filter,
            Chain::decode,
        )?;
        chains.retain(|listed| listed.table() == table);
        Ok(chains)
    }

    /// The rules of a table in the order of each chain; none if the table does not
    /// exist.
    pub fn rules(&mut self, table: TableRef<'_>) -> Result<Vec<Listed<Rule>>> {
        let filter = |w: &mut Writer| w.name(NFTA_RULE_TABLE, table.name);
        self.list("rules", NFT_MSG_GETRULE, Some(table.family), Scope::Table(table), filter, Rule::decode)
    }

    /// As [`Socket::rules`], of one chain; none if that does not exist.
    pub fn rules_of_chain(&mut self, table: TableRef<'_>, chain: &str) -> Result<Vec<Listed<Rule>>> {
        let filter = |w: &mut Writer| {
            w.name(NFTA_RULE_TABLE, table.name);
            w.name(NFTA_RULE_CHAIN, chain);
        };
        self.list("rules", NFT_MSG_GETRULE, Some(table.family), Scope::Table(table), filter, Rule::decode)
    }

    /// The sets and maps of a table; none if the table does not exist.
    pub fn sets(&mut self, table: TableRef<'_>) -> Result<Vec<Listed<Set>>> {
        let filter = |w: &mut Writer| w.name(NFTA_SET_TABLE, table.name);
        match self.list("sets", NFT_MSG_GETSET, Some(table.family), Scope::Table(table), filter, Set::decode)
        {
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            result => result,
        }
    }

    /// Whether the set or map has an element with this key that has not expired.
    pub fn has_element(&mut self, table: TableRef<'_>, set: &str, key: &Element<'_>) -> Result<bool> {
        let filter = |w: &mut Writer| {
            w.name(NFTA_SET_ELEM_LIST_TABLE, table.name);
            w.name(NFTA_SET_ELEM_LIST_SET, set);
            w.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| key.encode(w));
        };
        let what = format!("an element of {} {} {set}", table.family, table.name);
        match self.query(&what, NFT_MSG_GETSETELEM, Some(table.family), filter, |_| {}) {
            Ok(()) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Hands over the elements of a set or map one by one, in the kernel's order.
    ///
    /// Here the kernel does not tell when the listing is inconsistent (6.18), neither
    /// after a commit nor while it rehashes a set that grew: then it repeats some
    /// elements and leaves out as many. So the generation is compared and repetitions
    /// are looked for, at 8 bytes an element. A set that packets fill all the time may
    /// never be listed without: [`Error::Interrupted`].
    pub fn elements(
        &mut self,
        table: TableRef<'_>,
        set: &str,
        mut visit: impl FnMut(Dumped<'_>),
    ) -> Result<()> {
        let filter = |w: &mut Writer| {
            w.name(NFTA_SET_ELEM_LIST_TABLE, table.name);
            w.name(NFTA_SET_ELEM_LIST_SET, set);
        };
        let what = format!("elements of {} {} {set}", table.family, table.name);
        let hasher = RandomState::new();
        let mut hashes = Vec::new();
        self.until_it_holds(Scope::Table(table), |socket, again| {
            if again {
                visit(Dumped::Restart);
            }
            hashes.clear();
            let visit_list = |message: &Message<'_>| {
                let lists = message.attrs().filter(|(kind, _)| *kind == NFTA_SET_ELEM_LIST_ELEMENTS);
                for (_, element) in lists.flat_map(|(_, list)| Attrs::new(list)) {
                    let Some(element) = Element::decode(element) else {
                        visit(Dumped::Other);
                        continue;
                    };
                    hashes.push(hasher.hash_one((element.key, element.key_end, element.interval_end)));
                    visit(Dumped::Element(element));
                }
            };
            // What a commit takes out goes a moment after its generation has come.
            socket.settle()?;
            let generation = socket.generation()?.id;
            let family = Some(table.family);
            let answered = socket.ask(&what, NFT_MSG_GETSETELEM, NLM_F_DUMP, family, filter, visit_list)?;
            hashes.sort_unstable();
            Ok(match answered {
                _ if hashes.windows(2).any(|pair| pair[0] == pair[1]) => Answered::Wrongly,
                Answered::Consistently if socket.generation()?.id != generation => Answered::Interrupted,
                answered => answered,
            })
        })
    }

    fn list<T>(
        &mut self,
        what: &str,
        operation: u16,
        family: Option<Family>,
        scope: Scope<'_>,
        filter: impl Fn(&mut Writer),
        decode: impl Fn(&Message<'_>) -> Option<Listed<T>>,
    ) -> Result<Vec<Listed<T>>> {
        let mut found = Vec::new();
        self.until_it_holds(scope, |socket, _| {
            found.clear();
            // What a commit takes out goes a moment after its generation has come.
            socket.settle()?;
            let visit = |message: &Message<'_>| found.extend(decode(message));
            socket.ask(what, operation, NLM_F_DUMP, family, &filter, visit)
        })?;
        Ok(found)
    }

    /// As [`Socket::ask`], of what is not listed but answered in one piece.
    fn query(
        &mut self,
        what: &str,
        operation: u16,
        family: Option<Family>,
        filter: impl Fn(&mut Writer),
        mut visit: impl FnMut(&Message<'_>),
    ) -> Result<()> {
        self.until_it_holds(Scope::Everything, |socket, _| {
            socket.ask(what, operation, NLM_F_ACK, family, &filter, &mut visit)
        })
    }

    /// Asks once. A dump ends with NLMSG_DONE, any other question (which has NLM_F_ACK)
    /// with an acknowledgement. What is left of an earlier question is skipped by its
    /// sequence number.
    fn ask(
        &mut self,
        what: &str,
        operation: u16,
        flags: u16,
        family: Option<Family>,
        filter: impl Fn(&mut Writer),
        mut visit: impl FnMut(&Message<'_>),
    ) -> Result<Answered> {
        self.sequence = self.sequence.wrapping_add(1) | FIRST_SEQUENCE;
        let mut question = Writer::default();
        let kind = NFNL_SUBSYS_NFTABLES << 8 | operation;
        let family = family.map_or(libc::AF_UNSPEC as u8, Family::number);
        let open = question.message(kind, NLM_F_REQUEST | flags, self.sequence, family, 0);
        filter(&mut question);
        question.close_message(open);
        if let Some(why) = question.take_fault() {
            return Err(Error::Invalid { message: 0, what: what.to_owned(), why });
        }
        send(&self.fd, &[&question.buffer])?;

        let refused = |errno: i32| Error::Query { what: what.to_owned(), errno };
        let mut answered = Answered::Consistently;
        loop {
            let Some(length) = receive(&self.fd, &mut self.datagram, 0)? else { continue };
            for message in Messages::new(&self.datagram[..length]) {
                if message.sequence != self.sequence {
                    continue;
                }
                if message.flags & NLM_F_DUMP_INTR != 0 {
                    answered = Answered::Interrupted;
                }
                match message.kind {
                    NLMSG_DONE => {
                        let errno = read_u32(message.body, 0).unwrap_or_default() as i32;
                        return if errno < 0 { Err(refused(errno.saturating_neg())) } else { Ok(answered) };
                    }
                    NLMSG_ERROR => match Answer::decode(&message) {
                        Some(Answer { errno: 0, .. }) => return Ok(answered),
                        Some(Answer { errno: libc::EBUSY, .. }) => {
                            self.finish_dump()?;
                            return Ok(Answered::Wrongly);
                        }
                        Some(Answer { errno, .. }) => return Err(refused(errno)),
                        None => return Err(Error::Protocol("a truncated acknowledgement")),
                    },
                    _ => visit(&message),
                }
            }
        }
    }

    /// A socket dumps one thing at a time, and goes on as its datagrams are taken: takes what is
    /// left of a dump that nobody read to its end.
    fn finish_dump(&mut self) -> Result<()> {
        while receive(&self.fd, &mut self.datagram, libc::MSG_DONTWAIT)?.is_some() {}
        Ok(())
    }
}

/// How a question was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answered {
    /// As of one moment.
    Consistently,
    /// In whole, but somebody committed meanwhile (NLM_F_DUMP_INTR).
    Interrupted,
    /// Not in whole, whoever committed or did not.
    Wrongly,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;
    use crate::chain::{ChainKind, Hook};
    use crate::data_types::Value;
    use crate::expr::Expr;
    use crate::field::Field;
    use crate::fuzzing;
    use proptest::prelude::*;

    /// One message of each kind; the kernel lists things in the form in which they are
    /// written, and more.
    fn written() -> Vec<u8> {
        let table = Table { comment: Some("c".to_owned()), ..Table::new(Family::Ip, "t") };
        let id = table.id();
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_chain(id, &Chain::base("c", ChainKind::Nat, Hook::Output, -100));
        batch.add_rule(id, &Rule::new("c", Expr::daddr_is_local()).comment("c"));
        let set = Set::map(
            "s",
            [Field::IP_DADDR, Field::L4PROTO, Field::random(9)],
            [Field::IP_DADDR, Field::MARK],
        );
        batch.add_set(id, &Set { size: Some(9), ..set.clone() });
        batch.add_set(id, &Set { flags: Set::INTERVAL, comment: Some("c".to_owned()), ..set });
        let value = Value::new().u32(1);
        let element = Element { key_end: Some(value.bytes()), ..Element::pair(value.bytes(), value.bytes()) };
        batch.add_elements(id, "s").push(&element.comment("c"));
        batch.encoded().unwrap().to_vec()
    }

    proptest! {
        #[test]
        fn damaged_messages_are_read_without_panic(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
            keep in any::<prop::sample::Index>(),
        ) {
            let mut bytes = written();
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(keep.index(bytes.len()) + 1);
            fuzzing::datagram(&bytes);
        }

        #[test]
        fn arbitrary_messages_are_read_without_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = ((body.len() + 16) as u32).to_ne_bytes().to_vec();
            bytes.extend_from_slice(&[0; 12]);
            bytes.extend_from_slice(&body);
            fuzzing::datagram(&bytes);
        }
    }
}
