//! Steps to maps, and maps to the mirror. One `match`, no policy.

use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::Context;
use metal_lb_api::{Host, NatProtocol};

use super::layout::{
    self, Counters, FIRST_SOURCE_PORT, Listener, ListenerKey, REASONS, Settings, TARGET_HAS_MAC,
    TARGET_IN_TABLE, TableLabel, Target, Vip, address_from_net, address_to_net,
};
use super::maps::{Maps, now_ns};
use super::object::{self, Attachment};
use crate::desired::{ListenerId, Mac};
use crate::observed::{HostSettings, Observed, ObservedListener, ObservedTable, ObservedTarget};
use crate::plan::{Backend, Member, Step};

/// No connection outlives this many idle seconds, whatever its listener allows: the least after
/// which a target that left its table is forgotten.
const LEAST_REST: u64 = 600;

/// Each table that waits for its swap takes a descriptor and 128 kB.
const SWAPS_AT_ONCE: usize = 256;

/// The packet path of one interface.
#[derive(Debug)]
pub struct XdpBackend {
    maps: Maps,
    mac: Mac,
}

impl XdpBackend {
    /// Attaches the program, or takes over the one that is attached, with its connections.
    ///
    /// # Errors
    /// See [`object::attach`].
    pub fn open(settings: &object::Settings) -> anyhow::Result<(Self, Attachment)> {
        let mac = object::interface_mac(&settings.interface)?;
        let attachment = object::attach(settings)?;
        Ok((Self::new(Maps::pinned(&settings.pins())?, mac)?, attachment))
    }

    /// Works on maps that are loaded already, for an interface with this address.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(maps: Maps, mac: Mac) -> anyhow::Result<Self> {
        let settings = maps.settings()?;
        if settings.mac != mac.0 {
            maps.set_settings(&Settings { mac: mac.0, ..settings })?;
        }
        Ok(Self { maps, mac })
    }

    /// The interface's address: what gratuitous ARP announces.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Packets that were dropped or passed on, by reason.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn reasons(&self) -> anyhow::Result<impl Iterator<Item = (&'static str, u64)>> {
        Ok(REASONS.into_iter().zip(self.maps.reasons()?))
    }

    /// A listener's counters, by the number of its table.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn listener_counters(&self, table: u32) -> anyhow::Result<Counters> {
        self.maps.listener_counters(table)
    }

    /// # Errors
    /// When the kernel refuses.
    pub fn target_counters(&self, id: u32) -> anyhow::Result<Counters> {
        self.maps.target_counters(id)
    }

    fn host(&self) -> anyhow::Result<Option<HostSettings>> {
        let settings = self.maps.settings()?;
        Ok((settings.ports != 0).then(|| HostSettings {
            slot: settings.slot as u8,
            seed: settings.seed,
            probe_address: (settings.probe_address != 0).then(|| {
                let port = u16::from_be(settings.probe_port);
                SocketAddrV4::new(address_from_net(settings.probe_address), port)
            }),
        }))
    }

    fn targets(&self, rest: Duration) -> anyhow::Result<Vec<(u32, ObservedTarget)>> {
        let now = now_ns()?;
        let mut targets = Vec::new();
        for (id, target) in self.maps.targets()? {
            let Some(mut target) = target_from_wire(&target) else { continue };
            if !target.in_table {
                let seen = self.maps.target_counters(id)?.seen_ns;
                target.idle = seen == 0 || Duration::from_nanos(now.saturating_sub(seen)) > rest;
            }
            targets.push((id, target));
        }
        Ok(targets)
    }

    fn swap(&self, steps: &[Step]) -> anyhow::Result<()> {
        let mut places = Places::default();
        for steps in steps.chunks(SWAPS_AT_ONCE) {
            let tables = steps.iter().filter_map(|step| {
                let Step::SwapTable { table, listener, members, seed, fingerprint, .. } = step else {
                    return None;
                };
                let label = TableLabel {
                    listener: key_of(listener),
                    fingerprint_high: (fingerprint >> 32) as u32,
                    fingerprint_low: *fingerprint as u32,
                };
                Some((*table, places.slots_of(members, *seed), label))
            });
            self.maps.swap_tables(&tables.collect::<Vec<_>>())?;
        }
        Ok(())
    }

    fn take(&self, step: &Step) -> anyhow::Result<()> {
        match step {
            Step::SetHost(host) => self.maps.set_settings(&settings_of(host, self.mac)),
            Step::SetTarget { id, target, .. } => {
                if self.maps.target(*id)?.is_none() {
                    self.maps.reset_target_counters(*id)?;
                }
                self.maps.set_target(*id, &target_to_wire(target))
            }
            Step::RetireTarget { id } => match self.maps.target(*id)? {
                Some(t) => self.maps.set_target(*id, &Target { flags: t.flags & !TARGET_IN_TABLE, ..t }),
                None => Ok(()),
            },
            Step::ForgetTarget { id } => self.maps.set_target(*id, &Target::default()),
            Step::SwapTable { .. } => self.swap(std::slice::from_ref(step)),
            Step::ClearTable { table } => {
                self.maps.clear_table(*table)?;
                self.maps.reset_listener_counters(*table)
            }
            Step::SetListener { listener, table, idle } => {
                let value = Listener { table: *table, idle_s: u32::from(*idle) };
                self.maps.set_listener(&key_of(listener), Some(value))
            }
            Step::RemoveListener { listener } => self.maps.set_listener(&key_of(listener), None),
            Step::SetVip { vip, owned } => {
                self.maps.set_vip(address_to_net(*vip), Some(Vip { owned: u32::from(*owned) }))
            }
            Step::RemoveVip { vip } => self.maps.set_vip(address_to_net(*vip), None),
        }
    }
}

