//! Whose commit was it? The kernel announces every commit: what changed, then the generation that
//! it made. Ours are told apart by their generation.

use std::collections::BTreeSet;

use nfnetlink::{Event, Generation};

use super::layout::TABLE;

/// Follows the notifications since a reading of our tables.
#[derive(Debug, Default)]
pub struct Others {
    /// The generation in which our tables were read.
    read_in: u32,
    /// The last generation in which our tables were as we know them.
    generation: u32,
    /// Generations that we made and that were not announced yet.
    ours: BTreeSet<u32>,
    /// The commit that is being announced changes our tables.
    touched: bool,
    changed: bool,
    /// Somebody committed while nobody listened.
    unseen: bool,
}

impl Others {
    /// Our tables were read, or are about to be, in this generation.
    pub fn read_at(&mut self, generation: u32) {
        *self = Self { read_in: generation, generation, ..Self::default() };
    }

    /// The generation in which they were.
    pub fn read_in(&self) -> u32 {
        self.read_in
    }

    /// We are about to commit; answers the generation that this needs.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Our commit, which needed [`Others::generation`], is in force. `announced`: notifications of
    /// it will come.
    pub fn committed(&mut self, announced: bool) {
        self.generation = Generation::next(self.generation);
        if announced {
            self.ours.insert(self.generation);
        }
    }

    /// Somebody else may have changed our tables.
    pub fn suspect(&mut self) {
        self.changed = true;
    }

    /// The same, of a commit that nobody told of because nobody listened.
    pub fn suspect_unseen(&mut self) {
        self.unseen = true;
    }

    pub fn note(&mut self, event: &Event) {
        match event {
            Event::Object { table, .. } => self.touched |= table == TABLE,
            Event::Generation(made) => {
                let touched = std::mem::take(&mut self.touched);
                if !self.ours.remove(&made.id) && self.is_news(made.id) {
                    self.changed |= touched;
                    self.generation = made.id;
                }
            }
            Event::Overrun => self.changed = true,
        }
    }

    /// Whether somebody else changed our tables, or may have, since they were read.
    pub fn changed(&self) -> bool {
        self.changed || self.unseen
    }

    /// Whether they are suspected for nothing but what was not seen.
    pub fn are_unseen(&self) -> bool {
        self.unseen && !self.changed
    }

    /// Generations wrap. What was announced before the reading is part of it.
    fn is_news(&self, generation: u32) -> bool {
        generation.wrapping_sub(self.generation).cast_signed() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nfnetlink::{Change, Family, ObjectKind};

    fn touching(table: &str) -> Event {
        Event::Object {
            change: Change::Deleted,
            kind: ObjectKind::Table,
            family: Family::Ip,
            table: table.to_owned(),
        }
    }

    fn made(id: u32) -> Event {
        Event::Generation(Generation { id, ..Generation::default() })
    }

    fn after(events: &[Event]) -> (bool, u32) {
        let mut others = Others::default();
        others.read_at(10);
        others.committed(true);
        for event in events {
            others.note(event);
        }
        (others.changed(), others.generation())
    }

    #[test]
    fn only_others_commits_that_touch_our_table_count() {
        let ours = touching(TABLE);
        let cases: [(&str, &[Event], (bool, u32)); 6] = [
            ("our own", &[ours.clone(), made(11)], (false, 11)),
            ("another table", &[ours.clone(), made(11), touching("filter"), made(12)], (false, 12)),
            ("our table", &[ours.clone(), made(11), ours.clone(), made(12)], (true, 12)),
            (
                "another table, then ours",
                &[ours.clone(), made(11), touching("nat"), made(12), ours.clone(), made(13)],
                (true, 13),
            ),
            ("before the reading", &[ours, made(9)], (false, 11)),
            ("notifications were lost", &[Event::Overrun], (true, 11)),
        ];
        for (what, events, result) in cases {
            assert_eq!(after(events), result, "{what}");
        }
    }

    #[test]
    fn nobodys_commit_makes_the_reading_a_later_one() {
        let mut others = Others::default();
        others.read_at(10);
        others.committed(false);
        others.note(&made(12));
        assert_eq!((others.read_in(), others.generation()), (10, 12));
    }

    #[test]
    fn what_was_not_seen_is_suspected_until_it_is_read_and_is_less_than_what_was() {
        let mut others = Others::default();
        others.read_at(10);
        assert!(!others.are_unseen());
        others.suspect_unseen();
        assert!(others.changed() && others.are_unseen());
        others.note(&Event::Overrun);
        assert!(others.changed() && !others.are_unseen());
        others.read_at(11);
        assert!(!others.changed() && !others.are_unseen());
    }

    #[test]
    fn generations_wrap() {
        let mut others = Others::default();
        others.read_at(u32::MAX);
        others.note(&touching(TABLE));
        others.note(&made(1));
        assert!(others.changed());
    }
}
