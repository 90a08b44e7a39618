//! healthCheckNodePort: for each LoadBalancer Service with externalTrafficPolicy Local, a port on
//! which load balancers ask whether this node has an endpoint. Answers as kube-proxy's
//! `healthcheck/service_health.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use daemon::http::{BindError, Response, Router, Server, json};
use hyper::StatusCode;
use hyper::header::HeaderValue;
use serde_json::json as object;
use service_model::{Service, ServiceName, ServiceType, TrafficPolicy, World};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::health::{Health, Moment, without_sniffing};
use crate::select::ready_local_endpoints;

/// The servers, one for each Service that has such a port. Dropping it ends them.
#[derive(Debug)]
pub struct HealthChecks {
    health: Health,
    node: Box<str>,
    running: BTreeMap<ServiceName, Running>,
    /// Services whose port could not be bound, and whether that was told: tried again with the next update.
    unbound: BTreeMap<ServiceName, bool>,
    /// Until they are told.
    failures: Vec<(ServiceName, u16, String)>,
    servers: JoinSet<anyhow::Result<()>>,
}

#[derive(Debug)]
struct Running {
    port: u16,
    endpoints: Arc<AtomicUsize>,
    cancel: CancellationToken,
}

impl HealthChecks {
    pub fn new(health: Health, node: &str) -> Self {
        let (running, unbound) = (BTreeMap::new(), BTreeMap::new());
        Self { health, node: node.into(), running, unbound, failures: Vec::new(), servers: JoinSet::new() }
    }

    /// Starts, updates and stops what these Services need.
    pub fn update(&mut self, services: BTreeSet<ServiceName>, world: &World) {
        while self.servers.try_join_next().is_some() {}
        let mut wanted = Vec::new();
        let again = std::mem::take(&mut self.unbound);
        let all: BTreeSet<ServiceName> = services.into_iter().chain(again.keys().cloned()).collect();
        for name in all {
            match world.service(&name).and_then(port_of) {
                Some(port) => wanted.push((name, port)),
                None => drop(self.running.remove(&name)),
            }
        }
        for (name, port) in wanted {
            let endpoints = ready_local_endpoints(world.slices_of(&name), &self.node);
            match self.running.get(&name) {
                Some(running) if running.port == port => {
                    running.endpoints.store(endpoints, Ordering::Relaxed);
                }
                _ => {
                    if let Err(error) = self.start(name.clone(), port, endpoints) {
                        // Once, and not at the first try: the server of a Service that had the port may be about to end.
                        let told = again.get(&name);
                        if told == Some(&false) {
                            self.failures.push((name.clone(), port, error.to_string()));
                            tracing::warn!(service = %name, %error, "no health check for load balancers; trying again");
                        }
                        self.unbound.insert(name, told.is_some());
                    }
                }
            }
        }
    }

    /// Ports that could not be bound since this was last asked, and why.
    pub fn take_failures(&mut self) -> Vec<(ServiceName, u16, String)> {
        std::mem::take(&mut self.failures)
    }

    /// Whether a port could not be bound: another update is wanted.
    pub fn lacks_a_port(&self) -> bool {
        !self.unbound.is_empty()
    }

