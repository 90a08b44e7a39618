//! Giving a Service its load balancer, or bringing the one it has in line.

use std::collections::BTreeSet;

use super::tags::{self, Retagging};
use super::{
    Decision, Obstacle, PROTECTION, delete_load_balancers, delete_the_rest, is_protected, protected_note,
};
use crate::aws::annotations::key;
use crate::aws::desired::{Desired, DesiredListener};
use crate::aws::names::{Role, TAG_SERVICE_UID};
use crate::aws::resources::{
    Attributes, LoadBalancer, LoadBalancerDetail, Scheme, SecurityGroup, Target, TargetGroup,
    TargetGroupDetail,
};
use crate::aws::security_groups::{difference, frontend_rules, node_rule, node_tag, of_nodes};
use crate::aws::snapshot::{Found, Observed, Owner};
use crate::aws::step::{Resource, Step};
use crate::aws::subnets;
use crate::plan::Note;

/// AWS takes up to 1000 targets in a call; AWS Load Balancer Controller sends 200.
const TARGETS_A_CALL: usize = 200;

type FoundLb<'a> = Found<'a, LoadBalancer, LoadBalancerDetail>;
type FoundGroup<'a> = Found<'a, TargetGroup, TargetGroupDetail>;

/// For a Service that is ours and whose desired state holds no mistake. `refused` are instances that
/// AWS does not take as targets now; those that are targets already stay.
pub fn serve(
    desired: &Desired,
    refused: &BTreeSet<String>,
    mut remarks: Vec<Note>,
    observed: &Observed<'_>,
) -> Decision {
    match Serve::begin(desired, refused, observed) {
        Ok(serve) => {
            remarks.extend(serve.remarks());
            Decision::steps(serve.steps(), remarks)
        }
        Err((obstacle, note)) => {
            remarks.push(note);
            Decision::blocked(obstacle, remarks)
        }
    }
}

/// What is decided before the first step.
struct Serve<'a> {
    desired: &'a Desired,
    refused: &'a BTreeSet<String>,
    observed: &'a Observed<'a>,
    scheme: Scheme,
    subnets: BTreeSet<String>,
    /// The load balancer that stays.
    kept: Option<&'a FoundLb<'a>>,
    /// Its name, or the new one's.
    name: String,
    /// The security group's name.
    group: String,
    targets: Vec<TargetPlan<'a>>,
}

/// A listener and the target group that serves it.
struct TargetPlan<'a> {
    listener: &'a DesiredListener,
    kept: Option<&'a FoundGroup<'a>>,
    name: String,
}

impl<'a> Serve<'a> {
    fn begin(
        desired: &'a Desired,
        refused: &'a BTreeSet<String>,
        observed: &'a Observed<'a>,
    ) -> Result<Self, (Obstacle, Note)> {
        let existing = observed.load_balancer();
        let scheme = desired.scheme.or(existing.map(|f| f.resource.scheme)).unwrap_or(Scheme::Internal);
        let is_kept = |f: &&FoundLb<'_>| f.owner == Owner::Ours && f.resource.scheme == scheme;
        let kept = observed.load_balancers.iter().find(is_kept);
        let name = kept.map(|f| f.resource.name.clone()).or_else(|| desired.name.clone());
        let name = name.unwrap_or_else(|| desired.id.load_balancer_name(scheme));
        let group = observed.security_group().map(|g| g.name.clone());
        let group = group.unwrap_or_else(|| desired.id.security_group_name());
        let targets =
            desired.listeners.values().map(|l| TargetPlan::choose(l, desired, observed, kept)).collect();
        let subnets = subnets::choose(
            &observed.snapshot.subnets,
            (desired.subnets.as_deref(), kept.map(|f| &f.resource.subnets)),
            scheme,
            &desired.id.cluster,
        )
        .map_err(|note| (Obstacle::Account, note))?;
        let serve = Self { desired, refused, observed, scheme, subnets, kept, name, group, targets };
        serve.check_names().map_err(|note| (Obstacle::Account, note))?;
        serve.check_protection()?;
        Ok(serve)
    }

