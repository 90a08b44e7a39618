//! An API server on loopback that answers each kind's requests from a script of its own, over
//! connections that are kept alive, and keeps what it was asked.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub(super) const DEADLINE: Duration = Duration::from_secs(20);

/// The answer to one request; a streamed list goes on with the `Watch` behind it.
#[derive(Clone)]
pub(super) enum Reply {
    List {
        version: u32,
        items: Vec<Value>,
    },
    Watch(Vec<Value>, Then),
    /// A status of this code.
    Refuse(u16),
    /// The connection breaks before anything is said.
    HangUp,
}

/// What follows the events of a watch.
#[derive(Clone, Copy)]
pub(super) enum Then {
    /// The watch is ended in good order.
    End,
    /// The connection breaks.
    Cut,
    /// Nothing more is said.
    Hold,
}

/// The answers by resource (`services`). Requests beyond them are held.
pub(super) type Script = BTreeMap<&'static str, VecDeque<Reply>>;

/// What was asked by resource, each as `list`, `streamed list` or `watch from VERSION`.
pub(super) type Asked = BTreeMap<String, Vec<String>>;

pub(super) struct ApiServer {
    address: SocketAddr,
    asked: watch::Receiver<Asked>,
    /// Owned, so that it ends with the test.
    _serving: JoinSet<()>,
}

impl ApiServer {
    pub(super) async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, asked) = watch::channel(Asked::new());
        let script = Arc::new(Mutex::new(script));
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (script, tell) = (Arc::clone(&script), tell.clone());
                // A client that has gone away is no concern of the script's.
                connections.spawn(async move { _ = serve(stream, &script, &tell).await });
            }
        });
        Self { address, asked, _serving: serving }
    }

    pub(super) fn client(&self) -> Client {
        let url = format!("http://{}", self.address);
        Client::try_from(Config::new(url.parse().unwrap())).unwrap()
    }

    /// Waits until exactly this was asked.
    pub(super) async fn expect_asked(&mut self, expected: &[(&str, &[&str])]) {
        let expected: Asked = expected
            .iter()
            .map(|(of, asked)| ((*of).to_owned(), asked.iter().map(|a| (*a).to_owned()).collect()))
            .collect();
        let met = self.asked.wait_for(|asked| *asked == expected);
        let met = tokio::time::timeout(DEADLINE, met).await.is_ok();
        assert!(met, "asked {:#?}\ninstead of {expected:#?}", *self.asked.borrow());
    }
}

/// Answers the requests of one connection until a reply breaks it.
async fn serve(stream: TcpStream, script: &Mutex<Script>, tell: &watch::Sender<Asked>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(target) = read_request(&mut stream).await? {
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let resource = path.rsplit('/').next().unwrap_or_default();
        let field = |name: &str| query.split('&').find_map(|f| f.strip_prefix(name)?.strip_prefix('='));
        let streamed = field("sendInitialEvents") == Some("true");
        let asked = match (field("watch"), streamed) {
            (None, _) => "list".to_owned(),
            (Some(_), true) => "streamed list".to_owned(),
            (Some(_), false) => format!("watch from {}", field("resourceVersion").unwrap_or_default()),
        };
        tell.send_modify(|all| all.entry(resource.to_owned()).or_default().push(asked));
        let next = || script.lock().unwrap().get_mut(resource).and_then(VecDeque::pop_front);
        let then = match next() {
            Some(Reply::List { version, items }) if streamed => {
                let mut events: Vec<Value> = items.into_iter().map(|item| event("ADDED", item)).collect();
                events.push(list_complete(version));
                let (more, then) = match next() {
                    Some(Reply::Watch(more, then)) => (more, then),
                    _ => (Vec::new(), Then::Hold),
                };
                events.extend(more);
                write_events(stream.get_mut(), &events, then).await?
            }
            Some(Reply::List { version, items }) => {
                let metadata = json!({"resourceVersion": version.to_string()});
                write_json(stream.get_mut(), 200, &json!({"metadata": metadata, "items": items})).await?
            }
            Some(Reply::Watch(events, then)) => write_events(stream.get_mut(), &events, then).await?,
            Some(Reply::Refuse(code)) => write_json(stream.get_mut(), code, &status(code)).await?,
            Some(Reply::HangUp) => Then::Cut,
            None => Then::Hold,
        };
        match then {
            Then::End => {}
            Then::Cut => break,
            Then::Hold => std::future::pending().await,
        }
    }
    Ok(())
}

/// Path and query of a GET without a body; `None` at the end of the connection.
async fn read_request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut target = None;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(target);
        }
        if let Some(get) = line.strip_prefix("GET ") {
            target = get.strip_suffix(" HTTP/1.1").map(ToOwned::to_owned);
        }
    }
}

async fn write_json(stream: &mut TcpStream, code: u16, body: &Value) -> io::Result<Then> {
    let body = body.to_string();
    let length = body.len();
    let head =
        format!("HTTP/1.1 {code} x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    Ok(Then::End)
}

async fn write_events(stream: &mut TcpStream, events: &[Value], then: Then) -> io::Result<Then> {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    for event in events {
        let line = format!("{event}\n");
        stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).await?;
    }
    if matches!(then, Then::End) {
        stream.write_all(b"0\r\n\r\n").await?;
    }
    Ok(then)
}

pub(super) fn event(kind: &str, object: impl Into<Value>) -> Value {
    let object: Value = object.into();
    json!({"type": kind, "object": object})
}

pub(super) fn bookmark(version: u32) -> Value {
    event("BOOKMARK", json!({"metadata": {"resourceVersion": version.to_string()}}))
}

/// What an API server says inside a watch whose version was compacted away.
pub(super) fn expired() -> Value {
    event("ERROR", status(410))
}

/// Ends the initial events of a streamed list (KEP-3157).
fn list_complete(version: u32) -> Value {
    let annotations = json!({"k8s.io/initial-events-end": "true"});
    let metadata = json!({"resourceVersion": version.to_string(), "annotations": annotations});
    event("BOOKMARK", json!({"metadata": metadata}))
}

fn status(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": "scripted"})
}
