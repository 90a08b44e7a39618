//! `node-agent dump`: what is in the kernel, each frontend with what its groups do with it and
//! its endpoints by index. It needs no flags: nothing in the kernel depends on who asks.

use std::fmt;
use std::net::IpAddr;

use anyhow::Context;
use serde::Serialize;

use crate::args::{DumpArgs, Output};
use crate::nft::kernel::Kernel;
use crate::nft::layout::{Frontend, Group, Pool, TABLE, Target};
use crate::nft::mirror::{FrontendState, Mirror};
use crate::nft::reading::Reading;
use crate::nft::source_ranges::SourceNetwork;
use crate::nft::step::{Element, Step};

/// Prints on standard output.
///
/// # Errors
/// A kernel that cannot be read.
#[expect(clippy::print_stdout, reason = "the answer of a command line verb")]
pub fn print(args: &DumpArgs) -> anyhow::Result<()> {
    let reading = Kernel::open_listening().and_then(|mut kernel| Reading::of(&mut kernel));
    let reading = reading.context("reading our tables needs CAP_NET_ADMIN")?;
    let dump = Dump::of(&reading.mirror, reading.oddities);
    match args.output {
        Output::Text => print!("{dump}"),
        Output::Json => println!("{}", serde_json::to_string_pretty(&dump)?),
    }
    Ok(())
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Dump {
    node_port_addresses: Vec<IpAddr>,
    services: Vec<Served>,
    /// What is not as this version would write it.
    warnings: Vec<String>,
    #[serde(skip)]
    empty: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Served {
    /// The address and port, or the NodePort.
    at: String,
    /// `namespace/name:port`
    service: String,
    does: Vec<String>,
    endpoints: Vec<Slot>,
    /// For what must stay on this node.
    local_endpoints: Vec<Slot>,
}

#[derive(Debug, Serialize)]
struct Slot {
    index: usize,
    endpoint: String,
}

impl Dump {
    fn of(mirror: &Mirror, warnings: Vec<String>) -> Self {
        Self {
            node_port_addresses: mirror.node_addresses.iter().copied().collect(),
            services: mirror
                .frontends
                .iter()
                .map(|(frontend, state)| Served::of(*frontend, state, mirror))
                .collect(),
            warnings,
            empty: mirror.is_empty(),
        }
    }
}

impl Served {
    fn of(frontend: Frontend, state: &FrontendState, mirror: &Mirror) -> Self {
        let slots = |targets: &[Option<Target>]| {
            let taken = targets.iter().enumerate().filter_map(|(index, t)| Some((index, (*t)?)));
            taken.map(|(index, target)| Slot { index, endpoint: target.to_string() }).collect()
        };
        let groups = state.groups.iter().filter(|group| *group != Group::Served);
        let groups = groups.map(|group| Element::Member { frontend, group });
        let kept = [Pool::Cluster, Pool::Local].into_iter().filter_map(|pool| {
            let chain = mirror.affinities.leads().get(&(frontend, pool))?.clone();
            Some(Element::Affinity { frontend, pool, chain })
        });
        let sources = SourceNetwork::join(mirror.source_ranges.get(&frontend).into_iter().flatten());
        let sources = sources.iter().map(|network| format!("let clients in {network} reach {frontend}"));
        Self {
            at: frontend.to_string(),
            service: state.label.to_string(),
            does: groups.chain(kept).map(|element| Step::Add(element).to_string()).chain(sources).collect(),
            endpoints: slots(&state.cluster),
            local_endpoints: slots(&state.local),
        }
    }
}

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        if self.empty {
            return writeln!(f, "nothing is programmed: there is no table {TABLE} in this network namespace");
        }
        for address in &self.node_port_addresses {
            writeln!(f, "NodePorts are answered on {address}")?;
        }
        for Served { at, service, does, endpoints, local_endpoints } in &self.services {
            writeln!(f, "{at} for {service}")?;
            for deed in does {
                writeln!(f, "    {deed}")?;
            }
            for (place, slots) in [("", endpoints), (" on this node", local_endpoints)] {
                for Slot { index, endpoint } in slots {
                    writeln!(f, "    #{index}{place} {endpoint}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::layout::SizeClass;
    use service_model::Protocol;

    #[test]
    fn a_dump_says_in_words_what_was_programmed() {
        let ip = |last| IpAddr::from([10, 96, 7, last]);
        let frontend = Frontend::Vip { ip: ip(7), protocol: Protocol::Tcp, port: 80 };
        let mut mirror = Mirror::default();
        assert!(Dump::of(&mirror, Vec::new()).to_string().contains("nothing is programmed"));
        mirror.v4.exists = true;
        mirror.add(&Element::Served { frontend, label: "shop/web:http".into() });
        let class = SizeClass::of(2).unwrap();
        mirror.add(&Element::Member { frontend, group: Group::Count(Pool::Cluster, class) });
        for index in [0, 1] {
            let target = Target { ip: [10, 244, 1, 5 + index as u8].into(), port: 8080 };
            mirror.add(&Element::Endpoint { frontend, pool: Pool::Cluster, index, target });
        }
        let dump = Dump::of(&mirror, vec!["odd".to_owned()]);
        let text = "warning: odd\n\
                    10.96.7.7:80/TCP for shop/web:http\n    spread 10.96.7.7:80/TCP over 2 endpoints\n    \
                    #0 10.244.1.5:8080\n    #1 10.244.1.6:8080\n";
        assert_eq!(dump.to_string(), text);
        let json = serde_json::to_value(&dump).unwrap();
        assert_eq!(json["services"][0]["endpoints"][1]["endpoint"], "10.244.1.6:8080");
        assert_eq!(json["warnings"][0], "odd");
    }
}
