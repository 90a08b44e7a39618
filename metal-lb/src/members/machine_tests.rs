//! The rules in a simulated tier: hosts that can lose their process, their link or each other.

use proptest::prelude::*;

use super::*;

const STEP: Duration = Duration::from_millis(50);

struct Host {
    members: Option<Members>,
    /// What the pinned maps hold.
    pinned: BTreeSet<Ipv4Addr>,
    process_since: Option<Duration>,
    last_heartbeat: Duration,
    link: bool,
}

struct Tier {
    now: Duration,
    hosts: BTreeMap<String, Host>,
    vips: BTreeSet<Ipv4Addr>,
}

impl Tier {
    fn new(hosts: u8, vips: u8) -> Self {
        let now = Duration::from_secs(100);
        let vips = (1..=vips).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect();
        let host = || Host {
            members: None,
            pinned: BTreeSet::new(),
            process_since: None,
            last_heartbeat: now,
            link: true,
        };
        let mut tier = Self { now, hosts: (1..=hosts).map(|n| (format!("lb-{n}"), host())).collect(), vips };
        for name in tier.names() {
            tier.start(&name);
        }
        tier
    }

    fn names(&self) -> BTreeSet<String> {
        self.hosts.keys().cloned().collect()
    }

    fn start(&mut self, name: &str) {
        let (names, vips, now) = (self.names(), self.vips.clone(), self.now);
        let host = self.hosts.get_mut(name).unwrap();
        let mut members = Members::new(name, host.pinned.clone(), now);
        members.set_document(vips, &names);
        host.members = Some(members);
        host.process_since = Some(now);
    }

    fn kill(&mut self, name: &str) {
        self.hosts.get_mut(name).unwrap().members = None;
    }

    fn link(&mut self, name: &str, up: bool) {
        let now = self.now;
        let host = self.hosts.get_mut(name).unwrap();
        host.link = up;
        if let Some(members) = &mut host.members {
            members.set_carrier(up, now);
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += STEP;
            self.step();
        }
    }

    fn step(&mut self) {
        let now = self.now;
        for host in self.hosts.values_mut().filter(|h| h.members.is_some()) {
            host.last_heartbeat = now;
        }
        let seen: Vec<(String, Duration, Option<BTreeSet<Ipv4Addr>>)> = self
            .hosts
            .iter()
            .filter(|(_, h)| h.link)
            .map(|(n, h)| (n.clone(), now - h.last_heartbeat, h.members.as_ref().map(|m| m.mine().clone())))
            .collect();
        for (name, host) in &mut self.hosts {
            let Some(members) = &mut host.members else { continue };
            for (peer, age, claims) in seen.iter().filter(|(p, ..)| p != name && host.link) {
                members.on_answer(peer, *age, now);
                if let Some(claims) = claims {
                    members.on_hello(peer, claims.clone(), now);
                }
            }
            members.decide(now);
            host.pinned = members.mine().clone();
        }
    }

    /// The hosts that answer for a VIP on the network: the pinned map decides, not the process.
    fn answering(&self, vip: Ipv4Addr) -> Vec<&str> {
        self.hosts
            .iter()
            .filter(|(_, h)| h.link && h.pinned.contains(&vip))
            .map(|(n, _)| n.as_str())
            .collect()
    }

    fn owners(&self) -> BTreeMap<Ipv4Addr, Vec<&str>> {
        self.vips.iter().map(|vip| (*vip, self.answering(*vip))).collect()
    }
}

#[test]
fn every_vip_gets_one_owner_and_the_load_is_even() {
    let mut tier = Tier::new(2, 10);
    tier.run(Duration::from_secs(2));
    let owners = tier.owners();
    assert!(owners.values().all(|o| o.len() == 1), "{owners:?}");
    let first = owners.values().filter(|o| o[0] == "lb-1").count();
    assert_eq!(first, 5);
}

#[test]
fn a_lost_hosts_vips_move_within_half_a_second_and_stay_when_it_returns() {
    let mut tier = Tier::new(2, 4);
    tier.run(Duration::from_secs(2));
    tier.link("lb-1", false);
    tier.run(Duration::from_millis(500));
    assert!(tier.owners().values().all(|o| *o == ["lb-2"]), "{:?}", tier.owners());
    tier.link("lb-1", true);
    tier.run(Duration::from_secs(30));
    assert!(tier.owners().values().all(|o| *o == ["lb-2"]), "nothing is pre-empted: {:?}", tier.owners());
}

#[test]
fn a_process_that_restarts_within_ten_seconds_keeps_its_vips() {
    let mut tier = Tier::new(2, 4);
    tier.run(Duration::from_secs(2));
    let before: Vec<String> = tier.owners().values().map(|o| o.concat()).collect();
    tier.kill("lb-1");
    for _ in 0..160 {
        tier.run(STEP);
        assert_eq!(tier.owners().values().map(|o| o.concat()).collect::<Vec<_>>(), before, "a VIP flapped");
    }
    tier.start("lb-1");
    tier.run(Duration::from_secs(5));
    assert_eq!(tier.owners().values().map(|o| o.concat()).collect::<Vec<_>>(), before);
}

#[test]
fn a_process_that_stays_away_loses_its_vips() {
    let mut tier = Tier::new(2, 4);
    tier.run(Duration::from_secs(2));
    tier.kill("lb-1");
    tier.run(Duration::from_secs(11));
    let second = &tier.hosts["lb-2"].pinned;
    assert_eq!(second, &tier.vips, "the survivor takes over what nobody controls");
    tier.start("lb-1");
    tier.run(Duration::from_secs(2));
    assert!(tier.owners().values().all(|o| o.len() == 1), "one of two claimants yields: {:?}", tier.owners());
}

#[test]
fn a_lone_host_claims_at_once() {
    let mut tier = Tier::new(1, 2);
    tier.run(STEP);
    assert!(tier.owners().values().all(|o| *o == ["lb-1"]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens to processes and links, three seconds of quiet later every VIP has exactly
    /// one owner, and it is alive.
    #[test]
    fn any_trouble_heals_to_one_owner(
        hosts in 1u8..5,
        vips in 1u8..8,
        events in proptest::collection::vec((0u8..5, 0u8..4, 0u64..15_000), 0..12),
    ) {
        let mut tier = Tier::new(hosts, vips);
        for (host, event, pause) in events {
            let name = format!("lb-{}", host % hosts + 1);
            match event {
                0 => tier.kill(&name),
                1 => tier.start(&name),
                2 => tier.link(&name, false),
                _ => tier.link(&name, true),
            }
            tier.run(Duration::from_millis(pause));
        }
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
}
