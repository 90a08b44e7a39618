//! The providers of one leadership behind one surface: a match, no policy.

use std::sync::Arc;

use kube::Client;
use service_model::{Service, World};

use crate::desired::Provider;
use crate::events::Events;
use crate::marks::{MarkError, Marks};
use crate::metal;
use crate::plan::{Outcome, Report};
use crate::status::StatusWriter;

/// Pause before the first retry of a write that failed.
const RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// Cloned into every job.
#[derive(Debug, Clone)]
pub struct Providers {
    pub metal: Option<Arc<metal::Provider>>,
    pub writers: Writers,
}

/// What writes to Services.
#[derive(Debug, Clone)]
pub struct Writers {
    pub status: StatusWriter,
    pub marks: Marks,
    pub events: Events,
}

/// What a job is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Reconcile,
    Release,
}

impl Writers {
    pub fn new(client: &Client, instance: &str) -> Self {
        Self {
            status: StatusWriter::new(client.clone()),
            marks: Marks::new(client.clone()),
            events: Events::new(client.clone(), instance),
        }
    }
}

impl Providers {
    /// Does the work, then writes what it reports: status, Events, and the marks off at the end.
    pub async fn run(&self, provider: Provider, work: Work, service: &Service, world: &World) -> Outcome {
        let report = match self.ask(provider, work, service, world).await {
            Ok(report) => report,
            Err(error) => return retry("adding the finalizer", &error),
        };
        let written = self.write(provider, service, &report).await;
        self.writers.events.tell(service, &report.notes).await;
        match written {
            Ok(()) => report.outcome,
            Err(error) => retry("writing the Service", &error),
        }
    }

    async fn ask(
        &self,
        provider: Provider,
        work: Work,
        service: &Service,
        _world: &World,
    ) -> Result<Report, MarkError> {
        match (provider, &self.metal) {
            (Provider::Metal, Some(metal)) => Ok(match work {
                Work::Reconcile => metal.reconcile(service).await,
                Work::Release => metal.release(service).await,
            }),
            (Provider::Aws, _) | (Provider::Metal, None) => {
                let outcome = Outcome::Blocked { why: format!("the provider {provider} is off") };
                Ok(Report { outcome, ingress: None, notes: Vec::new(), released: false })
            }
        }
    }

    async fn write(&self, provider: Provider, service: &Service, report: &Report) -> Result<(), MarkError> {
        if let Some(ingress) = &report.ingress {
            self.writers.status.write(service, ingress).await?;
        }
        if report.released {
            self.writers.marks.remove(service, provider).await?;
        }
        Ok(())
    }
}

fn retry(what: &str, error: &MarkError) -> Outcome {
    Outcome::Retry { after: RETRY, why: format!("{what}: {error}") }
}
