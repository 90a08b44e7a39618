//! Cases into the API server, and out of it again.

use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use futures::stream::{self, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use crate::cases::{Case, State};
use crate::endpoints::PORTS;
use crate::lab_of_two::LabOfTwo;
use crate::shared;
use crate::twin::{self, ELSEWHERE, LOCAL};

/// Requests to the API server at the same time.
const REQUESTS: usize = 16;

/// The objects of one namespace.
struct Objects {
    services: Api<Service>,
    slices: Api<EndpointSlice>,
}

impl LabOfTwo {
    /// Loads the cases in place of those before, and returns their Services once both programs
    /// know them.
    pub(crate) async fn load(&self, cases: &[Case]) -> Result<Vec<Service>> {
        let number = self.batches.fetch_add(1, Ordering::Relaxed);
        let objects = self.namespace(number).await?;
        let mut address = self.addresses.load(Ordering::Relaxed);
        let numbered = cases.iter().cloned().enumerate().map(|(nth, case)| case.numbered(nth, &mut address));
        let mut cases: Vec<Case> = numbered.collect();
        shared::share(&mut cases)?;
        self.addresses.store(address, Ordering::Relaxed);

        if let Some(previous) = number.checked_sub(1) {
            self.objects(previous).delete_all().await?;
        }
        let first = |case: &Case| case.before.clone().unwrap_or_else(|| case.now.clone());
        let states: Vec<State> = cases.iter().map(first).collect();
        all(states.iter(), |state| objects.create(state)).await?;
        self.await_twins(&objects.create_last("last-of-all").await?).await?;
        if cases.iter().any(|case| case.before.is_some()) {
            let changed = cases.iter().filter(|case| case.before.is_some());
            all(changed, |case| objects.change(case)).await?;
            self.await_twins(&objects.create_last("last-of-all-changes").await?).await?;
        }
        all(cases.iter(), |case| objects.service(case)).await
    }

    async fn namespace(&self, batch: u32) -> Result<Objects> {
        let namespaces: Api<Namespace> = Api::all(self.control_plane.client.clone());
        let namespace = serde_json::from_value(json!({"metadata": {"name": namespace(batch)}}))?;
        namespaces.create(&PostParams::default(), &namespace).await?;
        Ok(self.objects(batch))
    }

    fn objects(&self, batch: u32) -> Objects {
        let (client, namespace) = (self.control_plane.client.clone(), namespace(batch));
        Objects {
            services: Api::namespaced(client.clone(), &namespace),
            slices: Api::namespaced(client, &namespace),
        }
    }
}

fn namespace(batch: u32) -> String {
    format!("batch-{batch}")
}

/// Does it for all, some at a time; results in order.
async fn all<T, R, F>(items: impl Iterator<Item = T>, work: impl Fn(T) -> F) -> Result<Vec<R>>
where
    F: Future<Output = Result<R>>,
{
    stream::iter(items).map(work).buffered(REQUESTS).try_collect().await
}

impl Objects {
    async fn create(&self, state: &State) -> Result<()> {
        let refused = || format!("creating\n{}", serde_yaml_ng::to_string(state).unwrap_or_default());
        let params = PostParams::default();
        let name = state.service.name_any();
        self.services.create(&params, &state.service).await.with_context(refused)?;
        if let Some(status) = &state.service.status
            && status.load_balancer.as_ref().is_some_and(|balancer| balancer.ingress.is_some())
        {
            let patch = Patch::Merge(json!({"status": status}));
            self.services.patch_status(&name, &PatchParams::default(), &patch).await.with_context(refused)?;
        }
        for slice in &state.slices {
            self.slices.create(&params, slice).await.with_context(refused)?;
        }
        Ok(())
    }

    async fn service(&self, case: &Case) -> Result<Service> {
        Ok(self.services.get(&case.now.service.name_any()).await?)
    }

    /// From what the case was before to what it is now.
    async fn change(&self, case: &Case) -> Result<()> {
        let now = &case.now;
        let spec = Patch::Merge(json!({"spec": now.service.spec}));
        self.services.patch(&now.service.name_any(), &PatchParams::default(), &spec).await?;
        let before: Vec<String> =
            case.before.iter().flat_map(|before| &before.slices).map(ResourceExt::name_any).collect();
        for slice in &now.slices {
            let name = slice.name_any();
            if before.contains(&name) {
                self.slices.replace(&name, &PostParams::default(), slice).await?;
            } else {
                self.slices.create(&PostParams::default(), slice).await?;
            }
        }
        for gone in before.iter().filter(|name| now.slices.iter().all(|slice| slice.name_any() != **name)) {
            self.slices.delete(gone, &DeleteParams::default()).await?;
        }
        Ok(())
    }

    /// A Service that is served once all that was made before it is; its addresses.
    async fn create_last(&self, name: &str) -> Result<Vec<IpAddr>> {
        let port = json!([{"port": 80}]);
        let service = json!({
            "metadata": {"name": name},
            "spec": {"ipFamilyPolicy": "RequireDualStack", "ports": port},
        });
        let service = self.services.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
        for (family, address) in ["IPv4", "IPv6"].iter().zip(twin::endpoint(LOCAL)) {
            let slice = json!({
                "metadata": {
                    "name": format!("{name}-{}", family.to_lowercase()),
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": family,
                "ports": [{"name": "", "protocol": "TCP", "port": PORTS[0]}],
                "endpoints": [{"addresses": [address], "nodeName": ELSEWHERE}],
            });
            self.slices.create(&PostParams::default(), &serde_json::from_value(slice)?).await?;
        }
        let addresses = service.spec.and_then(|spec| spec.cluster_ips).context("it has addresses")?;
        addresses.iter().map(|text| Ok(text.parse()?)).collect()
    }

    async fn delete_all(&self) -> Result<()> {
        tokio::try_join!(delete_all(&self.services), delete_all(&self.slices)).map(drop)
    }
}

async fn delete_all<K>(api: &Api<K>) -> Result<()>
where
    K: Resource + Clone + Debug + serde::de::DeserializeOwned,
{
    let names: Vec<String> =
        api.list_metadata(&ListParams::default()).await?.iter().map(ResourceExt::name_any).collect();
    let delete = async |name: &str| Ok(api.delete(name, &DeleteParams::default()).await?);
    all(names.iter(), |name| delete(name)).await.map(drop)
}
