//! A control plane with many Services, and a host that answers for all their endpoints.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use lab::control_plane::ControlPlane;
use lab::netns::Netns;
use lab::network::{self, Host, Switch};
use lab::spawn::Spawner;
use lab::sweep::Ground;
use lab::wait;
use serde_json::json;
use socket2::{Domain, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::progress;
use crate::shape::{MOST_ENDPOINTS, Shape};

pub(crate) const NODE: &str = "bench";

/// Any address of this network is an endpoint that answers.
const ENDPOINTS: &str = "10.128.0.0/10";
const FIRST_ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 1);
/// Addresses of load balancers, for Services that have one.
const FIRST_INGRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 1);
const ENDPOINT_PORT: u16 = 8080;

const BACKENDS: u8 = 50;
pub(crate) const IN_FLIGHT: usize = 24;

/// The order of the fields is the order of the end.
pub(crate) struct Cluster {
    pub(crate) control_plane: ControlPlane,
    shape: Shape,
    /// One address and port for each Service, in the order of their creation.
    pub(crate) vips: Vec<SocketAddr>,
    pub(crate) backends: Host,
    pub(crate) switch: Switch,
    pub(crate) spawner: Spawner,
    pub(crate) ground: Ground,
}

impl Cluster {
    pub(crate) async fn start(shape: Shape) -> Result<Self> {
        let ground = Ground::claim("bench")?;
        let spawner = Spawner::new(ground.id())?;
        let switch = Switch::create(ground.id())?;
        // A VIP that nobody translates is refused at once, so that a look costs little.
        let services = network::SERVICE_CIDR.split(',').next().unwrap_or_default();
        switch.netns.ip(&format!("route add local {services} dev lo"))?;
        let backends = switch.attach("backends", BACKENDS)?;
        backends.netns.ip(&format!("route add local {ENDPOINTS} dev lo"))?;
        answer(&backends.netns)?;
        progress("etcd, kube-apiserver, kube-controller-manager, kube-scheduler");
        let host = switch.attach("control-plane", network::CONTROL_PLANE)?;
        // The usual NodePorts are fewer than the Services.
        let ports = ["--service-node-port-range=20000-49999"];
        let control_plane = ControlPlane::start_with(host, &ground, &spawner, &ports).await?;
        let manifests =
            [include_str!("../../deploy/namespace.yaml"), include_str!("../../deploy/rbac/node-agent.yaml")];
        control_plane.kubectl.apply(&manifests.join("\n---\n")).await?;
        let nodes: Api<Node> = Api::all(control_plane.client.clone());
        let node = serde_json::from_value(json!({"metadata": {"name": NODE}}))?;
        nodes.create(&PostParams::default(), &node).await?;
        let address =
            json!({"status": {"addresses": [{"type": "InternalIP", "address": network::v4(BACKENDS + 1)}]}});
        nodes.patch_status(NODE, &PatchParams::default(), &Patch::Merge(address)).await?;
        Ok(Self { shape, control_plane, vips: Vec::new(), backends, switch, spawner, ground })
    }

    /// An empty machine whose packets reach the endpoints and the API server.
    pub(crate) async fn machine(&self, run: usize) -> Result<Host> {
        // Names and addresses are used again much later: a namespace goes in the background.
        let host = self.switch.attach(&format!("run-{run}"), BACKENDS + 1 + u8::try_from(run % 150)?)?;
        host.netns.ip(&format!("route add {ENDPOINTS} via {}", self.backends.v4()))?;
        host.netns.sysctl(&[("ipv4/ip_forward", "1"), ("ipv4/ip_local_port_range", "1024 65535")])?;
        // The first packet of a new link may be lost, and would be sent again much later.
        let vip = *self.vips.first().context("there are Services")?;
        wait::until("the network refuses a VIP that nobody serves", Duration::from_secs(10), async || {
            let refused = timeout(Duration::from_millis(50), reached(&host.netns, vip)).await?;
            ensure!(refused.is_err(), "{vip} answers");
            Ok(())
        })
        .await?;
        let endpoint = SocketAddr::from((endpoint(0, 0), ENDPOINT_PORT));
        wait::until("the endpoints answer", Duration::from_secs(10), async || {
            timeout(Duration::from_millis(50), reached(&host.netns, endpoint)).await?
        })
        .await?;
        Ok(host)
    }

