//! The account as text, by names.

use std::fmt::Write;

use super::State;
use crate::aws::resources::{Attributes, Rule, Source};

pub(super) fn show(state: &State) -> String {
    let mut lines = Vec::new();
    for group in state.security_groups.values() {
        let name = |id: &String| state.security_groups.get(id).map_or("gone", |g| g.name.as_str());
        let rule = |rule: &Rule| match &rule.source {
            Source::Group(id) => rule.to_string().replace(id.as_str(), name(id)),
            _ => rule.to_string(),
        };
        let mut rules: Vec<String> = group.rules.iter().map(rule).collect();
        rules.sort();
        lines.push(format!("security group {}: {}; {}", group.name, rules.join(", "), map(&group.tags)));
    }
    for group in state.target_groups.values() {
        let detail = group.detail.clone().unwrap_or_default();
        let targets: Vec<String> = detail.targets.iter().map(ToString::to_string).collect();
        lines.push(format!(
            "target group {}: {} {}; {}; {}; {}; {}",
            group.name,
            group.protocol,
            group.port,
            group.health_check,
            targets.join(" "),
            map(&detail.attributes),
            map(&group.tags)
        ));
    }
    for balancer in state.load_balancers.values() {
        let detail = balancer.detail.clone().unwrap_or_default();
        let name = |id: &String| state.security_groups.get(id).map_or("gone", |g| g.name.as_str());
        let groups: Vec<&str> = balancer.security_groups.iter().map(name).collect();
        let subnets: Vec<&str> = balancer.subnets.iter().map(String::as_str).collect();
        let mut line = format!(
            "load balancer {}: {}; in {}; behind {}; {}; {}",
            balancer.name,
            balancer.scheme,
            subnets.join(" "),
            groups.join(" "),
            map(&detail.attributes),
            map(&balancer.tags)
        );
        for listener in detail.listeners.values() {
            let name = |arn: &String| state.target_groups.get(arn).map_or("gone", |g| g.name.as_str());
            let groups: Vec<&str> = listener.target_groups.iter().map(name).collect();
            let (port, protocol, tags) = (listener.port, listener.protocol, map(&listener.tags));
            write!(line, "\n  listener {port} {protocol} to {}; {tags}", groups.join(" "))
                .expect("writing to a String cannot fail");
        }
        lines.push(line);
    }
    lines.sort();
    lines.join("\n")
}

fn map(map: &Attributes) -> String {
    map.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
}
