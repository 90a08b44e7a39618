//! `metal-lb run` on a host of the lan.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "a part of test binaries")]

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use hyper::{Method, StatusCode};
use metal_lb_api::HostState;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::certificates::{Authority, Identity};
use crate::client;
use crate::net::{Host, Lan, Pins};
use crate::shipped;

/// A host with the program on it, and how to reach its control API.
pub struct Balancer {
    pub name: String,
    pub address: Ipv4Addr,
    process: Option<Child>,
    identity: Identity,
    controller: Identity,
    authority: PathBuf,
    folder: PathBuf,
    pins: Pins,
    host: Host,
}

impl Balancer {
    pub fn start(
        lan: &Lan,
        test: &str,
        number: u8,
        authority: &Authority,
        controller: &Identity,
        folder: PathBuf,
    ) -> Self {
        let (name, address) = (format!("lb-{number}"), Ipv4Addr::new(172, 30, 0, 20 + number));
        let mut balancer = Self {
            host: lan.balancer(&name, address),
            process: None,
            identity: authority.issue(&name, Some(address.into())),
            controller: controller.clone(),
            authority: authority.path.clone(),
            folder,
            pins: Pins::new(&format!("{test}-{number}")),
            name,
            address,
        };
        balancer.spawn();
        balancer
    }

    pub fn spawn(&mut self) {
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        // With the rights that the shipped unit gives it, and no others.
        let rights: String = shipped::capabilities().map(|c| format!(",+{c}")).collect();
        let mut command = Command::new("setpriv");
        command.arg(format!("--bounding-set=-all{rights}")).arg(format!("--inh-caps=-all{rights}"));
        command.args(["--no-new-privs", "--", env!("CARGO_BIN_EXE_metal-lb")]);
        command.args(["run", "--name", &self.name, "--interface", "eth0"]);
        command.arg("--tls-cert").arg(&self.identity.certificate).arg("--tls-key").arg(&self.identity.key);
        command.arg("--tls-client-ca").arg(&self.authority);
        command.arg("--state-dir").arg(self.folder.join(&self.name)).arg("--bpf-dir").arg(&self.pins.0);
        command.args(["--max-connections", "8192"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(self.host.run(move || command.spawn().unwrap()));
    }

    /// Ends the process, and returns once it is gone.
    pub fn end(&mut self, signal: Signal) {
        let mut process = self.process.take().unwrap();
        kill(Pid::from_raw(process.id() as i32), signal).unwrap();
        process.wait().unwrap();
    }

    pub fn put(&self, document: &serde_json::Value) -> Option<StatusCode> {
        let (status, _) = self.ask((Method::PUT, "/v1/config"), document.to_string())?;
        Some(status)
    }

    /// `None` while it does not answer.
    pub fn state(&self) -> Option<HostState> {
        let (_, state) = self.ask((Method::GET, "/v1/state"), String::new())?;
        serde_json::from_value(state).ok()
    }

    fn ask(&self, request: (Method, &str), body: String) -> Option<(StatusCode, serde_json::Value)> {
        let endpoint = SocketAddr::from((self.address, 7443));
        let config = client::config(&self.controller, &self.authority);
        self.host.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(client::send(endpoint, config, request, body)).ok()
        })
    }

    /// What `path` of the metrics server answers, head and body.
    pub fn probe(&self, path: &str) -> String {
        use std::io::{Read, Write};
        self.host.run(|| {
            let Ok(mut stream) = std::net::TcpStream::connect("127.0.0.1:7473") else { return String::new() };
            write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        })
    }

    /// What a verb of the program prints, run on this host.
    pub fn state_verb(&self) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_metal-lb"));
        command.arg("state").arg("--endpoint").arg(format!("{}:7443", self.address));
        command
            .arg("--tls-cert")
            .arg(&self.controller.certificate)
            .arg("--tls-key")
            .arg(&self.controller.key);
        command.arg("--tls-ca").arg(&self.authority);
        let output = self.host.run(move || command.output().unwrap());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn log(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ended = process.kill().and_then(|()| process.wait());
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            eprintln!("--- {}\n{log}", self.name);
        }
    }
}
