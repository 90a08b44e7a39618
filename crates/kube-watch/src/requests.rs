//! The two requests of a watched kind, and what comes back: pages of a list, lines of a watch.
//!
//! Bytes are parsed out of one buffer that is used again for every line, so that an object is held
//! once: neither the body of a streamed list nor a second copy of a line exists.

use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::time::Duration;

use futures::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};
use kube::api::{ListParams, WatchParams};
use kube::core::{Request, Status};
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::retry::random_share;

/// Marks the end of the initial events of a streamed list (KEP-3157).
const LIST_COMPLETE: &str = "k8s.io/initial-events-end";

/// A page must have come by then.
const PAGE_TIMEOUT: Duration = Duration::from_secs(60);

/// A watch that the server ends after a while, for the load to spread over its replicas, in
/// seconds: at least this, and up to a fifth more.
const WATCH_TIMEOUT: u32 = 240;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The resource version is compacted away, or unknown: list anew.
    #[error("the watch expired")]
    Expired,
    /// What it was before is known by no key: list anew.
    #[error("an object that cannot be read was deleted")]
    DeletedUnread,
    #[error("the API server does not stream lists")]
    CannotStream,
    #[error("{0}{hint}", hint = hint(.0))]
    Refused(kube::Error),
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    #[error("nothing was heard for {} s", .0.as_secs_f32())]
    Silence(Duration),
    #[error("the API server's answer is not understood: {0}")]
    Garbled(#[from] serde_json::Error),
    #[error("the API server's list carries no resource version")]
    NoVersion,
}

/// One kind at one API server.
pub(crate) struct Requests<W> {
    client: Client,
    path: Request,
    config: watcher::Config,
    /// How long a watch may be silent; API servers send a bookmark a minute.
    silence: Duration,
    of: PhantomData<fn() -> W>,
}

pub(crate) struct Page<W> {
    pub(crate) objects: Vec<W>,
    pub(crate) unreadable: Vec<Unreadable>,
    /// The token of the next page.
    pub(crate) next: Option<String>,
    pub(crate) version: Option<String>,
}

/// An object whose shape is not that of `W`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Unreadable {
    /// `namespace/name`, or the name of a cluster-wide object.
    pub(crate) name: String,
    pub(crate) why: String,
}

/// Where a watch begins.
#[derive(Debug, Clone, Copy)]
pub(crate) enum From<'a> {
    /// The state as of now, as a streamed list, and on.
    List,
    /// What came after this resource version.
    Version(&'a str),
}

pub(crate) enum Line<W> {
    Apply(W),
    Delete(W),
    Bookmark { version: String, list_complete: bool },
    Unreadable { object: Unreadable, version: Option<String> },
    DeletedUnread,
}

pub(crate) struct Lines<W> {
    body: Pin<Box<dyn AsyncBufRead + Send>>,
    line: Vec<u8>,
    silence: Duration,
    of: PhantomData<fn() -> W>,
}

impl<W: Resource + DeserializeOwned> Requests<W> {
    pub(crate) fn new(api: Api<W>, config: watcher::Config, silence: Duration) -> Self {
        let path = Request::new(api.resource_url());
        Self { client: api.into_client(), path, config, silence, of: PhantomData }
    }

    pub(crate) async fn page(&self, token: Option<String>) -> Result<Page<W>, Failure> {
        let params = ListParams {
            label_selector: self.config.label_selector.clone(),
            field_selector: self.config.field_selector.clone(),
            limit: self.config.page_size,
            continue_token: token,
            ..ListParams::default()
        };
        let request = self.path.list(&params).map_err(|e| Failure::Refused(kube::Error::BuildRequest(e)))?;
        let answer = async {
            let mut body = Vec::new();
            Box::pin(self.client.request_stream(request).await?).read_to_end(&mut body).await?;
            Ok::<_, Failure>(body)
        };
        let body =
            tokio::time::timeout(PAGE_TIMEOUT, answer).await.map_err(|_| Failure::Silence(PAGE_TIMEOUT))?;
        parse_page(&body.map_err(Failure::of_a_list)?)
    }

    pub(crate) async fn watch(&self, from: From<'_>) -> Result<Lines<W>, Failure> {
        let (streamed, version) = match from {
            // No version asks for the most recent state; "0" could be older than what we know.
            From::List => (true, ""),
            From::Version(version) => (false, version),
        };
        let spread = (f64::from(WATCH_TIMEOUT) / 5.0 * random_share()) as u32;
        let params = WatchParams {
            label_selector: self.config.label_selector.clone(),
            field_selector: self.config.field_selector.clone(),
            timeout: Some(self.config.timeout.unwrap_or(WATCH_TIMEOUT + spread)),
            bookmarks: true,
            send_initial_events: streamed,
        };
        let request =
            self.path.watch(&params, version).map_err(|e| Failure::Refused(kube::Error::BuildRequest(e)))?;
        let answer = tokio::time::timeout(self.silence, self.client.request_stream(request));
        let body = answer.await.map_err(|_| Failure::Silence(self.silence))?;
        let body = body.map_err(|error| Failure::of_a_watch(error, from))?;
        Ok(Lines { body: Box::pin(body), line: Vec::new(), silence: self.silence, of: PhantomData })
    }
}

