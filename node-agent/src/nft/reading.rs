//! All that is ours in the kernel, read without knowing the configuration that wrote it: what
//! `dump` and `explain` speak of.

use std::collections::BTreeSet;

use service_model::IpFamily;

use super::decompile::Dictionary;
use super::evaluate::Packet;
use super::kernel::Kernel;
use super::layout::{FAMILIES, Pool, Shape, TABLE};
use super::mirror::Mirror;
use super::ruleset::Ruleset;

/// How often the reading begins anew because somebody changed our tables meanwhile.
const ATTEMPTS: usize = 8;

#[derive(Debug)]
pub struct Reading {
    pub mirror: Mirror,
    /// As they are in the kernel; without chains where there is no table.
    pub rulesets: [Ruleset; 2],
    /// The numbers of the endpoints that keep the client in question ([`Reading::ask_for`]).
    pub held: BTreeSet<u32>,
    /// What keeps an answer from being the whole truth; one sentence each.
    pub oddities: Vec<String>,
}

impl Reading {
    /// Reads the kernel as it was at one moment, or says that it could not.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn of(kernel: &mut Kernel) -> nfnetlink::Result<Self> {
        let mut attempts = ATTEMPTS;
        loop {
            kernel.begin_reading()?;
            let mut reading = Self::once(kernel)?;
            attempts -= 1;
            if kernel.reading_holds()? {
                return Ok(reading);
            }
            if attempts == 0 {
                reading.oddities.push("the rules changed while they were read: ask again".to_owned());
                return Ok(reading);
            }
        }
    }

    /// Finds out who keeps the packet's sender (session affinity).
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn ask_for(&mut self, kernel: &mut Kernel, packet: Packet) -> nfnetlink::Result<()> {
        let chains = [Shape::Vip, Shape::NodePort].map(|shape| packet.frontend(shape)).into_iter();
        let chains = chains.flat_map(|frontend| {
            [Pool::Cluster, Pool::Local].map(|pool| self.mirror.affinities.chain_of(frontend, pool))
        });
        let endpoints = chains.flatten().flat_map(|chain| &chain.endpoints);
        let numbers: BTreeSet<u32> = endpoints.map(|endpoint| endpoint.number).collect();
        self.held = kernel.held(packet.source, numbers.into_iter())?;
        Ok(())
    }

    pub fn ruleset(&self, family: IpFamily) -> &Ruleset {
        let [v4, v6] = &self.rulesets;
        if family == IpFamily::V4 { v4 } else { v6 }
    }

    fn once(kernel: &mut Kernel) -> nfnetlink::Result<Self> {
        let mut oddities = Vec::new();
        let mut rulesets = FAMILIES.map(|family| Ruleset { family, chains: Vec::new() });
        for ruleset in &mut rulesets {
            let family = ruleset.family;
            if kernel.has_table(family, KUBE_PROXY)? {
                oddities.push(format!(
                    "{family}: kube-proxy's table {KUBE_PROXY} is there too, and at the same hooks: of both, \
                     one decides about a connection. Stop kube-proxy: node-agent, when it runs, removes it then"
                ));
            }
            let Some(chains) = kernel.chains(family)? else { continue };
            let chains = chains.iter().map(|(name, rules)| (name.as_str(), rules.as_slice()));
            let read = Dictionary::new(family).decompile(chains);
            oddities.extend(read.oddities.into_iter().map(|oddity| format!("{family}: {oddity}")));
            *ruleset = read.ruleset;
        }
        let mirror = kernel.read(&rulesets)?;
        for family in FAMILIES {
            let structure = mirror.structure(family);
            if structure.unusable {
                oddities.push(format!(
                    "{family}: the table {TABLE} is not as this version would write it: a flag, a hook, a set or \
                     an element of it is of another make"
                ));
            }
            let other = structure.other_sets.iter();
            oddities.extend(other.map(|set| format!("{family}: set {set} is none of ours")));
        }
        Ok(Self { mirror, rulesets, held: BTreeSet::new(), oddities })
    }
}

/// The table of kube-proxy's nftables mode.
const KUBE_PROXY: &str = "kube-proxy";
