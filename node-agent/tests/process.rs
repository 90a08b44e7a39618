//! The program as a process, in a network namespace of its own: what ends it, and with what; what it
//! answers. Its API server is a dead address.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use support::kernel::{in_namespace, nft};

/// A configuration file is looked at every five seconds.
const PATIENCE: Duration = Duration::from_secs(30);
const NOBODY: &str = "--master=http://127.0.0.1:9";
/// The kernel takes none that is so long.
const CANNOT_BE_SET: &str = "--conntrack-udp-timeout=30000h";

/// To be started from the namespace in which it is to run.
fn node_agent(flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_node-agent"));
    // The namespace sees the table's size, and may not set it.
    command.args(["--hostname-override=here", "--conntrack-max-per-core=0"]).args(flags);
    command.env_remove("RUST_LOG");
    command
}

fn done(flags: &[&str]) -> Output {
    node_agent(flags).output().unwrap()
}

fn log(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// One that runs until it is dropped, with its log in a file.
struct Running {
    process: Child,
    log: tempfile::NamedTempFile,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        command.stderr(Stdio::from(log.reopen().unwrap()));
        Self { process: command.spawn().unwrap(), log }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log.path()).unwrap()
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().unwrap()
    }

    fn until<T>(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(seen) = look(self) {
                return seen;
            }
            assert!(start.elapsed() < PATIENCE, "{what}\n{}", self.log());
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    fn until_it_says(&mut self, text: &str) {
        self.until(text, |running| running.log().contains(text).then_some(()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The whole answer; `None` while nobody listens.
fn get(ip: IpAddr, port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect((ip, port)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn write_config(path: &Path, fields: &str) {
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration";
    fs::write(path, format!("{head}\nmode: nftables\nconntrack: {{maxPerCore: 0}}\n{fields}\n")).unwrap();
}

#[test]
fn init_only_sets_the_limits_and_fails_if_it_cannot() {
    in_namespace(|| {
        let established = || {
            let path = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
            fs::read_to_string(path).unwrap().trim().to_owned()
        };
        let set = done(&["--init-only", "--conntrack-tcp-timeout-established=1h1s"]);
        assert!(set.status.success(), "{}", log(&set));
        assert_eq!(established(), "3601");
        assert_eq!(nft(&["list", "tables"]), "", "it does nothing else");

        let set = done(&["--init-only", CANNOT_BE_SET, "--conntrack-tcp-timeout-established=1h2s"]);
        assert_eq!(set.status.code(), Some(1), "{}", log(&set));
        assert!(log(&set).contains("nf_conntrack_udp_timeout should say 108000000"), "{}", log(&set));
        assert_eq!(established(), "3602", "what can be set is");
    });
}

#[test]
fn cleanup_by_its_flag_removes_our_tables_and_kube_proxys() {
    in_namespace(|| {
        for table in ["ip fairlead", "ip6 fairlead", "ip kube-proxy", "ip somebodys"] {
            nft(&["add", "table", table]);
        }
        let cleaned = done(&["--cleanup"]);
        assert!(cleaned.status.success(), "{}", log(&cleaned));
        assert_eq!(nft(&["list", "tables"]), "table ip somebodys\n");
    });
}

#[test]
fn a_running_agent_warns_of_a_limit_that_cannot_be_set_and_answers_probes_over_both_families() {
    in_namespace(|| {
        let mut running = Running::start(node_agent(&[NOBODY, CANNOT_BE_SET]));
        running.until_it_says("nf_conntrack_udp_timeout should say 108000000");
        for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            let live = running.until("it listens", |_| get(ip, 10256, "/livez"));
            assert!(live.starts_with("HTTP/1.1 503 "), "nothing is synced: {live}");
        }
        let own =
            running.until("its own server listens", |_| get(Ipv4Addr::LOCALHOST.into(), 10249, "/healthz"));
        assert!(own.starts_with("HTTP/1.1 200 ") && own.ends_with("\r\n\r\nok"), "{own}");
        let refused = get(Ipv6Addr::LOCALHOST.into(), 10249, "/healthz");
        assert_eq!(refused, None, "127.0.0.1 is that address alone");
        assert_eq!(running.ended(), None);
    });
}

#[test]
fn a_running_agent_ends_when_its_file_changes_and_stays_while_the_file_is_unusable() {
    in_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.conf");
        write_config(&path, "clusterCIDR: 10.244.0.0/16");
        let mut running = Running::start(node_agent(&[NOBODY, &format!("--config={}", path.display())]));
        running.until("it runs", |_| get(Ipv4Addr::LOCALHOST.into(), 10256, "/livez"));
        write_config(&path, "clusterCIDR: nowhere");
        running.until_it_says("the changed configuration file is not used");
        assert_eq!(running.ended(), None);
        write_config(&path, "clusterCIDR: 10.245.0.0/16");
        let status = running.until("it ends", Running::ended);
        assert_eq!(status.code(), Some(1), "{}", running.log());
        assert!(
            running.log().contains("has changed: ending, to be started again with it"),
            "{}",
            running.log()
        );
    });
}
