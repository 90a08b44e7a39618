//! The SDK's types to ours. AWS can leave out any field; what we cannot do without makes the
//! resource invisible rather than wrong.

use std::collections::BTreeSet;

use aws_sdk_ec2::types as ec2;
use aws_sdk_elasticloadbalancingv2::types as elb;

use crate::aws::resources::{
    Attributes, HealthCheck, HealthPort, HealthProtocol, Listener, LoadBalancer, Protocol, Rule, Scheme,
    SecurityGroup, Source, Subnet, Tags, Target, TargetGroup,
};

pub(super) fn load_balancer(lb: &elb::LoadBalancer) -> Option<LoadBalancer> {
    let scheme = match lb.scheme() {
        Some(elb::LoadBalancerSchemeEnum::InternetFacing) => Scheme::InternetFacing,
        _ => Scheme::Internal,
    };
    Some(LoadBalancer {
        arn: lb.load_balancer_arn()?.to_owned(),
        name: lb.load_balancer_name()?.to_owned(),
        dns_name: lb.dns_name().unwrap_or_default().to_owned(),
        scheme,
        subnets: lb.availability_zones().iter().filter_map(|z| z.subnet_id().map(str::to_owned)).collect(),
        security_groups: lb.security_groups().iter().cloned().collect(),
        tags: Tags::new(),
        detail: None,
    })
}

pub(super) fn target_group(group: &elb::TargetGroup) -> Option<TargetGroup> {
    let http = |field: Option<&str>| field.map(str::to_owned);
    let number = |n: Option<i32>| n.and_then(|n| u16::try_from(n).ok()).unwrap_or_default();
    let protocol = group.health_check_protocol().and_then(|p| HealthProtocol::of_aws(p.as_str()));
    Some(TargetGroup {
        arn: group.target_group_arn()?.to_owned(),
        name: group.target_group_name()?.to_owned(),
        protocol: group.protocol().map_or(Protocol::Other, |p| Protocol::of_aws(p.as_str())),
        port: number(group.port()),
        of_instances: group.target_type() == Some(&elb::TargetTypeEnum::Instance),
        health_check: HealthCheck {
            protocol: protocol.unwrap_or(HealthProtocol::Tcp),
            port: group.health_check_port().and_then(HealthPort::of_aws).unwrap_or(HealthPort::Traffic),
            path: http(group.health_check_path()),
            success_codes: http(group.matcher().and_then(elb::Matcher::http_code)),
            interval: number(group.health_check_interval_seconds()),
            timeout: number(group.health_check_timeout_seconds()),
            healthy: number(group.healthy_threshold_count()),
            unhealthy: number(group.unhealthy_threshold_count()),
        },
        tags: Tags::new(),
        detail: None,
    })
}

pub(super) fn listener(listener: &elb::Listener) -> Option<Listener> {
    let forwards = listener.default_actions().iter().flat_map(forwards_to).collect();
    Some(Listener {
        arn: listener.listener_arn()?.to_owned(),
        port: u16::try_from(listener.port()?).ok()?,
        protocol: listener.protocol().map_or(Protocol::Other, |p| Protocol::of_aws(p.as_str())),
        target_groups: forwards,
        tags: Tags::new(),
    })
}

fn forwards_to(action: &elb::Action) -> Vec<String> {
    let tuples = action.forward_config().map(elb::ForwardActionConfig::target_groups).unwrap_or_default();
    let of_config: Vec<String> =
        tuples.iter().filter_map(|t| t.target_group_arn().map(str::to_owned)).collect();
    if of_config.is_empty() {
        action.target_group_arn().map(str::to_owned).into_iter().collect()
    } else {
        of_config
    }
}

/// A target on its way out counts as gone: it would have to be registered anew.
pub(super) fn target(described: &elb::TargetHealthDescription) -> Option<Target> {
    let draining = described.target_health().and_then(elb::TargetHealth::state)
        == Some(&elb::TargetHealthStateEnum::Draining);
    let target = described.target().filter(|_| !draining)?;
    Some(Target { instance: target.id()?.to_owned(), port: u16::try_from(target.port()?).ok()? })
}

pub(super) fn elb_tags(tags: &[elb::Tag]) -> Tags {
    let pair = |t: &elb::Tag| Some((t.key()?.to_owned(), t.value().unwrap_or_default().to_owned()));
    tags.iter().filter_map(pair).collect()
}

pub(super) fn ec2_tags(tags: &[ec2::Tag]) -> Tags {
    let pair = |t: &ec2::Tag| Some((t.key()?.to_owned(), t.value().unwrap_or_default().to_owned()));
    tags.iter().filter_map(pair).collect()
}

pub(super) fn load_balancer_attributes(attributes: &[elb::LoadBalancerAttribute]) -> Attributes {
    attributes.iter().filter_map(|a| Some((a.key()?.to_owned(), a.value()?.to_owned()))).collect()
}

pub(super) fn target_group_attributes(attributes: &[elb::TargetGroupAttribute]) -> Attributes {
    attributes.iter().filter_map(|a| Some((a.key()?.to_owned(), a.value()?.to_owned()))).collect()
}

