//! The calls: pages, batches, and nothing decided.

use std::collections::BTreeMap;

use aws_sdk_ec2::types as ec2;
use aws_sdk_elasticloadbalancingv2::types as elb;

use super::{Sdk, parse};
use crate::aws::api::{
    Api, ApiError, ApiResult, CreatedLoadBalancer, ErrorKind, NewListener, NewLoadBalancer, NewSecurityGroup,
    NewTargetGroup,
};
use crate::aws::operation::Operation;
use crate::aws::resources::{
    Attributes, HealthCheck, HealthPort, Listener, LoadBalancer, Protocol, Rule, SecurityGroup, Subnet, Tags,
    Target, TargetGroup,
};

/// The largest page of ELBv2's lists.
const ELB_PAGE: i32 = 400;
/// The largest page of EC2's lists.
const EC2_PAGE: i32 = 1000;
/// ELBv2's tag operations take that many resources.
const TAGGED_AT_ONCE: usize = 20;

impl Api for Sdk {
    async fn load_balancers(&self) -> ApiResult<Vec<LoadBalancer>> {
        let (mut all, mut marker) = (Vec::new(), None);
        loop {
            let page = self.elb.describe_load_balancers().page_size(ELB_PAGE).set_marker(marker);
            let page = self.call(Operation::DescribeLoadBalancers, || page.clone().send()).await?;
            all.extend(page.load_balancers().iter().filter_map(parse::load_balancer));
            marker = page.next_marker().map(str::to_owned);
            if marker.is_none() {
                return Ok(all);
            }
        }
    }

    async fn target_groups(&self) -> ApiResult<Vec<TargetGroup>> {
        let (mut all, mut marker) = (Vec::new(), None);
        loop {
            let page = self.elb.describe_target_groups().page_size(ELB_PAGE).set_marker(marker);
            let page = self.call(Operation::DescribeTargetGroups, || page.clone().send()).await?;
            all.extend(page.target_groups().iter().filter_map(parse::target_group));
            marker = page.next_marker().map(str::to_owned);
            if marker.is_none() {
                return Ok(all);
            }
        }
    }

