//! One task a host: does what [`super::hosts`] says is next.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use metal_lb_api::Generation;
use tokio::sync::{Notify, watch};

use super::client::HostClient;
use super::hosts::Action;
use super::tier::Tier;
use crate::election::Role;

/// How long a start waits for hosts to say which document they run.
const HEAR_HOSTS: Duration = Duration::from_secs(2);

/// The tier, and who wants to know of its changes.
pub struct Shared {
    tier: Mutex<Tier>,
    /// The generation that hosts should run.
    wanted: watch::Sender<Option<Generation>>,
    /// A Service became due.
    due: Notify,
    /// A host answered.
    heard: Notify,
    /// The newest document as JSON, kept for the hosts that still have to get it.
    body: Mutex<Option<(Generation, Bytes)>>,
}

impl Shared {
    pub fn new(tier: Tier) -> Self {
        Self {
            tier: Mutex::new(tier),
            wanted: watch::Sender::new(None),
            due: Notify::new(),
            heard: Notify::new(),
            body: Mutex::new(None),
        }
    }

    /// Looks at the tier, or changes it; a new document starts on its way, and Services that
    /// became due are announced.
    pub fn with<R>(&self, change: impl FnOnce(&mut Tier) -> R) -> R {
        let mut tier = self.lock();
        let result = change(&mut tier);
        let generation = tier.document().generation();
        let due = tier.has_due();
        drop(tier);
        self.wanted.send_if_modified(|wanted| std::mem::replace(wanted, generation) != generation);
        if due {
            self.due.notify_one();
        }
        result
    }

    /// Resolves when a Service became due.
    pub async fn due(&self) {
        self.due.notified().await;
    }

    /// Resolves when every host has answered once, or failed to.
    pub async fn all_heard(&self) {
        loop {
            let heard = self.heard.notified();
            if self.lock().all_hosts_heard() {
                return;
            }
            heard.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tier> {
        self.tier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest document, which can be newer than the one asked for.
    fn body(&self) -> Option<(Generation, Bytes)> {
        let config = {
            let tier = self.lock();
            let newest = tier.document().generation()?;
            let mut kept = self.body.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((generation, body)) = kept.as_ref().filter(|(g, _)| *g == newest) {
                return Some((*generation, body.clone()));
            }
            *kept = None;
            tier.document().config()
        };
        let body = Bytes::from(config.to_json());
        let mut kept = self.body.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = Some((config.generation, body.clone()));
        Some((config.generation, body))
    }
}

/// Without the document: it holds the member key.
impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("wanted", &*self.wanted.borrow()).finish_non_exhaustive()
    }
}

/// Drives one host for as long as it is polled. `role` confirms, before a generation is raised
/// above a newer one, that this process leads still.
pub async fn drive(
    shared: Arc<Shared>,
    host: String,
    address: SocketAddr,
    mut client: HostClient,
    mut role: watch::Receiver<Role>,
) {
    let mut wanted = shared.wanted.subscribe();
    loop {
        let generation = *wanted.borrow_and_update();
        let action =
            shared.with(|tier| tier.hosts().host(&host).map(|view| view.next(generation, Instant::now())));
        match action {
            None => return,
            Some(Action::Wait(pause)) => {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    changed = wanted.changed() => if changed.is_err() { return },
                }
            }
            Some(Action::Get) => {
                let answer = client.state().await;
                let told = shared.with(|tier| tier.state_answered(&host, answer, Instant::now()));
                shared.heard.notify_waiters();
                report(&host, address, told);
            }
            Some(Action::Put(_)) => {
                let Some((generation, body)) = shared.body() else { continue };
                let answer = client.put(body).await;
                tracing::debug!(%host, %generation, ?answer, "PUT /v1/config");
                let told = shared.with(|tier| tier.put_answered(&host, generation, answer, Instant::now()));
                report(&host, address, told);
            }
        }
        if let Some(theirs) = shared.with(|tier| tier.ahead(&host)) {
            tracing::info!(%host, %theirs, "the host has a newer document: raising the generation");
            confirm(&mut role).await;
            shared.with(|tier| tier.raise(theirs));
        }
    }
}

/// Waits for what hosts run, for a while, lets the tier adopt what is recorded, and sends the first
/// document. Its number is above everything that a host has reported, so where that is of a later
/// term than ours the leadership is confirmed first: the document may be a successor's.
pub async fn issue(
    shared: &Shared,
    term: u64,
    mut role: watch::Receiver<Role>,
    adopt: impl FnOnce(&mut Tier),
) {
    if tokio::time::timeout(HEAR_HOSTS, shared.all_heard()).await.is_err() {
        tracing::warn!("not every balancer host answered; going on without their state");
    }
    if shared.with(|tier| tier.hosts().highest().term > term) {
        confirm(&mut role).await;
    }
    shared.with(|tier| {
        adopt(tier);
        tier.issue();
    });
}

/// Waits until the leadership has been confirmed after now. A leader that lost it is dropped
/// meanwhile, together with this task.
async fn confirm(role: &mut watch::Receiver<Role>) {
    let asked = Instant::now();
    let confirmed = |role: &Role| matches!(role, Role::Leading { renewed, .. } if *renewed > asked);
    if role.wait_for(confirmed).await.is_err() {
        // The election has ended, and this process with it.
        std::future::pending::<()>().await;
    }
}

fn report(host: &str, address: SocketAddr, told: Option<String>) {
    if let Some(told) = told {
        tracing::warn!(%host, %address, "{told}");
    }
}
