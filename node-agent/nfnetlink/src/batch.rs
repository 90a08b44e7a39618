//! Batches: changes that come into force together or not at all.

use crate::chain::Chain;
use crate::data_types::Family;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::rule::Rule;
use crate::set::Set;
use crate::table::{Table, TableRef};
use crate::uapi::*;
use crate::wire::{Message, Messages, NLMSG_HEADER, Open, Writer, name};

/// Where the batch's header keeps the expected generation: behind the netlink header,
/// `nfgenmsg` and the attribute's header.
const GENERATION_AT: usize = NLMSG_HEADER + 4 + 4;
/// Where a netlink header keeps its flags.
const NLMSG_FLAGS_AT: usize = 6;
/// The sequence number of the first change; 0 is the header's.
const FIRST_SEQUENCE: u32 = 1;
/// A list of elements ends here, so that the next element still fits into an
/// attribute's 64 KiB: an element has at most three values of 64 bytes, a name and
/// user data of 256 each, and headers.
const LIST_BYTES: usize = (u16::MAX as usize) - 2048;

/// Changes to the ruleset, written straight into the bytes that are sent. In order:
/// what a change names must exist, or have been made by an earlier change.
///
/// Every method that adds a change returns its index, which [`crate::Failure::message`]
/// refers to. Changes that cannot be expressed (a name of 300 bytes) are reported by
/// [`crate::Socket::commit`], before anything is sent.
#[derive(Debug)]
pub struct Batch {
    writer: Writer,
    /// Where each change begins in the buffer.
    starts: Vec<usize>,
    sets: u32,
    invalid: Option<(usize, &'static str)>,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::with_capacity(4096)
    }

