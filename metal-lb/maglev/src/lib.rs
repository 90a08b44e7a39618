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

/// A table of `slots` values. `slots` must be prime.
pub fn table(backends: &[Backend<'_>], slots: u32, seed: u64) -> Vec<u32> {
    let mut sorted: Vec<&Backend<'_>> = backends.iter().filter(|b| b.weight > 0).collect();
    sorted.sort_by_key(|b| b.identity);
    let turns: Vec<Turn> = sorted
        .iter()
        .map(|b| Turn {
            offset: (hash(b.identity, seed) % u64::from(slots)) as u32,
            skip: (hash(b.identity, !seed) % u64::from(slots - 1)) as u32 + 1,
            weight: b.weight,
        })
        .collect();
    fill(&turns, slots).into_iter().map(|i| i.map_or(EMPTY, |i| sorted[i].value)).collect()
}

/// One backend's permutation of the slots: `offset`, `offset + skip`, …
#[derive(Debug, Clone, Copy)]
struct Turn {
    offset: u32,
    skip: u32,
    weight: u32,
}

/// The paper's population loop: in turn, each backend takes its next free slot; one whose
/// accumulated weight has not reached the heaviest's waits.
fn fill(turns: &[Turn], slots: u32) -> Vec<Option<usize>> {
    let mut table = vec![None; slots as usize];
    let Some(heaviest) = turns.iter().map(|t| t.weight).max() else { return table };
    let mut next: Vec<u32> = turns.iter().map(|t| t.offset).collect();
    let mut credit = vec![0u64; turns.len()];
    let mut filled = 0;
    loop {
        for (i, turn) in turns.iter().enumerate() {
            credit[i] += u64::from(turn.weight);
            if credit[i] < u64::from(heaviest) {
                continue;
            }
            credit[i] -= u64::from(heaviest);
            while table[next[i] as usize].is_some() {
                next[i] = (next[i] + turn.skip) % slots;
            }
            table[next[i] as usize] = Some(i);
            filled += 1;
            if filled == slots {
                return table;
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
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn turn(offset: u32, skip: u32) -> Turn {
        Turn { offset, skip, weight: 1 }
    }

    #[test]
    fn the_papers_worked_example_comes_out() {
        let with = fill(&[turn(3, 4), turn(0, 2), turn(3, 1)], 7);
        assert_eq!(with, [1, 0, 1, 0, 2, 2, 0].map(Some));
        let without = fill(&[turn(3, 4), turn(3, 1)], 7);
        assert_eq!(without, [0, 0, 0, 0, 1, 1, 1].map(Some));
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("node-{i}")).collect()
    }

    fn even(names: &[String]) -> Vec<Backend<'_>> {
        names.iter().zip(1..).map(|(n, value)| Backend { identity: n, weight: 1, value }).collect()
    }

    fn shares(table: &[u32]) -> BTreeMap<u32, u32> {
        table.iter().fold(BTreeMap::new(), |mut shares, value| {
            *shares.entry(*value).or_default() += 1;
            shares
        })
    }

    #[test]
    fn equal_backends_differ_by_one_slot_at_most() {
        let names = names(100);
        let shares = shares(&table(&even(&names), TABLE_SLOTS, 7));
        let (least, most) = (shares.values().min().unwrap(), shares.values().max().unwrap());
        assert!(shares.len() == 100 && most - least <= 1, "{least}..{most}");
    }

    #[test]
    fn weights_give_proportional_shares_over_the_whole_table() {
        let backends = [("a", 1, 1), ("b", 1, 2), ("c", 2, 3), ("d", 4, 4), ("drained", 0, 5)]
            .map(|(identity, weight, value)| Backend { identity, weight, value });
        let shares = shares(&table(&backends, TABLE_SLOTS, 7));
        for (value, weight) in [(1, 1), (2, 1), (3, 2), (4, 4)] {
            let ideal = f64::from(TABLE_SLOTS) * f64::from(weight) / 8.0;
            assert!((f64::from(shares[&value]) - ideal).abs() < ideal * 0.001, "{value}: {shares:?}");
        }
        assert!(!shares.contains_key(&5));
    }

    #[test]
    fn no_backend_is_an_empty_table() {
        assert!(table(&[], 7, 0).iter().all(|v| *v == EMPTY));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn order_never_matters_and_a_loss_moves_few_of_the_others(count in 3usize..60, lost in 0usize..60, seed: u64) {
            let names = names(count);
            let backends = even(&names);
            let lost = lost % count;
            let slots = 5003;
            let before = table(&backends, slots, seed);
            let mut reversed = backends.clone();
            reversed.reverse();
            prop_assert_eq!(&before, &table(&reversed, slots, seed));

            let mut rest = backends.clone();
            let gone = rest.remove(lost).value;
            let after = table(&rest, slots, seed);
            let moved = before.iter().zip(&after).filter(|(b, a)| **b != gone && a != b).count();
            prop_assert!(!after.contains(&gone));
            prop_assert!(moved < slots as usize / 4, "{moved} of {slots} slots of the others moved");
        }
    }
}
