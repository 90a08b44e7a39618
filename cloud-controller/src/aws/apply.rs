//! Carries out one step and patches the snapshot with what it did: one match, no policy.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::api::{Api, ApiError, ErrorKind, NewListener, NewLoadBalancer, NewSecurityGroup, NewTargetGroup};
use super::names::{SECURITY_GROUP_DESCRIPTION, TAG_SERVICE_UID};
use super::resources::{
    Listener, LoadBalancer, LoadBalancerDetail, SecurityGroup, Tags, TargetGroup, TargetGroupDetail,
};
use super::security_groups::node_rule;
use super::snapshot::Snapshot;
use super::step::{Resource, Step};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The snapshot does not hold what the step refers to: it changed since the plan was made.
    #[error("{0} is not known any more")]
    Lost(String),
    /// AWS answered with a load balancer that was there before, and is not ours.
    #[error("a load balancer named {0} was made by somebody else meanwhile")]
    Foreign(String),
}

/// The snapshot, shared between reconciles; `None` until it was read, or while it is in doubt.
#[derive(Debug, Default)]
pub struct Mirror(Mutex<Option<(Snapshot, Instant)>>);

impl Mirror {
    pub fn read<T>(&self, look: impl FnOnce(&Snapshot) -> T) -> Option<T> {
        self.lock().as_ref().map(|(snapshot, _)| look(snapshot))
    }

    /// How long ago the account was listed.
    pub fn age(&self) -> Option<Duration> {
        self.lock().as_ref().map(|(_, listed)| listed.elapsed())
    }

    pub fn patch(&self, patch: impl FnOnce(&mut Snapshot)) {
        // Without a snapshot there is nothing to patch: it will be read, and show what was done.
        if let Some((snapshot, _)) = self.lock().as_mut() {
            patch(snapshot);
        }
    }

