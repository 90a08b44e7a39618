//! Attributes of network load balancers and their target groups: which exist, and which values
//! each takes (ELBv2 API reference, LoadBalancerAttribute and TargetGroupAttribute).

use std::ops::RangeInclusive;

use super::values;
use crate::aws::resources::Attributes;

/// A row: the key and what it takes.
pub(super) type Table = [(&'static str, Takes)];

pub(super) enum Takes {
    Bool,
    OneOf(&'static [&'static str]),
    Number(RangeInclusive<u16>),
    /// A number, or `off`.
    NumberOrOff(RangeInclusive<u16>),
    Text,
}

pub(super) const LOAD_BALANCER: &Table = &[
    ("access_logs.s3.bucket", Takes::Text),
    ("access_logs.s3.enabled", Takes::Bool),
    ("access_logs.s3.prefix", Takes::Text),
    ("deletion_protection.enabled", Takes::Bool),
    (
        "dns_record.client_routing_policy",
        Takes::OneOf(&[
            "any_availability_zone",
            "availability_zone_affinity",
            "partial_availability_zone_affinity",
        ]),
    ),
    ("load_balancing.cross_zone.enabled", Takes::Bool),
    ("zonal_shift.config.enabled", Takes::Bool),
];

pub(super) const TARGET_GROUP: &Table = &[
    ("deregistration_delay.connection_termination.enabled", Takes::Bool),
    ("deregistration_delay.timeout_seconds", Takes::Number(0..=3600)),
    (
        "load_balancing.cross_zone.enabled",
        Takes::OneOf(&["true", "false", "use_load_balancer_configuration"]),
    ),
    ("preserve_client_ip.enabled", Takes::Bool),
    ("proxy_protocol_v2.enabled", Takes::Bool),
    ("stickiness.enabled", Takes::Bool),
    ("stickiness.type", Takes::OneOf(&["source_ip"])),
    ("target_group_health.dns_failover.minimum_healthy_targets.count", Takes::NumberOrOff(1..=1000)),
    ("target_group_health.dns_failover.minimum_healthy_targets.percentage", Takes::NumberOrOff(1..=100)),
    ("target_group_health.unhealthy_state_routing.minimum_healthy_targets.count", Takes::Number(1..=1000)),
    (
        "target_group_health.unhealthy_state_routing.minimum_healthy_targets.percentage",
        Takes::NumberOrOff(1..=100),
    ),
    ("target_health_state.unhealthy.connection_termination.enabled", Takes::Bool),
    ("target_health_state.unhealthy.draining_interval_seconds", Takes::Number(0..=36000)),
];

/// Parses a map and checks each entry against the table.
///
/// # Errors
/// What is allowed, where the text does not keep to it.
pub(super) fn parse(text: &str, table: &Table) -> Result<Attributes, String> {
    let map = values::map(text).ok_or("key=value,key=value")?;
    for (key, value) in &map {
        let Some((_, takes)) = table.iter().find(|(known, _)| known == key) else {
            let keys: Vec<&str> = table.iter().map(|(known, _)| *known).collect();
            return Err(format!("the keys {}", keys.join(", ")));
        };
        takes.check(value).map_err(|allowed| format!("{key}={allowed}"))?;
    }
    Ok(map)
}

impl Takes {
    fn check(&self, value: &str) -> Result<(), String> {
        let range_ok = |range: &RangeInclusive<u16>| values::number(value, range).is_some();
        let (ok, allowed) = match self {
            Self::Bool => (matches!(value, "true" | "false"), "true or false".to_owned()),
            Self::OneOf(words) => (words.contains(&value), words.join(" or ")),
            Self::Number(range) => (range_ok(range), format!("{} to {}", range.start(), range.end())),
            Self::NumberOrOff(range) => {
                (value == "off" || range_ok(range), format!("off, or {} to {}", range.start(), range.end()))
            }
            Self::Text => (true, String::new()),
        };
        if ok { Ok(()) } else { Err(allowed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_that_does_not_exist_or_takes_something_else_is_refused() {
        assert!(parse("deregistration_delay.timeout_seconds=3600", TARGET_GROUP).is_ok());
        for (text, allowed) in [
            ("deregistration_delay.timeout_seconds=3601", "deregistration_delay.timeout_seconds=0 to 3600"),
            ("proxy_protocol_v2.enabled=yes", "proxy_protocol_v2.enabled=true or false"),
            ("stickiness.type=lb_cookie", "stickiness.type=source_ip"),
            ("stickiness", "key=value,key=value"),
        ] {
            assert_eq!(parse(text, TARGET_GROUP), Err(allowed.to_owned()));
        }
        let unknown = parse("idle_timeout.timeout_seconds=60", LOAD_BALANCER).unwrap_err();
        assert!(unknown.contains("deletion_protection.enabled"), "{unknown}");
    }
}
