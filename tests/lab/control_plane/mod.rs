//! The real control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler.

mod identities;
mod kubectl;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs};

use anyhow::{Context, Result, anyhow};
use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::sys::signal::Signal;

pub use identities::Identity;
pub use kubectl::{Kubectl, Said};

use crate::forward::Door;
use crate::network::{self, Host};
use crate::pki::{self, Authority};
use crate::process::Program;
use crate::programs;
use crate::spawn::{Spawner, Spec};
use crate::sweep::Ground;
use crate::wait;

const API_PORT: u16 = 6443;

/// A running control plane.
pub struct ControlPlane {
    pub host: Host,
    pub authority: Authority,
    pub etcd: Program,
    pub api_server: Program,
    pub controller_manager: Program,
    pub scheduler: Program,
    /// For the scenarios, with an administrator's rights.
    pub client: kube::Client,
    pub kubectl: Kubectl,
    door: Door,
    folder: PathBuf,
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlane")
            .field("host", &self.host)
            .field("door", &self.door)
            .finish_non_exhaustive()
    }
}

impl ControlPlane {
    /// Starts everything, and returns once the API server is ready.
    ///
    /// # Errors
    /// When a program is missing or does not come up; with the end of its log.
    pub async fn start(host: Host, ground: &Ground, spawner: &Spawner) -> Result<Self> {
        Self::start_with(host, ground, spawner, &[]).await
    }

    /// [`ControlPlane::start`] with further flags for the API server.
    ///
    /// # Errors
    /// As [`ControlPlane::start`].
    pub async fn start_with(host: Host, ground: &Ground, spawner: &Spawner, flags: &[&str]) -> Result<Self> {
        let folder = ground.path().join("kubernetes");
        let authority = Authority::create(&folder, "fairlead lab")?;
        let api_address = SocketAddr::from((host.v4(), API_PORT));
        let door = Door::open(host.netns.clone(), api_address).await?;
        write_files(&folder, &authority, &host, api_address)?;

        let start = |name: &'static str, arguments: Vec<String>| {
            let log = ground.log(name);
            let netns = host.netns.clone();
            async move {
                let program = programs::kubernetes(name)?;
                let arguments = arguments.into_iter().map(Into::into).collect();
                let spec =
                    Spec { program, arguments, environment: Default::default(), netns, hostname: None, log };
                Program::start(name, spawner, spec).await
            }
        };
        let etcd = start("etcd", etcd_flags(&folder)).await?;
        let mut api_flags = api_server_flags(&folder, host.v4().into());
        api_flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let api_server = start("kube-apiserver", api_flags).await?;

        // The door's address is one of the serving certificate's names.
        let outside = folder.join("outside");
        let admin = identities::write_kubeconfig(
            &outside,
            Identity::Admin,
            door.address(),
            &authority.certificate(),
        )?;
        let client = client(&admin).await?;
        wait::until("the API server is ready", Duration::from_secs(60), async || {
            ready(&client).await.with_context(|| {
                format!("its log ends with\n{}\netcd's with\n{}", api_server.log_tail(3), etcd.log_tail(3))
            })
        })
        .await?;
        let controller_manager =
            start("kube-controller-manager", controller_manager_flags(&folder, host.v4().into())).await?;
        let scheduler = start("kube-scheduler", scheduler_flags(&folder, host.v4().into())).await?;
        let kubectl = Kubectl::new(admin, ground.path())?;
        Ok(Self {
            host,
            authority,
            etcd,
            api_server,
            controller_manager,
            scheduler,
            client,
            kubectl,
            door,
            folder,
        })
    }

    /// A kubeconfig for a program on one of the lab's hosts.
    pub fn kubeconfig(&self, identity: Identity) -> PathBuf {
        self.folder.join(format!("{}.kubeconfig", identity.file_name()))
    }

    /// A client of that identity for tasks of the lab itself.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub async fn client_of(&self, identity: Identity) -> Result<kube::Client> {
        let outside = self.folder.join("outside");
        let path = identities::write_kubeconfig(
            &outside,
            identity,
            self.door.address(),
            &self.authority.certificate(),
        )?;
        client(&path).await
    }

    /// Ends Kubernetes' controllers and its scheduler, which are started again: as in a cluster where
    /// they lost their Leases. Those that stay back off for up to a minute before they watch again.
    ///
    /// # Errors
    /// When one was not running, or is not started again.
    pub async fn restart_controllers(&self) -> Result<()> {
        let (controllers, scheduler) = tokio::join!(
            self.controller_manager.signal_and_await_restart(Signal::SIGKILL),
            self.scheduler.signal_and_await_restart(Signal::SIGKILL),
        );
        controllers.and(scheduler)
    }

    /// Waits until the API server answers again, after a stop and a start.
    ///
    /// # Errors
    /// When it does not within a minute.
    pub async fn await_ready(&self) -> Result<()> {
        wait::until("the API server is ready", Duration::from_secs(60), async || ready(&self.client).await)
            .await
    }
}

