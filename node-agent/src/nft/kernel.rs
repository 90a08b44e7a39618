//! The kernel's nf_tables: reads the mirror, commits batches. No policy.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::mem::discriminant;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use nfnetlink::expr::Counter;
use nfnetlink::{
    Batch, Chain, Dumped, Element as KernelElement, ElementData, Error, Expr, Monitor, Socket, Table,
    TableRef, Verdict,
};
use service_model::IpFamily;

use super::affinity::{AffinityChain, AffinityKey};
use super::layout::{FAMILIES, Group, MAX_TARGETS, SetName, TABLE};
use super::mirror::{Mirror, Structure};
use super::others::Others;
use super::ruleset::{ChainName, Ruleset};
use super::step::{Element, Step};
use super::{affinity_rules, compile};

/// Commits of more changes are made without listening: the kernel would write a notification of each. Not where others
/// commit at such moments.
const QUIET_BATCH: usize = 500;
/// How often a commit is repeated because somebody else's came first.
const ATTEMPTS: usize = 8;

/// Rules by the name of their chain.
pub(super) type ListedChains = BTreeMap<String, Vec<nfnetlink::Rule>>;

/// One netlink socket, in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Kernel {
    socket: Socket,
    monitor: Option<Monitor>,
    others: Others,
    /// Somebody committed while we did not listen: from then on we always do.
    attentive: bool,
}

impl Kernel {
    /// # Errors
    /// When the kernel has no nf_tables or we have no CAP_NET_ADMIN.
    pub fn open() -> nfnetlink::Result<Self> {
        Ok(Self { socket: Socket::open()?, monitor: None, others: Others::default(), attentive: false })
    }

    /// As [`Kernel::open`], and listens to what others do. Where the kernel does not tell, the next
    /// reading does.
    ///
    /// # Errors
    /// As [`Kernel::open`].
    pub fn open_listening() -> nfnetlink::Result<Self> {
        Self::listening(Monitor::open())
    }

    fn listening(opened: nfnetlink::Result<Monitor>) -> nfnetlink::Result<Self> {
        let untold =
            |error: &Error| tracing::warn!(%error, "nf_tables does not tell what others do to our tables");
        Ok(Self { monitor: opened.inspect_err(untold).ok(), ..Self::open()? })
    }

