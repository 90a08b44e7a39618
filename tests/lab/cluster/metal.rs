//! The bare-metal half: two balancer hosts beside the nodes, and their certificates.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use crate::network::{self, Host, Switch, UPLINK};
use crate::pki::{Authority, Pair};
use crate::process::Program;
use crate::programs;
use crate::spawn::{Spawner, Spec};
use crate::sweep::Ground;

/// What the pool of the lab holds.
pub const POOL: &str = "172.30.0.200-172.30.0.239";

const POOL_MANIFEST: &str = "
apiVersion: fairlead.dev/v1alpha1
kind: IPAddressPool
metadata: {name: lab}
spec: {addresses: [172.30.0.200-172.30.0.239]}
";

/// The name that the hosts expect in the certificate of whoever configures them.
const CONTROLLER: &str = "fairlead-cloud-controller";

const CONTROL_PORT: u16 = 7443;

/// A machine that runs metal-lb.
#[derive(Debug)]
pub struct Balancer {
    pub host: Host,
    pub program: Program,
    /// The host's own certificate.
    pub certificate: Pair,
    /// Where its maps and its link are pinned.
    pub bpf: PathBuf,
    /// Where it keeps the last document.
    pub state: PathBuf,
}

/// The balancer hosts.
#[derive(Debug)]
pub struct Tier {
    pub balancers: Vec<Balancer>,
    pub authority: Authority,
    /// The controller's certificate.
    pub controller: Pair,
}

impl Tier {
    /// Attaches the hosts, and starts metal-lb on each.
    pub(super) async fn start(
        hosts: u8,
        switch: &Switch,
        ground: &Ground,
        spawner: &Spawner,
    ) -> Result<Self> {
        let authority = Authority::create(&ground.path().join("metal"), "fairlead lab metal")?;
        let controller = authority.sign(&[CONTROLLER])?;
        let pins = ground.path().join("bpf");
        fs::create_dir_all(&pins)?;
        mount(Some("bpffs"), &pins, Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("mounting a bpffs")?;
        let mut balancers = Vec::new();
        for nth in 0..hosts {
            let host = switch.attach(&format!("lb-{}", nth + 1), network::FIRST_BALANCER + nth)?;
            balancers.push(Balancer::start(host, &authority, &pins, switch, ground, spawner).await?);
        }
        Ok(Self { balancers, authority, controller })
    }

    /// The manifest of the pool that Services get their addresses from.
    pub(super) fn pool() -> &'static str {
        POOL_MANIFEST
    }

    /// The flags by which cloud-controller finds the hosts.
    pub(super) fn controller_flags(&self) -> Vec<String> {
        let endpoints = self.balancers.iter().map(|balancer| {
            format!("--metal-endpoint={}={}:{CONTROL_PORT}", balancer.host.name, balancer.host.v4())
        });
        let files = [
            ("--metal-tls-cert", self.controller.certificate.clone()),
            ("--metal-tls-key", self.controller.key.clone()),
            ("--metal-ca", self.authority.certificate()),
        ];
        endpoints.chain(files.map(|(flag, path)| format!("{flag}={}", path.display()))).collect()
    }
}

impl Balancer {
    async fn start(
        host: Host,
        authority: &Authority,
        pins: &Path,
        switch: &Switch,
        ground: &Ground,
        spawner: &Spawner,
    ) -> Result<Self> {
        let metal_lb = programs::ours("metal-lb")?;
        // XDP_TX out of one end of a veth pair is delivered only if the other end has a program too.
        switch
            .netns
            .tool(metal_lb.to_str().context("the path is no text")?, &["lab-xdp-pass", &host.name])
            .with_context(|| format!("on the switch's port of {}", host.name))?;
        let certificate = authority.sign(&[&host.name, &host.v4().to_string()])?;
        let (bpf, state) = (pins.join(&host.name), ground.path().join(format!("{}-state", host.name)));
        fs::create_dir_all(&bpf)?;
        let path = |path: &Path| path.display().to_string();
        let arguments = [
            "run".to_owned(),
            format!("--name={}", host.name),
            format!("--interface={UPLINK}"),
            format!("--tls-cert={}", path(&certificate.certificate)),
            format!("--tls-key={}", path(&certificate.key)),
            format!("--tls-client-ca={}", path(&authority.certificate())),
            format!("--state-dir={}", path(&state)),
            format!("--bpf-dir={}", path(&bpf)),
        ];
        let name = format!("metal-lb-{}", host.name);
        let spec = Spec {
            program: metal_lb,
            arguments: arguments.map(Into::into).to_vec(),
            environment: BTreeMap::new(),
            netns: host.netns.clone(),
            hostname: Some(host.name.clone()),
            log: ground.log(&name),
        };
        let program = Program::start(&name, spawner, spec).await?;
        Ok(Self { host, program, certificate, bpf, state })
    }
}
