//! An API server that answers a script, one reply a request, and keeps what it was asked.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub(super) const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(super) enum Reply {
    /// A whole answer.
    Json(u16, Value),
    /// Lines of a watch, and what happens after them.
    Lines(Vec<Value>, Then),
}

#[derive(Clone, Copy)]
pub(super) enum Then {
    /// The watch is ended in good order.
    End,
    /// The same, a while later.
    EndAfter(Duration),
    /// The connection breaks.
    Cut,
    /// The connection breaks inside the next line.
    CutInside(&'static str),
    /// Nothing more is said.
    Hold,
}

pub(super) struct ApiServer {
    address: SocketAddr,
    asked: mpsc::UnboundedReceiver<Asked>,
    /// Owned, so that it ends with the test.
    _serving: JoinSet<()>,
}

#[derive(Debug)]
pub(super) struct Asked {
    /// Path and query, decoded as far as the tests need it.
    pub(super) target: String,
    pub(super) user_agent: String,
}

impl ApiServer {
    /// Requests beyond the script are never answered.
    pub(super) async fn start(script: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, asked) = mpsc::unbounded_channel();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut script = script.into_iter();
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = BufReader::new(stream);
                let Some(request) = read_request(&mut stream).await else { continue };
                // The test may be over.
                _ = tell.send(request);
                let reply = script.next();
                connections.spawn(answer(stream.into_inner(), reply));
            }
        });
        Self { address, asked, _serving: serving }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) async fn asked(&mut self) -> Asked {
        tokio::time::timeout(DEADLINE, self.asked.recv()).await.expect("a request comes").unwrap()
    }

    /// How many requests have come that [`ApiServer::asked`] has not handed out.
    pub(super) fn more_asked(&self) -> usize {
        self.asked.len()
    }
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut request = Asked { target: String::new(), user_agent: String::new() };
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if let Some(target) = line.strip_prefix("GET ") {
            let target = target.trim_end_matches(" HTTP/1.1");
            request.target = target.replace("%21", "!").replace("%3D", "=").replace("%2F", "/");
        } else if let Some((_, agent)) = line.split_once("user-agent: ") {
            request.user_agent = agent.to_owned();
        } else if line.is_empty() {
            return Some(request);
        }
    }
}

async fn answer(mut stream: TcpStream, reply: Option<Reply>) {
    // A client that has gone away is no concern of the script's.
    _ = try_answer(&mut stream, reply).await;
}

async fn try_answer(stream: &mut TcpStream, reply: Option<Reply>) -> std::io::Result<()> {
    match reply {
        Some(Reply::Json(status, body)) => {
            let body = body.to_string();
            let head = format!(
                "HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body.as_bytes()).await
        }
        Some(Reply::Lines(lines, then)) => {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await?;
            for line in lines {
                // Two chunks a line: nothing may depend on how bytes are cut.
                let line = format!("{line}\n");
                let (first, second) = line.split_at(line.len() / 2);
                for part in [first, second] {
                    stream.write_all(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes()).await?;
                    stream.flush().await?;
                }
            }
            match then {
                Then::End => stream.write_all(b"0\r\n\r\n").await,
                Then::EndAfter(while_later) => {
                    tokio::time::sleep(while_later).await;
                    stream.write_all(b"0\r\n\r\n").await
                }
                Then::Cut => Ok(()),
                Then::CutInside(text) => {
                    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await
                }
                Then::Hold => std::future::pending().await,
            }
        }
        None => std::future::pending().await,
    }
}
