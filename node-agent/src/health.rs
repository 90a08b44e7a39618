//! `/healthz` and `/livez`, as load balancers and kubelets ask kube-proxy (KEP-3836): the same
//! JSON, status codes and headers as its `healthcheck/proxy_health.go`.
//!
//! One difference is meant: before the first sync the node is not healthy, since nothing would be
//! served; kube-proxy says that it is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use daemon::http::{Response, Router, json};
use hyper::StatusCode;
use hyper::header::HeaderValue;
use jiff::Timestamp;
use serde::Serialize;
use service_model::IpFamily;

use crate::config::Families;
use crate::metrics::Metrics;
use crate::nft::layout::FAMILIES;

/// What the probes answer from.
#[derive(Debug, Clone)]
pub struct Health {
    state: Arc<Mutex<State>>,
    /// A change that waits for longer makes the node unhealthy.
    late: Duration,
    /// Those that are told of.
    families: Families,
}

#[derive(Debug)]
struct State {
    updated: Option<SystemTime>,
    /// Since when a change has been waiting.
    waiting: Option<Instant>,
    eligible: bool,
}

/// One time by two clocks: people are told what hangs on the wall, which somebody may set; how long
/// ago something was, only the other knows.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub wall: SystemTime,
    pub steady: Instant,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: Timestamp,
    current_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<String, FamilyBody>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: Timestamp,
    healthy: bool,
}

/// How Go writes the time that is none.
const NEVER: &str = "0001-01-01T00:00:00Z";

impl Moment {
    pub fn now() -> Self {
        Self { wall: SystemTime::now(), steady: Instant::now() }
    }
}

impl Health {
    /// kube-proxy calls a change late after twice its `--sync-period`.
    pub fn new(sync_period: Duration) -> Self {
        let state = State { updated: None, waiting: None, eligible: true };
        Self { state: Arc::new(Mutex::new(state)), late: sync_period * 2, families: Families::default() }
    }

    /// As kube-proxy, it speaks of the families alone that are served.
    #[must_use]
    pub fn of(self, families: Families) -> Self {
        Self { families, ..self }
    }

    /// A change waits to be committed.
    pub fn queued(&self, now: Moment) {
        self.lock().waiting.get_or_insert(now.steady);
    }

    /// Everything that waited is committed.
    pub fn updated(&self, now: Moment) {
        let mut state = self.lock();
        (state.updated, state.waiting) = (Some(now.wall), None);
    }

    /// Whether load balancers should use the node.
    pub fn set_eligible(&self, eligible: bool) {
        self.lock().eligible = eligible;
    }

    /// Whether the node's rules are what they should be, whatever becomes of the node.
    pub fn is_live(&self, now: Moment) -> bool {
        let state = self.lock();
        let late = |since: Instant| now.steady.saturating_duration_since(since) >= self.late;
        state.updated.is_some() && !state.waiting.is_some_and(late)
    }

    pub fn routes(&self, metrics: &Metrics) -> Router {
        let (healthz, livez) = (self.clone(), self.clone());
        let (counted, counted_live) = (metrics.clone(), metrics.clone());
        Router::new()
            .get("/healthz", move |_| {
                let response = healthz.answer(true, Moment::now());
                counted.healthz(response.status());
                response
            })
            .get("/livez", move |_| {
                let response = livez.answer(false, Moment::now());
                counted_live.livez(response.status());
                response
            })
    }

