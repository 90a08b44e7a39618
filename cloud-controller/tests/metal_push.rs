//! The documents on their way: hosts on loopback, behind real mutual TLS.

#![allow(clippy::unwrap_used, reason = "a panic is how a test reports")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloud_controller::election::Role;
use cloud_controller::metal::client::HostClient;
use cloud_controller::metal::document::{Document, Nodes};
use cloud_controller::metal::listeners::listeners;
use cloud_controller::metal::push::{Shared, drive, issue};
use cloud_controller::metal::tier::Tier;
use cloud_controller::metal::tls::TlsFiles;
use futures::FutureExt;
use metal_lb_api::{Config, Generation, Host, MemberKey};
use support::tls_host::{Ca, TlsHost};
use support::{name, web};
use tokio::sync::watch;
use tokio::task::JoinSet;

const DEADLINE: Duration = Duration::from_secs(20);

/// A leader of term 5 that drives `hosts`.
struct Controller {
    shared: Arc<Shared>,
    role: watch::Sender<Role>,
    _drivers: JoinSet<()>,
}

impl Controller {
    fn new(hosts: &[(&str, SocketAddr)], tls: &TlsFiles) -> Self {
        let slot = |i: usize| u8::try_from(i).unwrap();
        let members = hosts.iter().enumerate().map(|(i, (name, address))| Host {
            name: (*name).to_owned(),
            address: *address,
            slot: slot(i),
        });
        let key = MemberKey::new([1; 32]);
        let tier = Tier::new("lab", key, members.collect(), 5, Instant::now());
        let shared = Arc::new(Shared::new(tier));
        let (role, confirmed) = watch::channel(Role::Leading { term: 5, renewed: Instant::now() });
        let mut drivers = JoinSet::new();
        for (name, address) in hosts {
            let client = HostClient::new(name, *address, tls.clone());
            let drive = drive(Arc::clone(&shared), (*name).to_owned(), *address, client, confirmed.clone());
            drivers.spawn(drive);
        }
        Self { shared, role, _drivers: drivers }
    }

    /// Hears the hosts, and issues a document with one Service.
    async fn begin(&self) {
        let mut service = web("web");
        service.finalizers.push("fairlead.dev/metal".into());
        service.annotations.insert("fairlead.dev/allocated-ips".into(), "172.30.0.200".into());
        let adopt = |tier: &mut Tier| tier.adopt_all(&[&service], &[], Nodes::default());
        issue(&self.shared, 5, self.role.subscribe(), adopt).await;
    }

    fn generation(&self) -> Generation {
        self.shared.with(|tier| tier.document().generation().unwrap())
    }

    /// Whether some host has programmed the Service.
    fn programmed(&self) -> bool {
        let (listeners, _) = listeners(&web("web"), "172.30.0.200".parse().unwrap());
        self.shared.with(|tier| {
            let since = tier.document().entry(&name("web")).unwrap().since;
            tier.hosts().programmed(&listeners, since)
        })
    }

    fn trouble(&self, host: &str) -> Option<String> {
        self.shared.with(|tier| tier.hosts().host(host).unwrap().trouble())
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, wait).await.is_ok(), "not in time: {what}");
}

fn generation_of(host: &TlsHost) -> Option<Generation> {
    host.host.lock().unwrap().document.as_ref().map(|d| d.generation)
}

#[tokio::test]
async fn the_whole_document_reaches_every_host_over_mutual_tls() {
    let (ca, folder) = (Ca::new(), tempfile::tempdir().unwrap());
    // A certificate may name the host or its address.
    let (one, two) = (ca.host("lb-1", "lb-1").await, ca.host("lb-2", "127.0.0.1").await);
    let files = ca.client_files(folder.path(), "fairlead-cloud-controller");
    let controller = Controller::new(&[("lb-1", one.address), ("lb-2", two.address)], &files);
    controller.begin().await;
    let wanted = Some(Generation { term: 5, counter: 1 });
    eventually("both have it", || generation_of(&one) == wanted && generation_of(&two) == wanted).await;
    eventually("it is seen as programmed", || controller.programmed()).await;
    let document = one.host.lock().unwrap().document.clone().unwrap();
    assert_eq!(document.listeners[0].service, "ns/web");
    assert_eq!(document.hosts.len(), 2);
}

#[tokio::test]
async fn a_host_that_cannot_prove_its_name_is_told_nothing() {
    let (ca, folder) = (Ca::new(), tempfile::tempdir().unwrap());
    let stranger = ca.host("lb-1", "somebody-else").await;
    let files = ca.client_files(folder.path(), "fairlead-cloud-controller");
    let controller = Controller::new(&[("lb-1", stranger.address)], &files);
    controller.begin().await;
    let trouble = controller.trouble("lb-1").unwrap();
    assert!(trouble.contains("certificate"), "{trouble}");
    assert_eq!(generation_of(&stranger), None);
}

