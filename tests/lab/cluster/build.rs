//! From nothing to a cluster whose nodes are ready.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use tokio::sync::Semaphore;

use super::{Lab, Node, NodeProxy, Provider, Tier, kube_proxy};
use crate::aws::{self, Aws};
use crate::control_plane::{ControlPlane, Identity};
use crate::kubelet::{Kubelet, Member};
use crate::network::{self, Host, PodNetwork, Switch};
use crate::process::Program;
use crate::spawn::{Spawner, Spec};
use crate::sweep::Ground;
use crate::traffic::Client;
use crate::{programs, wait};

/// Two labs at once would share two cores, and each other's deadlines: one at a time in a process.
static TURN: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(1)));

const BALANCERS: u8 = 2;

/// Where cloud-controller serves /readyz, on the control plane's host.
const CONTROLLER_METRICS: u16 = 8080;

/// Pods' traffic to the world leaves with the node's address, as network plugins have it.
pub(super) const MASQUERADE: &str = "
table inet lab-cni {
    chain postrouting {
        type nat hook postrouting priority srcnat + 10;
        ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 oifname eth0 masquerade
        ip6 saddr fd00:10:244::/56 ip6 daddr != fd00:10:244::/56 oifname eth0 masquerade
    }
}";

/// What the lab shall have.
#[derive(Debug, Clone)]
pub struct Builder {
    name: String,
    nodes: u8,
    proxy: NodeProxy,
    provider: Provider,
    progress: fn(&str),
}

