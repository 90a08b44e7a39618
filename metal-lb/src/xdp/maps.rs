//! The pinned maps, typed.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use anyhow::Context;
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, Object};
use maglev::TABLE_SLOTS;

use super::layout::{Control, Counters, Listener, ListenerKey, Shared, Target, Vip};

/// Handles of the maps that the control process reads and writes.
#[derive(Debug)]
pub struct Maps {
    control: MapHandle,
    vips: MapHandle,
    listeners: MapHandle,
    targets: MapHandle,
    tables: MapHandle,
    reasons: MapHandle,
    listener_stats: MapHandle,
    target_stats: MapHandle,
}

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
            control: open("control")?,
            vips: open("vips")?,
            listeners: open("listeners")?,
            targets: open("targets")?,
            tables: open("tables")?,
            reasons: open("reasons")?,
            listener_stats: open("listener_stats")?,
            target_stats: open("target_stats")?,
        })
    }

    /// # Errors
    /// When the kernel refuses.
    pub fn control(&self) -> anyhow::Result<Control> {
        Ok(read(&self.control, &0u32.to_ne_bytes())?.unwrap_or_default())
    }

    /// # Errors
    /// When the kernel refuses.
    pub fn set_control(&self, control: &Control) -> anyhow::Result<()> {
        write(&self.control, &0u32.to_ne_bytes(), control)
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
            None => Ok(self.vips.delete(&address.to_ne_bytes())?),
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
            None => Ok(self.listeners.delete(key.as_bytes())?),
        }
    }

    /// The targets that exist, by id.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn targets(&self) -> anyhow::Result<Vec<(u32, Target)>> {
        const BATCH: u32 = 4096;
        let mut found = Vec::new();
        for entry in self.targets.lookup_batch(BATCH, MapFlags::ANY, MapFlags::ANY)? {
            let (key, value) = entry;
            let id = u32::from_ne_bytes(key.as_slice().try_into().context("a target's key is not 4 bytes")?);
            let target = Target::from_bytes(&value).context("a target has another size")?;
            if target.address != 0 {
                found.push((id, target));
            }
        }
        Ok(found)
    }

    /// # Errors
    /// When the id is out of range or the kernel refuses.
    pub fn set_target(&self, id: u32, target: &Target) -> anyhow::Result<()> {
        write(&self.targets, &id.to_ne_bytes(), target)
    }

    /// The table slots that hold a table.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn tables(&self) -> anyhow::Result<Vec<u32>> {
        let keys = self.tables.keys().filter_map(|k| Some(u32::from_ne_bytes(k.try_into().ok()?)));
        let mut filled = Vec::new();
        for key in keys {
            if self.tables.lookup(&key.to_ne_bytes(), MapFlags::ANY)?.is_some() {
                filled.push(key);
            }
        }
        Ok(filled)
    }

    /// Builds a table aside and swaps it in by one update.
    ///
    /// # Errors
    /// When memory is short or the kernel refuses.
    pub fn swap_table(&self, index: u32, slots: &[u32]) -> anyhow::Result<()> {
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as libbpf_sys::size_t,
            ..Default::default()
        };
        let table = MapHandle::create(MapType::Array, Some("table"), 4, 4, TABLE_SLOTS, &options)
            .context("creating a table")?;
        let keys: Vec<u8> = (0..TABLE_SLOTS).flat_map(u32::to_ne_bytes).collect();
        let values: Vec<u8> = slots.iter().flat_map(|s| s.to_ne_bytes()).collect();
        table
            .update_batch(&keys, &values, TABLE_SLOTS, MapFlags::ANY, MapFlags::ANY)
            .context("filling a table")?;
        let fd = table.as_fd().as_raw_fd();
        self.tables.update(&index.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY).context("swapping a table")
    }

    /// # Errors
    /// When the kernel refuses.
    pub fn clear_table(&self, index: u32) -> anyhow::Result<()> {
        Ok(self.tables.delete(&index.to_ne_bytes())?)
    }

    /// Packets per reason, summed over the CPUs, in the order of [`super::layout::REASONS`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn reasons(&self) -> anyhow::Result<Vec<u64>> {
        (0..super::layout::REASONS.len() as u32)
            .map(|i| {
                let per_cpu =
                    self.reasons.lookup_percpu(&i.to_ne_bytes(), MapFlags::ANY)?.unwrap_or_default();
                Ok(per_cpu
                    .iter()
                    .filter_map(|v| Some(u64::from_ne_bytes(v.as_slice().try_into().ok()?)))
                    .sum())
            })
            .collect()
    }

    /// # Errors
    /// When the kernel refuses.
    pub fn listener_counters(&self, table: u32) -> anyhow::Result<Counters> {
        counters(&self.listener_stats, table)
    }

    /// # Errors
    /// When the kernel refuses.
    pub fn target_counters(&self, id: u32) -> anyhow::Result<Counters> {
        counters(&self.target_stats, id)
    }
}

fn counters(map: &MapHandle, index: u32) -> anyhow::Result<Counters> {
    let per_cpu = map.lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY)?.unwrap_or_default();
    Ok(per_cpu.iter().filter_map(|v| Counters::from_bytes(v)).fold(Counters::default(), |sum, c| Counters {
        packets: sum.packets + c.packets,
        bytes: sum.bytes + c.bytes,
        new_flows: sum.new_flows + c.new_flows,
    }))
}

fn read<T: Shared>(map: &MapHandle, key: &[u8]) -> anyhow::Result<Option<T>> {
    let Some(bytes) = map.lookup(key, MapFlags::ANY)? else { return Ok(None) };
    Ok(Some(T::from_bytes(&bytes).context("a value has another size than its struct")?))
}

fn write<T: Shared>(map: &MapHandle, key: &[u8], value: &T) -> anyhow::Result<()> {
    Ok(map.update(key, value.as_bytes(), MapFlags::ANY)?)
}
