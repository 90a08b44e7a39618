//! Weighted Maglev tables (Eisenbud et al., NSDI 2016, §3.4).
//!
//! Every host that builds a table from the same backends gets the same table, whatever order they
//! are given in; removing a backend moves few slots of the others. Weights accumulate, so that
//! shares are proportional over the whole table and not only in the first turn.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

/// The size of a production table: prime, and more than 100 times the backends of a Service, which
/// bounds the imbalance to 1 % (§5.3).
pub const TABLE_SLOTS: u32 = 65_537;

/// What stands in a table without backends.
pub const EMPTY: u32 = 0;

/// One backend. `identity` decides its slots and must be stable; `value` is what the slots hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend<'a> {
    pub identity: &'a str,
    /// Relative share; a backend of weight 0 gets no slot.
    pub weight: u32,
    pub value: u32,
}

/// A table of `slots` values, all [`EMPTY`] if no backend has weight. `slots` must be prime.
///
/// `seed` makes the table unpredictable to outsiders; it must be the same on every host.
pub fn table(backends: &[Backend<'_>], slots: u32, seed: u64) -> Vec<u32> {
    let mut sorted: Vec<&Backend<'_>> = backends.iter().filter(|b| b.weight > 0).collect();
    sorted.sort_by_key(|b| (b.identity, b.value));
    let turns = sorted.iter().map(|b| Turn {
        next: (hash(b.identity, seed) % u64::from(slots)) as u32,
        skip: (hash(b.identity, !seed) % u64::from(slots - 1)) as u32 + 1,
        weight: b.weight,
        credit: 0,
    });
    let filled = fill(turns.collect(), slots);
    filled.into_iter().map(|i| if i == FREE { EMPTY } else { sorted[i as usize].value }).collect()
}

/// One backend's walk through its permutation of the slots: `offset`, `offset + skip`, …
#[derive(Debug, Clone, Copy)]
struct Turn {
    next: u32,
    skip: u32,
    weight: u32,
    /// Weight saved up; a slot costs as much as the heaviest backend weighs.
    credit: u64,
}

/// A slot that no backend took yet; backends are fewer than this.
const FREE: u32 = u32::MAX;

/// The paper's population loop: in turn, each backend takes its next free slot; one that has not
/// saved up the price waits. The table holds indices into `turns`.
fn fill(mut turns: Vec<Turn>, slots: u32) -> Vec<u32> {
    let mut table = vec![FREE; slots as usize];
    let Some(price) = turns.iter().map(|t| u64::from(t.weight)).max() else { return table };
    let mut free = slots;
    loop {
        for (index, turn) in (0u32..).zip(turns.iter_mut()) {
            turn.credit += u64::from(turn.weight);
            if turn.credit < price {
                continue;
            }
            turn.credit -= price;
            let slot = turn.take(&table);
            table[slot] = index;
            free -= 1;
            if free == 0 {
                return table;
            }
        }
    }
}

impl Turn {
    /// The first free slot from where it stands. There is one: a prime number of slots and `skip`
    /// have no common divisor, so the walk visits every slot.
    fn take(&mut self, table: &[u32]) -> usize {
        let slots = table.len() as u32;
        loop {
            let slot = self.next as usize;
            self.next += self.skip;
            if self.next >= slots {
                self.next -= slots;
            }
            if table[slot] == FREE {
                return slot;
            }
        }
    }
}

fn hash(identity: &str, seed: u64) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(seed, 0x6661_6972_6c65_6164);
    hasher.write(identity.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(walks: &[(u32, u32)]) -> Vec<Turn> {
        walks.iter().map(|&(next, skip)| Turn { next, skip, weight: 1, credit: 0 }).collect()
    }

    /// Table 1 of the paper, §3.4.
    #[test]
    fn the_papers_worked_example_comes_out() {
        assert_eq!(fill(turns(&[(3, 4), (0, 2), (3, 1)]), 7), [1, 0, 1, 0, 2, 2, 0]);
        assert_eq!(fill(turns(&[(3, 4), (3, 1)]), 7), [0, 0, 0, 0, 1, 1, 1], "B1 gone, B2 is second now");
    }

    #[test]
    fn no_backend_with_weight_is_an_empty_table() {
        let drained = Backend { identity: "a", weight: 0, value: 5 };
        for backends in [&[][..], &[drained]] {
            assert_eq!(table(backends, 7, 0), [EMPTY; 7]);
        }
    }

    /// Hosts of different releases share flows: a change of hashing is a change of protocol.
    #[test]
    fn a_table_never_changes_between_releases() {
        let names = ["node-1", "node-2", "node-3"];
        let backends: Vec<Backend<'_>> =
            names.iter().zip(1..).map(|(identity, value)| Backend { identity, weight: 1, value }).collect();
        assert_eq!(table(&backends, 13, 42), [3, 2, 1, 1, 3, 1, 1, 3, 2, 2, 1, 2, 3]);
    }
}