    /// An empty batch with room for `bytes`. An element of a map of addresses, ports
    /// and a comment takes about 120.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut writer = Writer::with_capacity(bytes);
        let open = writer.message(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, 0, 0, NFNL_SUBSYS_NFTABLES);
        writer.u32(NFNL_BATCH_GENID, 0);
        writer.close_message(open);
        Self { writer, starts: Vec::new(), sets: 0, invalid: None }
    }

    /// Commit only if the ruleset's generation is still `id`
    /// ([`crate::Socket::generation`]); else [`Error::StaleGeneration`]. After such a
    /// commit the generation is [`crate::Generation::next`] of it.
    pub fn expect_generation(&mut self, id: u32) {
        self.writer.buffer[GENERATION_AT..GENERATION_AT + 4].copy_from_slice(&id.to_be_bytes());
    }

    /// Number of changes.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Bytes that will be sent.
    pub fn bytes(&self) -> usize {
        self.writer.buffer.len()
    }

    /// Creates the table unless it exists.
    pub fn add_table(&mut self, table: &Table) -> usize {
        self.change(NFT_MSG_NEWTABLE, NLM_F_CREATE, table.family, |w| table.encode(w))
    }

    /// Deletes the table with all that is in it.
    pub fn delete_table(&mut self, table: TableRef<'_>) -> usize {
        self.change(NFT_MSG_DELTABLE, 0, table.family, |w| w.name(NFTA_TABLE_NAME, table.name))
    }

    /// Creates the chain unless it exists; of an existing base chain, sets the policy.
    pub fn add_chain(&mut self, table: TableRef<'_>, chain: &Chain) -> usize {
        self.change(NFT_MSG_NEWCHAIN, NLM_F_CREATE, table.family, |w| chain.encode(table.name, w))
    }

    /// Deletes a chain that nothing jumps to, and its rules.
    pub fn delete_chain(&mut self, table: TableRef<'_>, chain: &str) -> usize {
        self.change(NFT_MSG_DELCHAIN, 0, table.family, |w| {
            w.name(NFTA_CHAIN_TABLE, table.name);
            w.name(NFTA_CHAIN_NAME, chain);
        })
    }

    /// Deletes all rules of the chain.
    pub fn flush_chain(&mut self, table: TableRef<'_>, chain: &str) -> usize {
        self.change(NFT_MSG_DELRULE, 0, table.family, |w| {
            w.name(NFTA_RULE_TABLE, table.name);
            w.name(NFTA_RULE_CHAIN, chain);
        })
    }

    /// Appends the rule to its chain.
    pub fn add_rule(&mut self, table: TableRef<'_>, rule: &Rule) -> usize {
        self.change(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, table.family, |w| {
            rule.encode(table.name, w);
        })
    }

    /// Deletes the rule that the kernel lists with this handle.
    pub fn delete_rule(&mut self, table: TableRef<'_>, chain: &str, handle: u64) -> usize {
        self.change(NFT_MSG_DELRULE, 0, table.family, |w| {
            w.name(NFTA_RULE_TABLE, table.name);
            w.name(NFTA_RULE_CHAIN, chain);
            w.u64(NFTA_RULE_HANDLE, handle);
        })
    }

    /// Creates the set or map unless it exists.
    pub fn add_set(&mut self, table: TableRef<'_>, set: &Set) -> usize {
        self.sets += 1;
        let id = self.sets;
        self.change(NFT_MSG_NEWSET, NLM_F_CREATE, table.family, |w| set.encode(table.name, id, w))
    }

    /// Deletes a set or map that no rule uses, with its elements.
    pub fn delete_set(&mut self, table: TableRef<'_>, set: &str) -> usize {
        self.change(NFT_MSG_DELSET, 0, table.family, |w| {
            w.name(NFTA_SET_TABLE, table.name);
            w.name(NFTA_SET_NAME, set);
        })
    }

    /// Deletes all elements of the set or map.
    pub fn flush_set(&mut self, table: TableRef<'_>, set: &str) -> usize {
        self.change(NFT_MSG_DELSETELEM, 0, table.family, |w| {
            w.name(NFTA_SET_ELEM_LIST_TABLE, table.name);
            w.name(NFTA_SET_ELEM_LIST_SET, set);
        })
    }

    /// Adds elements: those that are [pushed](Elements::push). An element that exists
    /// with the same datum is left alone; with another datum the kernel refuses the
    /// batch (EEXIST): delete it first, in the same batch.
    pub fn add_elements<'a>(&'a mut self, table: TableRef<'a>, set: &'a str) -> Elements<'a> {
        Elements { batch: self, operation: NFT_MSG_NEWSETELEM, flags: NLM_F_CREATE, table, set, open: None }
    }

    /// As [`Batch::add_elements`], but the kernel refuses the batch (EEXIST) if an
    /// element exists.
    pub fn create_elements<'a>(&'a mut self, table: TableRef<'a>, set: &'a str) -> Elements<'a> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        Elements { batch: self, operation: NFT_MSG_NEWSETELEM, flags, table, set, open: None }
    }

    /// Deletes elements: those that are [pushed](Elements::push), by their keys. The
    /// kernel refuses the batch (ENOENT) if one does not exist.
    pub fn delete_elements<'a>(&'a mut self, table: TableRef<'a>, set: &'a str) -> Elements<'a> {
        Elements { batch: self, operation: NFT_MSG_DELSETELEM, flags: 0, table, set, open: None }
    }

    fn change(
        &mut self,
        operation: u16,
        flags: u16,
        family: Family,
        fill: impl FnOnce(&mut Writer),
    ) -> usize {
        let open = self.begin(operation, flags, family);
        fill(&mut self.writer);
        self.writer.close_message(open);
        self.note_fault();
        self.starts.len() - 1
    }

    fn begin(&mut self, operation: u16, flags: u16, family: Family) -> Open {
        self.clear_last_ack();
        let sequence = self.starts.len() as u32 + FIRST_SEQUENCE;
        self.starts.push(self.writer.buffer.len());
        let kind = NFNL_SUBSYS_NFTABLES << 8 | operation;
        self.writer.message(kind, NLM_F_REQUEST | NLM_F_ACK | flags, sequence, family.number(), 0)
    }

    /// Only the last change asks for an acknowledgement: complaints come anyway, and
    /// ten thousand acknowledgements would overflow the receive buffer.
    fn clear_last_ack(&mut self) {
        let Some(start) = self.starts.last() else { return };
        let flags = &mut self.writer.buffer[start + NLMSG_FLAGS_AT..][..2];
        let kept = u16::from_ne_bytes([flags[0], flags[1]]) & !NLM_F_ACK;
        flags.copy_from_slice(&kept.to_ne_bytes());
    }

    fn note_fault(&mut self) {
        if let Some(why) = self.writer.take_fault() {
            self.invalid.get_or_insert((self.starts.len() - 1, why));
        }
    }

    /// The bytes of all but the end, once they are known to be sound.
    pub(crate) fn encoded(&self) -> Result<&[u8]> {
        match self.invalid {
            Some((message, why)) => Err(Error::Invalid { message, what: self.describe(message), why }),
            None => Ok(&self.writer.buffer),
        }
    }

    /// The index of the change with a sequence number; `None` for the batch's own.
    pub(crate) fn index_of(&self, sequence: u32) -> Option<usize> {
        let index = usize::try_from(sequence.checked_sub(FIRST_SEQUENCE)?).ok()?;
        (index < self.starts.len()).then_some(index)
    }

    /// What the change at `index` does, for humans: `add chain ip fairlead services`.
    pub fn describe(&self, index: usize) -> String {
        let bytes = self.starts.get(index).and_then(|start| self.writer.buffer.get(*start..));
        match bytes.and_then(|bytes| Messages::new(bytes).next()) {
            Some(message) => describe(&message),
            None => "the batch".to_owned(),
        }
    }
}