    async fn tags(&self, arns: &[String]) -> ApiResult<BTreeMap<String, Tags>> {
        let mut all = BTreeMap::new();
        for chunk in arns.chunks(TAGGED_AT_ONCE) {
            match self.tags_of(chunk).await {
                Ok(tags) => all.extend(tags),
                // One of them was deleted since the list was made: ask for each alone.
                Err(error) if error.kind == ErrorKind::NotFound => {
                    for arn in chunk {
                        match self.tags_of(std::slice::from_ref(arn)).await {
                            Ok(tags) => all.extend(tags),
                            Err(error) if error.kind == ErrorKind::NotFound => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    async fn subnets(&self, vpc: &str) -> ApiResult<Vec<Subnet>> {
        let filter = ec2::Filter::builder().name("vpc-id").values(vpc).build();
        let (mut subnets, mut token) = (Vec::new(), None);
        loop {
            let page = self.ec2.describe_subnets().filters(filter.clone()).max_results(EC2_PAGE);
            let page = page.set_next_token(token);
            let page = self.call(Operation::DescribeSubnets, || page.clone().send()).await?;
            subnets.extend_from_slice(page.subnets());
            token = page.next_token().map(str::to_owned);
            if token.is_none() {
                break;
            }
        }
        let mut tables = Vec::new();
        loop {
            let page = self.ec2.describe_route_tables().filters(filter.clone()).max_results(100);
            let page = page.set_next_token(token);
            let page = self.call(Operation::DescribeRouteTables, || page.clone().send()).await?;
            tables.extend_from_slice(page.route_tables());
            token = page.next_token().map(str::to_owned);
            if token.is_none() {
                break;
            }
        }
        let public = |s: &ec2::Subnet| s.subnet_id().is_some_and(|id| parse::is_public(id, &tables));
        Ok(subnets.iter().filter_map(|s| parse::subnet(s, public(s))).collect())
    }

    async fn security_groups(&self, vpc: &str) -> ApiResult<Vec<SecurityGroup>> {
        let filter = ec2::Filter::builder().name("vpc-id").values(vpc).build();
        let (mut all, mut token) = (Vec::new(), None);
        loop {
            let page = self.ec2.describe_security_groups().filters(filter.clone()).max_results(EC2_PAGE);
            let page = page.set_next_token(token);
            let page = self.call(Operation::DescribeSecurityGroups, || page.clone().send()).await?;
            all.extend(page.security_groups().iter().filter_map(parse::security_group));
            token = page.next_token().map(str::to_owned);
            if token.is_none() {
                return Ok(all);
            }
        }
    }

    async fn listeners(&self, load_balancer: &str) -> ApiResult<Vec<Listener>> {
        let (mut all, mut marker) = (Vec::new(), None);
        loop {
            let page = self.elb.describe_listeners().load_balancer_arn(load_balancer).page_size(ELB_PAGE);
            let page = page.set_marker(marker);
            let page = self.call(Operation::DescribeListeners, || page.clone().send()).await?;
            all.extend(page.listeners().iter().filter_map(parse::listener));
            marker = page.next_marker().map(str::to_owned);
            if marker.is_none() {
                return Ok(all);
            }
        }
    }

    async fn load_balancer_attributes(&self, arn: &str) -> ApiResult<Attributes> {
        let request = self.elb.describe_load_balancer_attributes().load_balancer_arn(arn);
        let answer = self.call(Operation::DescribeLoadBalancerAttributes, || request.clone().send()).await?;
        Ok(parse::load_balancer_attributes(answer.attributes()))
    }

    async fn target_group_attributes(&self, arn: &str) -> ApiResult<Attributes> {
        let request = self.elb.describe_target_group_attributes().target_group_arn(arn);
        let answer = self.call(Operation::DescribeTargetGroupAttributes, || request.clone().send()).await?;
        Ok(parse::target_group_attributes(answer.attributes()))
    }

    async fn targets(&self, target_group: &str) -> ApiResult<Vec<Target>> {
        let request = self.elb.describe_target_health().target_group_arn(target_group);
        let answer = self.call(Operation::DescribeTargetHealth, || request.clone().send()).await?;
        Ok(answer.target_health_descriptions().iter().filter_map(parse::target).collect())
    }

    async fn create_security_group(&self, new: &NewSecurityGroup) -> ApiResult<String> {
        let tags = ec2::TagSpecification::builder()
            .resource_type(ec2::ResourceType::SecurityGroup)
            .set_tags(Some(parse::ec2_tag_list(&new.tags)));
        let request = self
            .ec2
            .create_security_group()
            .group_name(&new.name)
            .description(&new.description)
            .vpc_id(&new.vpc)
            .tag_specifications(tags.build());
        let answer = self.call(Operation::CreateSecurityGroup, || request.clone().send()).await?;
        named(Operation::CreateSecurityGroup, answer.group_id())
    }

    async fn delete_security_group(&self, id: &str) -> ApiResult<()> {
        let request = self.ec2.delete_security_group().group_id(id);
        self.call(Operation::DeleteSecurityGroup, || request.clone().send()).await?;
        Ok(())
    }

    async fn allow(&self, group: &str, rules: &[Rule]) -> ApiResult<()> {
        let permissions = rules.iter().map(parse::permission).collect();
        let request =
            self.ec2.authorize_security_group_ingress().group_id(group).set_ip_permissions(Some(permissions));
        self.call(Operation::AuthorizeSecurityGroupIngress, || request.clone().send()).await?;
        Ok(())
    }

    async fn revoke(&self, group: &str, rules: &[Rule]) -> ApiResult<()> {
        let permissions = rules.iter().map(parse::permission).collect();
        let request =
            self.ec2.revoke_security_group_ingress().group_id(group).set_ip_permissions(Some(permissions));
        self.call(Operation::RevokeSecurityGroupIngress, || request.clone().send()).await?;
        Ok(())
    }

    async fn tag_security_group(&self, id: &str, tags: &Tags) -> ApiResult<()> {
        let request = self.ec2.create_tags().resources(id).set_tags(Some(parse::ec2_tag_list(tags)));
        self.call(Operation::CreateTags, || request.clone().send()).await?;
        Ok(())
    }

    async fn untag_security_group(&self, id: &str, keys: &[String]) -> ApiResult<()> {
        let tags = keys.iter().map(|key| ec2::Tag::builder().key(key).build()).collect();
        let request = self.ec2.delete_tags().resources(id).set_tags(Some(tags));
        self.call(Operation::DeleteTags, || request.clone().send()).await?;
        Ok(())
    }

    async fn create_load_balancer(&self, new: &NewLoadBalancer) -> ApiResult<CreatedLoadBalancer> {
        let request = self
            .elb
            .create_load_balancer()
            .name(&new.name)
            .r#type(elb::LoadBalancerTypeEnum::Network)
            .scheme(parse::scheme(new.scheme))
            .ip_address_type(elb::IpAddressType::Ipv4)
            .set_subnets(Some(new.subnets.clone()))
            .set_security_groups(Some(new.security_groups.clone()))
            .set_tags(Some(parse::elb_tag_list(&new.tags)));
        let answer = self.call(Operation::CreateLoadBalancer, || request.clone().send()).await?;
        let created = answer.load_balancers().first();
        Ok(CreatedLoadBalancer {
            arn: named(Operation::CreateLoadBalancer, created.and_then(|lb| lb.load_balancer_arn()))?,
            dns_name: named(Operation::CreateLoadBalancer, created.and_then(|lb| lb.dns_name()))?,
        })
    }

    async fn delete_load_balancer(&self, arn: &str) -> ApiResult<()> {
        let request = self.elb.delete_load_balancer().load_balancer_arn(arn);
        self.call(Operation::DeleteLoadBalancer, || request.clone().send()).await?;
        Ok(())
    }

    async fn set_load_balancer_attributes(&self, arn: &str, attributes: &Attributes) -> ApiResult<()> {
        let attribute = |(key, value)| elb::LoadBalancerAttribute::builder().key(key).value(value).build();
        let attributes = attributes.iter().map(attribute).collect();
        let request = self
            .elb
            .modify_load_balancer_attributes()
            .load_balancer_arn(arn)
            .set_attributes(Some(attributes));
        self.call(Operation::ModifyLoadBalancerAttributes, || request.clone().send()).await?;
        Ok(())
    }

    async fn set_subnets(&self, arn: &str, subnets: &[String]) -> ApiResult<()> {
        let request = self.elb.set_subnets().load_balancer_arn(arn).set_subnets(Some(subnets.to_vec()));
        self.call(Operation::SetSubnets, || request.clone().send()).await?;
        Ok(())
    }

    async fn set_security_groups(&self, arn: &str, groups: &[String]) -> ApiResult<()> {
        let request =
            self.elb.set_security_groups().load_balancer_arn(arn).set_security_groups(Some(groups.to_vec()));
        self.call(Operation::SetSecurityGroups, || request.clone().send()).await?;
        Ok(())
    }

    async fn create_target_group(&self, new: &NewTargetGroup) -> ApiResult<String> {
        let check = &new.health_check;
        let request = self
            .elb
            .create_target_group()
            .name(&new.name)
            .protocol(parse::protocol(new.protocol))
            .port(i32::from(new.port))
            .vpc_id(&new.vpc)
            .target_type(elb::TargetTypeEnum::Instance)
            .health_check_enabled(true)
            .health_check_protocol(elb::ProtocolEnum::from(check.protocol.as_str()))
            .health_check_port(port(check.port))
            .set_health_check_path(check.path.clone())
            .set_matcher(matcher(check))
            .health_check_interval_seconds(i32::from(check.interval))
            .health_check_timeout_seconds(i32::from(check.timeout))
            .healthy_threshold_count(i32::from(check.healthy))
            .unhealthy_threshold_count(i32::from(check.unhealthy))
            .set_tags(Some(parse::elb_tag_list(&new.tags)));
        let answer = self.call(Operation::CreateTargetGroup, || request.clone().send()).await?;
        let created = answer.target_groups().first();
        named(Operation::CreateTargetGroup, created.and_then(|g| g.target_group_arn()))
    }

    async fn delete_target_group(&self, arn: &str) -> ApiResult<()> {
        let request = self.elb.delete_target_group().target_group_arn(arn);
        self.call(Operation::DeleteTargetGroup, || request.clone().send()).await?;
        Ok(())
    }

    async fn set_health_check(&self, arn: &str, check: &HealthCheck) -> ApiResult<()> {
        let request = self
            .elb
            .modify_target_group()
            .target_group_arn(arn)
            .health_check_enabled(true)
            .health_check_protocol(elb::ProtocolEnum::from(check.protocol.as_str()))
            .health_check_port(port(check.port))
            .set_health_check_path(check.path.clone())
            .set_matcher(matcher(check))
            .health_check_interval_seconds(i32::from(check.interval))
            .health_check_timeout_seconds(i32::from(check.timeout))
            .healthy_threshold_count(i32::from(check.healthy))
            .unhealthy_threshold_count(i32::from(check.unhealthy));
        self.call(Operation::ModifyTargetGroup, || request.clone().send()).await?;
        Ok(())
    }

    async fn set_target_group_attributes(&self, arn: &str, attributes: &Attributes) -> ApiResult<()> {
        let attribute = |(key, value)| elb::TargetGroupAttribute::builder().key(key).value(value).build();
        let attributes = attributes.iter().map(attribute).collect();
        let request =
            self.elb.modify_target_group_attributes().target_group_arn(arn).set_attributes(Some(attributes));
        self.call(Operation::ModifyTargetGroupAttributes, || request.clone().send()).await?;
        Ok(())
    }

    async fn register(&self, target_group: &str, targets: &[Target]) -> ApiResult<()> {
        let request = self
            .elb
            .register_targets()
            .target_group_arn(target_group)
            .set_targets(Some(parse::target_list(targets)));
        self.call(Operation::RegisterTargets, || request.clone().send()).await?;
        Ok(())
    }

    async fn deregister(&self, target_group: &str, targets: &[Target]) -> ApiResult<()> {
        let request = self
            .elb
            .deregister_targets()
            .target_group_arn(target_group)
            .set_targets(Some(parse::target_list(targets)));
        self.call(Operation::DeregisterTargets, || request.clone().send()).await?;
        Ok(())
    }

    async fn create_listener(&self, new: &NewListener) -> ApiResult<String> {
        let request = self
            .elb
            .create_listener()
            .load_balancer_arn(&new.load_balancer)
            .port(i32::from(new.port))
            .protocol(parse::protocol(new.protocol))
            .default_actions(parse::forward(&new.target_group))
            .set_tags(Some(parse::elb_tag_list(&new.tags)));
        let answer = self.call(Operation::CreateListener, || request.clone().send()).await?;
        let created = answer.listeners().first();
        named(Operation::CreateListener, created.and_then(|l| l.listener_arn()))
    }

    async fn set_listener(&self, arn: &str, protocol: Protocol, target_group: &str) -> ApiResult<()> {
        let request = self
            .elb
            .modify_listener()
            .listener_arn(arn)
            .protocol(parse::protocol(protocol))
            .default_actions(parse::forward(target_group));
        self.call(Operation::ModifyListener, || request.clone().send()).await?;
        Ok(())
    }

    async fn delete_listener(&self, arn: &str) -> ApiResult<()> {
        let request = self.elb.delete_listener().listener_arn(arn);
        self.call(Operation::DeleteListener, || request.clone().send()).await?;
        Ok(())
    }

    async fn add_tags(&self, arns: &[String], tags: &Tags) -> ApiResult<()> {
        for chunk in arns.chunks(TAGGED_AT_ONCE) {
            let request = self.elb.add_tags().set_resource_arns(Some(chunk.to_vec()));
            let request = request.set_tags(Some(parse::elb_tag_list(tags)));
            self.call(Operation::AddTags, || request.clone().send()).await?;
        }
        Ok(())
    }

    async fn remove_tags(&self, arns: &[String], keys: &[String]) -> ApiResult<()> {
        for chunk in arns.chunks(TAGGED_AT_ONCE) {
            let request = self.elb.remove_tags().set_resource_arns(Some(chunk.to_vec()));
            let request = request.set_tag_keys(Some(keys.to_vec()));
            self.call(Operation::RemoveTags, || request.clone().send()).await?;
        }
        Ok(())
    }
}

impl Sdk {
    /// One call.
    async fn tags_of(&self, arns: &[String]) -> ApiResult<BTreeMap<String, Tags>> {
        let request = self.elb.describe_tags().set_resource_arns(Some(arns.to_vec()));
        let answer = self.call(Operation::DescribeTags, || request.clone().send()).await?;
        let tags = |d: &elb::TagDescription| Some((d.resource_arn()?.to_owned(), parse::elb_tags(d.tags())));
        Ok(answer.tag_descriptions().iter().filter_map(tags).collect())
    }
}

fn port(port: HealthPort) -> String {
    port.to_string()
}

fn matcher(check: &HealthCheck) -> Option<elb::Matcher> {
    check.success_codes.as_ref().map(|codes| elb::Matcher::builder().http_code(codes).build())
}

/// What AWS must have named in its answer.
fn named(operation: Operation, name: Option<&str>) -> ApiResult<String> {
    name.map(str::to_owned).ok_or_else(|| ApiError {
        operation,
        kind: ErrorKind::Unknown,
        code: "incomplete answer".to_owned(),
        message: "AWS did not name what it made".to_owned(),
    })
}
