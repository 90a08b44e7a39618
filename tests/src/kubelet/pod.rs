//! One pod's life: a namespace, a process a container, probes, status, an orderly end.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::process::Child;
use tokio::sync::watch;

use super::probe::Readiness;
use super::{HostNode, Shared, environment};
use crate::netns::{Namespace, ip};
use crate::process::spawn;

/// A crashed container is started again after this long (a kubelet's first back-off is ten).
const RESTART: Duration = Duration::from_secs(1);

/// Runs the pod until it is deleted.
pub(super) async fn run(
    shared: Arc<Shared>,
    node: Arc<HostNode>,
    number: u32,
    mut object: watch::Receiver<Option<Pod>>,
) {
    let Some(pod) = object.borrow().clone() else { return };
    let name = pod.metadata.name.clone().unwrap_or_default();
    let started = Sandbox::new(&shared, &node, number, &pod);
    let ended = match started {
        Ok(sandbox) => live(&shared, &node, &pod, &sandbox, &mut object).await,
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        tracing::warn!(pod = %name, "{error:#}");
    }
}

/// Where the pod's processes live.
struct Sandbox {
    /// `None` for a pod of the host's network.
    namespace: Option<Namespace>,
    ips: Vec<IpAddr>,
}

impl Sandbox {
    fn new(shared: &Shared, node: &HostNode, number: u32, pod: &Pod) -> anyhow::Result<Self> {
        if pod.spec.as_ref().and_then(|s| s.host_network) == Some(true) {
            return Ok(Self { namespace: None, ips: vec![node.address.into(), node.address6.into()] });
        }
        let n = node.number;
        // The pool is shared by all nodes, so a number is an address in each.
        anyhow::ensure!(number < 250, "the lab has run out of pod addresses");
        let (v4, v6) = (format!("10.244.{n}.{number}"), format!("fd00:10:244:{n}::{number:x}"));
        let namespace = Namespace::new(format!("{}p{number}", shared.prefix))?;
        let port = format!("p{number}");
        ip(
            Some(&node.namespace),
            &format!(
                "link add {port} type veth peer name eth0 netns {}\n\
                 link set {port} master cni0 up\n\
                 link set {port} type bridge_slave hairpin on",
                namespace.name()
            ),
        )?;
        namespace.ip(&format!(
            "addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\n\
             route add default via 10.244.{n}.1\nroute add default via fd00:10:244:{n}::1"
        ))?;
        Ok(Self { namespace: Some(namespace), ips: vec![v4.parse()?, v6.parse()?] })
    }

    fn command(&self, node: &HostNode, program: &std::path::Path) -> std::process::Command {
        let mut command = std::process::Command::new("nsenter");
        let name = self.namespace.as_ref().map_or(node.namespace.as_str(), Namespace::name);
        command.arg(format!("--net=/run/netns/{name}")).arg("--").arg(program);
        command
    }
}

async fn live(
    shared: &Arc<Shared>,
    node: &Arc<HostNode>,
    pod: &Pod,
    sandbox: &Sandbox,
    object: &mut watch::Receiver<Option<Pod>>,
) -> anyhow::Result<()> {
    let spec = pod.spec.clone().context("a pod without a spec")?;
    let first_ip = *sandbox.ips.first().context("a pod without an address")?;
    let container = spec.containers.first().context("a pod without a container")?;
    let readiness = Readiness::of(container, first_ip);
    let (mut restarts, mut streak, mut ready) = (0, 0i32, readiness.is_none());
    let mut children = start_all(shared, node, pod, sandbox, &spec.containers).await?;
    report(shared, node, pod, sandbox, ready, restarts).await?;

    let mut asking =
        tokio::time::interval(readiness.as_ref().map_or(Duration::from_secs(3600), |r| r.period));
    loop {
        tokio::select! {
            changed = object.changed() => {
                let gone = changed.is_err() || object.borrow().is_none();
                let deleting = object.borrow().as_ref().is_some_and(|p| p.metadata.deletion_timestamp.is_some());
                if gone || deleting {
                    let grace = object.borrow().as_ref().and_then(|p| p.metadata.deletion_grace_period_seconds);
                    return end(shared, pod, children, grace, gone).await;
                }
            }
            _ = asking.tick(), if readiness.is_some() => {
                let Some(probe) = &readiness else { continue };
                let ok = probe.ask(&node.path()).await;
                streak = if ok == ready { 0 } else { streak + 1 };
                let needed = if ready { probe.failure_threshold } else { probe.success_threshold };
                if streak >= needed as i32 {
                    (ready, streak) = (ok, 0);
                    report(shared, node, pod, sandbox, ready, restarts).await?;
                }
            }
            () = any_ended(&mut children) => {
                restarts += 1;
                report(shared, node, pod, sandbox, false, restarts).await?;
                tokio::time::sleep(RESTART).await;
                children = start_all(shared, node, pod, sandbox, &spec.containers).await?;
                ready = readiness.is_none();
                report(shared, node, pod, sandbox, ready, restarts).await?;
            }
        }
    }
}