impl Builder {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            nodes: 3,
            proxy: NodeProxy::NodeAgent,
            provider: Provider::Metal,
            progress: |_| (),
        }
    }

    #[must_use]
    pub fn nodes(self, nodes: u8) -> Self {
        Self { nodes, ..self }
    }

    #[must_use]
    pub fn node_proxy(self, proxy: NodeProxy) -> Self {
        Self { proxy, ..self }
    }

    #[must_use]
    pub fn provider(self, provider: Provider) -> Self {
        Self { provider, ..self }
    }

    /// Is told what is being done, a few words at a time.
    #[must_use]
    pub fn progress(self, progress: fn(&str)) -> Self {
        Self { progress, ..self }
    }

    /// Builds it; returns when all nodes are ready.
    ///
    /// # Errors
    /// When something is missing on this machine, or does not come up in time; with what it said.
    pub async fn start(self) -> Result<Lab> {
        let turn = Arc::clone(&TURN).acquire_owned().await.context("nobody closes the semaphore")?;
        let ground = Ground::claim(&self.name)?;
        let spawner = Spawner::new(ground.id())?;

        (self.progress)("a switch, a client, and the machines of the cluster, as network namespaces");
        let switch = Switch::create(ground.id())?;
        let (nodes, client_host) = self.hosts(&switch)?;
        let control_host = switch.attach("control-plane", network::CONTROL_PLANE)?;
        (self.progress)("etcd, kube-apiserver, kube-controller-manager, kube-scheduler");
        let (control_plane, tier, aws) = tokio::try_join!(
            ControlPlane::start(control_host.clone(), &ground, &spawner),
            self.start_tier(&switch, &ground, &spawner),
            self.start_aws(&control_host, &ground, &spawner),
        )?;
        (self.progress)("the nodes, and what fairlead needs in the cluster: deploy/crds, deploy/rbac");
        let (members, ()) =
            tokio::try_join!(self.members(&nodes, aws.as_ref()), self.deploy(&control_plane))?;
        let kubelet = {
            let client = control_plane.client_of(Identity::Kubelet).await?;
            Kubelet::start(ground.id(), client, &spawner, ground.path().join("logs"), members).await?
        };
        let mut agents = Vec::new();
        for host in nodes {
            let proxy = self.start_proxy(&ground, &spawner, &control_plane, &host).await?;
            agents.push(Node { host, proxy });
        }
        let controller = match self.provider {
            Provider::None => None,
            Provider::Metal | Provider::Aws => {
                let flags = controller_flags(tier.as_ref(), aws.as_ref());
                Some(start_controller(flags, &ground, &spawner, &control_plane).await?)
            }
        };
        let lab = Lab {
            kubelet,
            controller,
            tier,
            aws,
            nodes: agents,
            control_plane,
            client_host,
            switch,
            spawner,
            ground,
            _turn: turn,
        };
        lab.await_nodes().await?;
        lab.await_controller().await?;
        Ok(lab)
    }

    async fn start_tier(&self, switch: &Switch, ground: &Ground, spawner: &Spawner) -> Result<Option<Tier>> {
        match self.provider {
            Provider::Metal => Tier::start(BALANCERS, switch, ground, spawner).await.map(Some),
            Provider::None | Provider::Aws => Ok(None),
        }
    }

    async fn start_aws(&self, host: &Host, ground: &Ground, spawner: &Spawner) -> Result<Option<Aws>> {
        match self.provider {
            Provider::Aws => Aws::start(host, ground, spawner).await.map(Some),
            Provider::None | Provider::Metal => Ok(None),
        }
    }

    /// What a cluster's administrator applies before the programs run.
    async fn deploy(&self, control_plane: &ControlPlane) -> Result<()> {
        let mut manifests = "apiVersion: v1\nkind: Namespace\nmetadata: {name: fairlead-system}\n".to_owned();
        for folder in ["deploy/crds", "deploy/rbac"] {
            manifests += &manifests_in(&programs::workspace().join(folder))?;
        }
        control_plane.kubectl.apply(&manifests).await?;
        if self.provider == Provider::Metal {
            wait::until("the API server knows IPAddressPools", Duration::from_secs(10), async || {
                control_plane.kubectl.apply(Tier::pool()).await
            })
            .await?;
        }
        Ok(())
    }

    fn hosts(&self, switch: &Switch) -> Result<(Vec<Host>, Host)> {
        let nodes = (0..self.nodes)
            .map(|nth| switch.attach(&format!("node-{}", nth + 1), network::FIRST_NODE + nth))
            .collect::<Result<Vec<_>>>()?;
        for node in &nodes {
            network::make_node(node, &nodes)?;
            node.netns.tool("nft", &[MASQUERADE])?;
        }
        switch.route_pods(&nodes)?;
        let client = switch.attach("client", network::CLIENT)?;
        network::make_client(&client)?;
        Ok((nodes, client))
    }

    /// The nodes as Kubernetes knows them; with AWS, each is an instance.
    async fn members(&self, hosts: &[Host], aws: Option<&Aws>) -> Result<Vec<Member>> {
        let mut members = Vec::new();
        for (nth, host) in hosts.iter().enumerate() {
            let (zone, provider_id) = match aws {
                Some(aws) => {
                    let instance = aws.launch(nth).await?;
                    let id = format!("aws:///{}/{}", instance.zone, instance.id);
                    (instance.zone, Some(id))
                }
                None => (format!("lab-{}", ["a", "b", "c"][nth % 3]), None),
            };
            let pods = PodNetwork(u8::try_from(nth + 1).context("a lab has few nodes")?);
            members.push(Member { host: host.clone(), pods, zone, provider_id });
        }
        Ok(members)
    }

    async fn start_proxy(
        &self,
        ground: &Ground,
        spawner: &Spawner,
        control_plane: &ControlPlane,
        host: &Host,
    ) -> Result<Program> {
        let (program, identity, arguments) = match self.proxy {
            NodeProxy::NodeAgent => {
                let kubeconfig = control_plane.kubeconfig(Identity::NodeAgent);
                let flags = vec![
                    "run".to_owned(),
                    format!("--kubeconfig={}", kubeconfig.display()),
                    format!("--hostname-override={}", host.name),
                    format!("--cluster-cidr={}", network::CLUSTER_CIDR),
                ];
                (programs::ours("node-agent")?, Identity::NodeAgent, flags)
            }
            NodeProxy::KubeProxy | NodeProxy::KubeProxyWithIptables => {
                let mode = if self.proxy == NodeProxy::KubeProxy { "nftables" } else { "iptables" };
                let file = kube_proxy::write_config(mode, ground, control_plane)?;
                (programs::kubernetes("kube-proxy")?, Identity::KubeProxy, kube_proxy::flags(&file, host))
            }
        };
        let name = format!("{}-{}", identity.file_name(), host.name);
        let spec = Spec {
            program,
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: BTreeMap::new(),
            netns: host.netns.clone(),
            hostname: Some(host.name.clone()),
            log: ground.log(&name),
        };
        Program::start(&name, spawner, spec).await
    }
}

