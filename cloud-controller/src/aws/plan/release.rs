//! Taking a Service back: everything that is provably its own goes, in an order that AWS accepts.

use super::{
    Decision, Obstacle, PROTECTION, delete_load_balancers, delete_the_rest, is_protected, protected_note,
    protection_off,
};
use crate::aws::annotations::{self, key};
use crate::aws::resources::{Rule, Source};
use crate::aws::security_groups::is_our_node_rule;
use crate::aws::snapshot::{Observed, Owner};
use crate::plan::Note;
use service_model::Service;

/// For a Service that is being deleted, or is no longer ours. The leftovers of an earlier Service
/// of its name go too.
pub fn release(service: &Service, observed: &Observed<'_>) -> Decision {
    let wants_protection = wants_protection(service);
    let mut steps = Vec::new();
    for found in &observed.load_balancers {
        let lift = match found.owner {
            Owner::Ours => !wants_protection,
            Owner::Former | Owner::Unproven => false,
        };
        if found.owner == Owner::Unproven || !is_protected(found.detail) {
            continue;
        }
        if !lift {
            let by = if wants_protection { Obstacle::Service } else { Obstacle::Account };
            return Decision::blocked(by, vec![protected_note(found, "deleted")]);
        }
        steps.push(protection_off(&found.resource.name));
    }
    for owner in [Owner::Former, Owner::Ours] {
        delete_load_balancers(observed, owner, &mut steps);
    }
    for owner in [Owner::Former, Owner::Ours] {
        delete_the_rest(observed, owner, &mut steps);
    }
    let mut notes = left_alone(observed);
    notes.extend(in_the_way(observed));
    Decision::steps(steps, notes)
}

/// The user's word counts even if other annotations are wrong.
fn wants_protection(service: &Service) -> bool {
    match annotations::parse(service) {
        Ok(parsed) => parsed.attributes.get(PROTECTION).is_some_and(|value| value == "true"),
        Err(_) => service
            .annotation(&key("attributes"))
            .is_some_and(|text| text.replace(' ', "").contains(&format!("{PROTECTION}=true"))),
    }
}

/// AWS does not delete a security group that somebody else's rule refers to, and such a rule is
/// not ours to take away.
fn in_the_way(observed: &Observed<'_>) -> Vec<Note> {
    let mut notes = Vec::new();
    for found in observed.security_groups.iter().filter(|f| f.owner != Owner::Unproven) {
        let id = &found.resource.id;
        let refers =
            |rule: &Rule| matches!(&rule.source, Source::Group(g) if g == id) && !is_our_node_rule(rule, id);
        let groups = observed.snapshot.security_groups.values().filter(|g| g.rules.iter().any(refers));
        notes.extend(groups.filter(|g| g.id != *id).map(|group| {
            Note::warning(
                "SecurityGroupInUse",
                format!(
                    "security group {} ({}) has a rule that lets in {} ({id}) and was not made here: AWS keeps \
                     the latter until you remove that rule",
                    group.name, group.id, found.resource.name
                ),
            )
        }));
    }
    notes
}

fn left_alone(observed: &Observed<'_>) -> Vec<Note> {
    let unproven = observed.load_balancers.iter().filter(|f| f.owner == Owner::Unproven);
    unproven
        .map(|found| {
            Note::warning(
                "LoadBalancerLeft",
                format!(
                    "load balancer {} carries this Service's name but not its UID, so it is left alone: delete \
                     it by hand if nobody needs it",
                    found.resource.name
                ),
            )
        })
        .collect()
}
