//! Real sockets in a network namespace of the test's own, whose loopback is everybody's.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread::JoinHandle;

use prometheus_client::registry::Registry;
use service_model::{
    Change, Endpoint, EndpointPort, EndpointSlice, Key, Object, ObjectName, Service, ServicePort,
    ServiceType, SessionAffinity, TrafficPolicy,
};

use super::*;
use crate::local::DetectLocal;
use crate::namespace;

const PLACE: Place<'static> = Place { node: "here", zone: None };
const NODE_PORT: u16 = 30_080;
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the test on a runtime in a namespace where 10.244.0.1 to .3 and fd00::1 are addresses of
/// endpoints.
fn in_namespace(test: impl AsyncFnOnce() + Send) {
    let thread = || {
        for command in [
            "link set lo up",
            "addr add 10.244.0.1/32 dev lo",
            "addr add 10.244.0.2/32 dev lo",
            "addr add 10.244.0.3/32 dev lo",
            "addr add fd00::1/128 dev lo nodad",
        ] {
            let done = std::process::Command::new("ip").args(command.split(' ')).status().unwrap();
            assert!(done.success(), "ip {command}");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    namespace::in_namespace(thread);
}

fn config(nodeport_addresses: &str) -> Config {
    let nodeport_addresses = nodeport_addresses.parse().unwrap();
    Config { nodeport_addresses, ..Config::new("here", DetectLocal::NodeCidr) }
}

fn proxy() -> (LocalhostNodePorts, Registry) {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    (LocalhostNodePorts::new(&config("primary,localhost"), metrics), registry)
}

fn service(name: &str) -> Service {
    let mut service = Service::new(ObjectName::new("ns", name));
    service.service_type = ServiceType::NodePort;
    service.cluster_ips = vec!["10.96.0.1".parse().unwrap(), "fd00:96::1".parse().unwrap()];
    let port = |protocol: Protocol| ServicePort {
        name: protocol.to_string().to_lowercase().into(),
        protocol,
        port: 80,
        node_port: Some(NODE_PORT),
    };
    service.ports = vec![port(Protocol::Tcp), port(Protocol::Udp)];
    service
}

/// With endpoints on this node or another, on port 8080.
fn slice(name: &str, endpoints: &[(&str, bool)]) -> EndpointSlice {
    let endpoint = |(ip, here): &(&str, bool)| {
        let mut endpoint = Endpoint::ready(ip.parse().unwrap());
        endpoint.node = Some(if *here { "here" } else { "there" }.into());
        endpoint
    };
    EndpointSlice {
        ports: vec![EndpointPort { name: "tcp".into(), protocol: Protocol::Tcp, port: 8080 }],
        family: IpFamily::of(endpoints.first().map_or([0, 0, 0, 0].into(), |e| e.0.parse().unwrap())),
        endpoints: endpoints.iter().map(endpoint).collect(),
        name: ObjectName::new("ns", name),
        service: ObjectName::new("ns", "web"),
        triggered: None,
    }
}

fn apply(proxy: &mut LocalhostNodePorts, world: &mut World, objects: impl IntoIterator<Item = Object>) {
    objects.into_iter().for_each(|object| world.apply(Change::Apply(object)));
    proxy.update(&world.take_dirty().services, world, PLACE);
}

/// A server that says its address, and what it read once the client has ended its half.
async fn echo(ip: &str) -> JoinSet<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind((ip, 8080)).await.unwrap();
    let own = ip.to_owned();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let own = own.clone();
            tokio::spawn(async move {
                let mut read = String::new();
                // The client may be gone at any time.
                let _ = stream.write_all(format!("{own} ").as_bytes()).await;
                let _ = stream.read_to_string(&mut read).await;
                let _ = stream.write_all(read.as_bytes()).await;
            });
        }
    });
    tasks
}

fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"hello")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Blocking work, in this thread's namespace.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
    let (tx, rx) = tokio::sync::oneshot::channel();
    let thread: JoinHandle<()> = std::thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        // Nobody waits any more if the test has failed.
        drop(tx.send(work()));
    });
    let answer = rx.await.expect("the work does not panic");
    thread.join().unwrap();
    answer
}

