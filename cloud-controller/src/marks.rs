//! Our marks on a Service: finalizer and record annotation. Strategic merge patches touch nothing
//! of anybody else's, and carry the UID, so that a later Service of the same name is never meant.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use service_model::{Service, ServiceName};

use crate::desired::Provider;
use crate::metal::plan::ALLOCATED_IPS;

/// Other controllers write a new Service too; losing against them twice is no reason to wait.
const RECORD_TRIES: u32 = 3;

/// The API server answers within milliseconds, or the connection hangs: a job that waits for ever
/// would keep its Service from every later one.
const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Clone)]
pub struct Marks {
    client: Client,
    patience: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// Deleted, or created anew under the same name.
    #[error("the Service is gone")]
    Gone,
    /// Somebody wrote the Service at the same time.
    #[error("the Service changed meanwhile")]
    Conflict,
    #[error("the API server did not answer in time")]
    Silence,
    #[error(transparent)]
    Api(kube::Error),
}

/// The answer of the API server, or [`MarkError::Silence`].
///
/// # Errors
/// [`MarkError`]
pub(crate) async fn answer<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, MarkError> {
    answer_within(PATIENCE, call).await
}

async fn answer_within<T>(
    patience: Duration,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, MarkError> {
    let answer = tokio::time::timeout(patience, call).await.map_err(|_| MarkError::Silence)?;
    answer.map_err(MarkError::from)
}

impl Marks {
    pub fn new(client: Client) -> Self {
        Self { client, patience: PATIENCE }
    }

    /// Writes the address and the metal finalizer in one patch. It fails when the record is no
    /// longer the one in `service`: a leader that was replaced cannot overwrite its successor's.
    ///
    /// # Errors
    /// [`MarkError`]
    pub async fn record(&self, service: &Service, ip: IpAddr) -> Result<(), MarkError> {
        for _ in 0..RECORD_TRIES {
            let api = self.api(&service.name);
            let found = answer_within(self.patience, api.get_metadata(service.name.name())).await?.metadata;
            let Some(patch) = record_patch(service, ip, &found)? else { return Ok(()) };
            match self.patch(&service.name, &patch).await {
                Err(MarkError::Conflict) => {}
                other => return other,
            }
        }
        Err(MarkError::Conflict)
    }

    /// Keeps the Service from vanishing before the provider has cleaned up.
    ///
    /// # Errors
    /// [`MarkError`]
    pub async fn add_finalizer(&self, service: &Service, provider: Provider) -> Result<(), MarkError> {
        self.patch(&service.name, &marks_on(&service.uid, provider.finalizer(), None)).await
    }

    /// Takes the provider's marks off. A Service that is gone has none.
    ///
    /// # Errors
    /// [`MarkError`]
    pub async fn remove(&self, service: &Service, provider: Provider) -> Result<(), MarkError> {
        match self.patch(&service.name, &marks_off(service, provider)).await {
            Err(MarkError::Gone) => Ok(()),
            other => other,
        }
    }

    async fn patch(&self, service: &ServiceName, patch: &Value) -> Result<(), MarkError> {
        let api = self.api(service);
        let (params, patch) = (PatchParams::default(), Patch::Strategic(patch));
        answer_within(self.patience, api.patch_metadata(service.name(), &params, &patch)).await?;
        Ok(())
    }

    fn api(&self, service: &ServiceName) -> Api<v1::Service> {
        Api::namespaced(self.client.clone(), service.namespace())
    }
}

/// `None` when the record is there already. The resourceVersion makes it fail if anybody wrote the
/// Service since `found` was read.
fn record_patch(service: &Service, ip: IpAddr, found: &ObjectMeta) -> Result<Option<Value>, MarkError> {
    if found.uid.as_deref() != Some(&*service.uid) {
        return Err(MarkError::Gone);
    }
    let recorded = found.annotations.as_ref().and_then(|a| a.get(ALLOCATED_IPS)).map(String::as_str);
    let (text, finalizer) = (ip.to_string(), Provider::Metal.finalizer());
    if recorded == Some(&*text) && found.finalizers.iter().flatten().any(|f| f == finalizer) {
        return Ok(None);
    }
    if recorded.is_some_and(|r| r != text) && recorded != service.annotation(ALLOCATED_IPS) {
        return Err(MarkError::Conflict);
    }
    let mut patch = marks_on(&service.uid, finalizer, Some((ALLOCATED_IPS, &text)));
    patch["metadata"]["resourceVersion"] = json!(found.resource_version);
    Ok(Some(patch))
}

fn marks_on(uid: &str, finalizer: &str, annotation: Option<(&str, &str)>) -> Value {
    let mut metadata = json!({ "uid": uid, "finalizers": [finalizer] });
    if let Some((key, value)) = annotation {
        metadata["annotations"] = json!({ key: value });
    }
    json!({ "metadata": metadata })
}

fn marks_off(service: &Service, provider: Provider) -> Value {
    let mut metadata = json!({
        "uid": service.uid,
        "$deleteFromPrimitiveList/finalizers": [provider.finalizer()],
    });
    if provider == Provider::Metal {
        metadata["annotations"] = json!({ ALLOCATED_IPS: null });
    }
    json!({ "metadata": metadata })
}

impl From<kube::Error> for MarkError {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if status.code == 404 => Self::Gone,
            kube::Error::Api(status) if status.code == 409 => Self::Conflict,
            _ => Self::Api(error),
        }
    }
}

