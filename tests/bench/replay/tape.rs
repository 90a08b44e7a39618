//! What an API server says on a watch of EndpointSlices, kept byte for byte.

use std::net::Ipv4Addr;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt, TryStreamExt};
use http::Request;
use http_body_util::BodyExt;
use kube::client::Body;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::cluster::{Cluster, IN_FLIGHT};
use crate::lone_change::Change;

pub(super) const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const WATCH: &str = "watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                     &timeoutSeconds=3600&labelSelector=%21service.kubernetes.io%2Fheadless";
/// Ends the initial events of a streamed list.
const LISTED: &[u8] = b"k8s.io/initial-events-end";
const PATIENCE: Duration = Duration::from_secs(120);

/// Services that are changed once in a run at most, so that a change that is seen is known.
pub(super) const MARKERS: usize = 64;
/// Services that change all the time, at most.
const CHURNED: usize = 2000;

/// What a client may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// An object a line.
    Json,
    /// Four bytes of length, big-endian, before each object.
    Protobuf,
}

const ENCODINGS: [Encoding; 2] = [Encoding::Json, Encoding::Protobuf];

impl Encoding {
    /// Of two, in the order of [`ENCODINGS`].
    fn of<T>(self, [json, protobuf]: [T; 2]) -> T {
        match self {
            Self::Json => json,
            Self::Protobuf => protobuf,
        }
    }
}

/// The same watch in every encoding.
pub(super) struct Tape {
    reels: [Reel; 2],
    /// To other endpoints, and back.
    markers: [Vec<Step>; 2],
    /// All to other endpoints, then all back: it ends where it began.
    pub(super) churn: Vec<Step>,
}

/// The beginning of one watch: a streamed list.
pub(super) struct Reel {
    pub(super) content_type: String,
    pub(super) initial: Bytes,
}

/// One change of one Service.
pub(super) struct Step {
    pub(super) service: usize,
    away: bool,
    frames: [Bytes; 2],
}

impl Tape {
    /// Changes endpoints in a real cluster, and leaves them as they were.
    pub(super) async fn record(cluster: &Cluster) -> Result<Self> {
        let [json, protobuf] = ENCODINGS.map(|encoding| Recorder::start(cluster, encoding));
        let (json, protobuf) = tokio::try_join!(json, protobuf)?;
        let services = cluster.vips.len().min(MARKERS + CHURNED);
        ensure!(services > MARKERS, "the first {MARKERS} Services are markers: more are needed");
        let (markers, churned) = (0..MARKERS, MARKERS..services);
        let passes =
            [(markers.clone(), true), (churned.clone(), true), (churned.clone(), false), (markers, false)];
        for (services, away) in passes.clone() {
            let changes = services.map(|service| async move {
                let to = endpoints_after(cluster, service, away)?;
                cluster.move_endpoints(service, &to).await
            });
            futures::stream::iter(changes).buffered(IN_FLIGHT).try_collect::<()>().await?;
        }
        let count = 2 * services;
        let (json, protobuf) = tokio::try_join!(json.stop(count), protobuf.stop(count))?;
        let mut frames = json.1.into_iter().zip(protobuf.1);
        let [out, there, back, home] = passes.map(|(services, away)| {
            let frames = frames.by_ref().take(services.len());
            frames.map(|(json, protobuf)| Step::of(away, json, protobuf)).collect::<Result<Vec<_>>>()
        });
        let churn = there?.into_iter().chain(back?).collect();
        let mut markers = [out?, home?];
        // The API server had them in any order; a run uses the first ones, and the next run the same.
        markers.iter_mut().for_each(|steps| steps.sort_by_key(|step| step.service));
        Ok(Self { reels: [json.0, protobuf.0], markers, churn })
    }

    pub(super) fn reel(&self, encoding: Encoding) -> &Reel {
        encoding.of(self.reels.each_ref())
    }

    /// Each to other endpoints, or each back.
    pub(super) fn markers(&self, away: bool) -> &[Step] {
        let [out, home] = &self.markers;
        if away { out } else { home }
    }
}

impl Step {
    fn of(away: bool, json: Bytes, protobuf: Bytes) -> Result<Self> {
        let event: Value = serde_json::from_slice(&json)?;
        let name =
            event.pointer("/object/metadata/name").and_then(Value::as_str).context("a slice has a name")?;
        let service = name.rsplit('-').next().unwrap_or_default().parse()?;
        // Field 1 of ObjectMeta, in the other encoding.
        let field = [&[0x0a, u8::try_from(name.len())?], name.as_bytes()].concat();
        ensure!(contains(&protobuf, &field), "the two watches tell of {name} at different times");
        Ok(Self { service, away, frames: [json, protobuf] })
    }

    pub(super) fn frame(&self, encoding: Encoding) -> &Bytes {
        encoding.of(self.frames.each_ref())
    }