impl<W: DeserializeOwned> Lines<W> {
    /// `None` when the server ended the watch.
    pub(crate) async fn next(&mut self) -> Result<Option<Line<W>>, Failure> {
        loop {
            self.line.clear();
            let read = self.body.read_until(b'\n', &mut self.line);
            let read = tokio::time::timeout(self.silence, read).await;
            read.map_err(|_| Failure::Silence(self.silence))??;
            // Half a line is a connection that was cut in the middle; its event comes again.
            let Some(line) = self.line.strip_suffix(b"\n") else { return Ok(None) };
            if !line.is_empty() {
                return parse_line(line).map(Some);
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(bound = "W: DeserializeOwned")]
struct WireList<W> {
    #[serde(default)]
    metadata: ListMeta,
    items: Option<Vec<W>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE", bound = "W: DeserializeOwned")]
enum WireEvent<W> {
    Added(W),
    Modified(W),
    Deleted(W),
    Bookmark(Named),
    Error(Status),
}

#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    metadata: NamedMeta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NamedMeta {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
    annotations: Option<std::collections::BTreeMap<String, serde::de::IgnoredAny>>,
}

pub(crate) fn parse_page<W: DeserializeOwned>(body: &[u8]) -> Result<Page<W>, Failure> {
    let (metadata, objects, unreadable) = match serde_json::from_slice::<WireList<W>>(body) {
        Ok(list) => (list.metadata, list.items.unwrap_or_default(), Vec::new()),
        Err(_) => {
            // One object of another shape must not hide the others.
            let list: WireList<serde_json::Value> = serde_json::from_slice(body)?;
            let (mut objects, mut unreadable) = (Vec::new(), Vec::new());
            for item in list.items.unwrap_or_default() {
                match W::deserialize(&item) {
                    Ok(object) => objects.push(object),
                    Err(error) => {
                        unreadable.push(Unreadable::new(&Named::deserialize(&item)?.metadata, &error));
                    }
                }
            }
            (list.metadata, objects, unreadable)
        }
    };
    let set = |text: Option<String>| text.filter(|t| !t.is_empty());
    Ok(Page { objects, unreadable, next: set(metadata.next), version: set(metadata.resource_version) })
}

pub(crate) fn parse_line<W: DeserializeOwned>(line: &[u8]) -> Result<Line<W>, Failure> {
    let event = match serde_json::from_slice(line) {
        Ok(event) => event,
        Err(error) => {
            return match serde_json::from_slice(line)? {
                WireEvent::Added(Named { metadata }) | WireEvent::Modified(Named { metadata }) => {
                    Ok(Line::Unreadable {
                        object: Unreadable::new(&metadata, &error),
                        version: metadata.resource_version,
                    })
                }
                WireEvent::Deleted(Named { .. }) => Ok(Line::DeletedUnread),
                WireEvent::Bookmark(_) | WireEvent::Error(_) => Err(error.into()),
            };
        }
    };
    match event {
        WireEvent::Added(object) | WireEvent::Modified(object) => Ok(Line::Apply(object)),
        WireEvent::Deleted(object) => Ok(Line::Delete(object)),
        WireEvent::Bookmark(Named { metadata }) => Ok(Line::Bookmark {
            version: metadata.resource_version.filter(|v| !v.is_empty()).ok_or(Failure::NoVersion)?,
            list_complete: metadata.annotations.is_some_and(|a| a.contains_key(LIST_COMPLETE)),
        }),
        WireEvent::Error(status) => {
            Err(Failure::of_a_watch(kube::Error::Api(status.boxed()), From::Version("")))
        }
    }
}

impl Unreadable {
    fn new(metadata: &NamedMeta, why: &impl std::fmt::Display) -> Self {
        let name = metadata.name.as_deref().unwrap_or("(no name)");
        let name = match metadata.namespace.as_deref() {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.to_owned(),
        };
        Self { name, why: why.to_string() }
    }
}

impl Failure {
    /// Whether what was known cannot be gone on from.
    pub(crate) fn lists_anew(&self) -> bool {
        matches!(self, Self::Expired | Self::DeletedUnread)
    }

    /// 410 is an expired `continue` token.
    fn of_a_list(self) -> Self {
        match self {
            Failure::Refused(error) if code(&error) == Some(410) => Failure::Expired,
            other => other,
        }
    }

    /// 410 is a compacted resource version and 400 one that this server cannot read (of a cluster
    /// restored from a backup, say); 400 or 422 to a streamed list say that it is not supported.
    fn of_a_watch(error: kube::Error, from: From<'_>) -> Self {
        match (from, code(&error)) {
            (From::List, Some(400 | 422)) => Failure::CannotStream,
            (From::Version(_), Some(400 | 410)) | (From::List, Some(410)) => Failure::Expired,
            _ => Failure::Refused(error),
        }
    }
}

impl std::convert::From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        Failure::Refused(error)
    }
}

impl Failure {
    /// The API server does not have the kind, or does not show it to this program.
    pub(crate) fn is_for_want_of_it(&self) -> bool {
        matches!(self, Failure::Refused(error) if matches!(code(error), Some(403 | 404)))
    }
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// The next step for a person, where there is one.
fn hint(error: &kube::Error) -> &'static str {
    match code(error) {
        Some(401) => "; are the credentials in the kubeconfig, or the service account, still valid?",
        Some(403) => "; are the roles of this program applied?",
        Some(404) => "; are the custom resource definitions applied?",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::wire;

    fn line(event: &Value) -> Result<Line<wire::Node>, Failure> {
        parse_line(event.to_string().as_bytes())
    }

    #[test]
    fn a_line_is_an_event_a_bookmark_or_an_error() {
        let object = json!({"metadata": {"name": "n1", "resourceVersion": "7"}});
        for (kind, applied) in [("ADDED", true), ("MODIFIED", true), ("DELETED", false)] {
            match line(&json!({"type": kind, "object": object})).unwrap() {
                Line::Apply(node) => assert!(applied && node.metadata.name.as_deref() == Some("n1")),
                Line::Delete(node) => assert!(!applied && node.metadata.name.as_deref() == Some("n1")),
                _ => panic!("{kind} is an object"),
            }
        }
        for (annotations, complete) in [(json!(null), false), (json!({LIST_COMPLETE: "true"}), true)] {
            let bookmark = json!({"metadata": {"resourceVersion": "9", "annotations": annotations}});
            let Line::Bookmark { version, list_complete } =
                line(&json!({"type": "BOOKMARK", "object": bookmark})).unwrap()
            else {
                panic!("a bookmark")
            };
            assert_eq!((version.as_str(), list_complete), ("9", complete));
        }
    }

    #[test]
    fn an_error_event_says_whether_to_list_anew() {
        let error =
            |code: u16| line(&json!({"type": "ERROR", "object": {"code": code, "message": "m"}})).err();
        assert!(matches!(error(410), Some(Failure::Expired)));
        assert!(matches!(error(500), Some(Failure::Refused(_))));
        assert!(matches!(parse_line::<wire::Node>(b"<html>"), Err(Failure::Garbled(_))));
    }

    #[test]
    fn an_object_of_another_shape_is_named_and_its_version_counts() {
        let object = json!({"metadata": {"name": "n1", "resourceVersion": "7"}, "spec": "odd"});
        let Line::Unreadable { object, version } =
            line(&json!({"type": "MODIFIED", "object": object})).unwrap()
        else {
            panic!("a string is not a spec")
        };
        assert_eq!((object.name.as_str(), version.as_deref()), ("n1", Some("7")));
    }

    #[test]
    fn one_object_of_another_shape_does_not_hide_the_rest_of_its_page() {
        let body = json!({
            "metadata": {"resourceVersion": "9", "continue": ""},
            "items": [
                {"metadata": {"name": "a"}},
                {"metadata": {"name": "b", "namespace": "ns"}, "status": {"addresses": 7}},
                {"spec": 7}
            ]
        });
        let page: Page<wire::Node> = parse_page(body.to_string().as_bytes()).unwrap();
        assert_eq!(page.objects.len(), 1);
        let names: Vec<&str> = page.unreadable.iter().map(|u| u.name.as_str()).collect();
        assert_eq!(names, ["ns/b", "(no name)"]);
        assert_eq!((page.next, page.version.as_deref()), (None, Some("9")));
    }

    #[test]
    fn a_refusal_says_what_to_do_about_it() {
        let refused = |code| {
            let status = Status { code, message: "no".to_owned(), ..Status::default() };
            Failure::Refused(kube::Error::Api(status.boxed())).to_string()
        };
        assert!(refused(403).contains("roles"), "{}", refused(403));
        assert!(refused(404).contains("custom resource"), "{}", refused(404));
        assert!(!refused(500).contains(';'), "{}", refused(500));
    }
}
