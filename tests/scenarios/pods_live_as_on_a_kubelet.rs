//! The lab's own kubelet does for pods what Services rely on: environment, host network, restarts,
//! readiness, and an end that leaves time to say goodbye.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::Api;
use lab::{Lab, NodeProxy, Provider, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: my-shop}
spec: {selector: {app: shop}, ports: [{name: http, port: 80, targetPort: 8080}]}
";
const PODS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: colours}
data: {sky: blue}
---
apiVersion: v1
kind: Pod
metadata: {name: shop-0, labels: {app: shop}}
spec:
  hostname: till
  subdomain: my-shop
  containers:
  - name: shop
    image: anything:1
    ports: [{containerPort: 8080}, {containerPort: 8053, protocol: UDP}]
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
    env:
    - {name: ME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: ADDRESS, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: SKY, valueFrom: {configMapKeyRef: {name: colours, key: sky}}}
    - {name: GREETING, value: I am $(ME)}
---
apiVersion: v1
kind: Pod
metadata: {name: on-the-host}
spec:
  hostNetwork: true
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: anything:1
    ports: [{containerPort: 9090}]
    readinessProbe: {tcpSocket: {port: 9090}, periodSeconds: 1}
";

#[tokio::test(flavor = "multi_thread")]
async fn pods_live_as_on_a_kubelet() -> Result<()> {
    let lab = Lab::builder("pods")
        .nodes(1)
        .node_proxy(NodeProxy::KubeProxy)
        .provider(Provider::None)
        .start()
        .await?;
    lab.apply(SERVICE).await?;
    lab.told_to_pods("my-shop").await?;
    lab.apply(PODS).await?;
    lab.kubectl("wait --for=condition=Ready pod/shop-0 pod/on-the-host --timeout=20s").await?;
    let pods: Api<Pod> = Api::default_namespaced(lab.control_plane.client.clone());
    let shop = pods.get("shop-0").await?;

    environment_and_names(&lab, &shop).await?;
    host_network(&lab, &pods.get("on-the-host").await?).await?;
    a_crash_is_followed_by_a_start(&pods).await?;
    the_end_leaves_time(&lab, &pods, &shop).await
}

async fn environment_and_names(lab: &Lab, shop: &Pod) -> Result<()> {
    let target = address(shop, 8080)?;
    let answer = lab.inside(shop)?.get(target).await?;
    ensure!(answer.hostname == "till" && answer.node == "node-1", "{answer:?}");
    let service = lab.service("my-shop").await?.cluster()?;
    for (name, value) in [
        ("ME", "shop-0"),
        ("ADDRESS", &target.ip().to_string()),
        ("SKY", "blue"),
        ("GREETING", "I am shop-0"),
        ("MY_SHOP_SERVICE_HOST", &service.ip().to_string()),
        ("MY_SHOP_PORT_80_TCP", &format!("tcp://{service}")),
        ("KUBERNETES_SERVICE_PORT", "443"),
    ] {
        let found = answer.environment.get(name).map(String::as_str);
        ensure!(found == Some(value), "{name} is {found:?}, not {value:?}");
    }
    let by_udp = lab.inside(shop)?.ask_by_udp(address(shop, 8053)?, "hello").await?;
    ensure!(by_udp.heard == "hello" && by_udp.pod == "shop-0", "{by_udp:?}");
    Ok(())
}

async fn host_network(lab: &Lab, pod: &Pod) -> Result<()> {
    let node = lab.node("node-1")?;
    for address in node.host.addresses() {
        let answer = lab.client().get(SocketAddr::new(address, 9090)).await?;
        ensure!(answer.pod == "on-the-host" && answer.hostname == "node-1", "{answer:?}");
    }
    let status = pod.status.as_ref().context("a running pod has a status")?;
    ensure!(status.pod_ip == status.host_ip, "{status:?}");
    Ok(())
}

async fn a_crash_is_followed_by_a_start(pods: &Api<Pod>) -> Result<()> {
    let container = container_of(&pods.get("on-the-host").await?)?;
    let id = container.container_id.context("a running container has an id")?;
    let pid: i32 = id.strip_prefix("process://").context("the lab's ids are pids")?.parse()?;
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    wait::until("the container runs again", Duration::from_secs(10), async || {
        let container = container_of(&pods.get("on-the-host").await?)?;
        ensure!(container.restart_count == 1 && container.ready, "{container:?}");
        let before = container.last_state.and_then(|state| state.terminated).context("no last state")?;
        ensure!(before.exit_code == 137 && before.signal == Some(9), "{before:?}");
        Ok(())
    })
    .await
}

/// The pod's program goes on for 5 s after SIGTERM, unless its grace period is shorter.
async fn the_end_leaves_time(lab: &Lab, pods: &Api<Pod>, shop: &Pod) -> Result<()> {
    let connected = lab.client_on("node-1")?.stay_connected(address(shop, 8080)?).await?;
    lab.kubectl("delete pod shop-0 on-the-host --wait=false").await?;
    wait::until("the pod with the short grace period is gone", Duration::from_secs(10), async || {
        ensure!(pods.get_opt("on-the-host").await?.is_none(), "it is there");
        Ok(())
    })
    .await?;
    let then = connected.alive().context("the other pod still serves")?;
    let leaving = pods.get("shop-0").await?;
    ensure!(leaving.metadata.deletion_timestamp.is_some(), "it is being deleted");
    wait::until("the other pod is gone too", Duration::from_secs(15), async || {
        ensure!(pods.get_opt("shop-0").await?.is_none(), "it is there");
        Ok(())
    })
    .await?;
    ensure!(connected.pulse().beats > then.beats, "{then:?}, then {:?}", connected.pulse());
    Ok(())
}

fn address(pod: &Pod, port: u16) -> Result<SocketAddr> {
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()).context("it has no address")?;
    Ok(SocketAddr::new(ip.parse()?, port))
}

fn container_of(pod: &Pod) -> Result<ContainerStatus> {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.and_then(|statuses| statuses.first()).cloned().context("no container status")
}
