//! What reads bytes of the kernel, for a fuzzer to feed. Nothing here is in an ordinary build.

use crate::batch::Batch;
use crate::chain::Chain;
use crate::conntrack::Flow;
use crate::dump::Generation;
use crate::element::Element;
use crate::monitor;
use crate::rule::Rule;
use crate::set::Set;
use crate::socket::Answer;
use crate::table::{Listed, Table, TableRef};
use crate::wire::{Attrs, Message, Messages};

/// Reads a datagram as every kind of answer and notification that there is.
///
/// # Panics
/// When reading does, or when what was read is something else once it is written and read again:
/// then a restart would not know its own rules.
pub fn datagram(bytes: &[u8]) {
    for message in Messages::new(bytes) {
        Answer::decode(&message);
        Generation::decode(&message);
        monitor::decode(&message);
        Flow::decode(&message);
        settles(&message, Table::decode, |batch, _, table| batch.add_table(table));
        settles(&message, Chain::decode, Batch::add_chain);
        settles(&message, Rule::decode, Batch::add_rule);
        settles(&message, Set::decode, Batch::add_set);
        for (_, list) in message.attrs() {
            Attrs::new(list).for_each(|(_, element)| drop(Element::decode(element)));
        }
    }
}

/// Written and read once, a thing is what this library can say of it, and stays that.
fn settles<T: PartialEq + std::fmt::Debug>(
    message: &Message<'_>,
    decode: impl Fn(&Message<'_>) -> Option<Listed<T>>,
    write: impl Fn(&mut Batch, TableRef<'_>, &T) -> usize,
) {
    let again = |listed: &Listed<T>| {
        let mut batch = Batch::new();
        write(&mut batch, listed.table(), &listed.item);
        // Not everything that can be read can be written: a name may be empty, a set have no key.
        let written = batch.encoded().ok()?.to_vec();
        let message = Messages::new(&written).nth(1).expect("a batch is its header and one change");
        Some(decode(&message).expect("what is written can be read"))
    };
    let Some(once) = decode(message).as_ref().and_then(again) else { return };
    let Some(twice) = again(&once) else { panic!("{once:?} cannot be written again") };
    assert_eq!(once.item, twice.item);
}
