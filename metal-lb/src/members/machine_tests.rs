//! The rules in a simulated tier: hosts that can lose their process, their link or each other.

use proptest::prelude::*;

use super::*;

const STEP: Duration = Duration::from_millis(50);
/// Hellos are slower than probes: every sixth step, and at once when something changed.
const HELLO_STEPS: u32 = 6;

struct Host {
    members: Option<Members>,
    /// What the pinned maps hold: it answers on the network, with or without a process.
    pinned: BTreeSet<Ipv4Addr>,
    generation: Generation,
    last_heartbeat: Duration,
    told: Claims,
    link: bool,
}

struct Tier {
    now: Duration,
    steps: u32,
    hosts: BTreeMap<String, Host>,
    vips: BTreeSet<Ipv4Addr>,
    /// Hosts that cannot hear the others though their link is up.
    apart: BTreeSet<String>,
    /// Hosts whose probes are not answered, because they wait for ARP; they hear hellos.
    unanswered: BTreeSet<String>,
}

fn generation(counter: u64) -> Generation {
    Generation { term: 1, counter }
}

impl Tier {
    fn new(hosts: u8, vips: u8) -> Self {
        let now = Duration::from_secs(100);
        let vips = (1..=vips).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect();
        let host = || Host {
            members: None,
            pinned: BTreeSet::new(),
            generation: generation(1),
            last_heartbeat: now,
            told: Claims::new(),
            link: true,
        };
        let hosts = (1..=hosts).map(|n| (format!("lb-{n}"), host())).collect();
        let mut tier =
            Self { now, steps: 0, hosts, vips, apart: BTreeSet::new(), unanswered: BTreeSet::new() };
        for name in tier.names() {
            tier.start(&name);
        }
        tier
    }

    fn settled(hosts: u8, vips: u8) -> Self {
        let mut tier = Self::new(hosts, vips);
        tier.run(Duration::from_secs(2));
        tier
    }

    fn names(&self) -> BTreeSet<String> {
        self.hosts.keys().cloned().collect()
    }

    fn host(&mut self, name: &str) -> &mut Host {
        self.hosts.get_mut(name).unwrap()
    }

    fn start(&mut self, name: &str) {
        let (names, vips, now) = (self.names(), self.vips.clone(), self.now);
        let host = self.host(name);
        let mut members = Members::new(name, host.pinned.clone(), now);
        members.set_carrier(host.link, now);
        members.set_document(host.generation, vips, &names, now);
        host.members = Some(members);
    }

    fn kill(&mut self, name: &str) {
        self.host(name).members = None;
    }

    fn link(&mut self, name: &str, up: bool) {
        let now = self.now;
        let host = self.host(name);
        host.link = up;
        if let Some(members) = &mut host.members {
            members.set_carrier(up, now);
        }
    }

