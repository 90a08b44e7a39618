//! A Service with its slices, as the API server takes them, and as a fixture on disk.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lab::programs;
use serde::de::Deserialize;
use serde_json::Value;

use crate::features::{self, Feature};
use crate::legacy;
use crate::twin::{self, Source};

/// On objects of a fixture that say what the Service was before.
const STAGE: &str = "differential/stage";
/// On the Service of a fixture: features that node-agent must have for it, separated by commas.
const NEEDS: &str = "differential/needs";

/// One Service through its whole life.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub before: Option<State>,
    pub now: State,
}

/// A Service and its endpoints at one time.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct State {
    pub service: Service,
    pub slices: Vec<EndpointSlice>,
}

impl Case {
    /// The case under a name and with external addresses that no other has, all of them made from
    /// the numbers. `address` grows by as many as were taken.
    #[must_use]
    pub(crate) fn numbered(mut self, number: usize, address: &mut u32) -> Self {
        let first = *address;
        for state in self.before.iter_mut().chain([&mut self.now]) {
            let mut own = first;
            state.number(number, &mut own);
            *address = (*address).max(own);
        }
        self
    }

    /// Whether it is an endpoint here that its slice puts on another node, or on none.
    pub(crate) fn misplaces(&self, source: Source) -> bool {
        let Source::Pod(number) = source else { return false };
        let own = twin::endpoint(number - 1);
        let mut endpoints = self.now.slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
        endpoints.any(|endpoint| {
            endpoint.node_name.as_deref() != Some(twin::NODE)
                && endpoint.addresses.iter().any(|ip| legacy::parse(ip).is_ok_and(|ip| own.contains(&ip)))
        })
    }

    pub(crate) fn to_yaml(&self) -> Result<String> {
        let mut text = String::new();
        for (state, stage) in self.before.iter().map(|state| (state, true)).chain([(&self.now, false)]) {
            let mut objects = vec![serde_json::to_value(&state.service)?];
            for slice in &state.slices {
                objects.push(serde_json::to_value(slice)?);
            }
            for mut object in objects {
                if stage {
                    object["metadata"]["annotations"][STAGE] = "before".into();
                }
                text += &format!("---\n{}", serde_yaml_ng::to_string(&without_empty(object))?);
            }
        }
        Ok(text)
    }

    /// A fixture, and the features it needs.
    pub(crate) fn from_yaml(text: &str) -> Result<(Self, Vec<Feature>)> {
        let mut needs = Vec::new();
        let (mut before, mut now) = (Vec::new(), Vec::new());
        for document in serde_yaml_ng::Deserializer::from_str(text) {
            let mut object = Value::deserialize(document)?;
            let mut annotation = |name: &str| match object.pointer_mut("/metadata/annotations") {
                Some(Value::Object(all)) => all.remove(name),
                _ => None,
            };
            if let Some(Value::String(names)) = annotation(NEEDS) {
                needs = names.split(',').map(features::named).collect::<Result<_>>()?;
            }
            let stage = if annotation(STAGE).is_some() { &mut before } else { &mut now };
            stage.push(object);
        }
        let before = if before.is_empty() { None } else { Some(State::from_objects(before)?) };
        Ok((Self { before, now: State::from_objects(now)? }, needs))
    }
}

impl State {
    fn from_objects(objects: Vec<Value>) -> Result<Self> {
        let mut service = None;
        let mut slices = Vec::new();
        for object in objects {
            match object["kind"].as_str() {
                Some("Service") => service = Some(serde_json::from_value(object)?),
                Some("EndpointSlice") => slices.push(serde_json::from_value(object)?),
                other => bail!("a fixture has a Service and EndpointSlices, not {other:?}"),
            }
        }
        Ok(Self { service: service.context("a fixture has a Service")?, slices })
    }

    fn number(&mut self, number: usize, address: &mut u32) {
        let name = format!("case-{number}");
        self.service.metadata.name = Some(name.clone());
        for (nth, slice) in self.slices.iter_mut().enumerate() {
            let ObjectMeta { name: own_name, generate_name, labels, .. } = &mut slice.metadata;
            labels.get_or_insert_default().insert("kubernetes.io/service-name".into(), name.clone());
            // Of the slices before and after, those in the same place are the same object.
            *own_name = Some(format!("{name}-{}-{nth}", slice.address_type.to_lowercase()));
            *generate_name = None;
        }
        let spec = self.service.spec.get_or_insert_default();
        let status = self.service.status.get_or_insert_default();
        let ingress = status.load_balancer.get_or_insert_default().ingress.iter_mut().flatten();
        let external = spec.external_ips.iter_mut().flatten();
        for text in external.chain(ingress.filter_map(|ingress| ingress.ip.as_mut())) {
            *text = legacy::spelt_like(text, external_address(*address, text.contains(':')));
            *address += 1;
        }
    }
}

/// Fields that say nothing make a fixture harder to read.
fn without_empty(value: Value) -> Value {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| (name, without_empty(value)));
            fields.filter(|(_, value)| !empty(value)).collect()
        }
        Value::Array(items) => items.into_iter().map(without_empty).collect(),
        other => other,
    }
}

/// The nth address of `twin::VIPS`.
fn external_address(number: u32, v6: bool) -> IpAddr {
    if v6 {
        let [a, b, c, d] = number.to_be_bytes();
        let low = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
        Ipv6Addr::new(0xfd00, 0x198, 0x18, 0, 0, 0, low[0], low[1]).into()
    } else {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + number).into()
    }
}

/// The fixtures that are worth replaying with these features.
///
/// # Errors
/// With the file that cannot be read.
pub(crate) fn fixtures(features: &BTreeSet<Feature>) -> Result<Vec<Case>> {
    let folder = programs::workspace().join("tests/differential/fixtures");
    let mut paths = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    ensure!(!paths.is_empty(), "no fixture in {}", folder.display());
    let mut cases = Vec::new();
    for path in paths {
        let (case, needs) = fixture(&path)?;
        cases.extend(needs.iter().all(|need| features.contains(need)).then_some(case));
    }
    Ok(cases)
}

/// # Errors
/// With the file that cannot be read.
pub(crate) fn fixture(path: &Path) -> Result<(Case, Vec<Feature>)> {
    let read = || Case::from_yaml(&fs::read_to_string(path)?);
    read().with_context(|| format!("reading {}", path.display()))
}