    /// What is not ours is never touched, and never taken over because it has our name.
    fn check_names(&self) -> Result<(), Note> {
        if let Some(found) = self.observed.load_balancers.iter().find(|f| f.owner == Owner::Unproven) {
            return Err(Note::warning(
                "LoadBalancerNotOurs",
                format!(
                    "load balancer {} carries this Service's name but not its UID: to hand it over, give it the \
                     tag {TAG_SERVICE_UID}={}, else delete it",
                    found.resource.name, self.desired.id.uid
                ),
            ));
        }
        let snapshot = self.observed.snapshot;
        let stack = |tags| self.desired.id.is_stack_of(tags);
        let balancer = snapshot.load_balancers.get(&self.name).map(|lb| &lb.tags);
        let group = snapshot.security_groups.get(&self.group).map(|g| &g.tags);
        let mut taken = Vec::new();
        if balancer.is_some_and(|tags| !stack(tags)) {
            taken.push(format!("a load balancer named {}", self.name));
        }
        if group.is_some_and(|tags| !stack(tags)) {
            taken.push(format!("a security group named {}", self.group));
        }
        for target in &self.targets {
            if snapshot.target_groups.get(&target.name).is_some_and(|g| !stack(&g.tags)) {
                taken.push(format!("a target group named {}", target.name));
            }
        }
        if taken.is_empty() {
            return Ok(());
        }
        Err(Note::warning(
            "NameTaken",
            format!(
                "there is {} already, which is not this Service's and is left alone: delete it, or choose \
                 another name in {}",
                taken.join(" and "),
                key("name")
            ),
        ))
    }

    fn check_protection(&self) -> Result<(), (Obstacle, Note)> {
        let protected = |f: &&FoundLb<'_>| is_protected(f.detail);
        let wanted = self.desired.attributes.get(PROTECTION).is_some_and(|value| value == "true");
        let by = if wanted { Obstacle::Service } else { Obstacle::Account };
        match self.leaving().find(protected) {
            Some(found) => Err((by, protected_note(found, "replaced"))),
            None => Ok(()),
        }
    }

    /// Load balancers that make room: an earlier Service's, and one of another scheme, which AWS
    /// cannot change.
    fn leaving(&self) -> impl Iterator<Item = &'a FoundLb<'a>> {
        let kept = self.kept.map(|f| &f.resource.name);
        let leaves = move |f: &&FoundLb<'_>| f.owner != Owner::Unproven && Some(&f.resource.name) != kept;
        self.observed.load_balancers.iter().filter(leaves)
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        // First what may hold the name, last what nobody sees.
        delete_load_balancers(self.observed, Owner::Former, &mut steps);
        self.retag(&mut steps);
        self.security_group(&mut steps);
        for target in &self.targets {
            self.target_group(target, &mut steps);
        }
        // Old and new forward to the same target groups, which AWS allows for one at a time.
        for found in self.leaving().filter(|f| f.owner == Owner::Ours) {
            steps.push(Step::DeleteLoadBalancer { name: found.resource.name.clone() });
        }
        self.load_balancer(&mut steps);
        self.listeners(&mut steps);
        self.clean_up(&mut steps);
        delete_the_rest(self.observed, Owner::Former, &mut steps);
        steps
    }

    fn retag(&self, steps: &mut Vec<Step>) {
        let mut retagging = Retagging::default();
        if let Some(lb) = self.kept {
            let wanted = tags::wanted(self.desired, Role::LoadBalancer);
            retagging.compare(Resource::LoadBalancer(self.name.clone()), &wanted, &lb.resource.tags);
            for listener in lb.detail.listeners.values() {
                if self.desired.listeners.contains_key(&listener.port) {
                    let resource =
                        Resource::Listener { load_balancer: self.name.clone(), port: listener.port };
                    let wanted = tags::wanted(self.desired, Role::Listener(listener.port));
                    retagging.compare(resource, &wanted, &listener.tags);
                }
            }
        }
        for target in &self.targets {
            if let Some(found) = target.kept {
                let wanted = tags::wanted(self.desired, Role::TargetGroup(target.listener.port));
                retagging.compare(Resource::TargetGroup(target.name.clone()), &wanted, &found.resource.tags);
            }
        }
        steps.extend(retagging.steps());
    }