impl std::fmt::Debug for Marks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Marks")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(annotation: Option<&str>, finalizer: bool) -> ObjectMeta {
        ObjectMeta {
            uid: Some("u-1".to_owned()),
            resource_version: Some("7".to_owned()),
            annotations: annotation.map(|a| [(ALLOCATED_IPS.to_owned(), a.to_owned())].into()),
            finalizers: finalizer.then(|| vec![Provider::Metal.finalizer().to_owned()]),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn a_record_is_written_once_and_never_over_one_that_was_not_seen() {
        let mut service = Service::new(service_model::ObjectName::new("shop", "web"));
        service.uid = "u-1".into();
        let ip = "10.0.0.1".parse().unwrap();
        let patch = record_patch(&service, ip, &found(None, false)).unwrap().unwrap();
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        assert!(record_patch(&service, ip, &found(Some("10.0.0.1"), true)).unwrap().is_none());
        assert!(record_patch(&service, ip, &found(Some("10.0.0.1"), false)).unwrap().is_some());
        let foreign = found(Some("10.0.0.2"), true);
        assert!(matches!(record_patch(&service, ip, &foreign), Err(MarkError::Conflict)));
        service.annotations.insert(ALLOCATED_IPS.into(), "10.0.0.2".into());
        assert!(record_patch(&service, ip, &foreign).unwrap().is_some(), "known and replaced on purpose");
        service.uid = "u-2".into();
        assert!(matches!(record_patch(&service, ip, &foreign), Err(MarkError::Gone)));
    }

    #[tokio::test]
    async fn an_api_server_that_never_answers_costs_a_try_and_no_more() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let client = Client::try_from(kube::Config::new(uri)).unwrap();
        let marks = Marks { client, patience: Duration::from_millis(50) };
        let service = Service::new(service_model::ObjectName::new("shop", "web"));
        let silent = |result| matches!(result, Err(MarkError::Silence));
        assert!(silent(marks.record(&service, "10.0.0.1".parse().unwrap()).await));
        assert!(silent(marks.add_finalizer(&service, Provider::Aws).await));
        assert!(silent(marks.remove(&service, Provider::Aws).await));
    }

    #[test]
    fn a_patch_names_only_our_own_marks_and_the_uid() {
        let mut service = Service::new(service_model::ObjectName::new("shop", "web"));
        service.uid = "u-1".into();
        assert_eq!(
            marks_on("u-1", "fairlead.dev/metal", Some((ALLOCATED_IPS, "10.0.0.1"))),
            json!({"metadata": {
                "uid": "u-1",
                "finalizers": ["fairlead.dev/metal"],
                "annotations": {"fairlead.dev/allocated-ips": "10.0.0.1"},
            }})
        );
        assert_eq!(
            marks_off(&service, Provider::Metal),
            json!({"metadata": {
                "uid": "u-1",
                "$deleteFromPrimitiveList/finalizers": ["fairlead.dev/metal"],
                "annotations": {"fairlead.dev/allocated-ips": null},
            }})
        );
        assert_eq!(marks_off(&service, Provider::Aws)["metadata"].get("annotations"), None);
    }
}
