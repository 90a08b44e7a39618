//! What scenarios do and wait for, in words.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Event, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::build::MASQUERADE;
use super::{Balancer, Lab};
use crate::netns;
use crate::network::UPLINK;
use crate::traffic::Client;
use crate::wait;

/// Controllers tell about a Service within this on a loaded machine.
const SOON: Duration = Duration::from_secs(15);

/// Pods are scheduled, started and probed within this on a loaded machine.
const PODS: Duration = Duration::from_secs(30);

/// The addresses of a Service, for clients.
#[derive(Debug, Clone)]
pub struct ServiceView {
    service: Service,
}

impl Lab {
    /// `kubectl apply -f -`.
    ///
    /// # Errors
    /// When the API server refuses a manifest.
    pub async fn apply(&self, manifests: &str) -> Result<()> {
        self.control_plane.kubectl.apply(manifests).await.map(drop)
    }

    /// `kubectl ARGUMENTS`, split at spaces.
    ///
    /// # Errors
    /// When kubectl fails; with what it said.
    pub async fn kubectl(&self, arguments: &str) -> Result<String> {
        self.control_plane.kubectl.run(&arguments.split(' ').collect::<Vec<_>>()).await
    }

    /// The pods with that label, like `app=web`, that are not being deleted.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn pods(&self, label: &str) -> Result<Vec<Pod>> {
        let api: Api<Pod> = Api::default_namespaced(self.control_plane.client.clone());
        let pods = api.list(&ListParams::default().labels(label)).await?;
        Ok(pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect())
    }

    /// Waits until exactly that many pods with that label exist, all ready.
    ///
    /// # Errors
    /// With the pods that there are instead.
    pub async fn pods_ready(&self, label: &str, count: usize) -> Result<Vec<Pod>> {
        wait::until(&format!("{count} pods with {label} are ready"), PODS, async || {
            let pods = self.pods(label).await?;
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            ensure!(ready == count && pods.len() == count, "{}", describe(&pods));
            Ok(pods)
        })
        .await
    }

    /// Waits until the Service has exactly that many ready endpoints of each address family.
    ///
    /// # Errors
    /// With the endpoints that there are instead.
    pub async fn endpoints_ready(&self, service: &str, count: usize) -> Result<()> {
        let api: Api<EndpointSlice> = Api::default_namespaced(self.control_plane.client.clone());
        let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        wait::until(&format!("{service} has {count} ready endpoints"), PODS, async || {
            let slices = api.list(&of_service).await?;
            for slice in &slices {
                let ready = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
                    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true)
                };
                let seen = slice.endpoints.iter().flatten().filter(|endpoint| ready(endpoint)).count();
                ensure!(seen == count, "{} has {seen}", slice.name_any());
            }
            ensure!(!slices.items.is_empty(), "no EndpointSlice");
            Ok(())
        })
        .await
    }

    /// Waits until a pod that starts finds the Service in its environment.
    ///
    /// # Errors
    /// When the kubelet does not see it.
    pub async fn told_to_pods(&self, service: &str) -> Result<()> {
        wait::until(&format!("the kubelet tells pods of {service}"), PODS, async || {
            ensure!(self.kubelet.tells_of(service), "it does not know it");
            Ok(())
        })
        .await
    }

    /// `kubectl scale deployment NAME --replicas N`.
    ///
    /// # Errors
    /// When kubectl fails.
    pub async fn scale(&self, deployment: &str, replicas: usize) -> Result<()> {
        self.kubectl(&format!("scale deployment {deployment} --replicas={replicas}")).await.map(drop)
    }

    /// A Service of the default namespace.
    ///
    /// # Errors
    /// When there is none of that name.
    pub async fn service(&self, name: &str) -> Result<ServiceView> {
        let api: Api<Service> = Api::default_namespaced(self.control_plane.client.clone());
        Ok(ServiceView { service: api.get(name).await.with_context(|| format!("reading Service {name}"))? })
    }

    /// Waits until the Service has an external IP; how long that took too.
    ///
    /// # Errors
    /// With the Service's events, which should say why there is none.
    pub async fn external_ip(&self, service: &str, deadline: Duration) -> Result<(IpAddr, Duration)> {
        let start = Instant::now();
        wait::until(&format!("{service} has an external IP"), deadline, async || {
            match self.service(service).await?.external_ips().first() {
                Some(ip) => Ok((*ip, start.elapsed())),
                None => bail!("no address in its status; its events: {:?}", self.events_of(service).await?),
            }
        })
        .await
    }

    /// The events about a Service, as `TYPE REASON: MESSAGE`, the oldest first.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn events_of(&self, service: &str) -> Result<Vec<String>> {
        let api: Api<Event> = Api::default_namespaced(self.control_plane.client.clone());
        let about = format!("involvedObject.kind=Service,involvedObject.name={service}");
        let events = api.list(&ListParams::default().fields(&about)).await?;
        let text = |part: Option<String>| part.unwrap_or_default();
        Ok(events
            .into_iter()
            .map(|e| format!("{} {}: {}", text(e.type_), text(e.reason), text(e.message)))
            .collect())
    }

    /// Waits for an event about a Service whose `TYPE REASON: MESSAGE` satisfies the condition.
    ///
    /// # Errors
    /// With the events that there are instead.
    pub async fn event_of(&self, service: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        wait::until(&format!("an event tells about {service}"), SOON, async || {
            let events = self.events_of(service).await?;
            let told = events.iter().find(|event| wanted(event)).cloned();
            told.with_context(|| format!("{events:?}"))
        })
        .await
    }

    /// The balancer host that answers for a VIP, by the client's neighbour table.
    ///
    /// # Errors
    /// When the client does not know a neighbour of that address, or it is no balancer host.
    pub fn owner_of(&self, vip: IpAddr) -> Result<&Balancer> {
        let known = self.client_host.netns.tool("ip", &["neigh", "show", &vip.to_string()])?;
        let mac = known.split_once("lladdr ").and_then(|(_, rest)| rest.split(' ').next());
        let mac = mac.with_context(|| format!("the client knows no neighbour {vip}: {known:?}"))?;
        for balancer in self.tier.iter().flat_map(|tier| &tier.balancers) {
            if balancer.host.netns.tool("ip", &["link", "show", UPLINK])?.contains(mac) {
                return Ok(balancer);
            }
        }
        bail!("{vip} is at {mac}, which is no balancer host")
    }

    /// Pulls the cable of a host out of the switch.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn cut_link(&self, host: &str) -> Result<()> {
        self.switch.set_cable(host, false)
    }

    /// Plugs it in again.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn mend_link(&self, host: &str) -> Result<()> {
        self.switch.set_cable(host, true)
    }

    /// `nft flush ruleset` on a node, as somebody else's script might do. The network plugin's own
    /// table comes back at once; ours is ours to heal.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn flush_ruleset(&self, node: &str) -> Result<()> {
        let netns = &self.node(node)?.host.netns;
        netns.tool("nft", &["flush", "ruleset"])?;
        netns.tool("nft", &[MASQUERADE]).map(drop)
    }

    /// A client inside a pod.
    ///
    /// # Errors
    /// When the pod is not on one of our nodes.
    pub fn inside(&self, pod: &Pod) -> Result<Client> {
        let spec = pod.spec.as_ref().context("a pod has a spec")?;
        let node = spec.node_name.as_deref().context("the pod has no node yet")?;
        if spec.host_network == Some(true) {
            return Ok(Client::in_netns(self.node(node)?.host.netns.clone()));
        }
        let netns = netns::Netns::open(&format!("fl-{}-{}", self.id(), pod.name_any()))?;
        Ok(Client::in_netns(netns))
    }

    /// Makes the pod's readiness probes succeed or fail from now on.
    ///
    /// # Errors
    /// When the pod does not serve HTTP.
    pub async fn set_ready(&self, pod: &Pod, ready: bool) -> Result<()> {
        let spec = pod.spec.as_ref().context("a pod has a spec")?;
        let port = spec.containers.iter().flat_map(|container| container.ports.iter().flatten()).next();
        let port = u16::try_from(port.context("the pod has no port")?.container_port)?;
        let address =
            pod.status.as_ref().and_then(|status| status.pod_ip.clone()).context("the pod has no address")?;
        let target = SocketAddr::new(address.parse()?, port);
        let node = self.node(spec.node_name.as_deref().context("the pod has no node yet")?)?;
        let path = format!("/ready?value={ready}");
        Client::in_netns(node.host.netns.clone()).request(target, "POST", &path).await.map(drop)
    }
}