fn describe(message: &Message<'_>) -> String {
    let (action, name_attr) = match message.operation() {
        Some(NFT_MSG_NEWTABLE) => ("add table", None),
        Some(NFT_MSG_DELTABLE) => ("delete table", None),
        Some(NFT_MSG_NEWCHAIN) => ("add chain", Some(NFTA_CHAIN_NAME)),
        Some(NFT_MSG_DELCHAIN) => ("delete chain", Some(NFTA_CHAIN_NAME)),
        Some(NFT_MSG_NEWRULE) => ("add rule to", Some(NFTA_RULE_CHAIN)),
        Some(NFT_MSG_DELRULE) => ("delete rules of", Some(NFTA_RULE_CHAIN)),
        Some(NFT_MSG_NEWSET) => ("add set", Some(NFTA_SET_NAME)),
        Some(NFT_MSG_DELSET) => ("delete set", Some(NFTA_SET_NAME)),
        Some(NFT_MSG_NEWSETELEM) => ("add elements to", Some(NFTA_SET_ELEM_LIST_SET)),
        Some(NFT_MSG_DELSETELEM) => ("delete elements of", Some(NFTA_SET_ELEM_LIST_SET)),
        _ => ("unknown change of", None),
    };
    // The table's name is attribute 1 of every kind of message.
    let name_of =
        |wanted| message.attrs().find(|(kind, _)| *kind == wanted).and_then(|(_, value)| name(value));
    let family = Family::from_number(message.family()).map_or("?".to_owned(), |family| family.to_string());
    let mut text = format!("{action} {family} {}", name_of(NFTA_TABLE_NAME).unwrap_or("?"));
    if let Some(object) = name_attr {
        text.push(' ');
        text.push_str(name_of(object).unwrap_or("?"));
    }
    text
}

/// Takes the elements of one set, as many messages as they need. Without a push there
/// is no message.
#[derive(Debug)]
pub struct Elements<'a> {
    batch: &'a mut Batch,
    operation: u16,
    flags: u16,
    table: TableRef<'a>,
    set: &'a str,
    /// The message and the list in it.
    open: Option<(Open, Open)>,
}

