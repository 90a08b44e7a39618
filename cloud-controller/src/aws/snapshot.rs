//! What we know of the account: bulk list pages with their tags, patched by our own writes. A
//! reconcile reads this and never asks AWS what it already knows.
//!
//! Names are the keys, because plans name resources and AWS keeps names unique: load balancers
//! and target groups in an account and region, security groups in a VPC.

use std::collections::BTreeMap;

use super::names::{Identity, Role, TAG_RESOURCE, TAG_SERVICE_UID, TargetGroupKey};
use super::resources::{
    Listener, LoadBalancer, LoadBalancerDetail, Scheme, SecurityGroup, Subnet, Tags, TargetGroup,
    TargetGroupDetail,
};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// By id; of the VPC.
    pub subnets: BTreeMap<String, Subnet>,
    /// By name; of the VPC.
    pub security_groups: BTreeMap<String, SecurityGroup>,
    /// By name; of the account and region, whoever's they are.
    pub load_balancers: BTreeMap<String, LoadBalancer>,
    /// By name; of the account and region, whoever's they are.
    pub target_groups: BTreeMap<String, TargetGroup>,
}

/// Whose a resource is, if its tags name our Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// This Service's: its UID is on it, or in the hash of its name, or it serves what is.
    Ours,
    /// An earlier Service's of the same name: another UID is on it.
    Former,
    /// Nothing tells in which life of the Service it was made.
    Unproven,
}

/// One Service's share of the snapshot, read in full.
#[derive(Debug, Clone)]
pub struct Observed<'a> {
    pub snapshot: &'a Snapshot,
    pub load_balancers: Vec<Found<'a, LoadBalancer, LoadBalancerDetail>>,
    pub target_groups: Vec<Found<'a, TargetGroup, TargetGroupDetail>>,
    pub security_groups: Vec<Found<'a, SecurityGroup, ()>>,
}

#[derive(Debug, Clone, Copy)]
pub struct Found<'a, R, D> {
    pub owner: Owner,
    pub resource: &'a R,
    pub detail: &'a D,
}

/// What has to be read before a Service can be planned, as ARNs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lacking {
    pub load_balancers: Vec<String>,
    pub target_groups: Vec<String>,
}

