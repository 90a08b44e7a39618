//! A pod's network: a namespace with a cable to its node, or the node's own.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};

use super::Machine;
use crate::netns::Netns;
use crate::network::{self, GATEWAY};

/// Where a pod's containers run.
#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) netns: Arc<Netns>,
    pub(super) addresses: Vec<IpAddr>,
    _lease: Option<Lease>,
}

impl Sandbox {
    /// The node's own network.
    pub(super) fn of_host(machine: &Machine) -> Self {
        Self { netns: machine.host.netns.clone(), addresses: machine.host.addresses().to_vec(), _lease: None }
    }

    /// A namespace of the pod's own. `uid` makes the name of the cable unique on the node.
    pub(super) fn create(machine: &Machine, pod: &str, uid: &str) -> Result<Self> {
        let lease = machine.addresses.lease()?;
        let netns = Netns::create(&machine.lab_id, pod)?;
        let number = lease.number;
        let (v4, v6) = (machine.pods.v4(number), machine.pods.v6(number));
        let cable = format!("pod{}", uid.split('-').next().unwrap_or(uid));
        network::plug_pod(&machine.host, machine.pods, number, &netns, &cable)?;
        Ok(Self { netns, addresses: vec![v4.into(), v6.into()], _lease: Some(lease) })
    }
}

/// The pod addresses of one node. An address that was given back is used again as late as possible.
#[derive(Debug, Clone)]
pub(super) struct Addresses {
    taken: Arc<Mutex<(BTreeSet<u8>, u8)>>,
}

#[derive(Debug)]
struct Lease {
    number: u8,
    from: Addresses,
}

impl Addresses {
    pub(super) fn new() -> Self {
        Self { taken: Arc::new(Mutex::new((BTreeSet::new(), GATEWAY))) }
    }

    fn lease(&self) -> Result<Lease> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (numbers, last) = &mut *taken;
        let first = GATEWAY + 1;
        let number = (*last..254)
            .map(|number| number + 1)
            .chain(first..=*last)
            .find(|number| !numbers.contains(number))
            .context("the node has no pod address left")?;
        numbers.insert(number);
        *last = number;
        Ok(Lease { number, from: self.clone() })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.from.taken.lock().unwrap_or_else(PoisonError::into_inner).0.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_used_again_as_late_as_possible() {
        let addresses = Addresses::new();
        let first = addresses.lease().unwrap();
        let second = addresses.lease().unwrap();
        assert_eq!((first.number, second.number), (2, 3));
        drop(first);
        let rest: Vec<Lease> = (4..=254).map(|_| addresses.lease().unwrap()).collect();
        assert_eq!(rest.last().unwrap().number, 254);
        assert_eq!(addresses.lease().unwrap().number, 2);
        let _second = second;
    }

    #[test]
    fn a_full_node_says_so() {
        let addresses = Addresses::new();
        let _all: Vec<Lease> = (2..=254).map(|_| addresses.lease().unwrap()).collect();
        assert!(addresses.lease().unwrap_err().to_string().contains("no pod address left"));
    }
}