    fn security_group(&self, steps: &mut Vec<Step>) {
        let wanted_tags = tags::wanted(self.desired, Role::SecurityGroup);
        let wanted = frontend_rules(self.desired);
        let there = self.observed.security_group();
        match there {
            Some(group) => steps.extend(tags::security_group(&self.group, &wanted_tags, &group.tags)),
            None => steps.push(Step::CreateSecurityGroup { name: self.group.clone(), tags: wanted_tags }),
        }
        let rules = there.map(|g| &g.rules).into_iter().flatten();
        let (missing, _) = difference(&wanted, rules);
        if !missing.is_empty() {
            steps.push(Step::Allow { group: self.group.clone(), rules: missing });
        }
        for nodes in of_nodes(&self.observed.snapshot.security_groups, &self.desired.id.cluster) {
            let opens = |group: &SecurityGroup| {
                let wanted = node_rule(&group.id);
                nodes.rules.iter().any(|rule| rule.allows_same(&wanted))
            };
            if !there.is_some_and(opens) {
                steps.push(Step::OpenNodes { group: nodes.name.clone(), to: self.group.clone() });
            }
        }
    }

    /// Where the nodes' own security groups are not known, the user has to open them.
    fn remarks(&self) -> Option<Note> {
        let cluster = &self.desired.id.cluster;
        let known = of_nodes(&self.observed.snapshot.security_groups, cluster).next().is_some();
        (!known).then(|| {
            Note::normal(
                "NodesNotOpened",
                format!(
                    "no security group of the VPC has the tag {}, so the nodes were not opened to the load \
                     balancer: give their group that tag, or allow traffic from {} in it",
                    node_tag(cluster),
                    self.group
                ),
            )
        })
    }

    fn target_group(&self, target: &TargetPlan<'_>, steps: &mut Vec<Step>) {
        let (name, listener) = (&target.name, target.listener);
        match target.kept {
            Some(found) => {
                if !listener.health_check.is_met_by(&found.resource.health_check) {
                    let health_check = listener.health_check.clone();
                    steps.push(Step::SetHealthCheck { target_group: name.clone(), health_check });
                }
            }
            None => steps.push(Step::CreateTargetGroup {
                name: name.clone(),
                protocol: listener.protocol,
                port: listener.node_port,
                health_check: listener.health_check.clone(),
                tags: tags::wanted(self.desired, Role::TargetGroup(listener.port)),
            }),
        }
        let there = target.kept.map(|f| &f.detail.attributes);
        let attributes = unset(&listener.attributes, there);
        if !attributes.is_empty() {
            steps.push(Step::SetTargetGroupAttributes { target_group: name.clone(), attributes });
        }
        let there = target.kept.map(|f| &f.detail.targets);
        let missing: Vec<Target> = self
            .desired
            .targets(listener)
            .into_iter()
            .filter(|t| there.is_none_or(|there| !there.contains(t)) && !self.refused.contains(&t.instance))
            .collect();
        for targets in missing.chunks(TARGETS_A_CALL) {
            let (target_group, targets) = (name.clone(), targets.to_vec());
            steps.push(Step::RegisterTargets { target_group, targets });
        }
    }

    fn load_balancer(&self, steps: &mut Vec<Step>) {
        let load_balancer = self.name.clone();
        match self.kept {
            None => steps.push(Step::CreateLoadBalancer {
                name: load_balancer.clone(),
                scheme: self.scheme,
                subnets: self.subnets.clone(),
                security_group: self.group.clone(),
                tags: tags::wanted(self.desired, Role::LoadBalancer),
            }),
            Some(found) => {
                if found.resource.subnets != self.subnets {
                    let subnets = self.subnets.clone();
                    steps.push(Step::SetSubnets { load_balancer: load_balancer.clone(), subnets });
                }
                let group = self.observed.security_group().map(|g| &g.id);
                let groups = &found.resource.security_groups;
                // AWS refuses groups for a load balancer that was made without any.
                if !groups.is_empty() && !group.is_some_and(|id| groups.contains(id)) {
                    let security_group = self.group.clone();
                    steps.push(Step::SetSecurityGroup {
                        load_balancer: load_balancer.clone(),
                        security_group,
                    });
                }
            }
        }
        let attributes = unset(&self.desired.attributes, self.kept.map(|f| &f.detail.attributes));
        if !attributes.is_empty() {
            steps.push(Step::SetLoadBalancerAttributes { load_balancer, attributes });
        }
    }