    pub fn replace(&self, snapshot: Option<Snapshot>) {
        *self.lock() = snapshot.map(|snapshot| (snapshot, Instant::now()));
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Snapshot, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find<T>(&self, what: &str, look: impl FnOnce(&Snapshot) -> Option<T>) -> Result<T, StepError> {
        self.read(look).flatten().ok_or_else(|| StepError::Lost(what.to_owned()))
    }

    fn load_balancer(&self, name: &str) -> Result<String, StepError> {
        self.find(name, |s| Some(s.load_balancers.get(name)?.arn.clone()))
    }

    fn target_group(&self, name: &str) -> Result<String, StepError> {
        self.find(name, |s| Some(s.target_groups.get(name)?.arn.clone()))
    }

    fn security_group(&self, name: &str) -> Result<String, StepError> {
        self.find(name, |s| Some(s.security_groups.get(name)?.id.clone()))
    }

    fn listener(&self, balancer: &str, port: u16) -> Result<String, StepError> {
        self.find(balancer, |s| Some(s.listener(balancer, port)?.arn.clone()))
    }

    fn resource(&self, resource: &Resource) -> Result<String, StepError> {
        match resource {
            Resource::LoadBalancer(name) => self.load_balancer(name),
            Resource::TargetGroup(name) => self.target_group(name),
            Resource::Listener { load_balancer, port } => self.listener(load_balancer, *port),
        }
    }
}

/// # Errors
/// Why the step was not, or perhaps not, carried out.
pub async fn apply<A: Api>(api: &A, vpc: &str, mirror: &Mirror, step: &Step) -> Result<(), StepError> {
    match step {
        Step::CreateSecurityGroup { name, tags } => {
            let description = SECURITY_GROUP_DESCRIPTION.to_owned();
            let new =
                NewSecurityGroup { name: name.clone(), vpc: vpc.to_owned(), description, tags: tags.clone() };
            let id = api.create_security_group(&new).await?;
            let NewSecurityGroup { name, tags, .. } = new;
            let group = SecurityGroup { id, name: name.clone(), tags, rules: [].into() };
            mirror.patch(|s| _ = s.security_groups.insert(name, group));
        }
        Step::Allow { group, rules } => {
            api.allow(&mirror.security_group(group)?, rules).await?;
            mirror.patch(|s| {
                if let Some(g) = s.security_groups.get_mut(group) {
                    g.rules.extend(rules.iter().cloned());
                }
            });
        }
        Step::Revoke { group, rules } => {
            gone_is_fine(api.revoke(&mirror.security_group(group)?, rules).await)?;
            mirror.patch(|s| {
                if let Some(g) = s.security_groups.get_mut(group) {
                    g.rules.retain(|rule| !rules.contains(rule));
                }
            });
        }
        Step::OpenNodes { group, to } => {
            let rule = node_rule(&mirror.security_group(to)?);
            api.allow(&mirror.security_group(group)?, std::slice::from_ref(&rule)).await?;
            mirror.patch(|s| {
                if let Some(g) = s.security_groups.get_mut(group) {
                    g.rules.insert(rule);
                }
            });
        }
        Step::CloseNodes { group, to } => {
            let rule = node_rule(&mirror.security_group(to)?);
            gone_is_fine(api.revoke(&mirror.security_group(group)?, std::slice::from_ref(&rule)).await)?;
            mirror.patch(|s| {
                if let Some(g) = s.security_groups.get_mut(group) {
                    g.rules.retain(|there| !there.allows_same(&rule));
                }
            });
        }
        Step::DeleteSecurityGroup { name } => {
            gone_is_fine(api.delete_security_group(&mirror.security_group(name)?).await)?;
            mirror.patch(|s| _ = s.security_groups.remove(name));
        }
        Step::CreateTargetGroup { name, protocol, port, health_check, tags } => {
            let new = NewTargetGroup {
                name: name.clone(),
                vpc: vpc.to_owned(),
                protocol: *protocol,
                port: *port,
                health_check: health_check.clone(),
                tags: tags.clone(),
            };
            let arn = api.create_target_group(&new).await?;
            mirror.patch(|s| _ = s.target_groups.insert(name.clone(), created_group(arn, new)));
        }
        Step::SetHealthCheck { target_group, health_check } => {
            api.set_health_check(&mirror.target_group(target_group)?, health_check).await?;
            mirror.patch(|s| {
                if let Some(group) = s.target_groups.get_mut(target_group) {
                    group.health_check = health_check.clone();
                }
            });
        }
        Step::SetTargetGroupAttributes { target_group, attributes } => {
            api.set_target_group_attributes(&mirror.target_group(target_group)?, attributes).await?;
            patch_targets(mirror, target_group, |d| d.attributes.extend(attributes.clone()));
        }
        Step::DeleteTargetGroup { name } => {
            gone_is_fine(api.delete_target_group(&mirror.target_group(name)?).await)?;
            mirror.patch(|s| _ = s.target_groups.remove(name));
        }
        Step::RegisterTargets { target_group, targets } => {
            api.register(&mirror.target_group(target_group)?, targets).await?;
            patch_targets(mirror, target_group, |d| d.targets.extend(targets.iter().cloned()));
        }
        Step::DeregisterTargets { target_group, targets } => {
            gone_is_fine(api.deregister(&mirror.target_group(target_group)?, targets).await)?;
            patch_targets(mirror, target_group, |d| d.targets.retain(|t| !targets.contains(t)));
        }
        Step::CreateLoadBalancer { name, scheme, subnets, security_group, tags } => {
            let new = NewLoadBalancer {
                name: name.clone(),
                scheme: *scheme,
                subnets: subnets.iter().cloned().collect(),
                security_groups: vec![mirror.security_group(security_group)?],
                tags: tags.clone(),
            };
            create_load_balancer(api, mirror, new).await?;
        }
        Step::SetLoadBalancerAttributes { load_balancer, attributes } => {
            api.set_load_balancer_attributes(&mirror.load_balancer(load_balancer)?, attributes).await?;
            patch_balancer(mirror, load_balancer, |_, d| d.attributes.extend(attributes.clone()));
        }
        Step::SetSubnets { load_balancer, subnets } => {
            let ids: Vec<String> = subnets.iter().cloned().collect();
            api.set_subnets(&mirror.load_balancer(load_balancer)?, &ids).await?;
            patch_balancer(mirror, load_balancer, |lb, _| lb.subnets.clone_from(subnets));
        }
        Step::SetSecurityGroup { load_balancer, security_group } => {
            let arn = mirror.load_balancer(load_balancer)?;
            let id = mirror.security_group(security_group)?;
            let mut groups = mirror.find(load_balancer, |s| {
                Some(s.load_balancers.get(load_balancer)?.security_groups.clone())
            })?;
            groups.insert(id);
            let ids: Vec<String> = groups.iter().cloned().collect();
            api.set_security_groups(&arn, &ids).await?;
            patch_balancer(mirror, load_balancer, |lb, _| lb.security_groups = groups);
        }
        Step::DeleteLoadBalancer { name } => {
            gone_is_fine(api.delete_load_balancer(&mirror.load_balancer(name)?).await)?;
            mirror.patch(|s| _ = s.load_balancers.remove(name));
        }
        Step::CreateListener { load_balancer, port, protocol, target_group, tags } => {
            let new = NewListener {
                load_balancer: mirror.load_balancer(load_balancer)?,
                port: *port,
                protocol: *protocol,
                target_group: mirror.target_group(target_group)?,
                tags: tags.clone(),
            };
            let arn = api.create_listener(&new).await?;
            let NewListener { port, protocol, target_group, tags, .. } = new;
            let listener = Listener { arn, port, protocol, target_groups: vec![target_group], tags };
            patch_balancer(mirror, load_balancer, |_, d| _ = d.listeners.insert(port, listener));
        }
        Step::SetListener { load_balancer, port, protocol, target_group } => {
            let group = mirror.target_group(target_group)?;
            api.set_listener(&mirror.listener(load_balancer, *port)?, *protocol, &group).await?;
            mirror.patch(|s| {
                if let Some(listener) = s.listener_mut(load_balancer, *port) {
                    listener.protocol = *protocol;
                    listener.target_groups = vec![group];
                }
            });
        }
        Step::DeleteListener { load_balancer, port } => {
            gone_is_fine(api.delete_listener(&mirror.listener(load_balancer, *port)?).await)?;
            patch_balancer(mirror, load_balancer, |_, d| _ = d.listeners.remove(port));
        }
        Step::Tag { resources, tags } => {
            let arns = arns(mirror, resources)?;
            api.add_tags(&arns, tags).await?;
            patch_tags(mirror, resources, |t| t.extend(tags.clone()));
        }
        Step::Untag { resources, keys } => {
            let arns = arns(mirror, resources)?;
            api.remove_tags(&arns, keys).await?;
            patch_tags(mirror, resources, |t| t.retain(|key, _| !keys.contains(key)));
        }
        Step::TagSecurityGroup { name, tags } => {
            api.tag_security_group(&mirror.security_group(name)?, tags).await?;
            mirror.patch(|s| {
                if let Some(group) = s.security_groups.get_mut(name) {
                    group.tags.extend(tags.clone());
                }
            });
        }
        Step::UntagSecurityGroup { name, keys } => {
            api.untag_security_group(&mirror.security_group(name)?, keys).await?;
            mirror.patch(|s| {
                if let Some(group) = s.security_groups.get_mut(name) {
                    group.tags.retain(|key, _| !keys.contains(key));
                }
            });
        }
    }
    Ok(())
}

/// AWS answers with the existing load balancer if one of that name has the same settings, whoever
/// made it: the tags tell.
async fn create_load_balancer<A: Api>(
    api: &A,
    mirror: &Mirror,
    new: NewLoadBalancer,
) -> Result<(), StepError> {
    let created = api.create_load_balancer(&new).await?;
    let tags = api.tags(std::slice::from_ref(&created.arn)).await?.remove(&created.arn).unwrap_or_default();
    let is_ours = tags.get(TAG_SERVICE_UID) == new.tags.get(TAG_SERVICE_UID);
    let balancer = LoadBalancer {
        arn: created.arn,
        name: new.name.clone(),
        dns_name: created.dns_name,
        scheme: new.scheme,
        subnets: new.subnets.into_iter().collect(),
        security_groups: new.security_groups.into_iter().collect(),
        tags,
        detail: Some(LoadBalancerDetail::default()),
    };
    mirror.patch(|s| _ = s.load_balancers.insert(new.name.clone(), balancer));
    if is_ours { Ok(()) } else { Err(StepError::Foreign(new.name)) }
}

fn created_group(arn: String, new: NewTargetGroup) -> TargetGroup {
    let NewTargetGroup { name, protocol, port, health_check, tags, .. } = new;
    let detail = Some(TargetGroupDetail::default());
    TargetGroup { arn, name, protocol, port, of_instances: true, health_check, tags, detail }
}

fn arns(mirror: &Mirror, resources: &[Resource]) -> Result<Vec<String>, StepError> {
    resources.iter().map(|r| mirror.resource(r)).collect()
}

fn patch_balancer(
    mirror: &Mirror,
    name: &str,
    patch: impl FnOnce(&mut LoadBalancer, &mut LoadBalancerDetail),
) {
    mirror.patch(|s| {
        let Some(balancer) = s.load_balancers.get_mut(name) else { return };
        // Taken out for the time of the patch, so that both can be changed.
        if let Some(mut detail) = balancer.detail.take() {
            patch(balancer, &mut detail);
            balancer.detail = Some(detail);
        }
    });
}

fn patch_targets(mirror: &Mirror, name: &str, patch: impl FnOnce(&mut TargetGroupDetail)) {
    mirror.patch(|s| {
        if let Some(detail) = s.target_groups.get_mut(name).and_then(|g| g.detail.as_mut()) {
            patch(detail);
        }
    });
}

fn patch_tags(mirror: &Mirror, resources: &[Resource], patch: impl Fn(&mut Tags)) {
    mirror.patch(|s| {
        for resource in resources {
            let tags = match resource {
                Resource::LoadBalancer(name) => s.load_balancers.get_mut(name).map(|lb| &mut lb.tags),
                Resource::TargetGroup(name) => s.target_groups.get_mut(name).map(|g| &mut g.tags),
                Resource::Listener { load_balancer, port } => {
                    s.listener_mut(load_balancer, *port).map(|l| &mut l.tags)
                }
            };
            if let Some(tags) = tags {
                patch(tags);
            }
        }
    });
}

/// Somebody else was faster in taking it away.
fn gone_is_fine(result: Result<(), ApiError>) -> Result<(), ApiError> {
    match result {
        Err(error) if error.kind == ErrorKind::NotFound || error.code == "InvalidTarget" => Ok(()),
        other => other,
    }
}
