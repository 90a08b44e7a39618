//! What Maglev promises: balance, little disruption, independence of order.

use std::collections::BTreeMap;

use maglev::{Backend, TABLE_SLOTS, table};
use proptest::prelude::*;

fn names(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("node-{i}")).collect()
}

fn backends<'a>(names: &'a [String], weights: &[u32]) -> Vec<Backend<'a>> {
    names
        .iter()
        .zip(weights)
        .zip(1u32..)
        .map(|((identity, &weight), value)| Backend { identity, weight, value })
        .collect()
}

fn counts(table: &[u32]) -> BTreeMap<u32, u32> {
    let mut counts = BTreeMap::new();
    for &value in table {
        *counts.entry(value).or_default() += 1;
    }
    counts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn equal_backends_differ_by_one_slot_at_most(count in 1usize..60, seed: u64) {
        let names = names(count);
        let filled = table(&backends(&names, &vec![1; count]), TABLE_SLOTS, seed);
        prop_assert_eq!(filled.len(), TABLE_SLOTS as usize);
        let counts = counts(&filled);
        let (low, high) = (counts.values().min().unwrap(), counts.values().max().unwrap());
        prop_assert!(high - low <= 1, "{low}..{high}");
        prop_assert_eq!(counts.len(), count);
    }

    #[test]
    fn slots_follow_the_weights_to_a_percent(weights in prop::collection::vec(1u32..10, 1..20), seed: u64) {
        let names = names(weights.len());
        let counts = counts(&table(&backends(&names, &weights), TABLE_SLOTS, seed));
        let total: u32 = weights.iter().sum();
        for (value, weight) in (1u32..).zip(&weights) {
            let want = f64::from(TABLE_SLOTS) * f64::from(*weight) / f64::from(total);
            let got = f64::from(counts[&value]);
            prop_assert!((got - want).abs() <= want * 0.01 + 2.0, "weight {weight} of {total}: {got}, not {want}");
        }
    }

    #[test]
    fn the_order_of_the_backends_does_not_matter(
        shuffled in Just((1..30u32).collect::<Vec<_>>()).prop_shuffle(), seed: u64
    ) {
        let names: BTreeMap<u32, String> = shuffled.iter().map(|&i| (i, format!("node-{i}"))).collect();
        let backend = |i: &u32| Backend { identity: &names[i], weight: 1 + i % 3, value: *i };
        let sorted: Vec<Backend<'_>> = names.keys().map(backend).collect();
        let shuffled: Vec<Backend<'_>> = shuffled.iter().map(backend).collect();
        prop_assert_eq!(table(&sorted, 251, seed), table(&shuffled, 251, seed));
    }

    #[test]
    fn a_backend_that_leaves_moves_few_slots_of_the_others(count in 2usize..50, leaver: prop::sample::Index, seed: u64) {
        let names = names(count);
        let all = backends(&names, &vec![1; count]);
        let gone = all[leaver.index(count)];
        let rest: Vec<Backend<'_>> = all.iter().copied().filter(|m| m.value != gone.value).collect();
        let (before, after) = (table(&all, TABLE_SLOTS, seed), table(&rest, TABLE_SLOTS, seed));
        let moved = before.iter().zip(&after).filter(|(b, a)| **b != gone.value && a != b).count();
        // The paper's figure 12 stays below 2 % at this ratio of slots to members.
        prop_assert!(moved * 50 <= TABLE_SLOTS as usize, "{moved} slots moved");
    }
}