impl ServiceView {
    pub fn object(&self) -> &Service {
        &self.service
    }

    /// The first cluster IP with the Service's first port.
    ///
    /// # Errors
    /// When it is headless or has no port.
    pub fn cluster(&self) -> Result<SocketAddr> {
        let spec = self.service.spec.as_ref().context("a Service has a spec")?;
        let address = spec.cluster_ip.as_deref().context("it has no cluster IP")?;
        Ok(SocketAddr::new(
            address.parse().with_context(|| format!("its cluster IP is {address}"))?,
            self.port()?,
        ))
    }

    /// All cluster IPs, with the Service's first port.
    ///
    /// # Errors
    /// When it is headless or has no port.
    pub fn all_cluster(&self) -> Result<Vec<SocketAddr>> {
        let spec = self.service.spec.as_ref().context("a Service has a spec")?;
        let port = self.port()?;
        spec.cluster_ips.iter().flatten().map(|ip| Ok(SocketAddr::new(ip.parse()?, port))).collect()
    }

    /// The first port.
    ///
    /// # Errors
    /// When it has none.
    pub fn port(&self) -> Result<u16> {
        Ok(u16::try_from(self.first_port()?.port)?)
    }

    /// The first port's NodePort.
    ///
    /// # Errors
    /// When it has none.
    pub fn node_port(&self) -> Result<u16> {
        Ok(u16::try_from(self.first_port()?.node_port.context("it has no NodePort")?)?)
    }

    /// The addresses in its status.
    pub fn external_ips(&self) -> Vec<IpAddr> {
        self.ingress().filter_map(|ingress| ingress.ip.as_ref()?.parse().ok()).collect()
    }

    /// The host names in its status.
    pub fn hostnames(&self) -> Vec<String> {
        self.ingress().filter_map(|ingress| ingress.hostname.clone()).collect()
    }

    fn ingress(&self) -> impl Iterator<Item = &k8s_openapi::api::core::v1::LoadBalancerIngress> {
        let balancer = self.service.status.iter().filter_map(|status| status.load_balancer.as_ref());
        balancer.flat_map(|balancer| balancer.ingress.iter().flatten())
    }

    fn first_port(&self) -> Result<&k8s_openapi::api::core::v1::ServicePort> {
        let ports = self.service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        ports.into_iter().next().context("it has no port")
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn describe(pods: &[Pod]) -> String {
    let line = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        format!("{} {phase}{}", pod.name_any(), if is_ready(pod) { " ready" } else { "" })
    };
    format!("{} pods: {}", pods.len(), pods.iter().map(line).collect::<Vec<_>>().join(", "))
}