fn controller_flags(tier: Option<&Tier>, aws: Option<&Aws>) -> Vec<String> {
    let metal = tier.into_iter().flat_map(|tier| {
        let mut flags = tier.controller_flags();
        flags.push("--default-class=fairlead.dev/metal".into());
        flags
    });
    let aws = aws.into_iter().flat_map(|aws| {
        [
            "--default-class=service.k8s.aws/nlb".to_owned(),
            format!("--aws-region={}", aws::REGION),
            format!("--aws-vpc-id={}", aws.vpc),
            format!("--aws-endpoint={}", aws.endpoint()),
        ]
    });
    metal.chain(aws).collect()
}

async fn start_controller(
    flags: Vec<String>,
    ground: &Ground,
    spawner: &Spawner,
    control_plane: &ControlPlane,
) -> Result<Program> {
    let kubeconfig = control_plane.kubeconfig(Identity::CloudController);
    let mut arguments = vec![
        "run".to_owned(),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--cluster-name={}", aws::CLUSTER),
    ];
    arguments.extend(flags);
    let credentials = [
        ("AWS_ACCESS_KEY_ID", "lab"),
        ("AWS_SECRET_ACCESS_KEY", "lab"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ];
    let spec = Spec {
        program: programs::ours("cloud-controller")?,
        arguments: arguments.into_iter().map(Into::into).collect(),
        environment: credentials.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        netns: control_plane.host.netns.clone(),
        hostname: Some("cloud-controller-0".into()),
        log: ground.log("cloud-controller"),
    };
    Program::start("cloud-controller", spawner, spec).await
}

/// All YAML files of a folder as one stream.
fn manifests_in(folder: &Path) -> Result<String> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    paths.iter().try_fold(String::new(), |all, path| {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(format!("{all}---\n{text}\n"))
    })
}

impl Lab {
    /// The controller is of use once it has planned for the first time.
    async fn await_controller(&self) -> Result<()> {
        let Some(controller) = &self.controller else { return Ok(()) };
        let host = &self.control_plane.host;
        let ready = SocketAddr::from((host.v4(), CONTROLLER_METRICS));
        let client = Client::in_netns(host.netns.clone());
        wait::until("cloud-controller is ready", Duration::from_secs(30), async || {
            let asked = client.request(ready, "GET", "/readyz").await;
            asked.with_context(|| format!("its log ends with\n{}", controller.log_tail(5)))
        })
        .await
        .map(drop)
    }

    async fn await_nodes(&self) -> Result<()> {
        let api: Api<NodeObject> = Api::all(self.control_plane.client.clone());
        wait::until("every node is ready and takes pods", Duration::from_secs(30), async || {
            let nodes = api.list(&ListParams::default()).await?;
            ensure!(nodes.items.len() == self.nodes.len(), "{} nodes", nodes.items.len());
            for node in nodes {
                let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
                ensure!(taints.is_empty(), "{} has the taints {taints:?}", node.name_any());
            }
            Ok(())
        })
        .await
    }
}
