//! A real etcd, kube-apiserver, kube-controller-manager and kube-scheduler.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use sha2::{Digest, Sha256};
use tokio::process::Child;

use crate::forward::Forwarder;
use crate::netns::Namespace;
use crate::process::spawn;
use crate::wait;

pub const SERVICE_CIDR: &str = "10.96.0.0/12,fd00:10:96::/112";
pub const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:10:244::/56";
const PORT: u16 = 6443;
const START_LIMIT: Duration = Duration::from_secs(60);

/// The users of the token file: name, and groups.
const USERS: [(&str, &str); 6] = [
    ("admin", "system:masters"),
    // One identity for all controllers, which together may do almost anything.
    ("system:kube-controller-manager", "system:masters"),
    ("system:kube-scheduler", ""),
    ("system:kube-proxy", ""),
    ("system:serviceaccount:fairlead-system:node-agent", SERVICE_ACCOUNTS),
    ("system:serviceaccount:fairlead-system:cloud-controller", SERVICE_ACCOUNTS),
];
const SERVICE_ACCOUNTS: &str = "system:serviceaccounts,system:serviceaccounts:fairlead-system";

/// Who a kubeconfig speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    Admin = 0,
    ControllerManager = 1,
    Scheduler = 2,
    KubeProxy = 3,
    NodeAgent = 4,
    CloudController = 5,
}

/// The running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    folder: PathBuf,
    binaries: PathBuf,
    address: Ipv4Addr,
    server: Option<Child>,
    /// etcd, and what needs the API server.
    others: Vec<Child>,
    forwarder: Forwarder,
}

/// Where scripts/setup puts the Kubernetes programs.
///
/// # Errors
/// When they are not there.
pub fn kubernetes_programs() -> anyhow::Result<PathBuf> {
    let given = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    if let Some(folder) = given.filter(|folder| folder.join("kube-apiserver").exists()) {
        return Ok(folder);
    }
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("kube");
    let mut hasher = Sha256::new();
    for file in ["go.mod", "go.sum"] {
        hasher.update(std::fs::read(module.join(file))?);
    }
    let key = hasher.finalize().iter().take(6).fold(String::new(), |mut key, byte| {
        write!(key, "{byte:02x}").expect("writing to a string cannot fail");
        key
    });
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let folder = cache.context("HOME is not set")?.join("fairlead/kube").join(key);
    anyhow::ensure!(
        folder.join("kube-apiserver").exists(),
        "no kube-apiserver in {}: run scripts/setup",
        folder.display()
    );
    Ok(folder)
}

impl ControlPlane {
    /// Starts everything in `namespace` and waits until it is ready.
    ///
    /// # Errors
    /// When a program does not start; its log is in `folder`.
    pub async fn start(namespace: &Namespace, address: Ipv4Addr, folder: &Path) -> anyhow::Result<Self> {
        let binaries = kubernetes_programs()?;
        std::fs::create_dir_all(folder)?;
        write_certificates(folder, address)?;
        let mut tokens = String::new();
        for (i, (user, groups)) in USERS.iter().enumerate() {
            writeln!(tokens, "{},{user},{user},\"{groups}\"", token(i))?;
        }
        std::fs::write(folder.join("tokens.csv"), tokens)?;
        let near = Forwarder::start(
            SocketAddr::from(([127, 0, 0, 1], 0)),
            namespace.path(),
            SocketAddr::new(IpAddr::V4(address), PORT),
        )
        .await?;
        let mut plane = Self {
            folder: folder.to_owned(),
            binaries,
            address,
            server: None,
            others: Vec::new(),
            forwarder: near,
        };
        plane.others.push(plane.spawn_etcd(namespace)?);
        plane.start_api_server(namespace).await?;
        for (program, user) in
            [("kube-controller-manager", User::ControllerManager), ("kube-scheduler", User::Scheduler)]
        {
            plane.others.push(plane.spawn_client(namespace, program, user)?);
        }
        Ok(plane)
    }