impl Backend for XdpBackend {
    fn observe(&mut self) -> anyhow::Result<Observed> {
        let vips = self.maps.vips()?.into_iter().map(|(k, v)| (address_from_net(k), v.owned != 0));
        let listeners = self.maps.listeners()?.into_iter().filter_map(|(key, value)| {
            let state = ObservedListener { table: value.table, idle: value.idle_s as u16 };
            Some((listener_from_key(&key)?, state))
        });
        let listeners: std::collections::BTreeMap<_, _> = listeners.collect();
        let longest = listeners.values().map(|l| u64::from(l.idle)).max().unwrap_or(0).max(LEAST_REST);
        let tables = self.maps.tables()?.into_iter().filter_map(|(number, label)| {
            let fingerprint = u64::from(label.fingerprint_high) << 32 | u64::from(label.fingerprint_low);
            Some((number, ObservedTable { listener: listener_from_key(&label.listener)?, fingerprint }))
        });
        let targets = self.targets(Duration::from_secs(longest))?.into_iter().collect();
        Ok(Observed::new(self.host()?, vips.collect(), listeners, targets, tables.collect()))
    }

    /// Tables that stand next to each other are swapped together.
    fn apply(&mut self, batch: &[Step]) -> anyhow::Result<()> {
        let is_swap = |step: &Step| matches!(step, Step::SwapTable { .. });
        for group in batch.chunk_by(|a, b| is_swap(a) && is_swap(b)) {
            match group {
                [step] => self.take(step),
                swaps => self.swap(swaps),
            }
            .with_context(|| group[0].to_string())?;
        }
        Ok(())
    }
}

/// Targets' places in a Maglev table, to be looked up by slot. Listeners of the same nodes have the
/// same places, whatever their targets' ids are, so a table that was just built may do again.
#[derive(Debug, Default)]
struct Places {
    seed: u64,
    shares: Vec<(String, u32)>,
    slots: Vec<u32>,
}

impl Places {
    fn slots_of(&mut self, members: &[Member], seed: u64) -> Vec<u16> {
        let shares: Vec<(String, u32)> = members.iter().map(|m| (m.node.clone(), m.weight)).collect();
        if self.slots.is_empty() || self.seed != seed || self.shares != shares {
            let backends = (1..).zip(&shares);
            let backends: Vec<maglev::Backend<'_>> = backends
                .map(|(value, (identity, weight))| maglev::Backend { identity, weight: *weight, value })
                .collect();
            let slots = maglev::table(&backends, maglev::TABLE_SLOTS, seed);
            *self = Self { seed, shares, slots };
        }
        // Place 0 is nobody's.
        let ids: Vec<u16> = std::iter::once(0).chain(members.iter().map(|m| m.id as u16)).collect();
        self.slots.iter().map(|place| ids[*place as usize]).collect()
    }
}

fn settings_of(host: &HostSettings, mac: Mac) -> Settings {
    let ports = (u16::MAX - FIRST_SOURCE_PORT + 1) / u16::from(Host::SLOTS);
    Settings {
        seed: host.seed,
        probe_address: host.probe_address.map_or(0, |at| address_to_net(*at.ip())),
        probe_port: host.probe_address.map_or(0, |at| at.port().to_be()),
        first_port: FIRST_SOURCE_PORT + u16::from(host.slot) * ports,
        ports,
        mac: mac.0,
        slot: u32::from(host.slot),
        zero: 0,
    }
}

fn key_of(listener: &ListenerId) -> ListenerKey {
    ListenerKey {
        vip: address_to_net(listener.vip),
        port: listener.port.to_be(),
        protocol: listener.protocol.number(),
        zero: 0,
    }
}

fn listener_from_key(key: &ListenerKey) -> Option<ListenerId> {
    let protocol = match key.protocol {
        6 => NatProtocol::Tcp,
        17 => NatProtocol::Udp,
        _ => return None,
    };
    Some(ListenerId { vip: layout::address_from_net(key.vip), protocol, port: u16::from_be(key.port) })
}

fn target_to_wire(target: &ObservedTarget) -> Target {
    let in_table = if target.in_table { TARGET_IN_TABLE } else { 0 };
    let has_mac = if target.mac.is_some() { TARGET_HAS_MAC } else { 0 };
    let key = key_of(&target.listener);
    Target {
        address: address_to_net(*target.address.ip()),
        port: target.address.port().to_be(),
        mac: target.mac.unwrap_or_default().0,
        vip: key.vip,
        vip_port: key.port,
        protocol: key.protocol,
        flags: in_table | has_mac,
    }
}

fn target_from_wire(target: &Target) -> Option<ObservedTarget> {
    let key = ListenerKey { vip: target.vip, port: target.vip_port, protocol: target.protocol, zero: 0 };
    Some(ObservedTarget {
        listener: listener_from_key(&key)?,
        address: SocketAddrV4::new(address_from_net(target.address), u16::from_be(target.port)),
        mac: (target.flags & TARGET_HAS_MAC != 0).then_some(Mac(target.mac)),
        in_table: target.flags & TARGET_IN_TABLE != 0,
        idle: false,
    })
}