    fn listeners(&self, steps: &mut Vec<Step>) {
        let there = self.kept.map(|f| &f.detail.listeners);
        for port in there.into_iter().flat_map(|l| l.keys()) {
            if !self.desired.listeners.contains_key(port) {
                steps.push(Step::DeleteListener { load_balancer: self.name.clone(), port: *port });
            }
        }
        for target in &self.targets {
            let (load_balancer, target_group) = (self.name.clone(), target.name.clone());
            let DesiredListener { port, protocol, .. } = *target.listener;
            let Some(listener) = there.and_then(|l| l.get(&port)) else {
                let tags = tags::wanted(self.desired, Role::Listener(port));
                steps.push(Step::CreateListener { load_balancer, port, protocol, target_group, tags });
                continue;
            };
            let forwards = target.kept.is_some_and(|f| listener.target_groups == [f.resource.arn.as_str()]);
            if listener.protocol != protocol || !forwards {
                steps.push(Step::SetListener { load_balancer, port, protocol, target_group });
            }
        }
    }

    /// Once nothing refers to it any more.
    fn clean_up(&self, steps: &mut Vec<Step>) {
        for target in &self.targets {
            let Some(found) = target.kept else { continue };
            let wanted = self.desired.targets(target.listener);
            let surplus: Vec<Target> = found.detail.targets.difference(&wanted).cloned().collect();
            for targets in surplus.chunks(TARGETS_A_CALL) {
                let (target_group, targets) = (target.name.clone(), targets.to_vec());
                steps.push(Step::DeregisterTargets { target_group, targets });
            }
        }
        if let Some(group) = self.observed.security_group() {
            let (_, surplus) = difference(&frontend_rules(self.desired), group.rules.iter());
            if !surplus.is_empty() {
                steps.push(Step::Revoke { group: self.group.clone(), rules: surplus });
            }
        }
        let kept: BTreeSet<&str> = self.targets.iter().map(|t| t.name.as_str()).collect();
        for found in self.observed.target_groups.iter().filter(|f| f.owner == Owner::Ours) {
            if !kept.contains(found.resource.name.as_str()) {
                steps.push(Step::DeleteTargetGroup { name: found.resource.name.clone() });
            }
        }
    }
}

impl<'a> TargetPlan<'a> {
    /// A target group is kept as long as what AWS cannot change in it is right; its name stays the
    /// one it was made with.
    fn choose(
        listener: &'a DesiredListener,
        desired: &Desired,
        observed: &'a Observed<'a>,
        balancer: Option<&FoundLb<'_>>,
    ) -> Self {
        let mut fitting: Vec<&FoundGroup<'_>> = observed
            .target_groups_of(&desired.id, listener.port)
            .filter(|f| f.resource.protocol == listener.protocol && f.resource.of_instances)
            .collect();
        let in_use = |f: &FoundGroup<'_>| {
            let listener = balancer.and_then(|b| b.detail.listeners.get(&listener.port));
            listener.is_some_and(|l| l.target_groups.contains(&f.resource.arn))
        };
        fitting.sort_by_key(|f| !in_use(f));
        let kept = fitting.first().copied();
        let name = kept.map(|f| f.resource.name.clone());
        let name = name.unwrap_or_else(|| desired.id.target_group_name(&listener.key()));
        Self { listener, kept, name }
    }
}

/// The attributes that are wanted and not known to be so already. Others are the user's business.
fn unset(wanted: &Attributes, there: Option<&Attributes>) -> Attributes {
    let differs = |(key, value): &(&String, &String)| there.and_then(|t| t.get(*key)) != Some(value);
    wanted.iter().filter(differs).map(|(k, v)| (k.clone(), v.clone())).collect()
}
