//! `PUT /v1/config` and `GET /v1/state` with a real TLS client.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/client.rs"]
mod client;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use certificates::{Authority, Identity};
use hyper::{Method, StatusCode};
use metal_lb::programmed::Programmed;
use metal_lb::server::{Control, serve};
use metal_lb::store::Store;
use metal_lb::tls::TlsFiles;
use metal_lb_api::{Config, HostState};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const CONTROLLER: &str = "fairlead-cloud-controller";
const PUT: (Method, &str) = (Method::PUT, "/v1/config");
const GET: (Method, &str) = (Method::GET, "/v1/state");
const DEADLINE: Duration = Duration::from_secs(10);

struct Api {
    address: SocketAddr,
    folder: tempfile::TempDir,
    authority: Authority,
    server: Identity,
    documents: watch::Receiver<Option<Arc<Config>>>,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
    _programmed: watch::Sender<Arc<Programmed>>,
}

impl Api {
    async fn start(file: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(&folder.path().join("tls"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = authority.issue("lb-1", Some(address.ip()));
        let store = Store::open(&folder.path().join("state")).unwrap();
        let (accepted, documents) = watch::channel(None);
        let (programmed_tx, programmed) = watch::channel(Arc::new(programmed()));
        let control = Control {
            store: Mutex::new(store),
            file: file.map(str::to_owned),
            controller_name: CONTROLLER.into(),
            accepted,
            programmed,
        };
        let tls =
            TlsFiles::open(server.certificate.clone(), server.key.clone(), authority.path.clone()).unwrap();
        let cancel = CancellationToken::new();
        let task = tokio::spawn(serve(listener, tls, Arc::new(control), cancel.clone()));
        Self { address, folder, authority, server, documents, cancel, task, _programmed: programmed_tx }
    }

    fn config_of(&self, name: &str) -> ClientConfig {
        client::config(&self.authority.issue(name, None), &self.authority.path)
    }

    async fn send(&self, request: (Method, &str), body: String) -> (StatusCode, Value) {
        client::send(self.address, self.config_of(CONTROLLER), request, body).await.unwrap()
    }

    async fn put(&self, document: &Value) -> (StatusCode, Value) {
        self.send(PUT, document.to_string()).await
    }

    fn in_force(&self) -> Option<u64> {
        self.documents.borrow().as_ref().map(|c| c.generation.counter)
    }

    async fn stop(self) {
        self.cancel.cancel();
        tokio::time::timeout(DEADLINE, self.task).await.expect("the server stops").unwrap().unwrap();
    }
}

fn programmed() -> Programmed {
    let state = HostState {
        host: "lb-1".into(),
        schemas: vec![1],
        generation: None,
        owner: None,
        vips: Vec::new(),
        listeners: Vec::new(),
    };
    Programmed { state, listeners: BTreeMap::new(), targets: BTreeMap::new(), peers: BTreeMap::new() }
}

fn document(counter: u64, owner: &str) -> Value {
    json!({
        "schema": 1, "owner": owner, "generation": {"term": 1, "counter": counter}, "member_key": "ab".repeat(32),
        "hosts": [], "nodes": [], "node_sets": [], "listeners": []
    })
}

#[tokio::test]
async fn a_document_is_kept_private_then_put_into_force_and_found_again_after_a_restart() {
    let api = Api::start(None).await;
    let (status, answer) = api.put(&document(3, "lab")).await;
    assert_eq!((status, answer), (StatusCode::OK, json!({"generation": {"term": 1, "counter": 3}})));
    assert_eq!(api.in_force(), Some(3));
    let state = api.folder.path().join("state");
    let mode = std::fs::metadata(state.join("config.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(Store::open(&state).unwrap().current(), *api.documents.borrow());
    api.stop().await;
}

#[tokio::test]
async fn a_mistake_is_answered_with_its_json_path_and_changes_nothing() {
    let api = Api::start(None).await;
    api.put(&document(3, "lab")).await;
    let mut wrong = document(4, "lab");
    wrong["nodes"] = json!([{"name": "node-1", "addresses": ["172.30.0.300"]}]);
    let (status, answer) = api.put(&wrong).await;
    assert_eq!((status, &answer["path"]), (StatusCode::BAD_REQUEST, &json!("nodes[0].addresses[0]")));
    assert!(answer["message"].as_str().unwrap().contains("IP address"), "{answer}");
    let (status, _) = api.send(PUT, "{".into()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(api.in_force(), Some(3));
    let kept = Store::open(&api.folder.path().join("state")).unwrap().current().unwrap();
    assert_eq!(kept.generation.counter, 3);
    api.stop().await;
}

#[tokio::test]
async fn an_older_document_is_refused_with_the_generation_in_force() {
    let api = Api::start(None).await;
    api.put(&document(5, "lab")).await;
    for (offered, expected) in [
        (document(5, "lab"), StatusCode::OK),
        (document(4, "lab"), StatusCode::CONFLICT),
        (document(5, "other"), StatusCode::CONFLICT),
        (document(6, "other"), StatusCode::OK),
    ] {
        let in_force = api.in_force().unwrap();
        let (status, answer) = api.put(&offered).await;
        assert_eq!(status, expected, "{answer}");
        if status == StatusCode::CONFLICT {
            assert_eq!(answer["generation"]["counter"], json!(in_force));
            assert!(answer["message"].as_str().unwrap().contains("1.5"), "{answer}");
        }
    }
    assert_eq!(api.in_force(), Some(6));
    api.stop().await;
}

#[tokio::test]
async fn while_a_file_is_in_force_no_document_is_taken() {
    let api = Api::start(Some("/etc/metal-lb.json")).await;
    let (status, answer) = api.put(&document(1, "lab")).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(answer["message"].as_str().unwrap().contains("/etc/metal-lb.json"), "{answer}");
    assert_eq!(api.in_force(), None);
    api.stop().await;
}

#[tokio::test]
async fn the_state_is_answered_and_other_requests_are_told_what_is_served() {
    let api = Api::start(None).await;
    let (status, state) = api.send(GET, String::new()).await;
    assert_eq!((status, &state["host"], &state["schemas"]), (StatusCode::OK, &json!("lb-1"), &json!([1])));
    for (request, expected) in [
        ((Method::GET, "/"), StatusCode::NOT_FOUND),
        ((Method::GET, "/v1/config"), StatusCode::METHOD_NOT_ALLOWED),
        ((Method::DELETE, "/v1/state"), StatusCode::METHOD_NOT_ALLOWED),
    ] {
        let (status, answer) = api.send(request, String::new()).await;
        assert_eq!(status, expected);
        assert!(answer["message"].as_str().unwrap().contains("PUT /v1/config"), "{answer}");
    }
    api.stop().await;
}

#[tokio::test]
async fn a_certificate_with_another_name_is_forbidden_everything() {
    let api = Api::start(None).await;
    for (request, body) in [(PUT, document(1, "lab").to_string()), (GET, String::new())] {
        let answer = client::send(api.address, api.config_of("someone-else"), request, body).await.unwrap();
        assert_eq!(answer.0, StatusCode::FORBIDDEN);
        assert!(answer.1["message"].as_str().unwrap().contains(CONTROLLER), "{}", answer.1);
    }
    assert_eq!(api.in_force(), None);
    api.stop().await;
}

/// What a client is told that writes a request after the handshake.
async fn told(address: SocketAddr, config: ClientConfig) -> (Vec<u8>, String) {
    let mut answer = Vec::new();
    let refused = async {
        let mut stream = client::connect(address, config).await?;
        // With TLS 1.3 a client's handshake ends before its certificate is judged.
        stream.write_all(b"GET /v1/state HTTP/1.1\r\nHost: x\r\n\r\n").await?;
        stream.read_to_end(&mut answer).await
    };
    let refused = tokio::time::timeout(DEADLINE, refused).await.expect("an answer");
    let refused = refused.expect_err("a refusal").to_string();
    (answer, refused)
}

#[tokio::test]
async fn without_a_certificate_of_the_authority_there_is_nothing_but_an_alert() {
    let api = Api::start(None).await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&api.authority.path).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let anonymous = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (answer, refused) = told(api.address, anonymous).await;
    assert!(answer.is_empty() && refused.contains("CertificateRequired"), "{refused}");

    let stranger = Authority::new(&api.folder.path().join("stranger")).issue(CONTROLLER, None);
    let (answer, refused) = told(api.address, client::config(&stranger, &api.authority.path)).await;
    assert!(answer.is_empty() && refused.contains("received fatal alert"), "{refused}");
    api.stop().await;
}

#[tokio::test]
async fn it_stops_at_once_also_when_silent_clients_hold_every_connection() {
    let api = Api::start(None).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(tokio::net::TcpStream::connect(api.address).await.unwrap());
    }
    // Far less than a handshake may take.
    api.cancel.cancel();
    tokio::time::timeout(Duration::from_secs(2), api.task).await.expect("the server stops").unwrap().unwrap();
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_the_next_client() {
    let api = Api::start(None).await;
    let shown = async || {
        let stream = client::connect(api.address, api.config_of(CONTROLLER)).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    };
    let on_disk = || CertificateDer::from_pem_file(&api.server.certificate).unwrap();
    assert_eq!(shown().await, on_disk());
    let before = on_disk();
    api.authority.issue("lb-1", Some(api.address.ip()));
    assert_ne!(on_disk(), before);
    // Whatever the resolution of this file system's clock is.
    let later = SystemTime::now() + Duration::from_secs(10);
    std::fs::File::options().write(true).open(&api.server.key).unwrap().set_modified(later).unwrap();
    assert_eq!(shown().await, on_disk());

    std::fs::write(&api.server.certificate, "half a file").unwrap();
    let (status, _) = api.send(GET, String::new()).await;
    assert_eq!(status, StatusCode::OK, "the last good files stay in use");
    api.stop().await;
}