    /// Creates Services, each with one slice of endpoints, until there are so many.
    pub(crate) async fn grow_to(&mut self, count: usize) -> Result<()> {
        let first = self.vips.len();
        let requests = (first..count).map(|nth| self.create(nth));
        let mut created = futures::stream::iter(requests).buffered(IN_FLIGHT);
        let mut vips = Vec::new();
        while let Some(vip) = created.try_next().await? {
            vips.push(vip);
            if vips.len() % 1000 == 0 {
                progress(&format!("{} of {count} Services created", first + vips.len()));
            }
        }
        drop(created);
        self.vips.extend(vips);
        Ok(())
    }

    async fn create(&self, nth: usize) -> Result<SocketAddr> {
        let service = serde_json::from_value(json!({
            "metadata": {"name": name(nth)},
            "spec": {
                "type": if self.shape.exposed { "LoadBalancer" } else { "ClusterIP" },
                "ports": [{"name": "http", "port": 80, "targetPort": ENDPOINT_PORT}],
            },
        }))?;
        let service = self.services().create(&PostParams::default(), &service).await?;
        if self.shape.exposed {
            let ip = after(FIRST_INGRESS, nth);
            let status = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": [{"ip": ip}]}}}));
            self.services().patch_status(&name(nth), &PatchParams::default(), &status).await?;
        }
        let first: Vec<Ipv4Addr> = (0..self.shape.endpoints).map(|i| endpoint(nth, i)).collect();
        let slice = serde_json::from_value(json!({
            "metadata": {"name": name(nth), "labels": {
                "kubernetes.io/service-name": name(nth),
                "endpointslice.kubernetes.io/managed-by": "fairlead-bench",
            }},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": ENDPOINT_PORT, "protocol": "TCP"}],
            "endpoints": endpoints(&first),
        }))?;
        self.slices().create(&PostParams::default(), &slice).await?;
        let ip = service.spec.and_then(|spec| spec.cluster_ip).context("every Service has a ClusterIP")?;
        Ok(SocketAddr::new(ip.parse()?, 80))
    }

    /// Replaces the endpoints of one Service. Returns when the API server has answered.
    pub(crate) async fn move_endpoints(&self, nth: usize, to: &[Ipv4Addr]) -> Result<()> {
        let patch = Patch::Merge(json!({"endpoints": endpoints(to)}));
        self.slices().patch(&name(nth), &PatchParams::default(), &patch).await?;
        Ok(())
    }

    fn services(&self) -> Api<Service> {
        Api::default_namespaced(self.control_plane.client.clone())
    }

    fn slices(&self) -> Api<EndpointSlice> {
        Api::default_namespaced(self.control_plane.client.clone())
    }
}

fn name(nth: usize) -> String {
    format!("bench-{nth}")
}

/// An address that only this Service has.
pub(crate) fn endpoint(service: usize, nth: usize) -> Ipv4Addr {
    // Some more than it has, for changes.
    after(FIRST_ENDPOINT, service * (MOST_ENDPOINTS + 4) + nth)
}

fn after(first: Ipv4Addr, number: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(first) + u32::try_from(number).unwrap_or_default())
}

fn endpoints(addresses: &[Ipv4Addr]) -> serde_json::Value {
    let ready = json!({"ready": true, "serving": true, "terminating": false});
    addresses
        .iter()
        .map(|ip| json!({"addresses": [ip], "conditions": ready, "nodeName": "elsewhere"}))
        .collect()
}

/// Every connection is told which address it reached.
fn answer(netns: &Netns) -> Result<()> {
    let socket = netns.socket(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, ENDPOINT_PORT)).into())?;
    socket.listen(1024)?;
    let listener = TcpListener::from_std(socket.into())?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if let Ok(reached) = stream.local_addr() {
                // The client may have gone.
                let _ = stream.write_all(reached.ip().to_string().as_bytes()).await;
            }
        }
    });
    Ok(())
}

/// The endpoint that a connection to the VIP reaches.
pub(crate) async fn reached(netns: &Netns, vip: SocketAddr) -> Result<Ipv4Addr> {
    use tokio::io::AsyncReadExt;
    let mut stream = lab::traffic::connect(netns, None, vip).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    ensure!(!text.is_empty(), "{vip} closed without a word");
    Ok(text.parse()?)
}