    /// A kubeconfig for programs inside the lab's network.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn kubeconfig(&self, user: User) -> anyhow::Result<PathBuf> {
        self.write_kubeconfig(user, &format!("https://{}:{PORT}", self.address), "inside")
    }

    /// A kubeconfig for programs on the machine itself.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn local_kubeconfig(&self, user: User) -> anyhow::Result<PathBuf> {
        self.write_kubeconfig(user, &format!("https://{}", self.forwarder.address), "local")
    }

    /// # Errors
    /// When the kubeconfig cannot be used.
    pub async fn client(&self, user: User) -> anyhow::Result<kube::Client> {
        let file = kube::config::Kubeconfig::read_from(self.local_kubeconfig(user)?)?;
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(file, &options).await?;
        Ok(kube::Client::try_from(config)?)
    }

    /// A `kubectl` that speaks as the administrator.
    ///
    /// # Errors
    /// When the kubeconfig cannot be written.
    pub fn kubectl(&self) -> anyhow::Result<Command> {
        let mut command = Command::new(self.binaries.join("kubectl"));
        command.env("KUBECONFIG", self.local_kubeconfig(User::Admin)?);
        Ok(command)
    }

    pub fn programs(&self) -> &Path {
        &self.binaries
    }

    /// Ends the API server as a crash would.
    ///
    /// # Errors
    /// When it was not running.
    pub async fn stop_api_server(&mut self) -> anyhow::Result<()> {
        let mut server = self.server.take().context("the API server is not running")?;
        Ok(server.kill().await?)
    }

    /// # Errors
    /// When it does not become ready.
    pub async fn start_api_server(&mut self, namespace: &Namespace) -> anyhow::Result<()> {
        self.server = Some(self.spawn_api_server(namespace)?);
        let client = self.client(User::Admin).await?;
        wait::until("the API server is ready", START_LIMIT, || async {
            let request = http::Request::get("/readyz").body(Vec::new()).map_err(|e| e.to_string())?;
            client.request_text(request).await.map_err(|e| e.to_string())
        })
        .await
        .with_context(|| format!("see {}", self.folder.join("kube-apiserver.log").display()))?;
        Ok(())
    }

    fn spawn_etcd(&self, namespace: &Namespace) -> anyhow::Result<Child> {
        let url = "http://127.0.0.1:2379";
        let mut command = namespace.command(self.binaries.join("etcd"));
        command.arg("--data-dir").arg(self.folder.join("etcd"));
        command.args(["--listen-client-urls", url, "--advertise-client-urls", url]);
        command.args([
            "--listen-peer-urls",
            "http://127.0.0.1:2380",
            "--unsafe-no-fsync",
            "--log-level",
            "warn",
        ]);
        spawn(command, &self.folder.join("etcd.log"))
    }

    fn spawn_api_server(&self, namespace: &Namespace) -> anyhow::Result<Child> {
        let file = |name: &str| self.folder.join(name).display().to_string();
        let mut command = namespace.command(self.binaries.join("kube-apiserver"));
        command.args(["--etcd-servers", "http://127.0.0.1:2379", "--service-cluster-ip-range", SERVICE_CIDR]);
        command.args(["--service-account-issuer", "https://kubernetes.default.svc"]);
        command.args([
            "--service-account-key-file",
            &file("sa.pub"),
            "--service-account-signing-key-file",
            &file("sa.key"),
        ]);
        command.args(["--tls-cert-file", &file("server.crt"), "--tls-private-key-file", &file("server.key")]);
        command.args(["--token-auth-file", &file("tokens.csv"), "--authorization-mode", "RBAC"]);
        command.args([
            "--bind-address",
            &self.address.to_string(),
            "--advertise-address",
            &self.address.to_string(),
        ]);
        command.args(["--secure-port", &PORT.to_string(), "--cert-dir", &file("certs")]);
        command.args(["--disable-admission-plugins", "ServiceAccount", "--allow-privileged"]);
        spawn(command, &self.folder.join("kube-apiserver.log"))
    }

    fn spawn_client(&self, namespace: &Namespace, program: &str, user: User) -> anyhow::Result<Child> {
        let kubeconfig = self.kubeconfig(user)?.display().to_string();
        let mut command = namespace.command(self.binaries.join(program));
        for flag in ["--kubeconfig", "--authentication-kubeconfig", "--authorization-kubeconfig"] {
            command.args([flag, &kubeconfig]);
        }
        command.args(["--leader-elect=false", "--bind-address", "127.0.0.1"]);
        command.args(["--kube-api-qps", "500", "--kube-api-burst", "1000"]);
        command.arg("--cert-dir").arg(self.folder.join(format!("{program}-certs")));
        if program == "kube-controller-manager" {
            command.arg("--service-account-private-key-file").arg(self.folder.join("sa.key"));
            command.args(["--endpointslice-updates-batch-period", "0"]);
        }
        spawn(command, &self.folder.join(format!("{program}.log")))
    }

    fn write_kubeconfig(&self, user: User, server: &str, kind: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(format!("{user:?}-{kind}.kubeconfig").to_lowercase());
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {
                "server": server, "certificate-authority": self.folder.join("ca.crt")
            }}],
            "users": [{"name": "lab", "user": {"token": token(user as usize)}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}]
        });
        std::fs::write(&path, serde_json::to_string_pretty(&config)?)?;
        Ok(path)
    }
}

fn token(user: usize) -> String {
    format!("lab-token-{user}")
}

fn write_certificates(folder: &Path, address: Ipv4Addr) -> anyhow::Result<()> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "lab");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    std::fs::write(folder.join("ca.crt"), authority.pem())?;

    let mut params =
        CertificateParams::new(vec!["kubernetes.default.svc".to_owned(), "localhost".to_owned()])?;
    params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(address)));
    params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    let key = KeyPair::generate()?;
    std::fs::write(folder.join("server.crt"), params.signed_by(&key, &authority)?.pem())?;
    std::fs::write(folder.join("server.key"), key.serialize_pem())?;

    let accounts = KeyPair::generate()?;
    std::fs::write(folder.join("sa.key"), accounts.serialize_pem())?;
    std::fs::write(folder.join("sa.pub"), accounts.public_key_pem())?;
    Ok(())
}