    /// The endpoints that the Service has from then on.
    pub(super) fn leads_to(&self, cluster: &Cluster) -> Result<Vec<Ipv4Addr>> {
        endpoints_after(cluster, self.service, self.away)
    }
}

/// Every second Service has one endpoint while it is away.
fn endpoints_after(cluster: &Cluster, service: usize, away: bool) -> Result<Vec<Ipv4Addr>> {
    let change = Change::of(cluster, service)?;
    Ok(match (away, service.is_multiple_of(2)) {
        (false, _) => change.before.to_vec(),
        (true, true) => change.after.to_vec(),
        (true, false) => change.after.into_iter().take(1).collect(),
    })
}

/// A watch that is being recorded.
struct Recorder {
    reel: Reel,
    frames: tokio::sync::mpsc::UnboundedReceiver<Bytes>,
    task: JoinHandle<Result<()>>,
}

impl Recorder {
    async fn start(cluster: &Cluster, encoding: Encoding) -> Result<Self> {
        let accept = encoding.of(["application/json", "application/vnd.kubernetes.protobuf"]);
        let request =
            Request::get(format!("{SLICES}?{WATCH}")).header("accept", accept).body(Body::empty())?;
        let answer = cluster.control_plane.client.send(request).await?;
        ensure!(answer.status().is_success(), "a watch of EndpointSlices: {}", answer.status());
        let content_type =
            answer.headers().get("content-type").context("it says what it is")?.to_str()?.to_owned();
        let body = answer.into_body().into_data_stream().map_err(anyhow::Error::from);
        let mut frames = Frames { body: Box::pin(body), heard: BytesMut::new(), encoding };
        let mut initial = BytesMut::new();
        loop {
            let frame = timeout(PATIENCE, frames.next()).await??;
            initial.extend_from_slice(&frame);
            if contains(&frame, LISTED) {
                break;
            }
        }
        let (tell, told) = tokio::sync::mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            loop {
                let frame = frames.next().await?;
                if !contains(&frame, b"BOOKMARK") && tell.send(frame).is_err() {
                    return Ok(());
                }
            }
        });
        Ok(Self { reel: Reel { content_type, initial: initial.freeze() }, frames: told, task })
    }

    /// Ends with so many frames.
    async fn stop(mut self, count: usize) -> Result<(Reel, Vec<Bytes>)> {
        let mut frames = Vec::with_capacity(count);
        while frames.len() < count {
            match timeout(PATIENCE, self.frames.recv()).await? {
                Some(frame) => frames.push(frame),
                None => bail!("the watch ended: {:?}", self.task.await?),
            }
        }
        self.task.abort();
        Ok((self.reel, frames))
    }
}

/// A body in whole frames, each with its boundary.
struct Frames {
    body: Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>,
    heard: BytesMut,
    encoding: Encoding,
}

impl Frames {
    async fn next(&mut self) -> Result<Bytes> {
        loop {
            if let Some(length) = frame_length(self.encoding, &self.heard)
                && length <= self.heard.len()
            {
                return Ok(self.heard.split_to(length).freeze());
            }
            let more = self.body.next().await.context("the API server ended the watch")??;
            self.heard.extend_from_slice(&more);
        }
    }
}

/// Of the first frame, boundary included, once it is known.
fn frame_length(encoding: Encoding, mut bytes: &[u8]) -> Option<usize> {
    match encoding {
        Encoding::Json => bytes.iter().position(|byte| *byte == b'\n').map(|end| end + 1),
        Encoding::Protobuf => {
            bytes.try_get_u32().ok().and_then(|length| usize::try_from(length).ok()?.checked_add(4))
        }
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_end_at_a_line_or_after_their_length() {
        for (encoding, bytes, length) in [
            (Encoding::Json, &b"{}\n{}"[..], Some(3)),
            (Encoding::Json, b"{", None),
            (Encoding::Protobuf, b"\0\0\x01\x02k8s\0", Some(4 + 258)),
            (Encoding::Protobuf, b"\0\0\x01", None),
        ] {
            assert_eq!(frame_length(encoding, bytes), length, "{encoding:?} {bytes:?}");
        }
    }

    #[test]
    fn a_step_is_the_same_change_in_both_encodings() {
        let json = Bytes::from_static(
            b"{\"type\":\"MODIFIED\",\"object\":{\"metadata\":{\"name\":\"bench-17\"}}}\n",
        );
        let step = |protobuf: &'static [u8]| Step::of(true, json.clone(), Bytes::from_static(protobuf));
        assert_eq!(step(b"k8s\0\x0a\x08bench-17\x12").unwrap().service, 17);
        assert!(step(b"k8s\0\x0a\x09bench-170").is_err(), "another Service");
    }
}
