//! The pinned maps, typed.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, Object};
use metal_lb_api::Generation;

use super::layout::{
    Counters, Listener, ListenerKey, Liveness, REASONS, Settings, Shared, TABLE_BYTES, TABLE_SLOT_BYTES,
    TableLabel, Target, Vip,
};

/// Handles of the maps that the control process reads and writes.
#[derive(Debug)]
pub struct Maps {
    settings: MapHandle,
    liveness: MapHandle,
    vips: MapHandle,
    listeners: MapHandle,
    targets: MapHandle,
    tables: MapHandle,
    reasons: MapHandle,
    listener_counters: MapHandle,
    target_counters: MapHandle,
}

/// The only key of a map of one element.
const ONE: [u8; 4] = [0; 4];

impl Maps {
    /// The maps that [`super::object::attach`] pinned.
    ///
    /// # Errors
    /// When a pin is missing.
    pub fn pinned(pins: &Path) -> anyhow::Result<Self> {
        Self::find(|name| {
            let path = pins.join(name);
            MapHandle::from_pinned_path(&path)
                .with_context(|| format!("opening the pinned map {}", path.display()))
        })
    }

    /// The maps of an object that is loaded but not pinned.
    ///
    /// # Errors
    /// When a map is missing.
    pub fn of(object: &Object) -> anyhow::Result<Self> {
        Self::find(|name| {
            let map = object.maps().find(|m| m.name() == name).with_context(|| format!("no map {name}"))?;
            MapHandle::try_from(&map).with_context(|| format!("map {name}"))
        })
    }

    fn find(open: impl Fn(&str) -> anyhow::Result<MapHandle>) -> anyhow::Result<Self> {
        Ok(Self {
            settings: open("settings")?,
            liveness: open("liveness")?,
            vips: open("vips")?,
            listeners: open("listeners")?,
            targets: open("targets")?,
            tables: open("tables")?,
            reasons: open("reasons")?,
            listener_counters: open("listener_counters")?,
            target_counters: open("target_counters")?,
        })
    }

    /// # Errors
    /// When the kernel refuses.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        Ok(read(&self.settings, &ONE)?.unwrap_or_default())
    }

    /// # Errors
    /// When the kernel refuses.
    pub fn set_settings(&self, settings: &Settings) -> anyhow::Result<()> {
        write(&self.settings, &ONE, settings)
    }

    /// Says that the control process lives and which document it obeys. Peers take its VIPs over
    /// once this is long ago.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn beat(&self, generation: Generation) -> anyhow::Result<()> {
        let Generation { term, counter } = generation;
        let beat = Liveness { beat_ns: now_ns()?, generation_term: term, generation_counter: counter };
        write(&self.liveness, &ONE, &beat)
    }

    /// # Errors
    /// When the kernel refuses.
    pub fn vips(&self) -> anyhow::Result<Vec<(u32, Vip)>> {
        let keys = self.vips.keys().filter_map(|k| Some(u32::from_ne_bytes(k.try_into().ok()?)));
        keys.map(|key| Ok((key, read(&self.vips, &key.to_ne_bytes())?.unwrap_or_default()))).collect()
    }

    /// # Errors
    /// When the map is full or the kernel refuses.
    pub fn set_vip(&self, address: u32, vip: Option<Vip>) -> anyhow::Result<()> {
        match vip {
            Some(vip) => write(&self.vips, &address.to_ne_bytes(), &vip),
            None => delete(&self.vips, &address.to_ne_bytes()),
        }
    }

    /// # Errors
    /// When the kernel refuses.
    pub fn listeners(&self) -> anyhow::Result<Vec<(ListenerKey, Listener)>> {
        let keys = self.listeners.keys().filter_map(|k| ListenerKey::from_bytes(&k));
        keys.map(|key| Ok((key, read(&self.listeners, key.as_bytes())?.unwrap_or_default()))).collect()
    }

    /// # Errors
    /// When the map is full or the kernel refuses.
    pub fn set_listener(&self, key: &ListenerKey, listener: Option<Listener>) -> anyhow::Result<()> {
        match listener {
            Some(listener) => write(&self.listeners, key.as_bytes(), &listener),
            None => delete(&self.listeners, key.as_bytes()),
        }
    }

    /// The targets that exist, by id.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn targets(&self) -> anyhow::Result<Vec<(u32, Target)>> {
        const BATCH: u32 = 4096;
        let mut found = Vec::new();
        for (key, value) in self.targets.lookup_batch(BATCH, MapFlags::ANY, MapFlags::ANY)? {
            let id = u32::from_ne_bytes(key.as_slice().try_into().context("a target's key is not 4 bytes")?);
            let target = Target::from_bytes(&value).context("a target has another size")?;
            if target.address != 0 {
                found.push((id, target));
            }
        }
        Ok(found)
    }

    /// `None` when there is no target of this id.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn target(&self, id: u32) -> anyhow::Result<Option<Target>> {
        Ok(read::<Target>(&self.targets, &id.to_ne_bytes())?.filter(|t| t.address != 0))
    }

    /// # Errors
    /// When the id is out of range or the kernel refuses.
    pub fn set_target(&self, id: u32, target: &Target) -> anyhow::Result<()> {
        write(&self.targets, &id.to_ne_bytes(), target)
    }

    /// The tables that exist, by number.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn tables(&self) -> anyhow::Result<Vec<(u32, TableLabel)>> {
        let mut found = Vec::new();
        for key in self.tables.keys() {
            let Some(id) = self.tables.lookup(&key, MapFlags::ANY)? else { continue };
            let id = u32::from_ne_bytes(id.as_slice().try_into().context("a map's id is not 4 bytes")?);
            let table = MapHandle::from_map_id(id).context("opening a table")?;
            let value = table.lookup(&ONE, MapFlags::ANY)?.unwrap_or_default();
            let label = value.get(TABLE_SLOT_BYTES..).unwrap_or_default();
            let number =
                u32::from_ne_bytes(key.as_slice().try_into().context("a table's key is not 4 bytes")?);
            found.push((number, TableLabel::from_bytes(label).context("a table without a label")?));
        }
        Ok(found)
    }

    /// Fills tables aside and swaps them in: number, slots (targets' ids), label. The kernel waits once
    /// for the packets under way, however many they are.
    ///
    /// # Errors
    /// When memory is short or the kernel refuses.
    pub fn swap_tables(&self, tables: &[(u32, Vec<u16>, TableLabel)]) -> anyhow::Result<()> {
        let filled = tables.iter().map(|(_, slots, label)| table_of(slots, label));
        let filled = filled.collect::<anyhow::Result<Vec<MapHandle>>>()?;
        let numbers: Vec<u8> = tables.iter().flat_map(|(number, ..)| number.to_ne_bytes()).collect();
        let fds: Vec<u8> = filled.iter().flat_map(|t| t.as_fd().as_raw_fd().to_ne_bytes()).collect();
        let count = u32::try_from(tables.len()).context("more tables than numbers")?;
        self.tables
            .update_batch(&numbers, &fds, count, MapFlags::ANY, MapFlags::ANY)
            .context("swapping tables")
    }

    /// # Errors
    /// When the kernel refuses.
    pub fn clear_table(&self, number: u32) -> anyhow::Result<()> {
        delete(&self.tables, &number.to_ne_bytes())
    }

    /// Packets per reason, summed over the CPUs, in the order of [`REASONS`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn reasons(&self) -> anyhow::Result<[u64; REASONS.len()]> {
        let mut totals = [0; REASONS.len()];
        for (index, total) in (0u32..).zip(&mut totals) {
            let per_cpu =
                self.reasons.lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY)?.unwrap_or_default();
            *total =
                per_cpu.iter().filter_map(|v| Some(u64::from_ne_bytes(v.as_slice().try_into().ok()?))).sum();
        }
        Ok(totals)
    }

    /// # Errors
    /// When the kernel refuses.
    pub fn listener_counters(&self, table: u32) -> anyhow::Result<Counters> {
        counters(&self.listener_counters, table)
    }

    /// # Errors
    /// When the kernel refuses.
    pub fn target_counters(&self, id: u32) -> anyhow::Result<Counters> {
        counters(&self.target_counters, id)
    }

    /// Begins at 0 for a new listener.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn reset_listener_counters(&self, table: u32) -> anyhow::Result<()> {
        reset(&self.listener_counters, table)
    }

    /// Begins at 0 for a new target.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn reset_target_counters(&self, id: u32) -> anyhow::Result<()> {
        reset(&self.target_counters, id)
    }
}