async fn start_all(
    shared: &Shared,
    node: &HostNode,
    pod: &Pod,
    sandbox: &Sandbox,
    containers: &[Container],
) -> anyhow::Result<Vec<Child>> {
    let mut children = Vec::new();
    for container in containers {
        let ip = sandbox.ips.first().map(ToString::to_string).unwrap_or_default();
        let ports = container.ports.iter().flatten();
        let ports = ports.map(|p| format!("{}/{}", p.container_port, p.protocol.as_deref().unwrap_or("TCP")));
        let mut command = sandbox.command(node, &shared.program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(environment::of(shared, pod, container, &ip).await);
        command.env("LAB_PORTS", ports.collect::<Vec<_>>().join(","));
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        children.push(spawn(command, &shared.folder.join(format!("pod-{name}-{}.log", container.name)))?);
    }
    Ok(children)
}

async fn any_ended(children: &mut [Child]) {
    let waits = children.iter_mut().map(|c| Box::pin(c.wait()));
    drop(futures::future::select_all(waits).await);
}

/// SIGTERM, the grace period, SIGKILL; then the API server may forget the pod.
async fn end(
    shared: &Shared,
    pod: &Pod,
    mut children: Vec<Child>,
    grace: Option<i64>,
    gone: bool,
) -> anyhow::Result<()> {
    for child in &children {
        if let Some(pid) = child.id() {
            // It may have ended by itself.
            let _ended = kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM);
        }
    }
    let grace = Duration::from_secs(grace.and_then(|g| u64::try_from(g).ok()).unwrap_or(30));
    for child in &mut children {
        if tokio::time::timeout(grace, child.wait()).await.is_err() {
            child.kill().await?;
        }
    }
    if !gone {
        let meta = &pod.metadata;
        let api: Api<Pod> =
            Api::namespaced(shared.client.clone(), meta.namespace.as_deref().unwrap_or("default"));
        let preconditions = Preconditions { uid: meta.uid.clone(), resource_version: None };
        let now =
            DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default().grace_period(0) };
        api.delete(meta.name.as_deref().unwrap_or_default(), &now).await?;
    }
    Ok(())
}

async fn report(
    shared: &Shared,
    node: &HostNode,
    pod: &Pod,
    sandbox: &Sandbox,
    ready: bool,
    restarts: u32,
) -> anyhow::Result<()> {
    let meta = &pod.metadata;
    let now = k8s_openapi::jiff::Timestamp::now();
    let condition = |kind: &str, yes: bool| {
        let status = if yes { "True" } else { "False" };
        json!({"type": kind, "status": status, "lastTransitionTime": format!("{now:.0}")})
    };
    let ips: Vec<_> = sandbox.ips.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
    let containers = pod.spec.iter().flat_map(|s| &s.containers).map(|c| {
        json!({
            "name": c.name, "image": c.image, "imageID": "", "ready": ready, "started": true, "restartCount": restarts,
            "state": {"running": {"startedAt": format!("{now:.0}")}}
        })
    });
    let status = json!({
        "status": {
            "phase": "Running", "hostIP": node.address.to_string(), "podIP": ips[0]["ip"], "podIPs": ips,
            "startTime": format!("{now:.0}"), "containerStatuses": containers.collect::<Vec<_>>(),
            "conditions": [
                condition("PodScheduled", true), condition("Initialized", true),
                condition("ContainersReady", ready), condition("Ready", ready)
            ]
        }
    });
    let api: Api<Pod> =
        Api::namespaced(shared.client.clone(), meta.namespace.as_deref().unwrap_or("default"));
    let name = meta.name.as_deref().unwrap_or_default();
    match api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error).context("reporting a pod's status"),
    }
}