pub(super) fn subnet(subnet: &ec2::Subnet, public: bool) -> Option<Subnet> {
    Some(Subnet {
        id: subnet.subnet_id()?.to_owned(),
        zone: subnet.availability_zone()?.to_owned(),
        free_addresses: subnet.available_ip_address_count().and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
        public,
        tags: ec2_tags(subnet.tags()),
    })
}

/// Which subnets reach an internet gateway: by their own route table, else by the VPC's main one.
pub(super) fn is_public(subnet: &str, tables: &[ec2::RouteTable]) -> bool {
    let associated =
        |table: &&ec2::RouteTable| table.associations().iter().any(|a| a.subnet_id() == Some(subnet));
    let main = |table: &&ec2::RouteTable| table.associations().iter().any(|a| a.main() == Some(true));
    let table = tables.iter().find(associated).or_else(|| tables.iter().find(main));
    let to_gateway = |route: &ec2::Route| route.gateway_id().is_some_and(|id| id.starts_with("igw-"));
    table.is_some_and(|table| table.routes().iter().any(to_gateway))
}

pub(super) fn security_group(group: &ec2::SecurityGroup) -> Option<SecurityGroup> {
    Some(SecurityGroup {
        id: group.group_id()?.to_owned(),
        name: group.group_name()?.to_owned(),
        tags: ec2_tags(group.tags()),
        rules: group.ip_permissions().iter().flat_map(rules).collect(),
    })
}

fn rules(permission: &ec2::IpPermission) -> BTreeSet<Rule> {
    let cidr = |text: Option<&str>| text.and_then(|t| t.parse().ok()).map(Source::Cidr);
    let v4 = permission.ip_ranges().iter().map(|r| (cidr(r.cidr_ip()), r.description()));
    let v6 = permission.ipv6_ranges().iter().map(|r| (cidr(r.cidr_ipv6()), r.description()));
    let groups = permission
        .user_id_group_pairs()
        .iter()
        .map(|p| (p.group_id().map(|id| Source::Group(id.to_owned())), p.description()));
    let lists = permission
        .prefix_list_ids()
        .iter()
        .map(|p| (p.prefix_list_id().map(|id| Source::PrefixList(id.to_owned())), p.description()));
    let rule = |(source, description): (Option<Source>, Option<&str>)| {
        Some(Rule {
            protocol: permission.ip_protocol().unwrap_or("-1").to_owned(),
            from: permission.from_port().unwrap_or(-1),
            to: permission.to_port().unwrap_or(-1),
            source: source?,
            description: description.unwrap_or_default().to_owned(),
        })
    };
    v4.chain(v6).chain(groups).chain(lists).filter_map(rule).collect()
}

/// One permission a rule; AWS merges what it can.
pub(super) fn permission(rule: &Rule) -> ec2::IpPermission {
    let description = (!rule.description.is_empty()).then(|| rule.description.clone());
    let port = |port: i32| (port >= 0).then_some(port);
    let builder = ec2::IpPermission::builder()
        .ip_protocol(&rule.protocol)
        .set_from_port(port(rule.from))
        .set_to_port(port(rule.to));
    match &rule.source {
        Source::Cidr(ipnet::IpNet::V4(net)) => {
            let range = ec2::IpRange::builder().cidr_ip(net.to_string()).set_description(description);
            builder.ip_ranges(range.build())
        }
        Source::Cidr(ipnet::IpNet::V6(net)) => {
            let range = ec2::Ipv6Range::builder().cidr_ipv6(net.to_string()).set_description(description);
            builder.ipv6_ranges(range.build())
        }
        Source::Group(id) => {
            let pair = ec2::UserIdGroupPair::builder().group_id(id).set_description(description);
            builder.user_id_group_pairs(pair.build())
        }
        Source::PrefixList(id) => {
            let list = ec2::PrefixListId::builder().prefix_list_id(id).set_description(description);
            builder.prefix_list_ids(list.build())
        }
    }
    .build()
}

pub(super) fn scheme(scheme: Scheme) -> elb::LoadBalancerSchemeEnum {
    match scheme {
        Scheme::Internal => elb::LoadBalancerSchemeEnum::Internal,
        Scheme::InternetFacing => elb::LoadBalancerSchemeEnum::InternetFacing,
    }
}

pub(super) fn protocol(protocol: Protocol) -> elb::ProtocolEnum {
    elb::ProtocolEnum::from(protocol.as_str())
}

pub(super) fn elb_tag_list(tags: &Tags) -> Vec<elb::Tag> {
    tags.iter().map(|(k, v)| elb::Tag::builder().key(k).value(v).build()).collect()
}

pub(super) fn ec2_tag_list(tags: &Tags) -> Vec<ec2::Tag> {
    tags.iter().map(|(k, v)| ec2::Tag::builder().key(k).value(v).build()).collect()
}

pub(super) fn target_list(targets: &[Target]) -> Vec<elb::TargetDescription> {
    let described =
        |t: &Target| elb::TargetDescription::builder().id(&t.instance).port(i32::from(t.port)).build();
    targets.iter().map(described).collect()
}

pub(super) fn forward(target_group: &str) -> elb::Action {
    elb::Action::builder().r#type(elb::ActionTypeEnum::Forward).target_group_arn(target_group).build()
}
