//! The providers of one leadership behind one surface: a match, no policy.

use std::sync::Arc;

use kube::Client;
use service_model::{Service, World};

use crate::aws;
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
    pub aws: Option<Arc<aws::Provider>>,
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
        world: &World,
    ) -> Result<Report, MarkError> {
        match (provider, work) {
            (Provider::Metal, Work::Reconcile) => {
                if let Some(metal) = &self.metal {
                    return Ok(metal.reconcile(service).await);
                }
            }
            (Provider::Metal, Work::Release) => {
                if let Some(metal) = &self.metal {
                    return Ok(metal.release(service).await);
                }
            }
            (Provider::Aws, Work::Reconcile) => {
                if let Some(aws) = &self.aws {
                    // Metal records its address together with the finalizer; AWS needs only that.
                    if !service.has_finalizer(provider.finalizer()) {
                        self.writers.marks.add_finalizer(service, provider).await?;
                    }
                    return Ok(aws.reconcile(service, world).await);
                }
            }
            (Provider::Aws, Work::Release) => {
                if let Some(aws) = &self.aws {
                    return Ok(aws.release(service).await);
                }
            }
        }
        let outcome = Outcome::Blocked { why: format!("the provider {provider} is off") };
        Ok(Report { outcome, ingress: None, notes: Vec::new(), released: false })
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
