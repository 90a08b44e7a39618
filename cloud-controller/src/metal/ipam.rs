//! Who has which address. Plain state, no clock, no chance: the same events in the same order
//! give the same addresses, and ties are broken by name.
//!
//! A start has two phases: first every address that is already recorded is adopted, then Services
//! that ask for an address choose, then the rest: an address that somebody asks for is not given
//! to others. An address that was freed is quarantined until the balancers have acknowledged a
//! document without it. One that a machine has itself is never given out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use metal_lb_api::Generation;
use service_model::{Service, ServiceName};

use super::pool::Pool;
use super::request::Request;

#[derive(Debug, Clone, Default)]
pub struct Ipam {
    pools: BTreeMap<Box<str>, Pool>,
    held: BTreeMap<ServiceName, Held>,
    uses: BTreeMap<IpAddr, Use>,
    /// Addresses that Services ask for and do not hold: nobody else gets them by chance.
    asked: BTreeMap<ServiceName, IpAddr>,
    /// Addresses that nodes and balancer hosts have themselves, and whose they are.
    machines: BTreeMap<IpAddr, String>,
}

/// What one Service holds. The UID tells it from a later Service of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub uid: Box<str>,
    pub ip: IpAddr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Use {
    By(ServiceName),
    /// Free once the balancers run a document of this generation, or a later one.
    Quarantined(Generation),
}

/// An address that is free for the Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub ip: IpAddr,
    pub pool: Box<str>,
}

/// Why a Service gets no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    #[error("there is no IPAddressPool: create one with the addresses that Services may have")]
    NoPool,
    #[error(
        "none of the {count} IPAddressPools gives this Service an address by itself (autoAssign, \
         serviceAllocation, IPv4): ask for one of them with the annotation fairlead.dev/address-pool"
    )]
    NoPoolForService { count: usize },
    #[error("no address is free: {usage}; add addresses to a pool, or delete a Service")]
    Exhausted { usage: String },
    #[error("no IPAddressPool is named {pool:?}; there are: {known}")]
    PoolUnknown { pool: Box<str>, known: String },
    #[error("IPAddressPool {pool} does not serve this Service (spec.serviceAllocation)")]
    PoolRefuses { pool: Box<str> },
    #[error("IPAddressPool {pool} has no IPv4 addresses")]
    PoolWithoutIpv4 { pool: Box<str> },
    #[error("{ip} is outside every IPAddressPool; there are: {known}")]
    OutsideEveryPool { ip: IpAddr, known: String },
    #[error("{ip} is not in IPAddressPool {pool}, which the Service asks for too")]
    OutsidePool { ip: IpAddr, pool: Box<str> },
    #[error("{ip} is taken by Service {by}")]
    Taken { ip: IpAddr, by: ServiceName },
    #[error("{ip} is {machine}'s own address, which no Service can have: take it out of the IPAddressPool")]
    OfMachine { ip: IpAddr, machine: String },
    #[error("{ip} was just given back and is still being withdrawn from the balancers")]
    Quarantined { ip: IpAddr },
}

/// How much of a pool is in use, per family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub assigned: u128,
    pub size: u128,
}

impl Ipam {
    /// Replaces the pools. What is held stays held, also outside of every pool.
    pub fn set_pools(&mut self, pools: impl IntoIterator<Item = Pool>) {
        self.pools = pools.into_iter().map(|p| (p.name.clone(), p)).collect();
    }

    /// Replaces the addresses that machines have themselves. Answers which are new, or free now.
    pub fn set_machines(&mut self, machines: BTreeMap<IpAddr, String>) -> BTreeSet<IpAddr> {
        let before = std::mem::replace(&mut self.machines, machines);
        let (new, gone) = (self.machines.keys(), before.keys());
        let new = new.filter(|ip| !before.contains_key(*ip));
        new.chain(gone.filter(|ip| !self.machines.contains_key(*ip))).copied().collect()
    }

