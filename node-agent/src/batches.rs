//! How steps are cut into commits, and told in the log.

use std::borrow::Cow;

use crate::nft::step::{Element, Step};

/// A commit of more steps is split where nothing depends on it being one.
const LARGEST: usize = 100_000;
/// Plans of more steps are logged by their size only.
const LOGGED_STEPS: usize = 60;

/// One batch. But where a table begins empty and its elements are many, several: the table first,
/// then endpoints and what keeps clients at them, then what says how many there are, and last what leads to all of it. So a
/// frontend is served only when all that it needs is there.
pub fn batches(steps: &[Step]) -> Vec<Cow<'_, [Step]>> {
    let begins =
        steps.iter().position(|s| matches!(s, Step::Add(_) | Step::WriteAffinity(..))).unwrap_or(steps.len());
    let (structure, elements) = steps.split_at(begins);
    let fills_empty = elements.iter().all(|s| matches!(s, Step::Add(_) | Step::WriteAffinity(..)))
        && structure.iter().all(|s| matches!(s, Step::CreateTable(_)));
    if steps.len() <= LARGEST || !fills_empty {
        return vec![steps.into()];
    }
    let mut sorted = elements.to_vec();
    sorted.sort_by_key(|step| match step {
        Step::WriteAffinity(..) | Step::Add(Element::Endpoint { .. }) => 0,
        Step::Add(Element::Served { .. }) => 2,
        _ => 1,
    });
    let cut = sorted.chunks(LARGEST).map(|chunk| Cow::Owned(chunk.to_vec()));
    [structure.into()].into_iter().filter(|batch: &Cow<'_, [Step]>| !batch.is_empty()).chain(cut).collect()
}

/// Tells what is about to be committed.
pub fn log(steps: &[Step]) {
    if steps.len() > LOGGED_STEPS {
        tracing::info!(steps = steps.len(), "committing");
        return;
    }
    for step in steps {
        tracing::info!("{step}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::affinity::{AffinityChain, AffinityKey};
    use crate::nft::layout::{Frontend, Pool, Target};
    use service_model::{IpFamily, Protocol};
    use std::net::{IpAddr, Ipv4Addr};

    fn steps(services: u32) -> Vec<Step> {
        let of = |number| {
            let ip = IpAddr::from(Ipv4Addr::from(number));
            let frontend = Frontend::Vip { ip, protocol: Protocol::Tcp, port: 80 };
            let target = Target { ip, port: 8080 };
            [
                Step::Add(Element::Served { frontend, label: "ns/name".into() }),
                Step::Add(Element::Endpoint { frontend, pool: Pool::Cluster, index: 0, target }),
            ]
        };
        (0..services).flat_map(of).collect()
    }

    #[test]
    fn an_update_is_never_split() {
        let mut steps = steps(60_000);
        let Some(Step::Add(element)) = steps.first().cloned() else { unreachable!() };
        steps.push(Step::Delete(element));
        assert_eq!(batches(&steps).len(), 1);
        assert_eq!(batches(&steps[..100]).len(), 1);
    }

    #[test]
    fn a_chain_is_there_before_anything_leads_to_it() {
        let chain = AffinityKey { family: IpFamily::V4, pool: Pool::Cluster, name: "ns/name//tcp".into() };
        let frontend = Frontend::NodePort { family: IpFamily::V4, protocol: Protocol::Tcp, port: 1 };
        let lead = Element::Affinity { frontend, pool: Pool::Cluster, chain: chain.clone() };
        let mut steps = steps(60_000);
        steps.push(Step::Add(lead.clone()));
        steps.push(Step::WriteAffinity(chain, Box::new(AffinityChain::empty())));
        let order: Vec<Step> = batches(&steps).iter().flat_map(|batch| batch.iter().cloned()).collect();
        let at = |wanted: fn(&Step) -> bool| order.iter().position(wanted);
        let leads = at(|step| matches!(step, Step::Add(Element::Affinity { .. })));
        assert!(at(|step| matches!(step, Step::WriteAffinity(..))) < leads);
        assert!(leads < at(|step| matches!(step, Step::Add(Element::Served { .. }))));
    }

    #[test]
    fn a_large_start_is_split_and_serves_last() {
        let steps = steps(120_000);
        let batches = batches(&steps);
        assert_eq!(batches.len(), 3);
        let order: Vec<bool> = batches
            .iter()
            .flat_map(|b| b.iter())
            .map(|s| matches!(s, Step::Add(Element::Served { .. })))
            .collect();
        assert!(order.is_sorted());
    }
}