#[tokio::test]
async fn a_host_of_another_ca_is_told_nothing() {
    let (ca, folder) = (Ca::new(), tempfile::tempdir().unwrap());
    let stranger = Ca::new().host("lb-1", "lb-1").await;
    let files = ca.client_files(folder.path(), "fairlead-cloud-controller");
    let controller = Controller::new(&[("lb-1", stranger.address)], &files);
    controller.begin().await;
    assert!(controller.trouble("lb-1").is_some());
    assert_eq!(generation_of(&stranger), None);
}

#[tokio::test]
async fn a_host_under_another_name_is_told_nothing() {
    let (ca, folder) = (Ca::new(), tempfile::tempdir().unwrap());
    // As with two endpoints mixed up, and certificates that name addresses.
    let swapped = ca.host("lb-2", "127.0.0.1").await;
    let files = ca.client_files(folder.path(), "fairlead-cloud-controller");
    let controller = Controller::new(&[("lb-1", swapped.address)], &files);
    controller.begin().await;
    let trouble = controller.trouble("lb-1").unwrap();
    assert!(trouble.contains("calls itself \"lb-2\"") && trouble.contains("lb-1="), "{trouble}");
    assert_eq!(generation_of(&swapped), None);
}

#[tokio::test]
async fn a_missing_file_is_named() {
    let (ca, folder) = (Ca::new(), tempfile::tempdir().unwrap());
    let host = ca.host("lb-1", "lb-1").await;
    let files = ca.client_files(folder.path(), "fairlead-cloud-controller");
    std::fs::remove_file(&files.key).unwrap();
    let controller = Controller::new(&[("lb-1", host.address)], &files);
    controller.begin().await;
    let trouble = controller.trouble("lb-1").unwrap();
    assert!(trouble.contains("fairlead-cloud-controller.key"), "{trouble}");
}

#[tokio::test]
async fn a_host_that_comes_back_gets_the_newest_document() {
    let (ca, folder) = (Ca::new(), tempfile::tempdir().unwrap());
    let host = ca.host("lb-1", "lb-1").await;
    host.host.lock().unwrap().down = true;
    let files = ca.client_files(folder.path(), "fairlead-cloud-controller");
    let controller = Controller::new(&[("lb-1", host.address)], &files);
    controller.begin().await;
    assert!(controller.trouble("lb-1").unwrap().contains("503"));
    host.host.lock().unwrap().down = false;
    eventually("it has it", || generation_of(&host) == Some(controller.generation())).await;
    eventually("nothing is wrong any more", || controller.trouble("lb-1").is_none()).await;
}

#[tokio::test]
async fn a_leader_that_slept_while_another_began_issues_nothing_above_its_documents() {
    let (ca, folder) = (Ca::new(), tempfile::tempdir().unwrap());
    let host = ca.host("lb-1", "lb-1").await;
    let files = ca.client_files(folder.path(), "fairlead-cloud-controller");
    let theirs = Generation { term: 9, counter: 4 };
    let successor = Config::parse(
        Document::new("lab", MemberKey::new([1; 32]), Vec::new(), 9).config().to_json().as_bytes(),
    );
    host.host.lock().unwrap().document = Some(Config { generation: theirs, ..successor.unwrap() });
    let controller = Controller::new(&[("lb-1", host.address)], &files);
    let mut begun = Box::pin(controller.begin());
    let seen = || controller.shared.with(|tier| tier.hosts().highest() == theirs);
    tokio::select! {
        () = &mut begun => panic!("it is not known whether we lead still"),
        () = eventually("the host was heard", seen) => {}
    }
    assert!((&mut begun).now_or_never().is_none());
    assert_eq!(controller.shared.with(|tier| tier.document().generation()), None);
    controller.role.send_replace(Role::Leading { term: 5, renewed: Instant::now() });
    begun.await;
    assert_eq!(controller.generation(), Generation { term: 9, counter: 5 });
}

#[tokio::test]
async fn a_generation_is_raised_above_a_newer_one_only_once_the_leadership_is_confirmed() {
    let (ca, folder) = (Ca::new(), tempfile::tempdir().unwrap());
    let host = ca.host("lb-1", "lb-1").await;
    let files = ca.client_files(folder.path(), "fairlead-cloud-controller");
    let controller = Controller::new(&[("lb-1", host.address)], &files);
    controller.begin().await;
    eventually("it has the first", || generation_of(&host) == Some(controller.generation())).await;
    let theirs = Generation { term: 9, counter: 4 };
    host.host.lock().unwrap().document.as_mut().unwrap().generation = theirs;
    // The next document is refused, and a leader that was replaced would stop here.
    controller.shared.with(|tier| tier.forget(&name("web"), Instant::now()));
    eventually("the refusal has arrived", || controller.shared.with(|t| t.ahead("lb-1")) == Some(theirs))
        .await;
    assert_eq!(controller.generation().term, 5);
    controller.role.send_replace(Role::Leading { term: 5, renewed: Instant::now() });
    let raised = Generation { term: 9, counter: 5 };
    eventually("it has the raised one", || generation_of(&host) == Some(raised)).await;
    assert!(host.host.lock().unwrap().document.as_ref().unwrap().listeners.is_empty());
}
