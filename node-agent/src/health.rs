//! `/healthz` and `/livez`, as load balancers and kubelets ask kube-proxy (KEP-3836).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use daemon::http::{Response, Router, json};
use hyper::StatusCode;
use hyper::header::HeaderValue;
use serde_json::json as object;

/// A change that waits for longer makes the node unhealthy (kube-proxy: twice its sync period of
/// 30 s).
const LATE: Duration = Duration::from_secs(60);

/// What the probes answer from.
#[derive(Debug, Clone)]
pub struct Health {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    updated: Option<SystemTime>,
    /// Since when a change has been waiting.
    waiting: Option<SystemTime>,
    eligible: bool,
}

impl Default for Health {
    fn default() -> Self {
        let state = State { updated: None, waiting: None, eligible: true };
        Self { state: Arc::new(Mutex::new(state)) }
    }
}

impl Health {
    /// A change waits to be committed.
    pub fn queued(&self, now: SystemTime) {
        self.lock().waiting.get_or_insert(now);
    }

    /// Everything that waited is committed.
    pub fn updated(&self, now: SystemTime) {
        let mut state = self.lock();
        (state.updated, state.waiting) = (Some(now), None);
    }

    /// Whether load balancers should use the node.
    pub fn set_eligible(&self, eligible: bool) {
        self.lock().eligible = eligible;
    }

    pub fn routes(&self) -> Router {
        let (healthz, livez) = (self.clone(), self.clone());
        Router::new()
            .get("/healthz", move |_| healthz.answer(true, SystemTime::now()))
            .get("/livez", move |_| livez.answer(false, SystemTime::now()))
    }

    fn answer(&self, with_eligibility: bool, now: SystemTime) -> Response {
        let state = self.lock();
        let late = state.waiting.is_some_and(|since| now.duration_since(since).is_ok_and(|age| age > LATE));
        let healthy = state.updated.is_some() && !late && (state.eligible || !with_eligibility);
        let time = |time: SystemTime| {
            k8s_openapi::jiff::Timestamp::try_from(time).map(|t| t.to_string()).unwrap_or_default()
        };
        let updated = if healthy { time(now) } else { state.updated.map(time).unwrap_or_default() };
        let family = object!({"lastUpdated": updated, "healthy": state.updated.is_some() && !late});
        let mut body = object!({
            "lastUpdated": updated, "currentTime": time(now), "healthy": healthy,
            "status": {"IPv4": family, "IPv6": family}
        });
        if with_eligibility {
            body["nodeEligible"] = state.eligible.into();
        }
        let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let mut response = json(status, body.to_string());
        response.headers_mut().insert("X-Content-Type-Options", HeaderValue::from_static("nosniff"));
        response
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_is_healthy_once_synced_unless_a_change_waits_too_long_or_it_is_being_removed() {
        let (health, now) = (Health::default(), SystemTime::UNIX_EPOCH + Duration::from_secs(1000));
        let status = |eligible, at| health.answer(eligible, at).status().as_u16();
        assert_eq!((status(true, now), status(false, now)), (503, 503), "nothing is synced yet");
        health.updated(now);
        health.queued(now);
        assert_eq!(status(true, now + Duration::from_secs(59)), 200);
        assert_eq!(
            (status(true, now + Duration::from_secs(61)), status(false, now + Duration::from_secs(61))),
            (503, 503)
        );
        health.updated(now);
        health.set_eligible(false);
        assert_eq!((status(true, now), status(false, now)), (503, 200), "livez does not ask for eligibility");
    }
}