    fn document(&mut self, name: &str, counter: u64) {
        let (names, vips, now) = (self.names(), self.vips.clone(), self.now);
        let host = self.host(name);
        host.generation = generation(counter);
        if let Some(members) = &mut host.members {
            members.set_document(generation(counter), vips, &names, now);
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        self.steps += 1;
        let (now, regular) = (self.now, self.steps.is_multiple_of(HELLO_STEPS));
        let mut said = BTreeMap::new();
        for (name, host) in &mut self.hosts {
            let Some(members) = &host.members else { continue };
            host.last_heartbeat = now;
            if regular || host.told != *members.mine() {
                host.told = members.mine().clone();
                said.insert(name.clone(), (host.generation, host.told.clone()));
            }
        }
        let answers: Vec<(String, Duration, Generation)> = self
            .hosts
            .iter()
            .filter(|(_, h)| h.link)
            .map(|(n, h)| (n.clone(), now - h.last_heartbeat, h.generation))
            .collect();
        for (name, host) in &mut self.hosts {
            let Some(members) = &mut host.members else { continue };
            for (peer, age, serves) in answers.iter().filter(|(p, ..)| p != name && host.link) {
                if self.apart.contains(name) != self.apart.contains(peer) {
                    continue;
                }
                if !self.unanswered.contains(name) {
                    members.on_answer(peer, *age, *serves, now);
                }
                if let Some((generation, claims)) = said.get(peer) {
                    members.on_hello(peer, *generation, claims.clone(), now);
                }
            }
            members.decide(now);
            host.pinned = members.mine().keys().copied().collect();
        }
    }

    /// The hosts that answer for each VIP on the network.
    fn owners(&self) -> BTreeMap<Ipv4Addr, Vec<&str>> {
        let answers = |vip| {
            let hosts = self.hosts.iter().filter(move |(_, h)| h.link && h.pinned.contains(vip));
            hosts.map(|(n, _)| n.as_str()).collect()
        };
        self.vips.iter().map(|vip| (*vip, answers(vip))).collect()
    }

    fn snapshot(&self) -> Vec<String> {
        self.owners().values().map(|o| o.concat()).collect()
    }

    fn claim_numbers(&self, name: &str) -> Claims {
        self.hosts[name].members.as_ref().unwrap().mine().clone()
    }
}

#[test]
fn every_vip_gets_one_owner_and_the_load_is_even() {
    let tier = Tier::settled(2, 10);
    let owners = tier.owners();
    assert!(owners.values().all(|o| o.len() == 1), "{owners:?}");
    assert_eq!(owners.values().filter(|o| o[0] == "lb-1").count(), 5);
}

#[test]
fn a_lost_hosts_vips_move_within_half_a_second_and_stay_when_it_returns() {
    let mut tier = Tier::settled(2, 4);
    tier.link("lb-1", false);
    tier.run(Duration::from_millis(500));
    assert!(tier.owners().values().all(|o| *o == ["lb-2"]), "{:?}", tier.owners());
    tier.link("lb-1", true);
    tier.run(Duration::from_secs(30));
    assert!(tier.owners().values().all(|o| *o == ["lb-2"]), "nothing is pre-empted: {:?}", tier.owners());
}

#[test]
fn a_host_whose_probes_wait_for_arp_after_a_link_loss_believes_what_it_is_told() {
    let mut tier = Tier::settled(2, 4);
    tier.link("lb-1", false);
    tier.run(Duration::from_secs(2));
    tier.unanswered.insert("lb-1".into());
    tier.link("lb-1", true);
    tier.run(Duration::from_millis(1200));
    tier.unanswered.clear();
    tier.run(Duration::from_secs(5));
    assert!(tier.owners().values().all(|o| *o == ["lb-2"]), "{:?}", tier.owners());
}

#[test]
fn processes_that_restart_within_ten_seconds_keep_their_vips() {
    for restarted in [&["lb-1"][..], &["lb-1", "lb-2"]] {
        let mut tier = Tier::settled(2, 4);
        let before = tier.snapshot();
        restarted.iter().for_each(|name| tier.kill(name));
        for name in restarted {
            // One comes back long before the other.
            for _ in 0..80 {
                tier.step();
                assert_eq!(tier.snapshot(), before, "a VIP moved while {restarted:?} were away");
            }
            tier.start(name);
        }
        for _ in 0..100 {
            tier.step();
            assert_eq!(tier.snapshot(), before, "a VIP moved after {restarted:?} came back");
        }
    }
}

#[test]
fn a_process_that_stays_away_loses_its_vips_and_does_not_take_them_back() {
    let mut tier = Tier::settled(2, 4);
    tier.kill("lb-1");
    tier.run(Duration::from_secs(11));
    assert_eq!(tier.hosts["lb-2"].pinned, tier.vips, "the survivor takes over what nobody controls");
    tier.start("lb-1");
    tier.run(Duration::from_secs(2));
    assert!(tier.owners().values().all(|o| *o == ["lb-2"]), "{:?}", tier.owners());
}

#[test]
fn a_lone_host_claims_at_once() {
    let mut tier = Tier::new(1, 2);
    tier.step();
    assert!(tier.owners().values().all(|o| *o == ["lb-1"]));
}

#[test]
fn a_healed_partition_leaves_one_owner_which_announces_itself_again() {
    let mut tier = Tier::settled(2, 6);
    tier.apart.insert("lb-1".into());
    tier.run(Duration::from_secs(5));
    assert!(tier.owners().values().all(|o| o.len() == 2), "each side serves: {:?}", tier.owners());
    let before: Vec<Claims> = tier.names().iter().map(|n| tier.claim_numbers(n)).collect();
    tier.apart.clear();
    tier.run(Duration::from_secs(1));
    assert!(tier.owners().values().all(|o| o.len() == 1), "{:?}", tier.owners());
    for (name, before) in tier.names().iter().zip(before) {
        for (vip, number) in tier.claim_numbers(name) {
            assert!(number > before[&vip], "{name} keeps {vip}, and switches may point to the other host");
        }
    }
}

#[test]
fn a_host_that_misses_newer_documents_gets_nothing_new_and_in_the_end_owns_nothing() {
    let mut tier = Tier::settled(2, 4);
    let before = tier.snapshot();
    tier.vips.insert(Ipv4Addr::new(10, 0, 0, 99));
    tier.document("lb-2", 2);
    tier.run(Duration::from_secs(2));
    assert_eq!(tier.owners()[&Ipv4Addr::new(10, 0, 0, 99)], ["lb-2"]);
    assert_eq!(tier.snapshot()[..4], before[..], "what it has it keeps for a while");
    tier.run(Duration::from_secs(10));
    assert!(tier.owners().values().all(|o| *o == ["lb-2"]), "{:?}", tier.owners());
    tier.document("lb-1", 2);
    tier.run(Duration::from_secs(10));
    assert!(tier.owners().values().all(|o| *o == ["lb-2"]), "{:?}", tier.owners());
}

#[test]
fn a_host_that_was_taken_out_of_the_tier_hears_it_from_the_others_programs() {
    let vip = Ipv4Addr::new(10, 0, 0, 1);
    let at = Duration::from_millis;
    let mut members = Members::new("lb-2", [vip].into(), at(0));
    let hosts = ["lb-1", "lb-2"].map(String::from).into();
    members.set_document(generation(1), [vip].into(), &hosts, at(0));
    members.on_hello("lb-1", generation(1), Claims::new(), at(0));
    for now in (0..12_000).step_by(50).map(at) {
        // No hello any more: the others do not know this host.
        members.on_answer("lb-1", at(0), generation(2), now);
        members.decide(now);
        assert!(now > LEFT_BEHIND || members.mine().contains_key(&vip), "at {now:?}");
    }
    assert!(members.mine().is_empty(), "the host serves a document that holds no more");
}

#[test]
fn documents_that_arrive_a_moment_apart_move_nothing_and_spread_what_is_new() {
    let mut tier = Tier::settled(2, 10);
    let before = tier.snapshot();
    for n in 11..=20 {
        tier.vips.insert(Ipv4Addr::new(10, 0, 0, n));
    }
    tier.document("lb-1", 2);
    tier.run(Duration::from_millis(300));
    tier.document("lb-2", 2);
    tier.run(Duration::from_secs(1));
    assert_eq!(tier.snapshot()[..10], before[..]);
    assert_eq!(tier.owners().values().filter(|o| **o == ["lb-1"]).count(), 10, "{:?}", tier.owners());
}

#[test]
fn a_host_listens_from_its_first_document_on() {
    let vip = Ipv4Addr::new(10, 0, 0, 1);
    let mut members = Members::new("lb-1", BTreeSet::new(), Duration::ZERO);
    let hosts = ["lb-1", "lb-2"].map(String::from).into();
    let minute = Duration::from_secs(60);
    members.set_document(generation(1), [vip].into(), &hosts, minute);
    assert_eq!(members.decide(minute)[&vip].owner, None, "a peer may have it");
    assert_eq!(members.decide(minute + LISTEN_FIRST)[&vip].owner.as_deref(), Some("lb-1"));
}

#[test]
fn a_process_that_did_not_run_for_a_while_does_not_take_that_for_silence() {
    let vip = Ipv4Addr::new(10, 0, 0, 1);
    let at = Duration::from_millis;
    // After a long sleep it listens first.
    for (woken, alone) in [(5000, 350), (60_000, 800)] {
        let mut members = Members::new("lb-1", BTreeSet::new(), Duration::ZERO);
        let hosts = ["lb-1", "lb-2"].map(String::from).into();
        members.set_document(generation(1), [vip].into(), &hosts, at(0));
        members.on_answer("lb-2", at(0), generation(1), at(50));
        members.on_hello("lb-2", generation(1), [(vip, 1)].into(), at(50));
        let mut owner = |now: u64| members.decide(at(now))[&vip].owner.clone().unwrap_or_default();
        assert_eq!(owner(100), "lb-2");
        assert_eq!(owner(woken), "lb-2", "nothing was heard, because nobody listened");
        for now in (woken + 50..=woken + 300).step_by(50) {
            assert_eq!(owner(now), "lb-2");
        }
        let later: Vec<String> = (350..=alone).step_by(50).map(|after| owner(woken + after)).collect();
        assert_eq!(later.last().unwrap(), "lb-1", "but silence while one listens counts: {later:?}");
        assert!(!later.contains(&"lb-2".to_owned()), "{later:?}");
    }
}

#[test]
fn what_was_heard_on_waking_up_is_not_believed_for_longer_than_usual() {
    let vip = Ipv4Addr::new(10, 0, 0, 1);
    let at = Duration::from_millis;
    let mut members = Members::new("lb-1", BTreeSet::new(), Duration::ZERO);
    let hosts = ["lb-1", "lb-2"].map(String::from).into();
    members.set_document(generation(1), [vip].into(), &hosts, at(0));
    members.on_answer("lb-2", at(0), generation(1), at(60_000));
    members.on_hello("lb-2", generation(1), [(vip, 1)].into(), at(60_000));
    let mut owner = |now: u64| members.decide(at(now))[&vip].owner.clone().unwrap_or_default();
    assert!((60_000..=60_350).step_by(50).all(|now| owner(now) == "lb-2"));
    assert_ne!(owner(60_400), "lb-2");
}

#[test]
fn a_host_that_speaks_but_whose_packet_path_is_silent_is_lost() {
    let vip = Ipv4Addr::new(10, 0, 0, 1);
    let at = Duration::from_millis;
    let mut members = Members::new("lb-1", BTreeSet::new(), Duration::ZERO);
    let hosts = ["lb-1", "lb-2"].map(String::from).into();
    members.set_document(generation(1), [vip].into(), &hosts, at(0));
    for now in (0..30_000).step_by(50) {
        if now < 20_000 {
            members.on_answer("lb-2", at(0), generation(1), at(now));
        }
        members.on_hello("lb-2", generation(1), [(vip, 1)].into(), at(now));
        let owner = members.decide(at(now))[&vip].owner.clone().unwrap();
        assert_eq!(owner, if now < 20_350 { "lb-2" } else { "lb-1" }, "{now} ms");
    }
}

#[test]
fn a_process_that_slept_for_so_long_that_it_was_replaced_leaves_it_at_that() {
    let vips: BTreeSet<Ipv4Addr> = (1..=8).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect();
    let at = Duration::from_millis;
    let mut members = Members::new("lb-1", BTreeSet::new(), Duration::ZERO);
    let hosts = ["lb-1", "lb-2"].map(String::from).into();
    members.set_document(generation(1), vips.clone(), &hosts, at(0));
    (0..=1000).step_by(50).for_each(|now| drop(members.decide(at(now))));
    assert_eq!(members.mine().len(), 8, "nobody else is there");
    let theirs: Claims = vips.iter().map(|vip| (*vip, 1)).collect();
    for now in (20_000..25_000).step_by(50).map(at) {
        members.on_answer("lb-2", at(0), generation(1), now);
        members.decide(now);
        members.on_hello("lb-2", generation(1), theirs.clone(), now);
    }
    assert!(members.mine().is_empty(), "whatever their ranks are: {:?}", members.mine());
}

#[test]
fn only_a_live_host_counts() {
    let mut members = Members::new("lb-1", BTreeSet::new(), Duration::ZERO);
    let hosts = ["lb-1", "lb-2"].map(String::from).into();
    members.set_document(generation(1), BTreeSet::new(), &hosts, Duration::ZERO);
    let is_live = |members: &Members, now| members.peers(now).next() == Some(("lb-2", true));
    let at = Duration::from_millis;
    members.on_answer("lb-2", at(100), generation(1), at(1000));
    members.on_answer("lb-9", at(100), generation(1), at(1000));
    assert!(is_live(&members, at(1350)));
    assert!(!is_live(&members, at(1351)), "three probes unanswered");
    members.on_answer("lb-2", at(10_001), generation(1), at(20_000));
    assert!(!is_live(&members, at(20_000)), "nobody controls it");
    members.on_answer("lb-2", at(u64::from(u32::MAX)), generation(1), at(20_000));
    assert!(!is_live(&members, at(20_000)), "nobody ever has");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens to processes, links and the network between, three seconds of quiet later
    /// every VIP has exactly one owner.
    #[test]
    fn any_trouble_heals_to_one_owner(
        hosts in 1u8..5,
        vips in 1u8..8,
        events in proptest::collection::vec((0u8..5, 0u8..6, 0u64..15_000), 0..12),
    ) {
        let mut tier = Tier::new(hosts, vips);
        for (host, event, pause) in events {
            let name = format!("lb-{}", host % hosts + 1);
            match event {
                0 => tier.kill(&name),
                1 => tier.start(&name),
                2 => tier.link(&name, false),
                3 => tier.link(&name, true),
                4 => drop(tier.apart.insert(name)),
                _ => tier.apart.clear(),
            }
            tier.run(Duration::from_millis(pause));
        }
        tier.apart.clear();
        for name in tier.names() {
            tier.link(&name, true);
            if tier.hosts[&name].members.is_none() {
                tier.start(&name);
            }
        }
        tier.run(Duration::from_secs(3));
        for (vip, owners) in tier.owners() {
            prop_assert_eq!(owners.len(), 1, "{} is answered by {:?}", vip, owners);
        }
    }

    /// While all hosts hear each other, no VIP is without an owner for longer than a second after
    /// links are cut and mended, and none has two for longer than that.
    #[test]
    fn with_a_survivor_nobody_is_missed_or_doubled_for_a_second(
        hosts in 2u8..5,
        vips in 1u8..8,
        events in proptest::collection::vec((0u8..5, any::<bool>(), 20u32..60), 1..12),
    ) {
        let mut tier = Tier::settled(hosts, vips);
        let (mut missing, mut doubled) = (0, 0);
        for (host, up, steps) in events {
            // lb-1 always survives.
            let name = format!("lb-{}", host % (hosts - 1) + 2);
            tier.link(&name, up);
            for _ in 0..steps {
                tier.step();
                let owners = tier.owners();
                missing = if owners.values().any(Vec::is_empty) { missing + 1 } else { 0 };
                doubled = if owners.values().any(|o| o.len() > 1) { doubled + 1 } else { 0 };
                prop_assert!(missing < 20 && doubled < 20, "missing {missing}, doubled {doubled}: {owners:?}");
            }
        }
    }
}
