//! What the store of many Services costs: bytes on the heap for each, part by part. The allocator
//! counts what is alive and what was at most.
//!
//! ```text
//! cargo run --release -p node-agent --example memory -- [SERVICES] [ENDPOINTS]
//! ```
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::env;
use std::net::Ipv4Addr;

use dhat::{Alloc, HeapStats, Profiler};
use node_agent::nft::desired::DesiredService;
use node_agent::nft::mirror::Mirror;
use node_agent::nft::plan::Planner;
use node_agent::select::Place;
use service_model::{
    Change, Endpoint, EndpointPort, EndpointSlice, IpFamily, Kind, Object, ObjectName, Protocol, Service,
    ServicePort, World,
};

#[global_allocator]
static ALLOCATOR: Alloc = Alloc;

fn main() -> anyhow::Result<()> {
    let mut numbers = env::args().skip(1).map(|word| word.parse::<u32>());
    let services = numbers.next().transpose()?.unwrap_or(10_000);
    let endpoints = numbers.next().transpose()?.unwrap_or(2);
    let _profiler = Profiler::builder().testing().build();
    println!("{services} Services of {endpoints} endpoints; bytes for each Service");

    let mut before = 0;
    let mut tell = |what: &str| {
        let stats = HeapStats::get();
        let each = |bytes: usize| bytes / services as usize;
        let grown = stats.curr_bytes.saturating_sub(before);
        println!("{:6}  {what} (the most so far: {})", each(grown), each(stats.max_bytes));
        before = stats.curr_bytes;
    };
    let mut world = World::default();
    for kind in [Kind::Service, Kind::EndpointSlice] {
        world.apply(Change::ListStarted(kind));
        for nth in 0..services {
            world.apply(Change::Apply(match kind {
                Kind::Service => Object::Service(service(nth)),
                _ => Object::EndpointSlice(slice(nth, endpoints)),
            }));
        }
        world.apply(Change::ListEnded(kind));
        tell(&format!("in the World: {kind:?}"));
    }
    let dirty = world.take_dirty().services;
    tell("in the set of dirty Services");

    let place = Place { node: "node", zone: None };
    let mut mirror = Mirror::default();
    let mut planner = Planner::default();
    let desired = |name: &ObjectName| {
        world.service(name).map(|s| DesiredService::of(s, &world, place)).unwrap_or_default()
    };
    let plan = planner.plan(&dirty, desired, &mirror);
    tell("claims, and the plan of all");
    plan.now.iter().for_each(|step| mirror.follow(step));
    tell("in the mirror of the kernel");
    drop(plan);
    let stats = HeapStats::get();
    println!("{:6}  without the plan", stats.curr_bytes / services as usize);
    Ok(())
}

fn service(nth: u32) -> Service {
    let mut service = Service::new(name("", nth));
    service.cluster_ips = vec![Ipv4Addr::from(0x0a60_0001 + nth).into()];
    service.ip_families = vec![IpFamily::V4];
    let (name, protocol) = ("http".into(), Protocol::Tcp);
    service.ports = vec![ServicePort { name, protocol, port: 80, node_port: None }];
    service
}

fn slice(nth: u32, endpoints: u32) -> EndpointSlice {
    let endpoint = |i| Endpoint::ready(Ipv4Addr::from(0x0af4_0001 + nth * endpoints + i).into());
    EndpointSlice {
        name: name("-x7k2q", nth),
        service: name("", nth),
        family: IpFamily::V4,
        ports: vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: (0..endpoints).map(endpoint).collect(),
        triggered: None,
    }
}

fn name(end: &str, nth: u32) -> ObjectName {
    ObjectName::new("default", &format!("bench-{nth}{end}"))
}
