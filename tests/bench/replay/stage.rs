//! An API server for one audience: watches of EndpointSlices play a tape, all else is passed on to the
//! real one, where nothing changes meanwhile.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use lab::netns::Netns;
use socket2::{Domain, Type};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::tape::{Encoding, SLICES, Tape};

const PORT: u16 = 8001;
const PATIENCE: Duration = Duration::from_secs(30);

type Answer = Response<UnsyncBoxBody<Bytes, kube::Error>>;

/// It closes with this value.
pub(super) struct Stage {
    watches: mpsc::UnboundedReceiver<Watch>,
    task: JoinHandle<()>,
}

/// A client's watch that has got the initial events, and waits for more.
pub(super) struct Watch {
    pub(super) encoding: Encoding,
    frames: mpsc::Sender<Bytes>,
}

/// What a request needs to be answered.
struct House {
    tape: Arc<Tape>,
    client: kube::Client,
    watches: mpsc::UnboundedSender<Watch>,
}

impl Stage {
    /// Listens on all addresses of the namespace.
    pub(super) fn open(netns: &Netns, tape: Arc<Tape>, client: kube::Client) -> Result<Self> {
        let socket = netns.socket(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)).into())?;
        socket.listen(128)?;
        let listener = TcpListener::from_std(socket.into())?;
        let (tell, watches) = mpsc::unbounded_channel();
        let house = Arc::new(House { tape, client, watches: tell });
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                // Small frames must not wait for an acknowledgement.
                if stream.set_nodelay(true).is_err() {
                    continue;
                }
                let house = Arc::clone(&house);
                let service = service_fn(move |request| {
                    let house = Arc::clone(&house);
                    async move { Ok::<_, std::convert::Infallible>(house.answer(request).await) }
                });
                connections.spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { watches, task })
    }

    /// For a program on a machine whose way to the stage is `host`.
    pub(super) fn kubeconfig(host: Ipv4Addr) -> String {
        format!(
            "{{apiVersion: v1, kind: Config, current-context: stage, users: [{{name: audience, user: {{}}}}], \
             clusters: [{{name: stage, cluster: {{server: \"http://{host}:{PORT}\"}}}}], \
             contexts: [{{name: stage, context: {{cluster: stage, user: audience}}}}]}}\n"
        )
    }

    /// The watch of EndpointSlices of the program that was started last.
    pub(super) async fn watch(&mut self) -> Result<Watch> {
        timeout(PATIENCE, self.watches.recv()).await?.context("the stage is open")
    }

    /// Nobody has begun a watch anew.
    pub(super) fn ensure_no_other(&mut self) -> Result<()> {
        ensure!(self.watches.try_recv().is_err(), "the watch of EndpointSlices was begun anew");
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Waits while the client reads more slowly than is written.
    pub(super) async fn write(&self, frames: Bytes) -> Result<()> {
        self.frames.send(frames).await.context("the client ended its watch of EndpointSlices")
    }
}

impl House {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let answer =
            if is_watch_of_slices(&request) { self.play(&request) } else { self.pass_on(request).await };
        answer.unwrap_or_else(|error| {
            let why = Full::from(format!("{error:#}\n")).map_err(|never| match never {}).boxed_unsync();
            let mut answer = Response::new(why);
            *answer.status_mut() = StatusCode::BAD_GATEWAY;
            answer
        })
    }

    fn play(&self, request: &Request<Incoming>) -> Result<Answer> {
        let accept =
            request.headers().get("accept").and_then(|accept| accept.to_str().ok()).unwrap_or_default();
        let encoding = if accept.contains("protobuf") { Encoding::Protobuf } else { Encoding::Json };
        let reel = self.tape.reel(encoding);
        let streamed = request.uri().query().is_some_and(|query| query.contains("sendInitialEvents=true"));
        let initial = if streamed { reel.initial.clone() } else { Bytes::new() };
        let (frames, received) = mpsc::channel(1);
        let live = stream::unfold(received, |mut received| async {
            received.recv().await.map(|frames: Bytes| (frames, received))
        });
        let body = stream::once(async { initial }).chain(live).map(|bytes| Ok(Frame::data(bytes)));
        self.watches.send(Watch { encoding, frames }).ok().context("the stage is closed")?;
        Ok(Response::builder()
            .header("content-type", &reel.content_type)
            .body(StreamBody::new(body).boxed_unsync())?)
    }

    /// With an administrator's rights; what may be asked for is not the question here.
    async fn pass_on(&self, request: Request<Incoming>) -> Result<Answer> {
        let (parts, body) = request.into_parts();
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let mut passed = Request::builder().method(parts.method).uri(target);
        for name in ["accept", "content-type"] {
            if let Some(value) = parts.headers.get(name) {
                passed = passed.header(name, value);
            }
        }
        let body = body.collect().await?.to_bytes().to_vec();
        let answer = self.client.send(passed.body(Body::from(body))?).await?;
        let mut passed = Response::builder().status(answer.status());
        if let Some(value) = answer.headers().get("content-type") {
            passed = passed.header("content-type", value);
        }
        Ok(passed.body(answer.into_body().boxed_unsync())?)
    }
}

fn is_watch_of_slices<B>(request: &Request<B>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    request.method() == Method::GET
        && request.uri().path() == SLICES
        && query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1"))
}
