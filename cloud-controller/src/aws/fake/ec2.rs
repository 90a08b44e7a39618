//! EC2's rules for security groups.

use std::collections::BTreeMap;

use super::{Answer, NewSecurityGroup, State, refuse};
use crate::aws::resources::{Rule, SecurityGroup, Source};

/// The default quota.
const RULES_A_GROUP: usize = 60;

impl State {
    pub(super) fn in_vpc<T: Clone>(&self, vpc: &str, items: &BTreeMap<String, T>) -> Vec<T> {
        if vpc == self.vpc { items.values().cloned().collect() } else { Vec::new() }
    }

    pub(super) fn security_group(&mut self, id: &str) -> Answer<&mut SecurityGroup> {
        match self.security_groups.get_mut(id) {
            Some(group) => Ok(group),
            None => refuse("InvalidGroup.NotFound", format!("The security group '{id}' does not exist")),
        }
    }

    pub(super) fn create_security_group(&mut self, new: &NewSecurityGroup) -> Answer<String> {
        if new.vpc != self.vpc {
            return refuse("InvalidVpcID.NotFound", format!("The vpc ID '{}' does not exist", new.vpc));
        }
        if self.security_groups.values().any(|g| g.name == new.name) {
            let message = format!("The security group '{}' already exists for VPC '{}'", new.name, new.vpc);
            return refuse("InvalidGroup.Duplicate", message);
        }
        let id = format!("sg-{}", self.next_id());
        let (name, tags) = (new.name.clone(), new.tags.clone());
        let group = SecurityGroup { id: id.clone(), name, tags, rules: [].into() };
        self.security_groups.insert(id.clone(), group);
        Ok(id)
    }

    /// All or nothing.
    pub(super) fn allow(&mut self, id: &str, rules: &[Rule]) -> Answer<()> {
        for source in rules.iter().map(|r| &r.source) {
            if let Source::Group(other) = source {
                self.security_group(other)?;
            }
        }
        let group = self.security_group(id)?;
        if let Some(rule) = rules.iter().find(|r| group.rules.iter().any(|there| there.allows_same(r))) {
            let message = format!("the specified rule \"{rule}\" already exists");
            return refuse("InvalidPermission.Duplicate", message);
        }
        if group.rules.len() + rules.len() > RULES_A_GROUP {
            let message = "The maximum number of rules per security group has been reached.";
            return refuse("RulesPerSecurityGroupLimitExceeded", message);
        }
        group.rules.extend(rules.iter().cloned());
        Ok(())
    }

    pub(super) fn revoke(&mut self, id: &str, rules: &[Rule]) -> Answer<()> {
        let group = self.security_group(id)?;
        if let Some(rule) = rules.iter().find(|r| !group.rules.iter().any(|there| there.allows_same(r))) {
            let message = format!("The specified rule \"{rule}\" does not exist in this security group.");
            return refuse("InvalidPermission.NotFound", message);
        }
        group.rules.retain(|there| !rules.iter().any(|r| there.allows_same(r)));
        Ok(())
    }

    pub(super) fn delete_security_group(&mut self, id: &str) -> Answer<()> {
        self.security_group(id)?;
        let attached = self.load_balancers.values().any(|lb| lb.security_groups.contains(id));
        let refers = |g: &SecurityGroup| {
            g.id != id && g.rules.iter().any(|r| matches!(&r.source, Source::Group(other) if other == id))
        };
        let held = self.lingering.iter().any(|(_, groups)| groups.iter().any(|g| g == id));
        for (attempts, groups) in &mut self.lingering {
            if groups.iter().any(|g| g == id) {
                *attempts -= 1;
            }
        }
        self.lingering.retain(|(attempts, _)| *attempts > 0);
        if attached || held || self.security_groups.values().any(refers) {
            return refuse("DependencyViolation", format!("resource {id} has a dependent object"));
        }
        self.security_groups.remove(id);
        Ok(())
    }
}
