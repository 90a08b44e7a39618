//! The bare-metal half: two balancer hosts, the controller, a pool of addresses.

use std::net::Ipv4Addr;

use nix::sys::signal::Signal;

use super::parts::{HOSTS, host_address, program};
use super::{Lab, certificates, inside};
use crate::control_plane::User;
use crate::process::Supervised;

const CONTROLLER: &str = "fairlead-cloud-controller";
const POOL: &str = "
apiVersion: fairlead.dev/v1alpha1
kind: IPAddressPool
metadata: {name: default, namespace: fairlead-system}
spec: {addresses: [172.30.0.200-172.30.0.239]}
";

impl Lab {
    pub(super) async fn start_metal(&mut self) -> anyhow::Result<()> {
        let tls = self.folder.join("tls");
        let names: Vec<(String, Ipv4Addr)> =
            (1..=HOSTS).map(|n| (format!("lb-{n}"), host_address(n))).collect();
        certificates::write(&tls, CONTROLLER, &names)?;
        let metal_lb = program("metal-lb")?;
        for (i, (name, _)) in names.iter().enumerate() {
            self.switch.run(&metal_lb.display().to_string(), &["lab-xdp-pass", name])?;
            let (path, program, name) = (self.hosts[i].path(), metal_lb.clone(), name.clone());
            let (tls, bpf, state) =
                (tls.clone(), self.bpf.join(&name), self.folder.join(format!("{name}-state")));
            let log = self.folder.join(format!("metal-lb-{name}.log"));
            self.balancers.push(Supervised::start(&name.clone(), log, move || {
                let mut command = inside(&path, &program);
                command.args(["run", "--name", &name, "--interface", "eth0"]);
                command.arg("--tls-cert").arg(tls.join(format!("{name}.crt")));
                command.arg("--tls-key").arg(tls.join(format!("{name}.key")));
                command.arg("--tls-client-ca").arg(tls.join("ca.crt"));
                command.arg("--state-dir").arg(&state).arg("--bpf-dir").arg(&bpf);
                command
            }));
        }
        let (path, program, kubeconfig) = (
            self.control.path(),
            program("cloud-controller")?,
            self.plane.kubeconfig(User::CloudController)?,
        );
        let log = self.folder.join("cloud-controller.log");
        self.controller = Some(Supervised::start("cloud-controller", log, move || {
            let mut command = inside(&path, &program);
            command.args(["run", "--cluster-name", "lab", "--default-class", "fairlead.dev/metal"]);
            command.arg("--kubeconfig").arg(&kubeconfig).args(["--identity", "lab-controller"]);
            for (name, address) in &names {
                command.args(["--metal-endpoint", &format!("{name}={address}:7443")]);
            }
            command.arg("--metal-tls-cert").arg(tls.join(format!("{CONTROLLER}.crt")));
            command.arg("--metal-tls-key").arg(tls.join(format!("{CONTROLLER}.key")));
            command.arg("--metal-ca").arg(tls.join("ca.crt"));
            command
        }));
        self.apply(POOL).await?;
        Ok(())
    }

    /// Cuts (or mends) a balancer host's link, as if the host were lost.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn set_link(&self, host: &str, up: bool) -> anyhow::Result<()> {
        self.switch.ip(&format!("link set {host} {}", if up { "up" } else { "down" }))
    }

    /// Sends a signal to every program of ours with this name: `node-1`, `lb-2`, `cloud-controller`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, name: &str, signal: Signal) -> anyhow::Result<()> {
        self.programs().filter(|p| p.name == name).try_for_each(|p| p.signal(signal))
    }

    /// All supervised programs.
    pub fn programs(&self) -> impl Iterator<Item = &Supervised> {
        self.agents.iter().chain(&self.balancers).chain(&self.controller)
    }
}
