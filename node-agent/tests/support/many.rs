//! Services in numbers, more than a start plans at once, and an engine that programs them.

use std::net::Ipv4Addr;
use std::time::Instant;

use node_agent::engine::{Engine, PART};
use node_agent::nft::kernel::Kernel;
use node_agent::nft::mirror::Mirror;
use node_agent::nft::ruleset::Ruleset;
use service_model::{
    Change, EndpointPort, EndpointSlice, IpFamily, Object, ObjectName, Protocol, Service, ServicePort,
};

use super::{Agent, config, endpoint};

/// The ClusterIP of the first of them.
pub const FIRST: u32 = 0x0a60_0001;
pub const MANY: u32 = 2500;

/// How many commits a start with so many Services makes.
pub fn parts(services: u32) -> usize {
    (services as usize).div_ceil(PART)
}

pub fn service(namespace: &str, name: &str, cluster_ip: u32) -> Service {
    let mut service = Service::new(ObjectName::new(namespace, name));
    service.cluster_ips = vec![Ipv4Addr::from(cluster_ip).into()];
    let name = "http".into();
    service.ports = vec![ServicePort { name, protocol: Protocol::Tcp, port: 80, node_port: None }];
    service
}

/// One endpoint here and one elsewhere.
pub fn slice(service: &str) -> EndpointSlice {
    EndpointSlice {
        name: ObjectName::new("ns", &format!("{service}-1")),
        service: ObjectName::new("ns", service),
        family: IpFamily::V4,
        ports: vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: vec![endpoint(1, true), endpoint(2, false)],
        triggered: None,
    }
}

/// Those of [`MANY`] that are named `svc-0000` and so on.
pub fn many(agent: &mut Agent) {
    for number in 0..MANY {
        let service = service("ns", &format!("svc-{number:04}"), FIRST + number);
        agent.world.apply(Change::Apply(Object::Service(service)));
    }
}

/// Returns how many steps that took.
pub fn sync(engine: &mut Engine, agent: &mut Agent, now: Instant) -> usize {
    engine.mark(agent.world.take_dirty().services);
    engine.sync(&agent.world, now).unwrap().steps
}

pub fn programmed() -> Mirror {
    Kernel::open().unwrap().observe(&Ruleset::each(&config())).unwrap()
}

pub fn generation() -> u32 {
    Kernel::open().unwrap().generation().unwrap()
}
