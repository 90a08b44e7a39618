//! What every program answers to those who look after it.

use std::sync::{Arc, Mutex};

use hyper::StatusCode;
use prometheus_client::registry::Registry;

use crate::Readiness;
use crate::http::{Router, text};
use crate::metrics;

/// `/livez`, `/readyz` and `/metrics`.
pub fn standard_routes(readiness: Readiness, registry: Arc<Mutex<Registry>>) -> Router {
    Router::new()
        .get("/livez", |_| text(StatusCode::OK, "ok\n"))
        .get("/readyz", move |_| match readiness.missing() {
            missing if missing.is_empty() => text(StatusCode::OK, "ok\n"),
            missing => {
                text(StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}\n", missing.join(", ")))
            }
        })
        .get("/metrics", move |_| metrics::page(&registry))
}