async fn asked(family: IpFamily) -> std::io::Result<String> {
    beside(move || ask(address((family, NODE_PORT)))).await
}

/// Once the condition holds, which it does soon.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "{what}");
}

fn samples(registry: &Registry) -> String {
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, registry).unwrap();
    page
}

#[test]
fn a_node_port_is_served_on_loopback_while_it_has_endpoints() {
    in_namespace(async || {
        let _servers = [echo("10.244.0.1").await, echo("fd00::1").await];
        let (mut proxy, registry) = proxy();
        let mut world = World::default();
        apply(&mut proxy, &mut world, [Object::Service(service("web"))]);
        assert!(asked(IpFamily::V4).await.is_err(), "no endpoint");

        let slices = [slice("v4", &[("10.244.0.1", false)]), slice("v6", &[("fd00::1", true)])];
        apply(&mut proxy, &mut world, slices.map(Object::EndpointSlice));
        assert_eq!(asked(IpFamily::V4).await.unwrap(), "10.244.0.1 hello", "each half ends by itself");
        assert_eq!(asked(IpFamily::V6).await.unwrap(), "fd00::1 hello");
        let gauge = "kubeproxy_nftables_localhost_nodeport_listeners{ip_family=\"IPv6\"} 1\n";
        assert!(samples(&registry).contains(gauge), "{}", samples(&registry));

        apply(&mut proxy, &mut world, [Object::EndpointSlice(slice("v4", &[]))]);
        until("the port is closed", async || asked(IpFamily::V4).await.is_err()).await;
        world.apply(Change::Delete(Key::Service(ObjectName::new("ns", "web"))));
        proxy.update(&world.take_dirty().services, &world, PLACE);
        until("this one too", async || asked(IpFamily::V6).await.is_err()).await;
    });
}

#[test]
fn policy_local_and_affinity_hold() {
    in_namespace(async || {
        let _servers = [echo("10.244.0.1").await, echo("10.244.0.2").await, echo("10.244.0.3").await];
        let (mut proxy, _registry) = proxy();
        let mut world = World::default();
        let mut web = service("web");
        let endpoints = [("10.244.0.1", true), ("10.244.0.2", true), ("10.244.0.3", false)];
        let objects = [Object::Service(web.clone()), Object::EndpointSlice(slice("v4", &endpoints))];
        apply(&mut proxy, &mut world, objects);
        let mut seen = BTreeSet::new();
        until("every endpoint is met", async || {
            seen.insert(asked(IpFamily::V4).await.unwrap());
            seen.len() == 3
        })
        .await;

        web.external_traffic_policy = TrafficPolicy::Local;
        apply(&mut proxy, &mut world, [Object::Service(web.clone())]);
        for _ in 0..20 {
            assert_ne!(asked(IpFamily::V4).await.unwrap(), "10.244.0.3 hello", "it is elsewhere");
        }
        web.session_affinity = Some(SessionAffinity::of_seconds(600));
        apply(&mut proxy, &mut world, [Object::Service(web)]);
        let first = asked(IpFamily::V4).await.unwrap();
        for _ in 0..20 {
            assert_eq!(asked(IpFamily::V4).await.unwrap(), first);
        }
    });
}

#[test]
fn a_port_that_was_taken_is_bound_once_it_is_free_and_one_of_two_services_has_it() {
    in_namespace(async || {
        let _servers = [echo("10.244.0.1").await, echo("10.244.0.2").await];
        let (mut proxy, registry) = proxy();
        let mut world = World::default();
        let taken = std::net::TcpListener::bind(("127.0.0.1", NODE_PORT)).unwrap();
        let first =
            [Object::Service(service("web")), Object::EndpointSlice(slice("v4", &[("10.244.0.1", true)]))];
        apply(&mut proxy, &mut world, first);
        assert!(proxy.lacks_a_port());
        let failures =
            "kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total{ip_family=\"IPv4\"} 1\n";
        assert!(samples(&registry).contains(failures), "{}", samples(&registry));
        drop(taken);
        // A process that another test is about to start may have the socket for a moment.
        until("the port is bound", async || {
            proxy.update(&BTreeSet::new(), &world, PLACE);
            !proxy.lacks_a_port()
        })
        .await;
        assert_eq!(asked(IpFamily::V4).await.unwrap(), "10.244.0.1 hello");

        let earlier =
            EndpointSlice { service: ObjectName::new("ns", "a"), ..slice("a-v4", &[("10.244.0.2", true)]) };
        apply(&mut proxy, &mut world, [Object::Service(service("a")), Object::EndpointSlice(earlier)]);
        assert_eq!(asked(IpFamily::V4).await.unwrap(), "10.244.0.2 hello", "the first by name");
        world.apply(Change::Delete(Key::Service(ObjectName::new("ns", "a"))));
        proxy.update(&world.take_dirty().services, &world, PLACE);
        assert_eq!(asked(IpFamily::V4).await.unwrap(), "10.244.0.1 hello");
    });
}

