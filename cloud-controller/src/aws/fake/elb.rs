//! ELBv2's rules for network load balancers (its API reference, per operation).

use std::collections::BTreeSet;

use super::{Answer, CreatedLoadBalancer, NewListener, NewLoadBalancer, NewTargetGroup, State, refuse};
use crate::aws::resources::{
    Attributes, HealthCheck, HealthProtocol, Listener, LoadBalancer, LoadBalancerDetail, Protocol, Tags,
    Target, TargetGroup, TargetGroupDetail,
};

/// The default quota.
const LOAD_BALANCERS: usize = 50;
/// The quota.
const TAGS: usize = 50;

/// What AWS shows of a new load balancer.
pub(super) const LOAD_BALANCER_ATTRIBUTES: [(&str, &str); 7] = [
    ("access_logs.s3.bucket", ""),
    ("access_logs.s3.enabled", "false"),
    ("access_logs.s3.prefix", ""),
    ("deletion_protection.enabled", "false"),
    ("dns_record.client_routing_policy", "any_availability_zone"),
    ("load_balancing.cross_zone.enabled", "false"),
    ("zonal_shift.config.enabled", "false"),
];

/// What AWS shows of a new target group.
pub(super) const TARGET_GROUP_ATTRIBUTES: [(&str, &str); 7] = [
    ("deregistration_delay.connection_termination.enabled", "false"),
    ("deregistration_delay.timeout_seconds", "300"),
    ("load_balancing.cross_zone.enabled", "use_load_balancer_configuration"),
    ("preserve_client_ip.enabled", "true"),
    ("proxy_protocol_v2.enabled", "false"),
    ("stickiness.enabled", "false"),
    ("stickiness.type", "source_ip"),
];