    fn start(&mut self, name: ServiceName, port: u16, endpoints: usize) -> Result<(), BindError> {
        self.running.remove(&name);
        let endpoints = Arc::new(AtomicUsize::new(endpoints));
        let cancel = CancellationToken::new();
        let (health, service, count) = (self.health.clone(), name.clone(), Arc::clone(&endpoints));
        let router = Router::new().otherwise(move |_| {
            answer(&service, count.load(Ordering::Relaxed), health.is_live(Moment::now()))
        });
        // Of both families.
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let server = Server::bind(address, router)?;
        self.servers.spawn(server.run(cancel.clone()));
        self.running.insert(name, Running { port, endpoints, cancel });
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// The port on which the Service's health is asked, if it is one that has any.
fn port_of(service: &Service) -> Option<u16> {
    let local = service.service_type == ServiceType::LoadBalancer
        && service.external_traffic_policy == TrafficPolicy::Local;
    service.health_check_node_port.filter(|_| local)
}

fn answer(service: &ServiceName, endpoints: usize, proxy_healthy: bool) -> Response {
    let status =
        if endpoints > 0 && proxy_healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = object!({
        "service": {"namespace": service.namespace(), "name": service.name()},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": proxy_healthy,
    });
    let mut response = without_sniffing(json(status, body.to_string()));
    response.headers_mut().insert("X-Load-Balancing-Endpoint-Weight", HeaderValue::from(endpoints));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use service_model::{
        Change, Endpoint, EndpointPort, EndpointSlice, IpFamily, Key, Object, ObjectName, Protocol,
    };
    use std::io::{Read, Write};
    use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream};
    use std::time::Duration;

    fn name() -> ServiceName {
        ObjectName::new("ns", "web")
    }

    fn world(port: u16, policy: TrafficPolicy, local: u8) -> World {
        let mut service = Service::new(name());
        service.service_type = ServiceType::LoadBalancer;
        service.external_traffic_policy = policy;
        service.health_check_node_port = Some(port);
        let endpoint = |last| {
            let mut endpoint = Endpoint::ready([10, 0, 0, last].into());
            endpoint.node = Some("here".into());
            endpoint
        };
        let slice = EndpointSlice {
            name: ObjectName::new("ns", "web-1"),
            service: name(),
            family: IpFamily::V4,
            ports: vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
            endpoints: (0..local).map(endpoint).collect(),
            triggered: None,
        };
        let mut world = World::default();
        world.apply(Change::Apply(Object::Service(service)));
        world.apply(Change::Apply(Object::EndpointSlice(slice)));
        world
    }

    /// A port that was free a moment ago.
    fn free_port() -> u16 {
        TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port()
    }

    async fn get(port: u16) -> Option<String> {
        get_at(Ipv4Addr::LOCALHOST.into(), port).await
    }

    async fn get_at(ip: IpAddr, port: u16) -> Option<String> {
        let asked = tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect((ip, port)).ok()?;
            stream.write_all(b"GET /anything HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            Some(answer)
        });
        asked.await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_port_answers_for_local_endpoints_and_goes_with_the_service() {
        let health = Health::new(Duration::from_secs(30));
        health.updated(Moment::now());
        let mut checks = HealthChecks::new(health, "here");
        let port = free_port();
        checks.update(BTreeSet::from([name()]), &world(port, TrafficPolicy::Local, 2));
        let answer = get(port).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.to_lowercase().contains("x-load-balancing-endpoint-weight: 2\r\n"), "{answer}");
        let body =
            r#"{"localEndpoints":2,"service":{"name":"web","namespace":"ns"},"serviceProxyHealthy":true}"#;
        assert!(answer.ends_with(body), "{answer}");
        assert!(get_at(Ipv6Addr::LOCALHOST.into(), port).await.is_some(), "both families are answered");

        checks.update(BTreeSet::from([name()]), &world(port, TrafficPolicy::Local, 0));
        assert!(get(port).await.unwrap().starts_with("HTTP/1.1 503 "));

        let mut gone = world(port, TrafficPolicy::Local, 2);
        gone.apply(Change::Delete(Key::Service(name())));
        checks.update(BTreeSet::from([name()]), &gone);
        let closed = async { while get(port).await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(5), closed).await.expect("the port is closed");
    }

    #[tokio::test]
    async fn a_service_with_policy_cluster_has_no_health_check() {
        let mut checks = HealthChecks::new(Health::new(Duration::from_secs(30)), "here");
        checks.update(BTreeSet::from([name()]), &world(free_port(), TrafficPolicy::Cluster, 2));
        assert!(checks.running.is_empty());
    }

    #[tokio::test]
    async fn a_taken_port_is_tried_again() {
        let mut checks = HealthChecks::new(Health::new(Duration::from_secs(30)), "here");
        let taken = TcpListener::bind("[::]:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let world = world(port, TrafficPolicy::Local, 1);
        checks.update(BTreeSet::from([name()]), &world);
        assert!(checks.running.is_empty());
        assert_eq!(checks.take_failures().len(), 0, "who had it may be about to end");
        for told in [1, 0] {
            checks.update(BTreeSet::new(), &world);
            assert_eq!(checks.take_failures().len(), told, "once");
        }
        drop(taken);
        checks.update(BTreeSet::new(), &world);
        assert_eq!(checks.running.len(), 1);
    }
}