async fn ready(client: &kube::Client) -> Result<()> {
    let request = hyper::Request::get("/readyz").body(Vec::new())?;
    let said = client.request_text(request).await?;
    match said.as_str() {
        "ok" => Ok(()),
        other => Err(anyhow!("/readyz said {other}")),
    }
}

async fn client(kubeconfig: &Path) -> Result<kube::Client> {
    let file = Kubeconfig::read_from(kubeconfig)?;
    let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    config.connect_timeout = Some(Duration::from_secs(5));
    kube::Client::try_from(config).context("building the API client")
}

fn write_files(folder: &Path, authority: &Authority, host: &Host, api_address: SocketAddr) -> Result<()> {
    fs::create_dir_all(folder.join("outside"))?;
    authority.sign(&[
        "kubernetes.default.svc",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "127.0.0.1",
        "10.96.0.1",
        &host.v4().to_string(),
        &host.v6().to_string(),
    ])?;
    pki::signing_key(folder, "service-accounts")?;
    fs::write(folder.join("tokens.csv"), identities::token_file())?;
    for identity in Identity::ALL {
        identities::write_kubeconfig(folder, identity, api_address, &authority.certificate())?;
    }
    Ok(())
}

fn etcd_flags(folder: &Path) -> Vec<String> {
    let urls = "http://127.0.0.1:2379";
    let peers = "http://127.0.0.1:2380";
    vec![
        format!("--data-dir={}", folder.join("etcd").display()),
        format!("--listen-client-urls={urls}"),
        format!("--advertise-client-urls={urls}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=default={peers}"),
        "--unsafe-no-fsync".into(),
        "--log-level=warn".into(),
    ]
}

fn api_server_flags(folder: &Path, address: IpAddr) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    vec![
        "--etcd-servers=http://127.0.0.1:2379".into(),
        format!("--bind-address={address}"),
        format!("--advertise-address={address}"),
        format!("--secure-port={API_PORT}"),
        format!("--tls-cert-file={}", file("kubernetes.default.svc.crt")),
        format!("--tls-private-key-file={}", file("kubernetes.default.svc.key")),
        format!("--token-auth-file={}", file("tokens.csv")),
        "--authorization-mode=RBAC".into(),
        format!("--service-cluster-ip-range={}", network::SERVICE_CIDR),
        format!("--service-account-key-file={}", file("service-accounts.pub")),
        format!("--service-account-signing-key-file={}", file("service-accounts.key")),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        "--disable-admission-plugins=ServiceAccount".into(),
        "--allow-privileged=true".into(),
        // Without it, a stop waits a minute for watches that nobody ends.
        "--shutdown-watch-termination-grace-period=1s".into(),
        "--profiling=false".into(),
    ]
}

/// The controllers that Services, their pods and their namespaces need. The others would only
/// take the machine's time.
const CONTROLLERS: &str = "--controllers=deployment-controller,replicaset-controller,statefulset-controller,\
    daemonset-controller,endpointslice-controller,garbage-collector-controller,namespace-controller,\
    node-lifecycle-controller,taint-eviction-controller,pod-garbage-collector-controller";

fn controller_manager_flags(folder: &Path, address: IpAddr) -> Vec<String> {
    let mut flags = component_flags(folder, Identity::ControllerManager, address);
    flags.extend([
        CONTROLLERS.into(),
        "--use-service-account-credentials=false".into(),
        "--kube-api-qps=500".into(),
        "--kube-api-burst=1000".into(),
    ]);
    flags
}

fn scheduler_flags(folder: &Path, address: IpAddr) -> Vec<String> {
    let mut flags = component_flags(folder, Identity::Scheduler, address);
    flags.extend(["--kube-api-qps=500".into(), "--kube-api-burst=1000".into()]);
    flags
}

fn component_flags(folder: &Path, identity: Identity, address: IpAddr) -> Vec<String> {
    let kubeconfig = folder.join(format!("{}.kubeconfig", identity.file_name()));
    let kubeconfig = kubeconfig.display();
    vec![
        format!("--kubeconfig={kubeconfig}"),
        format!("--authentication-kubeconfig={kubeconfig}"),
        format!("--authorization-kubeconfig={kubeconfig}"),
        "--authentication-tolerate-lookup-failure=true".into(),
        format!("--bind-address={address}"),
        format!("--cert-dir={}", folder.join(identity.file_name()).display()),
        "--leader-elect=false".into(),
        "--profiling=false".into(),
    ]
}