fn defaults(table: &[(&str, &str)]) -> Attributes {
    table.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

pub(super) fn check_attributes(attributes: &Attributes, table: &[(&str, &str)]) -> Answer<()> {
    match attributes.keys().find(|key| !table.iter().any(|(known, _)| known == key)) {
        Some(key) => refuse("ValidationError", format!("attribute key '{key}' is not recognized")),
        None => Ok(()),
    }
}

impl State {
    pub(super) fn detail(&mut self, arn: &str) -> Answer<&mut LoadBalancerDetail> {
        match self.load_balancers.get_mut(arn).and_then(|lb| lb.detail.as_mut()) {
            Some(detail) => Ok(detail),
            None => refuse("LoadBalancerNotFound", format!("Load balancer '{arn}' not found")),
        }
    }

    pub(super) fn group_detail(&mut self, arn: &str) -> Answer<&mut TargetGroupDetail> {
        match self.target_groups.get_mut(arn).and_then(|g| g.detail.as_mut()) {
            Some(detail) => Ok(detail),
            None => refuse("TargetGroupNotFound", format!("Target group '{arn}' not found")),
        }
    }

    pub(super) fn tags(&mut self, arn: &str) -> Answer<&mut Tags> {
        for lb in self.load_balancers.values_mut() {
            if lb.arn == arn {
                return Ok(&mut lb.tags);
            }
            let listeners = lb.detail.iter_mut().flat_map(|d| d.listeners.values_mut());
            if let Some(listener) = listeners.into_iter().find(|l| l.arn == arn) {
                return Ok(&mut listener.tags);
            }
        }
        match self.target_groups.get_mut(arn) {
            Some(group) => Ok(&mut group.tags),
            None => refuse("LoadBalancerNotFound", format!("'{arn}' not found")),
        }
    }

    pub(super) fn add_tags(&mut self, arns: &[String], tags: &Tags) -> Answer<()> {
        for arn in arns {
            let there = self.tags(arn)?;
            there.extend(tags.clone());
            if there.len() > TAGS {
                return refuse("TooManyTags", "at most 50 tags");
            }
        }
        Ok(())
    }

    /// Idempotent: the same settings again are the same load balancer, whoever made it.
    pub(super) fn create_load_balancer(&mut self, new: &NewLoadBalancer) -> Answer<CreatedLoadBalancer> {
        check_name(&new.name)?;
        let subnets = self.check_subnets(&new.subnets)?;
        let security_groups = self.check_groups(&new.security_groups)?;
        if let Some(there) = self.load_balancers.values().find(|lb| lb.name == new.name) {
            let same = there.scheme == new.scheme
                && there.subnets == subnets
                && there.security_groups == security_groups;
            return if same {
                Ok(CreatedLoadBalancer { arn: there.arn.clone(), dns_name: there.dns_name.clone() })
            } else {
                let message = format!(
                    "A load balancer with the same name '{}' exists, but with different settings",
                    new.name
                );
                refuse("DuplicateLoadBalancerName", message)
            };
        }
        if self.load_balancers.len() == LOAD_BALANCERS {
            return refuse(
                "TooManyLoadBalancers",
                "you've reached the limit on the number of load balancers",
            );
        }
        let id = self.next_id();
        let arn = format!("arn:aws:elasticloadbalancing:us-east-1:1:loadbalancer/net/{}/{id}", new.name);
        let dns_name = format!("{}-{id}.elb.us-east-1.amazonaws.com", new.name);
        let created = CreatedLoadBalancer { arn: arn.clone(), dns_name: dns_name.clone() };
        let attributes = defaults(&LOAD_BALANCER_ATTRIBUTES);
        let balancer = LoadBalancer {
            arn: arn.clone(),
            name: new.name.clone(),
            dns_name,
            scheme: new.scheme,
            subnets,
            security_groups,
            tags: new.tags.clone(),
            detail: Some(LoadBalancerDetail { attributes, listeners: [].into() }),
        };
        self.load_balancers.insert(arn, balancer);
        Ok(created)
    }

    /// Succeeds if there is none. The network interfaces go later.
    pub(super) fn delete_load_balancer(&mut self, arn: &str) -> Answer<()> {
        let Some(balancer) = self.load_balancers.get(arn) else { return Ok(()) };
        let protection =
            balancer.detail.as_ref().and_then(|d| d.attributes.get("deletion_protection.enabled"));
        if protection.is_some_and(|value| value == "true") {
            let message =
                format!("Load balancer '{arn}' cannot be deleted because deletion protection is enabled");
            return refuse("OperationNotPermitted", message);
        }
        if self.linger > 0 {
            self.lingering.push((self.linger, balancer.security_groups.iter().cloned().collect()));
        }
        self.load_balancers.remove(arn);
        Ok(())
    }

    pub(super) fn set_subnets(&mut self, arn: &str, subnets: &[String]) -> Answer<()> {
        let subnets = self.check_subnets(subnets)?;
        self.detail(arn)?;
        if let Some(balancer) = self.load_balancers.get_mut(arn) {
            balancer.subnets = subnets;
        }
        Ok(())
    }

    pub(super) fn set_security_groups(&mut self, arn: &str, groups: &[String]) -> Answer<()> {
        let groups = self.check_groups(groups)?;
        self.detail(arn)?;
        if let Some(balancer) = self.load_balancers.get_mut(arn) {
            if balancer.security_groups.is_empty() != groups.is_empty() {
                let message = "security groups can be given only to a load balancer that was made with some";
                return refuse("InvalidConfigurationRequest", message);
            }
            balancer.security_groups = groups;
        }
        Ok(())
    }

    pub(super) fn create_target_group(&mut self, new: &NewTargetGroup) -> Answer<String> {
        check_name(&new.name)?;
        check_health(&new.health_check)?;
        if new.protocol == Protocol::Other {
            return refuse("ValidationError", "protocol must be TCP, UDP, TCP_UDP or TLS");
        }
        if let Some(there) = self.target_groups.values().find(|g| g.name == new.name) {
            let same = (there.protocol, there.port, &there.health_check)
                == (new.protocol, new.port, &new.health_check);
            return if same {
                Ok(there.arn.clone())
            } else {
                let message = format!(
                    "A target group with the same name '{}' exists, but with different settings",
                    new.name
                );
                refuse("DuplicateTargetGroupName", message)
            };
        }
        let arn =
            format!("arn:aws:elasticloadbalancing:us-east-1:1:targetgroup/{}/{}", new.name, self.next_id());
        let attributes = defaults(&TARGET_GROUP_ATTRIBUTES);
        let group = TargetGroup {
            arn: arn.clone(),
            name: new.name.clone(),
            protocol: new.protocol,
            port: new.port,
            of_instances: true,
            health_check: new.health_check.clone(),
            tags: new.tags.clone(),
            detail: Some(TargetGroupDetail { attributes, targets: [].into() }),
        };
        self.target_groups.insert(arn.clone(), group);
        Ok(arn)
    }

    pub(super) fn delete_target_group(&mut self, arn: &str) -> Answer<()> {
        if self.served_by(arn).is_some() {
            let message = format!("Target group '{arn}' is currently in use by a listener or a rule");
            return refuse("ResourceInUse", message);
        }
        self.target_groups.remove(arn);
        Ok(())
    }

    pub(super) fn set_health_check(&mut self, arn: &str, check: &HealthCheck) -> Answer<()> {
        check_health(check)?;
        self.group_detail(arn)?;
        if let Some(group) = self.target_groups.get_mut(arn) {
            group.health_check = check.clone();
        }
        Ok(())
    }

    pub(super) fn register(&mut self, arn: &str, targets: &[Target]) -> Answer<()> {
        let unknown = |t: &&Target| !self.instances.contains(&t.instance);
        let unknown: Vec<String> =
            targets.iter().filter(unknown).map(|t| format!("'{}'", t.instance)).collect();
        if !unknown.is_empty() {
            let message = format!(
                "The following targets are not in a running state and cannot be registered: {}",
                unknown.join(", ")
            );
            return refuse("InvalidTarget", message);
        }
        self.group_detail(arn)?.targets.extend(targets.iter().cloned());
        Ok(())
    }

    /// Idempotent with the same settings.
    pub(super) fn create_listener(&mut self, new: &NewListener) -> Answer<String> {
        self.check_forward(&new.load_balancer, new.protocol, &new.target_group)?;
        let id = self.next_id();
        let arn = format!("{}/{id}", new.load_balancer.replace(":loadbalancer/", ":listener/"));
        let listeners = &mut self.detail(&new.load_balancer)?.listeners;
        if let Some(there) = listeners.get(&new.port) {
            return if there.protocol == new.protocol && there.target_groups == [new.target_group.as_str()] {
                Ok(there.arn.clone())
            } else {
                refuse("DuplicateListener", format!("A listener already exists on port {}", new.port))
            };
        }
        let listener = Listener {
            arn: arn.clone(),
            port: new.port,
            protocol: new.protocol,
            target_groups: vec![new.target_group.clone()],
            tags: new.tags.clone(),
        };
        listeners.insert(new.port, listener);
        Ok(arn)
    }

    pub(super) fn set_listener(&mut self, arn: &str, protocol: Protocol, group: &str) -> Answer<()> {
        let balancer = self.balancer_of_listener(arn)?;
        self.check_forward(&balancer, protocol, group)?;
        for listener in self.detail(&balancer)?.listeners.values_mut().filter(|l| l.arn == arn) {
            listener.protocol = protocol;
            listener.target_groups = vec![group.to_owned()];
        }
        Ok(())
    }

    pub(super) fn delete_listener(&mut self, arn: &str) -> Answer<()> {
        let balancer = self.balancer_of_listener(arn)?;
        self.detail(&balancer)?.listeners.retain(|_, l| l.arn != arn);
        Ok(())
    }

    fn balancer_of_listener(&self, arn: &str) -> Answer<String> {
        let has = |lb: &&LoadBalancer| lb.detail.iter().any(|d| d.listeners.values().any(|l| l.arn == arn));
        match self.load_balancers.values().find(has) {
            Some(balancer) => Ok(balancer.arn.clone()),
            None => refuse("ListenerNotFound", format!("Listener '{arn}' not found")),
        }
    }

    /// A target group serves one load balancer, with the listener's protocol.
    fn check_forward(&self, balancer: &str, protocol: Protocol, group: &str) -> Answer<()> {
        let Some(target_group) = self.target_groups.get(group) else {
            return refuse("TargetGroupNotFound", format!("Target group '{group}' not found"));
        };
        if target_group.protocol != protocol {
            let message = format!("protocol {protocol} does not go with target group '{group}'");
            return refuse("IncompatibleProtocols", message);
        }
        match self.served_by(group) {
            Some(other) if other != balancer => {
                let message =
                    format!("target group '{group}' cannot be associated with more than one load balancer");
                refuse("TargetGroupAssociationLimit", message)
            }
            _ => Ok(()),
        }
    }

    /// The load balancer with a listener that forwards to the group.
    fn served_by(&self, group: &str) -> Option<&str> {
        let serves = |lb: &&LoadBalancer| {
            let listeners = lb.detail.iter().flat_map(|d| d.listeners.values());
            listeners.into_iter().any(|l| l.target_groups.iter().any(|g| g == group))
        };
        self.load_balancers.values().find(serves).map(|lb| lb.arn.as_str())
    }

    fn check_subnets(&self, ids: &[String]) -> Answer<BTreeSet<String>> {
        let mut zones = BTreeSet::new();
        for id in ids {
            let Some(subnet) = self.subnets.get(id) else {
                return refuse("SubnetNotFound", format!("The subnet ID '{id}' is not valid"));
            };
            if !zones.insert(&subnet.zone) {
                let message =
                    "A load balancer cannot be attached to multiple subnets in the same Availability Zone";
                return refuse("InvalidConfigurationRequest", message);
            }
        }
        if ids.is_empty() {
            return refuse("ValidationError", "At least one subnet must be specified");
        }
        Ok(ids.iter().cloned().collect())
    }

    fn check_groups(&self, ids: &[String]) -> Answer<BTreeSet<String>> {
        match ids.iter().find(|id| !self.security_groups.contains_key(*id)) {
            Some(id) => refuse("InvalidSecurityGroup", format!("The security group '{id}' does not exist")),
            None => Ok(ids.iter().cloned().collect()),
        }
    }
}

fn check_name(name: &str) -> Answer<()> {
    let characters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if (1..=32).contains(&name.len()) && characters && !name.starts_with('-') && !name.ends_with('-') {
        Ok(())
    } else {
        refuse("ValidationError", format!("'{name}' is not a valid name"))
    }
}

fn check_health(check: &HealthCheck) -> Answer<()> {
    let http = check.protocol != HealthProtocol::Tcp;
    if !http && (check.path.is_some() || check.success_codes.is_some()) {
        return refuse(
            "ValidationError",
            "Health check path and matcher are for HTTP and HTTPS health checks",
        );
    }
    if !(5..=300).contains(&check.interval) || !(2..=120).contains(&check.timeout) {
        return refuse("ValidationError", "Health check interval or timeout is out of range");
    }
    Ok(())
}