    /// Whose address it is, if it is a machine's own.
    pub fn machine_at(&self, ip: IpAddr) -> Option<&str> {
        self.machines.get(&ip).map(String::as_str)
    }

    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.values()
    }

    pub fn held(&self, service: &ServiceName) -> Option<&Held> {
        self.held.get(service)
    }

    pub fn holders(&self) -> impl Iterator<Item = (&ServiceName, &Held)> {
        self.held.iter()
    }

    /// The pool that offers the address; the first by rank where several do.
    pub fn pool_of(&self, ip: IpAddr) -> Option<&Pool> {
        self.pools.values().filter(|p| p.offers(ip)).min_by(|a, b| a.rank().cmp(&b.rank()))
    }

    /// Notes which address the Service asks for, if any. Answers whether it asked for another
    /// before, which others may have now.
    pub fn expect(&mut self, service: &ServiceName, ip: Option<IpAddr>) -> bool {
        let before = match ip {
            Some(ip) => self.asked.insert(service.clone(), ip),
            None => self.asked.remove(service),
        };
        before.is_some() && before != ip
    }

    /// An address for the Service, which holds none. Nothing is taken yet.
    ///
    /// # Errors
    /// [`IpamError`], with names and counts.
    pub fn choose(&self, service: &Service, request: &Request) -> Result<Choice, IpamError> {
        if self.pools.is_empty() {
            return Err(IpamError::NoPool);
        }
        match (request.ip, &request.pool) {
            (Some(ip), pool) => self.choose_address(service, ip, pool.as_deref()),
            (None, Some(pool)) => {
                let pool = self.pool(service, pool)?;
                if pool.size(true) == 0 {
                    return Err(IpamError::PoolWithoutIpv4 { pool: pool.name.clone() });
                }
                self.first_free(service, &[pool])
            }
            (None, None) => {
                let mut pools: Vec<&Pool> = self
                    .pools
                    .values()
                    .filter(|p| p.auto_assign && p.size(true) > 0 && p.serves(service))
                    .collect();
                if pools.is_empty() {
                    return Err(IpamError::NoPoolForService { count: self.pools.len() });
                }
                pools.sort_by(|a, b| a.rank().cmp(&b.rank()));
                self.first_free(service, &pools)
            }
        }
    }

    /// Records that the Service holds the address.
    ///
    /// # Errors
    /// When somebody else has it, or it is quarantined.
    ///
    /// # Panics
    /// When the Service holds another address already: an address never changes.
    pub fn take(&mut self, service: &ServiceName, uid: &str, ip: IpAddr) -> Result<(), IpamError> {
        match self.uses.get(&ip) {
            Some(Use::By(holder)) if holder == service => return Ok(()),
            Some(Use::By(by)) => return Err(IpamError::Taken { ip, by: by.clone() }),
            Some(Use::Quarantined(_)) => return Err(IpamError::Quarantined { ip }),
            None => {}
        }
        let before = self.held.insert(service.clone(), Held { uid: uid.into(), ip });
        assert!(before.is_none(), "{service} holds {before:?} already and asked for {ip}");
        self.uses.insert(ip, Use::By(service.clone()));
        Ok(())
    }

    /// Gives the Service's address back; it stays quarantined until `since` is acknowledged.
    pub fn free(&mut self, service: &ServiceName, since: Generation) -> Option<IpAddr> {
        let held = self.held.remove(service)?;
        self.uses.insert(held.ip, Use::Quarantined(since));
        Some(held.ip)
    }

    /// Keeps an address that balancers still serve, and that nobody holds, from being given out.
    pub fn quarantine(&mut self, ip: IpAddr, since: Generation) {
        self.uses.entry(ip).or_insert(Use::Quarantined(since));
    }

    /// Ends the quarantine of what was freed at or before `acknowledged`; `None` when there is no
    /// balancer left to wait for. Answers how many addresses became free.
    pub fn acknowledge(&mut self, acknowledged: Option<Generation>) -> usize {
        let before = self.uses.len();
        self.uses.retain(|_, u| match u {
            Use::By(_) => true,
            Use::Quarantined(since) => acknowledged.is_some_and(|a| a < *since),
        });
        before - self.uses.len()
    }

    pub fn quarantined(&self) -> BTreeSet<IpAddr> {
        self.uses.iter().filter(|(_, u)| matches!(u, Use::Quarantined(_))).map(|(ip, _)| *ip).collect()
    }

    /// What is assigned from the pool, and how much it offers.
    pub fn usage(&self, pool: &Pool, v4: bool) -> Usage {
        let assigned = self
            .uses
            .iter()
            .filter(|(ip, u)| ip.is_ipv4() == v4 && matches!(u, Use::By(_)) && pool.offers(**ip))
            .count();
        Usage { assigned: assigned as u128, size: pool.size(v4) }
    }

    fn choose_address(&self, service: &Service, ip: IpAddr, pool: Option<&str>) -> Result<Choice, IpamError> {
        let pool = match pool {
            Some(name) => {
                let pool = self.pool(service, name)?;
                if !pool.offers(ip) {
                    return Err(IpamError::OutsidePool { ip, pool: pool.name.clone() });
                }
                pool
            }
            None => {
                let offering = || self.pools.values().filter(move |p| p.offers(ip));
                let serving = offering().filter(|p| p.serves(service));
                match (serving.min_by(|a, b| a.rank().cmp(&b.rank())), offering().next()) {
                    (Some(pool), _) => pool,
                    (None, Some(pool)) => return Err(IpamError::PoolRefuses { pool: pool.name.clone() }),
                    (None, None) => return Err(IpamError::OutsideEveryPool { ip, known: self.known() }),
                }
            }
        };
        if let Some(machine) = self.machines.get(&ip) {
            return Err(IpamError::OfMachine { ip, machine: machine.clone() });
        }
        match self.uses.get(&ip) {
            None => Ok(Choice { ip, pool: pool.name.clone() }),
            Some(Use::By(by)) => Err(IpamError::Taken { ip, by: by.clone() }),
            Some(Use::Quarantined(_)) => Err(IpamError::Quarantined { ip }),
        }
    }

    fn pool(&self, service: &Service, name: &str) -> Result<&Pool, IpamError> {
        let pool = self
            .pools
            .get(name)
            .ok_or_else(|| IpamError::PoolUnknown { pool: name.into(), known: self.known() })?;
        if !pool.serves(service) {
            return Err(IpamError::PoolRefuses { pool: pool.name.clone() });
        }
        Ok(pool)
    }

    fn first_free(&self, service: &Service, pools: &[&Pool]) -> Result<Choice, IpamError> {
        let asked: BTreeSet<IpAddr> =
            self.asked.iter().filter(|(by, _)| **by != service.name).map(|(_, ip)| *ip).collect();
        for pool in pools {
            let free = |ip: &IpAddr| {
                !self.uses.contains_key(ip) && !asked.contains(ip) && !self.machines.contains_key(ip)
            };
            if let Some(ip) = pool.ipv4().find(free) {
                return Ok(Choice { ip, pool: pool.name.clone() });
            }
        }
        let usage: Vec<String> = pools.iter().map(|p| self.describe(p, &asked)).collect();
        Err(IpamError::Exhausted { usage: usage.join(", ") })
    }

    fn describe(&self, pool: &Pool, asked: &BTreeSet<IpAddr>) -> String {
        let usage = self.usage(pool, true);
        let leaving = self.quarantined().into_iter().filter(|ip| pool.offers(*ip)).count();
        let kept = asked.iter().filter(|ip| pool.offers(**ip) && !self.uses.contains_key(ip)).count();
        let mut text = format!("pool {} ({} of {} used", pool.name, usage.assigned, usage.size);
        if leaving > 0 {
            text += &format!(", {leaving} being withdrawn");
        }
        if kept > 0 {
            text += &format!(", {kept} asked for by other Services");
        }
        let machines = self.machines.keys().filter(|ip| ip.is_ipv4() && pool.offers(**ip)).count();
        if machines > 0 {
            text += &format!(", {machines} of machines");
        }
        text + ")"
    }

    fn known(&self) -> String {
        if self.pools.is_empty() {
            return "none".to_owned();
        }
        self.pools.keys().map(|n| &**n).collect::<Vec<_>>().join(", ")
    }
}

impl IpamError {
    /// The Event's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoPool | Self::NoPoolForService { .. } => "NoAddressPool",
            Self::Exhausted { .. } => "AddressPoolExhausted",
            Self::PoolUnknown { .. } => "AddressPoolUnknown",
            Self::PoolRefuses { .. } | Self::PoolWithoutIpv4 { .. } => "AddressPoolRefused",
            Self::OutsideEveryPool { .. } | Self::OutsidePool { .. } => "AddressOutsidePool",
            Self::Taken { .. } => "AddressTaken",
            Self::OfMachine { .. } => "AddressOfMachine",
            Self::Quarantined { .. } => "AddressBeingWithdrawn",
        }
    }
}