#[test]
fn established_connections_end_with_their_service_and_are_waited_for_when_the_program_stops() {
    in_namespace(async || {
        let _server = echo("10.244.0.1").await;
        let (mut proxy, _registry) = proxy();
        let mut world = World::default();
        let endpoints = slice("v4", &[("10.244.0.1", true)]);
        let objects = [Object::Service(service("web")), Object::EndpointSlice(endpoints.clone())];
        apply(&mut proxy, &mut world, objects);
        let connect = || {
            let mut stream = TcpStream::connect(("127.0.0.1", NODE_PORT)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut greeting = [0; "10.244.0.1 ".len()];
            stream.read_exact(&mut greeting).unwrap();
            stream
        };
        let mut closed = beside(connect).await;
        apply(&mut proxy, &mut world, [Object::EndpointSlice(slice("v4", &[]))]);
        let read = beside(move || closed.read(&mut [0; 8]));
        assert!(matches!(read.await, Ok(0)), "the last endpoint is gone");

        apply(&mut proxy, &mut world, [Object::EndpointSlice(endpoints)]);
        let mut late = beside(connect).await;
        let draining = tokio::spawn(proxy.drain(PATIENCE));
        until("no new connections", async || asked(IpFamily::V4).await.is_err()).await;
        let answer = beside(move || {
            late.write_all(b"late").unwrap();
            late.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            late.read_to_string(&mut answer).unwrap();
            answer
        });
        assert_eq!(answer.await, "late");
        tokio::time::timeout(PATIENCE, draining).await.expect("nothing is left to wait for").unwrap();
    });
}

#[test]
fn nothing_listens_unless_loopback_is_named() {
    in_namespace(async || {
        for (addresses, listeners) in [("all", 0), ("primary", 0), ("127.0.0.0/8", 1), ("all,localhost", 2)] {
            let metrics = Metrics::register(&mut Registry::default());
            let mut proxy = LocalhostNodePorts::new(&config(addresses), metrics);
            let mut world = World::default();
            let slices = [slice("v4", &[("10.244.0.1", true)]), slice("v6", &[("fd00::1", true)])];
            let objects =
                slices.map(Object::EndpointSlice).into_iter().chain([Object::Service(service("web"))]);
            apply(&mut proxy, &mut world, objects);
            assert_eq!(proxy.running.len(), listeners, "{addresses}");
            proxy.drain(Duration::ZERO).await;
        }
    });
}

#[test]
fn a_listener_that_nobody_asks_takes_no_slot() {
    in_namespace(async || {
        let _servers = [echo("10.244.0.1").await, echo("fd00::1").await];
        let (mut proxy, _registry) = proxy();
        proxy.slots = Arc::new(Semaphore::new(1));
        let slices = [slice("v4", &[("10.244.0.1", true)]), slice("v6", &[("fd00::1", true)])];
        let objects = slices.map(Object::EndpointSlice).into_iter().chain([Object::Service(service("web"))]);
        apply(&mut proxy, &mut World::default(), objects);
        // Two listeners, one slot: by turns, and again.
        for _ in 0..2 {
            assert_eq!(asked(IpFamily::V4).await.unwrap(), "10.244.0.1 hello");
            assert_eq!(asked(IpFamily::V6).await.unwrap(), "fd00::1 hello");
        }
    });
}
