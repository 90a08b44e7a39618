//! Load balancers' addresses that several Services have. The port tells whose a flow is: each has ports
//! that no other has.

use std::net::IpAddr;

use anyhow::Result;
use kube::ResourceExt;

use crate::cases::{Case, State};
use crate::flows;
use crate::legacy;

/// On a Service that has the load balancer's addresses of the one before it that has any.
pub(crate) const SHARES: &str = "differential/shares-address";

/// Of the first that moves; the others follow at this distance.
const FIRST_PORT: i32 = 1000;
const DISTANCE: i32 = 10;

/// Moves every Service that asks for it to the addresses of the one before.
///
/// # Errors
/// When an address is none.
pub(crate) fn share(cases: &mut [Case]) -> Result<()> {
    let mut shared: [Option<IpAddr>; 2] = [None; 2];
    let mut port = FIRST_PORT;
    for Case { before, now } in cases {
        if now.service.annotations().contains_key(SHARES) {
            for state in before.iter_mut().chain([&mut *now]) {
                move_to(state, shared, port)?;
            }
            port += DISTANCE;
        }
        for (shared, own) in shared.iter_mut().zip(first_of_each_family(now)?) {
            *shared = own.or(*shared);
        }
    }
    Ok(())
}

fn move_to(state: &mut State, shared: [Option<IpAddr>; 2], port: i32) -> Result<()> {
    let ports = state.service.spec.iter_mut().flat_map(|spec| spec.ports.iter_mut().flatten());
    ports.for_each(|own| own.port += port);
    for (shared, own) in shared.into_iter().zip(first_of_each_family(state)?) {
        let Some((shared, own)) = shared.zip(own) else { continue };
        let balancer = state.service.status.as_mut().and_then(|status| status.load_balancer.as_mut());
        let ingress = balancer.into_iter().flat_map(|balancer| balancer.ingress.iter_mut().flatten());
        for text in ingress.filter_map(|ingress| ingress.ip.as_mut()) {
            if legacy::parse(text)? == own {
                *text = legacy::spelt_like(text, shared);
            }
        }
    }
    Ok(())
}

/// The load balancer's first IPv4 address, and its first IPv6 one.
fn first_of_each_family(state: &State) -> Result<[Option<IpAddr>; 2]> {
    let ips = flows::load_balancer_ips(&state.service)?;
    let first = |v4: bool| ips.iter().find(|ip| ip.is_ipv4() == v4).copied();
    Ok([first(true), first(false)])
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::features::Settings;
    use crate::generate::Generator;

    #[test]
    fn services_that_share_an_address_have_no_port_in_common() {
        let mut generator = Generator::new(&Settings::seeded(5));
        let mut address = 0;
        let trees = generator.trees(250).unwrap();
        let cases = trees.iter().map(|tree| generator.case(tree)).enumerate();
        let mut cases: Vec<Case> = cases.map(|(nth, case)| case.numbered(nth, &mut address)).collect();
        share(&mut cases).unwrap();

        let mut owners: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
        let mut frontends = BTreeSet::new();
        for Case { before, now } in &cases {
            let ips = flows::load_balancer_ips(&now.service).unwrap();
            for ip in &ips {
                owners.entry(*ip).or_default().insert(now.service.name_any());
                for port in now.service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()) {
                    let frontend = (*ip, port.protocol.clone(), port.port);
                    assert!(frontends.insert(frontend.clone()), "{frontend:?} belongs to two");
                }
            }
            if let Some(before) = before {
                assert_eq!(flows::load_balancer_ips(&before.service).unwrap(), ips);
            }
        }
        let shared = owners.values().filter(|owners| owners.len() > 1).count();
        assert!(shared > 10, "{shared} of {} addresses are shared", owners.len());
        assert!(owners.values().any(|owners| owners.len() > 2));
    }
}