    fn answer(&self, asks_eligibility: bool, now: Moment) -> Response {
        let healthy = self.is_live(now);
        let state = self.lock();
        let well = healthy && (state.eligible || !asks_eligibility);
        let never: Timestamp = NEVER.parse().expect("a timestamp");
        let time = |time: SystemTime| Timestamp::try_from(time).unwrap_or(never);
        let updated = state.updated.map_or(never, time);
        let told = |family: &IpFamily| state.updated.is_some() && self.families.contains(*family);
        let families = FAMILIES.into_iter().filter(told);
        let body = Body {
            // kube-proxy's promise: recent if all is well, also when nothing had to be done.
            last_updated: if well { time(now.wall) } else { updated },
            current_time: time(now.wall),
            node_eligible: asks_eligibility.then_some(state.eligible),
            // Of the rules alone: a node that is being removed is not well, and healthy.
            healthy,
            status: families
                .map(|family| (family.to_string(), FamilyBody { last_updated: updated, healthy }))
                .collect(),
        };
        let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let body = serde_json::to_vec(&body).expect("plain fields and string keys");
        without_sniffing(json(status, body))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The header that kube-proxy's health answers carry.
pub fn without_sniffing(mut response: Response) -> Response {
    response.headers_mut().insert("X-Content-Type-Options", HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    const PERIOD: Duration = Duration::from_secs(30);

    /// Both clocks began at the same time, and nobody has set one.
    fn time(seconds: u64) -> Moment {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        let since = Duration::from_secs(seconds);
        Moment { wall: SystemTime::UNIX_EPOCH + since, steady: *START + since }
    }

    fn statuses(health: &Health, at: u64) -> (u16, u16) {
        let status = |eligible| health.answer(eligible, time(at)).status().as_u16();
        (status(true), status(false))
    }

    #[test]
    fn the_node_is_healthy_once_synced_unless_a_change_waits_too_long_or_it_is_being_removed() {
        let health = Health::new(PERIOD);
        assert_eq!(statuses(&health, 1000), (503, 503), "nothing is synced yet");
        health.updated(time(1000));
        health.queued(time(1000));
        health.queued(time(1050));
        assert_eq!(statuses(&health, 1059), (200, 200));
        assert_eq!(statuses(&health, 1060), (503, 503), "the oldest change counts");
        health.updated(time(1061));
        health.set_eligible(false);
        assert_eq!(statuses(&health, 1062), (503, 200), "livez does not ask for eligibility");
    }

    #[test]
    fn a_clock_that_is_set_makes_no_change_late_and_none_early() {
        let day = Duration::from_secs(86_400);
        let health = Health::new(PERIOD);
        health.updated(time(100_000));
        health.queued(time(100_000));
        for (seconds, live) in [(59, true), (60, false)] {
            let now = time(100_000 + seconds);
            for wall in [now.wall, now.wall + day, now.wall - day] {
                assert_eq!(health.is_live(Moment { wall, ..now }), live, "{seconds} s later, {wall:?}");
            }
        }
    }

    #[tokio::test]
    async fn the_answer_has_kube_proxys_fields() {
        use http_body_util::BodyExt;
        let health = Health::new(PERIOD);
        let body = async |eligible, at| {
            let answer = health.answer(eligible, time(at));
            assert_eq!(answer.headers()["content-type"], "application/json");
            assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
            String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
        };
        assert_eq!(
            body(true, 5).await,
            r#"{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"1970-01-01T00:00:05Z","nodeEligible":true,"healthy":false}"#
        );
        health.updated(time(6));
        assert_eq!(
            body(false, 9).await,
            concat!(
                r#"{"lastUpdated":"1970-01-01T00:00:09Z","currentTime":"1970-01-01T00:00:09Z","healthy":true,"#,
                r#""status":{"IPv4":{"lastUpdated":"1970-01-01T00:00:06Z","healthy":true},"#,
                r#""IPv6":{"lastUpdated":"1970-01-01T00:00:06Z","healthy":true}}}"#
            )
        );
        health.set_eligible(false);
        let told = body(true, 9).await;
        assert!(
            told.starts_with(concat!(
                r#"{"lastUpdated":"1970-01-01T00:00:06Z","currentTime":"1970-01-01T00:00:09Z","#,
                r#""nodeEligible":false,"healthy":true,"status":{"IPv4":{"#
            )),
            "of the node, not of its rules: {told}"
        );
    }

    #[tokio::test]
    async fn a_family_that_is_not_served_is_not_told_of() {
        use http_body_util::BodyExt;
        let health = Health::new(PERIOD).of(Families { v4: true, v6: false });
        health.updated(time(6));
        let body = health.answer(false, time(9)).into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let status = body["status"].as_object().unwrap();
        assert_eq!(status.keys().collect::<Vec<_>>(), ["IPv4"]);
    }
}