impl Snapshot {
    /// The Service's resources.
    ///
    /// # Errors
    /// What has to be read first.
    pub fn observed(&self, id: &Identity) -> Result<Observed<'_>, Lacking> {
        let mut lacking = Lacking::default();
        let mut load_balancers: Vec<Found<'_, LoadBalancer, LoadBalancerDetail>> = Vec::new();
        for lb in self.load_balancers.values().filter(|lb| id.is_stack_of(&lb.tags)) {
            let by_default = [Scheme::Internal, Scheme::InternetFacing].map(|s| id.load_balancer_name(s));
            let owner = owner(&lb.tags, id, || by_default.contains(&lb.name));
            match &lb.detail {
                Some(detail) => load_balancers.push(Found { owner, resource: lb, detail }),
                None => lacking.load_balancers.push(lb.arn.clone()),
            }
        }
        let served: Vec<&String> = load_balancers
            .iter()
            .filter(|f| f.owner == Owner::Ours)
            .flat_map(|f| f.detail.listeners.values().flat_map(|l| &l.target_groups))
            .collect();
        let mut target_groups = Vec::new();
        for group in self.target_groups.values().filter(|g| id.is_stack_of(&g.tags)) {
            let owner = owner(&group.tags, id, || served.contains(&&group.arn) || is_named_after(group, id));
            match &group.detail {
                Some(detail) => target_groups.push(Found { owner, resource: group, detail }),
                None => lacking.target_groups.push(group.arn.clone()),
            }
        }
        let security_groups = self.security_groups.values().filter(|g| id.is_stack_of(&g.tags));
        let security_groups = security_groups
            .map(|group| Found {
                owner: owner(&group.tags, id, || group.name == id.security_group_name()),
                resource: group,
                detail: &(),
            })
            .collect();
        if lacking == Lacking::default() {
            Ok(Observed { snapshot: self, load_balancers, target_groups, security_groups })
        } else {
            Err(lacking)
        }
    }

    /// Keeps the details that an earlier snapshot knows and no list shows, but for those of one
    /// Service, which are to be read again.
    pub fn with_details_of(mut self, earlier: &Self, but_for: &Identity) -> Self {
        for (name, lb) in self.load_balancers.iter_mut().filter(|(_, lb)| !but_for.is_stack_of(&lb.tags)) {
            let known = earlier.load_balancers.get(name).filter(|known| known.arn == lb.arn);
            lb.detail = known.and_then(|known| known.detail.clone());
        }
        for (name, group) in self.target_groups.iter_mut().filter(|(_, g)| !but_for.is_stack_of(&g.tags)) {
            let known = earlier.target_groups.get(name).filter(|known| known.arn == group.arn);
            group.detail = known.and_then(|known| known.detail.clone());
        }
        self
    }

    pub fn load_balancer_by_arn(&mut self, arn: &str) -> Option<&mut LoadBalancer> {
        self.load_balancers.values_mut().find(|lb| lb.arn == arn)
    }

    pub fn target_group_by_arn(&mut self, arn: &str) -> Option<&mut TargetGroup> {
        self.target_groups.values_mut().find(|g| g.arn == arn)
    }

    /// A listener that is known.
    pub fn listener(&self, load_balancer: &str, port: u16) -> Option<&Listener> {
        self.load_balancers.get(load_balancer)?.detail.as_ref()?.listeners.get(&port)
    }

    pub fn listener_mut(&mut self, load_balancer: &str, port: u16) -> Option<&mut Listener> {
        self.load_balancers.get_mut(load_balancer)?.detail.as_mut()?.listeners.get_mut(&port)
    }
}

impl<'a> Observed<'a> {
    /// The load balancer that serves this Service.
    pub fn load_balancer(&self) -> Option<&Found<'a, LoadBalancer, LoadBalancerDetail>> {
        self.load_balancers.iter().find(|f| f.owner == Owner::Ours)
    }

    pub fn security_group(&self) -> Option<&'a SecurityGroup> {
        self.security_groups.iter().find(|f| f.owner == Owner::Ours).map(|f| f.resource)
    }

    /// Target groups of this Service, by the tag that says for which port.
    pub fn target_groups_of(
        &self,
        id: &Identity,
        port: u16,
    ) -> impl Iterator<Item = &Found<'a, TargetGroup, TargetGroupDetail>> {
        let resource = id.tags(Role::TargetGroup(port)).remove(TAG_RESOURCE);
        self.target_groups
            .iter()
            .filter(move |f| f.owner == Owner::Ours && f.resource.tags.get(TAG_RESOURCE) == resource.as_ref())
    }
}

fn owner(tags: &Tags, id: &Identity, name_proves: impl FnOnce() -> bool) -> Owner {
    match tags.get(TAG_SERVICE_UID) {
        Some(uid) if *uid == id.uid => Owner::Ours,
        Some(_) => Owner::Former,
        None if name_proves() => Owner::Ours,
        None => Owner::Unproven,
    }
}

/// Whether the group's name is the one that this Service's UID gives it.
fn is_named_after(group: &TargetGroup, id: &Identity) -> bool {
    let resource = group.tags.get(TAG_RESOURCE).map_or("", String::as_str);
    let Some(service_port) = resource.rsplit(':').next().and_then(|p| p.parse().ok()) else { return false };
    let key = TargetGroupKey {
        target_port: group.port,
        service_port,
        protocol: group.protocol,
        health_protocol: group.health_check.protocol,
        health_interval: group.health_check.interval,
    };
    group.name == id.target_group_name(&key)
}