impl Elements<'_> {
    /// Appends an element; returns the index of the change that carries it.
    pub fn push(&mut self, element: &Element<'_>) -> usize {
        let (message, list) = match self.open {
            Some(open) if self.batch.writer.length_since(open.1) < LIST_BYTES => open,
            _ => self.begin(),
        };
        let w = &mut self.batch.writer;
        element.encode(w);
        w.close(list);
        w.close_message(message);
        self.batch.note_fault();
        self.batch.starts.len() - 1
    }

    fn begin(&mut self) -> (Open, Open) {
        let message = self.batch.begin(self.operation, self.flags, self.table.family);
        let w = &mut self.batch.writer;
        w.name(NFTA_SET_ELEM_LIST_TABLE, self.table.name);
        w.name(NFTA_SET_ELEM_LIST_SET, self.set);
        let list = w.open_nested(NFTA_SET_ELEM_LIST_ELEMENTS);
        self.open = Some((message, list));
        (message, list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::Field;
    use crate::wire::Attrs;

    const TABLE: TableRef<'_> = TableRef::new(Family::Ip, "t");

    #[test]
    fn long_lists_of_elements_are_split_within_the_batch() {
        let mut batch = Batch::new();
        let comment = "c".repeat(200);
        let mut elements = batch.add_elements(TABLE, "s");
        let indexes: Vec<usize> =
            (0..5000_u32).map(|n| elements.push(&Element::key(&n.to_be_bytes()).comment(&comment))).collect();
        assert_eq!(batch.len(), indexes.last().unwrap() + 1);
        assert!(batch.len() > 15);

        let mut seen = 0;
        for message in Messages::new(batch.encoded().unwrap()).skip(1) {
            let (_, list) = message.attrs().find(|(kind, _)| *kind == NFTA_SET_ELEM_LIST_ELEMENTS).unwrap();
            for (_, element) in Attrs::new(list) {
                assert_eq!(Element::decode(element).unwrap().key, u32::to_be_bytes(seen));
                seen += 1;
            }
        }
        assert_eq!(seen, 5000);
    }

    #[test]
    fn nothing_pushed_writes_nothing() {
        let mut batch = Batch::new();
        let _ = batch.delete_elements(TABLE, "s");
        assert!(batch.is_empty(), "an empty deletion would flush the set");
    }

    #[test]
    fn only_the_last_change_asks_for_an_acknowledgement() {
        let mut batch = Batch::new();
        batch.add_table(&Table::new(Family::Ip, "t"));
        batch.add_chain(TABLE, &Chain::regular("c"));
        batch.add_set(TABLE, &Set::new("s", [Field::IP_DADDR]));
        let asks: Vec<bool> =
            Messages::new(batch.encoded().unwrap()).map(|message| message.flags & NLM_F_ACK != 0).collect();
        assert_eq!(asks, [false, false, false, true]);
    }

    #[test]
    fn the_first_change_that_cannot_be_expressed_is_named() {
        let mut batch = Batch::new();
        batch.add_table(&Table::new(Family::Ip, "t"));
        batch.add_chain(TABLE, &Chain::regular(&"c".repeat(300)));
        batch.flush_set(TABLE, "");
        let error = batch.encoded().unwrap_err().to_string();
        assert!(error.starts_with("message 1 of the batch (add chain ip t ccc"), "{error}");
        assert!(error.ends_with("a name is longer than 255 bytes"), "{error}");
    }

    #[test]
    fn changes_describe_themselves() {
        let mut batch = Batch::new();
        batch.add_table(&Table::new(Family::Ip6, "t"));
        batch.add_rule(TABLE, &Rule::new("c", []));
        batch.add_elements(TABLE, "s").push(&Element::key(&[1]));
        batch.delete_set(TABLE, "s");
        let texts: Vec<String> = (0..5).map(|index| batch.describe(index)).collect();
        let expected = [
            "add table ip6 t",
            "add rule to ip t c",
            "add elements to ip t s",
            "delete set ip t s",
            "the batch",
        ];
        assert_eq!(texts, expected);
    }
}
