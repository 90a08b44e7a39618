//! Whether a listing holds although somebody committed while it was taken.
//!
//! Every commit makes a new generation, whichever table it is about, and on a host on which others
//! commit several times a second no large set is listed within one. What a listing needs is less:
//! that nobody changed *what it lists*. Once one was interrupted, the next are watched: whoever
//! commits announces what it touches, and a listing holds if nothing of that is in its [`Scope`].
//!
//! Why that is enough (nf_tables_api.c, nft_set_hash.c and rhashtable.c of 6.18):
//!
//! * The kernel goes on in a dump by number: it walks the set from its beginning and skips as many
//!   elements as it has told. So elements are left out if others that were told go, or if the order
//!   changes. Neither is the work of a commit to another table: it makes a generation and turns the
//!   generation's bit, of which committed elements are independent. Rules and sets are counted within
//!   the table that was asked for; tables and chains are not, so there every commit counts.
//! * The order changes also without any commit, while a set that grew is rehashed. Such a walk meets
//!   each element at least once (one that moves is put into the new buckets before it leaves the old
//!   ones), hence a dump tells at least as many as there are: if one is left out, another is
//!   repeated. Repetitions are looked for, and the set is listed again.
//! * A commit removes elements after its generation can be seen, and is announced after that, all
//!   under one lock. An empty batch takes the lock and lets it go ([`Socket::settle`]): what was
//!   under way before it is announced after it. So it comes first where generations are compared, and
//!   last where announcements are read.
//!
//! Not seen is a batch *for this very set* that is given up (`nft --check`): its elements are there
//! for a moment, are told to nobody, and count; nothing announces it. One that begins before a dump
//! and ends within it may hide as many elements. Whoever adds them is told that they exist, and reads
//! again.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use crate::dump::{Answered, FIRST_SEQUENCE};
use crate::error::{Error, Result};
use crate::monitor::{Event, Monitor};
use crate::socket::{Answer, Socket, receive, send};
use crate::table::TableRef;
use crate::uapi::{NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFNL_SUBSYS_NFTABLES, NLM_F_REQUEST};
use crate::wire::{Messages, Writer};

/// A dump is given up after this long…
const PATIENCE: Duration = Duration::from_secs(5);
/// … and so many attempts, of which the first is not watched.
const LEAST_ATTEMPTS: u32 = 5;
/// Between two attempts, doubled each time: whoever commits or rehashes comes to an end.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(64);

/// What a commit must not touch.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scope<'a> {
    Table(TableRef<'a>),
    Everything,
}

/// Who touched what since it was last asked. Listens only while there is a doubt, since commits are
/// slower while somebody does.
#[derive(Debug)]
pub(crate) struct Witness(Monitor);

impl Scope<'_> {
    fn has(self, event: &Event) -> bool {
        match (self, event) {
            (Self::Everything, _) | (_, Event::Overrun) => true,
            (Self::Table(ours), Event::Object { family, table, .. }) => {
                (*family, table.as_str()) == (ours.family, ours.name)
            }
            (Self::Table(_), Event::Generation(_)) => false,
        }
    }
}

impl Witness {
    pub(crate) fn open() -> Result<Self> {
        Ok(Self(Monitor::apart()?))
    }

    /// What was announced since this was last asked touches the scope, or may.
    fn saw(&mut self, scope: Scope<'_>) -> Result<bool> {
        let (mut events, mut saw) = (Vec::new(), false);
        loop {
            match self.0.receive(&mut events) {
                Ok(()) => saw |= events.drain(..).any(|event| scope.has(&event)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(saw),
                Err(source) => return Err(Error::Os { call: "recvfrom", source }),
            }
        }
    }
}

impl Socket {
    /// Lists until the answer holds. The listing is told whether it is another attempt.
    pub(crate) fn until_it_holds(
        &mut self,
        scope: Scope<'_>,
        mut list: impl FnMut(&mut Self, bool) -> Result<Answered>,
    ) -> Result<()> {
        let began = Instant::now();
        if list(self, false)? == Answered::Consistently {
            return Ok(());
        }
        self.witness.0.join()?;
        let listed = self.list_watched(scope, began, list);
        self.witness.0.leave()?;
        listed
    }

    #[expect(clippy::disallowed_methods, reason = "the kernel tells nobody when it has rehashed a set")]
    fn list_watched(
        &mut self,
        scope: Scope<'_>,
        began: Instant,
        mut list: impl FnMut(&mut Self, bool) -> Result<Answered>,
    ) -> Result<()> {
        // A commit that was under way when the witness joined is announced in part.
        self.settle()?;
        let (mut attempts, mut pause) = (1, FIRST_PAUSE);
        while attempts < LEAST_ATTEMPTS || began.elapsed() < PATIENCE {
            std::thread::sleep(pause);
            pause = LONGEST_PAUSE.min(pause * 2);
            attempts += 1;
            // What was announced by now is over.
            self.witness.saw(scope)?;
            let answered = list(self, true)?;
            if answered == Answered::Consistently {
                return Ok(());
            }
            if answered == Answered::Interrupted {
                self.settle()?;
                if !self.witness.saw(scope)? {
                    return Ok(());
                }
            }
        }
        Err(Error::Interrupted { attempts })
    }

    /// Returns when no batch that was under way is any more, and its announcements have come: the
    /// kernel works on one at a time, also on this one, which is empty and so changes nothing.
    ///
    /// # Errors
    /// When the kernel does not take it.
    pub fn settle(&mut self) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1) | FIRST_SEQUENCE;
        let mut batch = Writer::default();
        for kind in [NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END] {
            let open = batch.message(kind, NLM_F_REQUEST, self.sequence, 0, NFNL_SUBSYS_NFTABLES);
            batch.close_message(open);
        }
        send(&self.fd, &[&batch.buffer])?;
        // All that there is to say about a batch is said by now.
        while let Some(length) = receive(&self.fd, &mut self.datagram, libc::MSG_DONTWAIT)? {
            let answers = Messages::new(&self.datagram[..length]).filter(|m| m.sequence == self.sequence);
            for answer in answers.filter_map(|message| Answer::decode(&message)) {
                if answer.errno != 0 {
                    let what = "waiting for commits that are under way".to_owned();
                    return Err(Error::Query { what, errno: answer.errno });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_types::Family;
    use crate::dump::Generation;
    use crate::monitor::{Change, ObjectKind};

    #[test]
    fn a_commit_to_another_table_disturbs_no_listing_of_this_one() {
        let touching = |family, table: &str| Event::Object {
            change: Change::Deleted,
            kind: ObjectKind::Element,
            family,
            table: table.to_owned(),
        };
        let ours = Scope::Table(TableRef::new(Family::Ip, "fairlead"));
        for (event, disturbs) in [
            (touching(Family::Ip, "fairlead"), true),
            (touching(Family::Ip6, "fairlead"), false),
            (touching(Family::Ip, "filter"), false),
            (Event::Generation(Generation::default()), false),
            (Event::Overrun, true),
        ] {
            assert_eq!(ours.has(&event), disturbs, "{event:?}");
            assert!(Scope::Everything.has(&event), "{event:?}");
        }
    }
}