    /// Becomes readable when [`Kernel::changed_by_others`] may have a new answer; `None` without
    /// listening.
    pub fn notifications(&self) -> Option<BorrowedFd<'_>> {
        self.monitor.as_ref().map(Monitor::as_fd)
    }

    /// Whether somebody else changed our tables, or may have, since they were read. Always false
    /// without listening.
    pub fn changed_by_others(&mut self) -> bool {
        let mut events = Vec::new();
        while let Some(monitor) = &mut self.monitor {
            match monitor.receive(&mut events) {
                Ok(()) => events.drain(..).for_each(|event| self.others.note(&event)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::warn!(%error, "listening to nf_tables");
                    self.others.suspect();
                    break;
                }
            }
        }
        self.others.changed()
    }

    /// Whether what is suspected of others is only that they committed while we did not listen, which is seldom to our
    /// tables. It happens once in the life of this.
    pub fn is_taken_unawares(&self) -> bool {
        self.others.are_unseen()
    }

    /// The ruleset's generation: it differs after anybody's commit.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn generation(&mut self) -> nfnetlink::Result<u32> {
        Ok(self.socket.generation()?.id)
    }

    /// Reads all that is ours. From here on [`Kernel::changed_by_others`] speaks of what happens
    /// after this reading began.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn observe(&mut self, rulesets: &[Ruleset]) -> nfnetlink::Result<Mirror> {
        self.begin_reading()?;
        self.read(rulesets)
    }

    /// Whoever commits from here on counts for [`Kernel::changed_by_others`].
    pub(super) fn begin_reading(&mut self) -> nfnetlink::Result<()> {
        let generation = self.generation()?;
        self.others.read_at(generation);
        Ok(())
    }

    /// Whether nobody changed our tables since the reading began; without listening, whether nobody
    /// committed anything.
    pub(super) fn reading_holds(&mut self) -> nfnetlink::Result<bool> {
        self.socket.settle()?;
        match self.monitor {
            Some(_) => Ok(!self.changed_by_others()),
            None => self.is_as_read(),
        }
    }

    /// Whether nobody has committed anything since the last reading began, we included.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn is_as_read(&mut self) -> nfnetlink::Result<bool> {
        Ok(self.generation()? == self.others.read_in())
    }

    /// A part of a reading that has begun.
    pub(super) fn read(&mut self, rulesets: &[Ruleset]) -> nfnetlink::Result<Mirror> {
        let mut mirror = Mirror::default();
        for ruleset in rulesets {
            let structure = self.observe_structure(ruleset, &mut mirror)?;
            let sets: Vec<SetName> = structure.sets.iter().copied().collect();
            *mirror.structure_mut(ruleset.family) = structure;
            // Packets fill it, and nothing is decided from it.
            for set in sets.into_iter().filter(|set| *set != SetName::AffinityClients) {
                self.observe_elements(ruleset.family, set, &mut mirror)?;
            }
        }
        Ok(mirror)
    }

    /// Commits the steps as one, if nobody else has changed our tables since they were read.
    ///
    /// # Errors
    /// The kernel's refusal: then nothing has changed. [`Error::StaleGeneration`] if others
    /// changed our tables, or commit all the time.
    pub fn commit(&mut self, steps: &[Step]) -> nfnetlink::Result<()> {
        if self.changed_by_others() {
            return Err(Error::StaleGeneration);
        }
        let mut batch = Batch::with_capacity(steps.len() * 128);
        write_all(steps, &mut batch);
        if self.attentive || steps.iter().map(changes).sum::<usize>() <= QUIET_BATCH {
            return self.send(&mut batch, true);
        }
        if let Some(monitor) = &self.monitor {
            monitor.leave()?;
        }
        let sent = self.send(&mut batch, false);
        if let Some(monitor) = &self.monitor {
            monitor.join()?;
            if self.generation()? != self.others.generation() {
                self.others.suspect_unseen();
                self.attentive = true;
            }
        }
        sent
    }

    /// The table's chains with their rules, in the kernel's order; `None` without the table.
    pub(super) fn chains(&mut self, family: IpFamily) -> nfnetlink::Result<Option<ListedChains>> {
        let table = compile::table(family);
        if self.socket.table(table)?.is_none() {
            return Ok(None);
        }
        let chains = self.socket.chains(table)?.into_iter().map(|listed| (listed.item.name, Vec::new()));
        let mut chains: ListedChains = chains.collect();
        chains.append(&mut self.rules(table)?);
        Ok(Some(chains))
    }

    /// As they were written: without what their counters have counted.
    fn rules(&mut self, table: TableRef<'_>) -> nfnetlink::Result<ListedChains> {
        let mut chains = ListedChains::new();
        for mut listed in self.socket.rules(table)? {
            for expr in &mut listed.item.exprs {
                if let Expr::Counter(counter) = expr {
                    *counter = Counter::default();
                }
            }
            chains.entry(listed.item.chain.clone()).or_default().push(listed.item);
        }
        Ok(chains)
    }

    /// How many packets the chain has counted; 0 if it is not there.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn counted(&mut self, family: IpFamily, chain: ChainName) -> nfnetlink::Result<u64> {
        let rules = self.socket.rules_of_chain(compile::table(family), &chain.to_string())?;
        let counters = rules.iter().flat_map(|listed| &listed.item.exprs).filter_map(|expr| match expr {
            Expr::Counter(counter) => Some(counter.packets),
            _ => None,
        });
        Ok(counters.sum())
    }

    /// Which of the numbers the kernel remembers the client under
    /// ([`super::affinity::NumberedTarget`]).
    pub(super) fn held(
        &mut self,
        client: IpAddr,
        numbers: impl Iterator<Item = u32>,
    ) -> nfnetlink::Result<BTreeSet<u32>> {
        let table = compile::table(IpFamily::of(client));
        let set = SetName::AffinityClients.to_string();
        let mut held = BTreeSet::new();
        for number in numbers {
            let key = affinity_rules::client_key(client, number);
            if self.socket.has_element(table, &set, &KernelElement::key(key.bytes()))? {
                held.insert(number);
            }
        }
        Ok(held)
    }

    /// Whether there is a table of that name in the family.
    pub(super) fn has_table(&mut self, family: IpFamily, name: &str) -> nfnetlink::Result<bool> {
        Ok(self.socket.table(TableRef::new(compile::family(family), name))?.is_some())
    }

    fn send(&mut self, batch: &mut Batch, announced: bool) -> nfnetlink::Result<()> {
        for _ in 0..ATTEMPTS {
            let expected = self.others.generation();
            // Where nobody tells which commits touch our tables, every other one would stand in the way.
            if self.monitor.is_some() {
                batch.expect_generation(expected);
            }
            match self.socket.commit(batch) {
                Ok(()) => {
                    self.others.committed(announced && self.monitor.is_some());
                    return Ok(());
                }
                // Another table's, perhaps: then what we know still holds.
                Err(Error::StaleGeneration) => {
                    if self.changed_by_others() || self.others.generation() == expected {
                        return Err(Error::StaleGeneration);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::StaleGeneration)
    }

    fn observe_structure(&mut self, ruleset: &Ruleset, mirror: &mut Mirror) -> nfnetlink::Result<Structure> {
        let (family, table) = (ruleset.family, compile::table(ruleset.family));
        let Some(listed) = self.socket.table(table)? else { return Ok(Structure::default()) };
        let unusable = listed.item != Table::new(table.family, TABLE);
        let mut structure = Structure { exists: true, unusable, ..Structure::default() };
        let mut rules = self.rules(table)?;
        let wanted: BTreeMap<String, ChainName> =
            ruleset.chains.iter().map(|c| (c.name.to_string(), c.name)).collect();
        // What is anonymous is part of a rule, and goes with it.
        for listed in self.socket.chains(table)?.into_iter().filter(|listed| !listed.item.anonymous) {
            let Some(name) = wanted.get(&listed.item.name) else {
                match AffinityKey::parse(family, &listed.item.name) {
                    Some(key) if listed.item == Chain::regular(&listed.item.name) => {
                        let have = rules.remove(&listed.item.name).unwrap_or_default();
                        let chain = affinity_rules::parse(&key, &have);
                        // One that somebody edited is like no wanted one, and so is written anew.
                        mirror.affinities.write(&key, &chain.unwrap_or(AffinityChain::edited()));
                    }
                    _ => drop(structure.other_chains.insert(listed.item.name)),
                }
                continue;
            };
            structure.unusable |= listed.item != compile::chain(*name);
            let have = rules.remove(&listed.item.name).unwrap_or_default();
            let chain = ruleset.chain(*name).into_iter().flat_map(|c| &c.rules);
            if chain.map(|rule| compile::rule(family, *name, rule)).eq(have) {
                structure.chains.insert(*name);
            }
        }
        let wanted: BTreeMap<String, SetName> = SetName::all(family).map(|s| (s.to_string(), s)).collect();
        for listed in self.socket.sets(table)?.into_iter().filter(|listed| !listed.item.is_anonymous()) {
            match wanted.get(&listed.item.name) {
                Some(name) => {
                    structure.unusable |= listed.item != compile::set(family, *name);
                    structure.sets.insert(*name);
                }
                None => drop(structure.other_sets.insert(listed.item.name)),
            }
        }
        Ok(structure)
    }

    fn observe_elements(
        &mut self,
        family: IpFamily,
        set: SetName,
        mirror: &mut Mirror,
    ) -> nfnetlink::Result<()> {
        let (mut elements, mut unusable) = (BTreeSet::new(), false);
        self.socket.elements(compile::table(family), &set.to_string(), |dumped| {
            let element = match dumped {
                Dumped::Restart => return (elements, unusable) = (BTreeSet::new(), false),
                Dumped::Element(element) => parse(family, set, &element),
                Dumped::Other => None,
            };
            match element {
                Some(element) => drop(elements.insert(element)),
                None => unusable = true,
            }
        })?;
        mirror.structure_mut(family).unusable |= unusable;
        elements.iter().for_each(|element| mirror.add(element));
        Ok(())
    }
}

/// Removes our tables.
///
/// # Errors
/// When the kernel refuses.
pub fn cleanup() -> nfnetlink::Result<()> {
    let mut socket = Socket::open()?;
    let mut batch = Batch::new();
    for family in FAMILIES {
        if socket.table(compile::table(family))?.is_some() {
            batch.delete_table(compile::table(family));
        }
    }
    if batch.is_empty() { Ok(()) } else { socket.commit(&batch) }
}

/// About how many objects the step changes.
fn changes(step: &Step) -> usize {
    match step {
        // Two rules an endpoint go, and two come.
        Step::WriteAffinity(_, chain) => 2 + 4 * chain.endpoints.len(),
        _ => 1,
    }
}

fn write_all(steps: &[Step], batch: &mut Batch) {
    for run in steps.chunk_by(|a, b| a.element().is_some() && discriminant(a) == discriminant(b)) {
        match run {
            [step] => write(step, batch),
            elements => write_elements(elements, batch),
        }
    }
}

/// Elements that all come, or all go: a list a set. The kernel looks a set up once a list, and keeps less of it until
/// the commit.
fn write_elements(steps: &[Step], batch: &mut Batch) {
    let mut elements: Vec<&Element> = steps.iter().filter_map(Step::element).collect();
    let place = |element: &Element| (element.family(), element.set());
    elements.sort_by_key(|element| place(element));
    for list in elements.chunk_by(|a, b| place(a) == place(b)) {
        let (family, set) = place(list[0]);
        let (table, set) = (compile::table(family), set.to_string());
        if matches!(steps, [Step::Delete(_), ..]) {
            let mut deleted = batch.delete_elements(table, &set);
            for element in list {
                deleted.push(&KernelElement::key(key_of(element).bytes()));
            }
        } else {
            let mut created = batch.create_elements(table, &set);
            for element in list {
                with_kernel_element(element, |kernel| {
                    created.push(&kernel);
                });
            }
        }
    }
}

fn write(step: &Step, batch: &mut Batch) {
    let table = compile::table(step.family());
    match step {
        Step::CreateTable(ruleset) => {
            batch.add_table(&Table::new(table.family, TABLE));
            for set in SetName::all(ruleset.family) {
                batch.add_set(table, &compile::set(ruleset.family, set));
            }
            for chain in &ruleset.chains {
                batch.add_chain(table, &compile::chain(chain.name));
            }
            for chain in &ruleset.chains {
                add_rules(ruleset, chain.name, batch);
            }
        }
        Step::DeleteTable(_) => drop(batch.delete_table(table)),
        Step::CreateSet(family, set) => drop(batch.add_set(table, &compile::set(*family, *set))),
        Step::RewriteChain(name, ruleset) => {
            batch.add_chain(table, &compile::chain(*name));
            batch.flush_chain(table, &name.to_string());
            add_rules(ruleset, *name, batch);
        }
        Step::FlushChain(_, name) => drop(batch.flush_chain(table, name)),
        Step::DeleteChain(_, name) => drop(batch.delete_chain(table, name)),
        Step::DeleteSet(_, name) => drop(batch.delete_set(table, name)),
        Step::WriteAffinity(key, chain) => {
            batch.add_chain(table, &Chain::regular(&key.to_string()));
            batch.flush_chain(table, &key.to_string());
            for rule in affinity_rules::rules(key, chain) {
                batch.add_rule(table, &rule);
            }
        }
        Step::DeleteAffinity(key) => drop(batch.delete_chain(table, &key.to_string())),
        Step::Add(_) | Step::Delete(_) => write_elements(std::slice::from_ref(step), batch),
    }
}

fn add_rules(ruleset: &Ruleset, name: ChainName, batch: &mut Batch) {
    let table = compile::table(ruleset.family);
    for rule in ruleset.chain(name).into_iter().flat_map(|c| &c.rules) {
        batch.add_rule(table, &compile::rule(ruleset.family, name, rule));
    }
}

fn key_of(element: &Element) -> nfnetlink::Value {
    match element {
        Element::Served { frontend, .. }
        | Element::Member { frontend, .. }
        | Element::Affinity { frontend, .. } => compile::key(*frontend),
        Element::Endpoint { frontend, index, .. } => compile::key(*frontend).u32(*index),
        Element::NodeAddress(ip) | Element::ClusterIp(ip) => nfnetlink::Value::new().ip(*ip),
        Element::SourceRange { frontend, network } => compile::source_key(*frontend, *network),
        Element::Hairpin(hairpin) => compile::hairpin_key(*hairpin),
    }
}

fn with_kernel_element(element: &Element, use_it: impl FnOnce(KernelElement<'_>)) {
    let key = key_of(element);
    match element {
        Element::Served { label, .. } => {
            use_it(KernelElement::key(key.bytes()).comment(label));
        }
        Element::Endpoint { target, .. } => {
            let data = compile::data(*target);
            use_it(KernelElement::pair(key.bytes(), data.bytes()));
        }
        Element::Affinity { chain, .. } => {
            let jump = ElementData::Verdict(Verdict::Jump(chain.to_string()));
            use_it(KernelElement { data: Some(jump), ..KernelElement::key(key.bytes()) });
        }
        Element::Member { .. }
        | Element::NodeAddress(_)
        | Element::ClusterIp(_)
        | Element::SourceRange { .. }
        | Element::Hairpin(_) => use_it(KernelElement::key(key.bytes())),
    }
}

/// `None` for what we never write.
fn parse(family: IpFamily, set: SetName, element: &KernelElement<'_>) -> Option<Element> {
    match set {
        SetName::Group(shape, group) => {
            let (frontend, _) = compile::parse_key(family, shape, element.key)?;
            Some(match group {
                Group::Served => {
                    Element::Served { frontend, label: element.comment.unwrap_or_default().into() }
                }
                group => Element::Member { frontend, group },
            })
        }
        SetName::Endpoints(shape, pool) => {
            let (frontend, index) = compile::parse_key(family, shape, element.key)?;
            let index = u32::from_ne_bytes(index.get(..4)?.try_into().ok()?);
            if index as usize >= MAX_TARGETS {
                return None;
            }
            let target = compile::parse_data(family, element.value()?)?;
            Some(Element::Endpoint { frontend, pool, index, target })
        }
        SetName::Affinity(shape, pool) => {
            let (frontend, _) = compile::parse_key(family, shape, element.key)?;
            match &element.data {
                Some(ElementData::Verdict(Verdict::Jump(chain))) => {
                    Some(Element::Affinity { frontend, pool, chain: AffinityKey::parse(family, chain)? })
                }
                _ => None,
            }
        }
        SetName::AffinityClients => None,
        SetName::SourceRanges(length) => {
            let (frontend, network) = compile::parse_source(family, length, element.key)?;
            Some(Element::SourceRange { frontend, network })
        }
        SetName::ClusterIps => Some(Element::ClusterIp(compile::parse_ip(family, element.key)?.0)),
        SetName::NodeAddresses => Some(Element::NodeAddress(compile::parse_ip(family, element.key)?.0)),
        SetName::Hairpin => Some(Element::Hairpin(compile::parse_hairpin(family, element.key)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::local::DetectLocal;
    use crate::namespace::in_namespace;

    fn deaf() -> Kernel {
        Kernel::listening(Err(Error::Protocol("no notifications"))).unwrap()
    }

    /// Somebody else's commit.
    fn meanwhile(write: impl FnOnce(&mut Batch) -> usize) {
        let mut batch = Batch::new();
        write(&mut batch);
        Socket::open().unwrap().commit(&batch).unwrap();
    }

    #[test]
    fn a_kernel_that_does_not_tell_what_others_do_is_served_all_the_same() {
        let mut kernel = deaf();
        assert!(kernel.notifications().is_none() && !kernel.changed_by_others());
    }

    /// It could not say which commits were to our tables: were it to need that there are none, it would be held up by those
    /// to any other.
    #[test]
    fn who_is_not_told_what_others_do_commits_all_the_same_and_finds_it_with_the_next_reading() {
        for listens in [true, false] {
            in_namespace(|| {
                let mut kernel = if listens { Kernel::open_listening().unwrap() } else { deaf() };
                let rulesets = Ruleset::each(&Config::new("here", DetectLocal::NodeCidr));
                kernel.observe(&rulesets).unwrap();
                meanwhile(|batch| batch.add_table(&Table::new(nfnetlink::Family::Ip, "another")));
                let create = |ruleset: &Ruleset| Step::CreateTable(Box::new(ruleset.clone()));
                kernel.commit(&rulesets.iter().map(create).collect::<Vec<_>>()).unwrap();

                kernel.observe(&rulesets).unwrap();
                meanwhile(|batch| batch.add_chain(compile::table(IpFamily::V4), &Chain::regular("strange")));
                let ip: IpAddr = [10, 96, 0, 1].into();
                let done = kernel.commit(&[Step::Add(Element::ClusterIp(ip))]);
                let overtaken = matches!(done, Err(Error::StaleGeneration));
                assert!(done.is_ok() || overtaken, "{done:?}");
                assert_eq!((overtaken, kernel.changed_by_others()), (listens, listens));
                let found = kernel.observe(&rulesets).unwrap();
                assert!(found.v4.other_chains.contains("strange"));
                assert_eq!(found.cluster_ips.contains(&ip), !listens);
            });
        }
    }

    #[test]
    fn who_is_not_told_what_others_do_reads_again_if_anybody_committed_meanwhile() {
        in_namespace(|| {
            let mut kernel = deaf();
            kernel.begin_reading().unwrap();
            assert!(kernel.reading_holds().unwrap());
            meanwhile(|batch| batch.add_table(&Table::new(nfnetlink::Family::Ip, "another")));
            assert!(!kernel.reading_holds().unwrap());
        });
    }
}