fn table_of(slots: &[u16], label: &TableLabel) -> anyhow::Result<MapHandle> {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    let size = TABLE_BYTES as u32;
    let table =
        MapHandle::create(MapType::Array, Some("table"), 4, size, 1, &options).context("creating a table")?;
    let mut value: Vec<u8> = slots.iter().flat_map(|s| s.to_ne_bytes()).collect();
    value.resize(TABLE_SLOT_BYTES, 0);
    value.extend(label.as_bytes());
    table.update(&ONE, &value, MapFlags::ANY).context("filling a table")?;
    Ok(table)
}

/// The clock of the program's timestamps (CLOCK_MONOTONIC), in nanoseconds.
pub(super) fn now_ns() -> anyhow::Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    Ok(u64::try_from(Duration::from(now).as_nanos())?)
}

fn counters(map: &MapHandle, index: u32) -> anyhow::Result<Counters> {
    let per_cpu = map.lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY)?.unwrap_or_default();
    Ok(per_cpu.iter().filter_map(|v| Counters::from_bytes(v)).fold(Counters::default(), |sum, c| Counters {
        packets: sum.packets + c.packets,
        bytes: sum.bytes + c.bytes,
        new_flows: sum.new_flows + c.new_flows,
        seen_ns: sum.seen_ns.max(c.seen_ns),
    }))
}

fn reset(map: &MapHandle, index: u32) -> anyhow::Result<()> {
    let zeroes = vec![Counters::default().as_bytes().to_vec(); libbpf_rs::num_possible_cpus()?];
    Ok(map.update_percpu(&index.to_ne_bytes(), &zeroes, MapFlags::ANY)?)
}

fn read<T: Shared>(map: &MapHandle, key: &[u8]) -> anyhow::Result<Option<T>> {
    let Some(bytes) = map.lookup(key, MapFlags::ANY)? else { return Ok(None) };
    Ok(Some(T::from_bytes(&bytes).context("a value has another size than its struct")?))
}

fn write<T: Shared>(map: &MapHandle, key: &[u8], value: &T) -> anyhow::Result<()> {
    Ok(map.update(key, value.as_bytes(), MapFlags::ANY)?)
}

/// What is gone already is no error: a step may be taken twice.
fn delete(map: &MapHandle, key: &[u8]) -> anyhow::Result<()> {
    match map.delete(key) {
        Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
