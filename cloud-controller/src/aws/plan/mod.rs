//! From what is wanted and what is there to the steps in between. Pure: the same Service and
//! snapshot always give the same plan, and planning again after any prefix of it leads to the same
//! end.
//!
//! ```text
//! serve    an earlier Service's load balancer goes ─▶ tags ─▶ security group ─▶ target groups, targets
//!          ─▶ load balancer ─▶ listeners ─▶ what is no longer wanted goes
//! release  load balancer (with its listeners) ─▶ target groups ─▶ the nodes' rules ─▶ security groups
//! ```

mod release;
mod serve;
mod tags;

pub use release::release;
pub use serve::serve;

use super::resources::{Attributes, LoadBalancer, LoadBalancerDetail};
use super::security_groups::is_our_node_rule;
use super::snapshot::{Found, Observed, Owner};
use super::step::Step;
use crate::plan::{Note, Plan};

const PROTECTION: &str = "deletion_protection.enabled";

/// A plan, and whether somebody has to change something before there can be more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    pub plan: Plan<Step>,
    pub blocked: Option<(Obstacle, String)>,
}

/// Where something has to change first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// In the Service, which tells us when it has.
    Service,
    /// In the account, which does not: it has to be looked at again.
    Account,
}

impl Decision {
    /// Nothing is done; the last of the notes says why.
    pub fn blocked(by: Obstacle, notes: Vec<Note>) -> Self {
        let blocked = notes.last().map(|n| (by, n.message.clone()));
        Self { plan: Plan { batches: Vec::new(), notes }, blocked }
    }

    /// AWS takes one step a call: a batch each.
    fn steps(steps: Vec<Step>, notes: Vec<Note>) -> Self {
        let batches = steps.into_iter().map(|step| vec![step]).collect();
        Self { plan: Plan { batches, notes }, blocked: None }
    }
}

fn is_protected(detail: &LoadBalancerDetail) -> bool {
    detail.attributes.get(PROTECTION).is_some_and(|value| value == "true")
}

fn protection_off(load_balancer: &str) -> Step {
    let attributes = Attributes::from([(PROTECTION.to_owned(), "false".to_owned())]);
    Step::SetLoadBalancerAttributes { load_balancer: load_balancer.to_owned(), attributes }
}

/// Load balancers take their listeners with them and free the target groups.
fn delete_load_balancers(observed: &Observed<'_>, owner: Owner, steps: &mut Vec<Step>) {
    for found in observed.load_balancers.iter().filter(|f| f.owner == owner) {
        steps.push(Step::DeleteLoadBalancer { name: found.resource.name.clone() });
    }
}

/// What a load balancer that is gone leaves. AWS can hold its security group for minutes, until its
/// network interfaces are gone too.
fn delete_the_rest(observed: &Observed<'_>, owner: Owner, steps: &mut Vec<Step>) {
    for found in observed.target_groups.iter().filter(|f| f.owner == owner) {
        steps.push(Step::DeleteTargetGroup { name: found.resource.name.clone() });
    }
    for found in observed.security_groups.iter().filter(|f| f.owner == owner) {
        for group in observed.snapshot.security_groups.values() {
            if group.rules.iter().any(|rule| is_our_node_rule(rule, &found.resource.id)) {
                let (group, to) = (group.name.clone(), found.resource.name.clone());
                steps.push(Step::CloseNodes { group, to });
            }
        }
        steps.push(Step::DeleteSecurityGroup { name: found.resource.name.clone() });
    }
}

fn protected_note(found: &Found<'_, LoadBalancer, LoadBalancerDetail>, what: &str) -> Note {
    Note::warning(
        "DeletionProtected",
        format!(
            "load balancer {} has {PROTECTION}=true, so it is not {what}: remove it from the annotation {} (and, \
             if it was set elsewhere, there)",
            found.resource.name,
            super::annotations::key("attributes")
        ),
    )
}
