//! Steps to maps, and maps to the mirror. One `match`, no policy.

use std::net::SocketAddrV4;

use metal_lb_api::NatProtocol;

use super::layout::{self, Control, Listener, ListenerKey, Target, Vip, address_from_net, address_to_net};
use super::maps::Maps;
use super::object::{self, Attachment, Settings};
use crate::desired::{ListenerId, Mac};
use crate::observed::{Observed, ObservedListener, ObservedTarget};
use crate::plan::{Step, TableTarget};

/// The packet path of one interface.
#[derive(Debug)]
pub struct XdpBackend {
    maps: Maps,
    /// Seeds the tables; equal on all hosts.
    seed: u64,
}

impl XdpBackend {
    /// Attaches the program, or takes over the one that is attached.
    ///
    /// # Errors
    /// See [`object::attach`].
    pub fn open(settings: &Settings, seed: u64) -> anyhow::Result<(Self, Attachment)> {
        let attachment = object::attach(settings)?;
        Ok((Self::new(Maps::pinned(&settings.pins())?, seed), attachment))
    }

    pub fn new(maps: Maps, seed: u64) -> Self {
        Self { maps, seed }
    }

    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Reads back everything that is programmed.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn observe(&self) -> anyhow::Result<Observed> {
        let vips = self.maps.vips()?.into_iter().map(|(k, v)| (address_from_net(k), v.owned != 0)).collect();
        let listeners = self.maps.listeners()?.into_iter().filter_map(|(key, value)| {
            let state = ObservedListener { table: value.table, fingerprint: value.fingerprint };
            Some((listener_from_key(&key)?, state))
        });
        let targets = self.maps.targets()?.into_iter().map(|(id, t)| (id, target_from_wire(&t)));
        Ok(Observed {
            vips,
            listeners: listeners.collect(),
            targets: targets.collect(),
            tables: self.maps.tables()?.into_iter().collect(),
        })
    }

    /// # Errors
    /// The kernel's refusal, with the step; the steps before it stay.
    pub fn apply(&mut self, batch: &[Step]) -> anyhow::Result<()> {
        batch.iter().try_for_each(|step| self.apply_step(step).map_err(|e| e.context(step.to_string())))
    }

    fn apply_step(&self, step: &Step) -> anyhow::Result<()> {
        match step {
            Step::SetTarget { id, target, .. } => self.maps.set_target(*id, &target_to_wire(target)),
            Step::RetireTarget { id } => self.retire(*id),
            Step::ForgetTarget { id } => self.maps.set_target(*id, &Target::default()),
            Step::BuildTable { table, targets, .. } => {
                self.maps.swap_table(*table, &table_slots(targets, self.seed))
            }
            Step::ClearTable { table } => self.maps.clear_table(*table),
            Step::SetListener { listener, table, fingerprint } => {
                let value = Listener { table: *table, zero: 0, fingerprint: *fingerprint };
                self.maps.set_listener(&key_of(listener), Some(value))
            }
            Step::RemoveListener { listener } => self.maps.set_listener(&key_of(listener), None),
            Step::SetVip { vip, owned } => {
                self.maps.set_vip(address_to_net(*vip), Some(Vip { owned: u32::from(*owned) }))
            }
            Step::RemoveVip { vip } => self.maps.set_vip(address_to_net(*vip), None),
        }
    }

    fn retire(&self, id: u32) -> anyhow::Result<()> {
        let found = self.maps.targets()?.into_iter().find(|(other, _)| *other == id);
        match found {
            Some((_, target)) => self.maps.set_target(id, &Target { active: 0, ..target }),
            None => Ok(()),
        }
    }

    /// Writes what the program reads of this process.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_control(&self, control: &Control) -> anyhow::Result<()> {
        self.maps.set_control(control)
    }
}

/// The Maglev table of a listener's targets.
pub fn table_slots(targets: &[TableTarget], seed: u64) -> Vec<u32> {
    let backends: Vec<maglev::Backend<'_>> = targets
        .iter()
        .map(|t| maglev::Backend { identity: &t.node, weight: t.weight, value: t.id })
        .collect();
    maglev::table(&backends, maglev::TABLE_SLOTS, seed)
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
    Target {
        address: address_to_net(*target.address.ip()),
        port: target.address.port().to_be(),
        mac: target.mac.0,
        table: target.table,
        active: u32::from(target.active),
    }
}

fn target_from_wire(target: &Target) -> ObservedTarget {
    ObservedTarget {
        table: target.table,
        address: SocketAddrV4::new(address_from_net(target.address), u16::from_be(target.port)),
        mac: Mac(target.mac),
        active: target.active != 0,
    }
}
