//! A stand-in for EC2 and ELBv2 in memory that keeps to AWS's rules: idempotent creation and
//! duplicate names, resources in use, what belongs together, quotas. It counts calls, and loses
//! answers when told to. The same suite runs against it and against moto.

mod ec2;
mod elb;
mod show;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::api::{
    Api, ApiError, ApiResult, CreatedLoadBalancer, ErrorKind, NewListener, NewLoadBalancer, NewSecurityGroup,
    NewTargetGroup,
};
use super::operation::Operation;
use super::resources::{
    Attributes, HealthCheck, Listener, LoadBalancer, Protocol, Rule, SecurityGroup, Subnet, Tags, Target,
    TargetGroup,
};

/// What goes wrong with a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// AWS answers with this error code and does nothing.
    Refuse(&'static str),
    /// AWS does it, and the answer is lost.
    LoseAnswer,
}

/// A handle: clones reach the same account.
#[derive(Debug, Clone)]
pub struct Fake {
    state: Arc<Mutex<State>>,
}

/// The account.
#[derive(Debug, Default)]
struct State {
    vpc: String,
    instances: Vec<String>,
    subnets: BTreeMap<String, Subnet>,
    /// By id.
    security_groups: BTreeMap<String, SecurityGroup>,
    /// By ARN.
    load_balancers: BTreeMap<String, LoadBalancer>,
    /// By ARN.
    target_groups: BTreeMap<String, TargetGroup>,
    /// Network interfaces of deleted load balancers, that hold their security groups for so many
    /// more attempts to delete those.
    lingering: Vec<(u32, Vec<String>)>,
    /// What `lingering` begins with.
    linger: u32,
    made: u64,
    calls: BTreeMap<Operation, u64>,
    writes: u64,
    faults: BTreeMap<u64, Fault>,
}

/// An AWS error code and its message.
type Refusal = (&'static str, String);
type Answer<T> = Result<T, Refusal>;

fn refuse<T>(code: &'static str, message: impl Into<String>) -> Answer<T> {
    Err((code, message.into()))
}

impl Fake {
    /// An empty account with one VPC.
    pub fn new(vpc: &str) -> Self {
        let state = State { vpc: vpc.to_owned(), ..State::default() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    pub fn add_subnet(&self, id: &str, zone: &str, public: bool, tags: &[(&str, &str)]) {
        let tags = tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let subnet = Subnet { id: id.to_owned(), zone: zone.to_owned(), free_addresses: 250, public, tags };
        self.state().subnets.insert(id.to_owned(), subnet);
    }

    /// One that was there before. Returns its id.
    pub fn add_security_group(&self, name: &str, tags: &[(&str, &str)]) -> String {
        let state = &mut *self.state();
        let id = format!("sg-{}", state.next_id());
        let tags = tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let group = SecurityGroup { id: id.clone(), name: name.to_owned(), tags, rules: [].into() };
        state.security_groups.insert(id.clone(), group);
        id
    }

    pub fn add_instance(&self, id: &str) {
        self.state().instances.push(id.to_owned());
    }

    /// It was terminated; where it is registered, it stays for a while.
    pub fn remove_instance(&self, id: &str) {
        self.state().instances.retain(|i| i != id);
    }

    /// How many attempts to delete a security group fail after its load balancer has gone.
    pub fn set_linger(&self, attempts: u32) {
        self.state().linger = attempts;
    }

    /// The `nth` write from now on, counted from 0, goes wrong.
    pub fn fail_write(&self, nth: u64, fault: Fault) {
        let state = &mut *self.state();
        state.faults.insert(state.writes + nth, fault);
    }

    /// What has not gone wrong yet will not.
    pub fn forget_faults(&self) {
        self.state().faults.clear();
    }

    /// Calls since the last [`Self::reset_calls`], a page each.
    pub fn calls(&self) -> BTreeMap<Operation, u64> {
        self.state().calls.clone()
    }

    pub fn call_count(&self) -> u64 {
        self.state().calls.values().sum()
    }

    pub fn reset_calls(&self) {
        self.state().calls.clear();
    }

    /// Everything that was made, without ids: two accounts in the same state show the same.
    pub fn show(&self) -> String {
        show::show(&self.state())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call<T>(&self, operation: Operation, act: impl FnOnce(&mut State) -> Answer<T>) -> ApiResult<T> {
        let state = &mut *self.state();
        *state.calls.entry(operation).or_default() += 1;
        let fault = operation.is_write().then(|| {
            state.writes += 1;
            state.faults.remove(&(state.writes - 1))
        });
        let refused = |(code, message): Refusal| ApiError::of_code(operation, code, message);
        match fault.flatten() {
            None => act(state).map_err(refused),
            Some(Fault::Refuse(code)) => Err(refused((code, "as the test wants".to_owned()))),
            Some(Fault::LoseAnswer) => {
                act(state).map_err(refused)?;
                let message = "the answer was lost, as the test wants".to_owned();
                Err(ApiError { operation, kind: ErrorKind::Unknown, code: "no answer".to_owned(), message })
            }
        }
    }

    /// A list costs a call for each page.
    fn count_pages(&self, operation: Operation, items: usize, page: usize) {
        let pages = items.div_ceil(page).saturating_sub(1);
        *self.state().calls.entry(operation).or_default() += pages as u64;
    }
}

impl State {
    fn next_id(&mut self) -> String {
        self.made += 1;
        format!("{:016x}", self.made)
    }
}

impl Api for Fake {
    async fn load_balancers(&self) -> ApiResult<Vec<LoadBalancer>> {
        let bare = |lb: &LoadBalancer| LoadBalancer { tags: Tags::new(), detail: None, ..lb.clone() };
        let all = self.call(Operation::DescribeLoadBalancers, |s| {
            Ok(s.load_balancers.values().map(bare).collect::<Vec<_>>())
        })?;
        self.count_pages(Operation::DescribeLoadBalancers, all.len(), 400);
        Ok(all)
    }

    async fn target_groups(&self) -> ApiResult<Vec<TargetGroup>> {
        let bare = |g: &TargetGroup| TargetGroup { tags: Tags::new(), detail: None, ..g.clone() };
        let all = self.call(Operation::DescribeTargetGroups, |s| {
            Ok(s.target_groups.values().map(bare).collect::<Vec<_>>())
        })?;
        self.count_pages(Operation::DescribeTargetGroups, all.len(), 400);
        Ok(all)
    }

    async fn tags(&self, arns: &[String]) -> ApiResult<BTreeMap<String, Tags>> {
        if arns.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.count_pages(Operation::DescribeTags, arns.len(), 20);
        self.call(Operation::DescribeTags, |s| {
            arns.iter().map(|arn| Ok((arn.clone(), s.tags(arn)?.clone()))).collect()
        })
    }

    async fn subnets(&self, vpc: &str) -> ApiResult<Vec<Subnet>> {
        self.call(Operation::DescribeRouteTables, |_| Ok(()))?;
        self.call(Operation::DescribeSubnets, |s| Ok(s.in_vpc(vpc, &s.subnets)))
    }

    async fn security_groups(&self, vpc: &str) -> ApiResult<Vec<SecurityGroup>> {
        self.call(Operation::DescribeSecurityGroups, |s| Ok(s.in_vpc(vpc, &s.security_groups)))
    }

    async fn listeners(&self, load_balancer: &str) -> ApiResult<Vec<Listener>> {
        self.call(Operation::DescribeListeners, |s| {
            let listeners = s.detail(load_balancer)?.listeners.values();
            Ok(listeners.map(|l| Listener { tags: Tags::new(), ..l.clone() }).collect())
        })
    }

    async fn load_balancer_attributes(&self, arn: &str) -> ApiResult<Attributes> {
        self.call(Operation::DescribeLoadBalancerAttributes, |s| Ok(s.detail(arn)?.attributes.clone()))
    }

    async fn target_group_attributes(&self, arn: &str) -> ApiResult<Attributes> {
        self.call(Operation::DescribeTargetGroupAttributes, |s| Ok(s.group_detail(arn)?.attributes.clone()))
    }

    async fn targets(&self, target_group: &str) -> ApiResult<Vec<Target>> {
        self.call(Operation::DescribeTargetHealth, |s| {
            Ok(s.group_detail(target_group)?.targets.iter().cloned().collect())
        })
    }

    async fn create_security_group(&self, new: &NewSecurityGroup) -> ApiResult<String> {
        self.call(Operation::CreateSecurityGroup, |s| s.create_security_group(new))
    }

    async fn delete_security_group(&self, id: &str) -> ApiResult<()> {
        self.call(Operation::DeleteSecurityGroup, |s| s.delete_security_group(id))
    }

    async fn allow(&self, group: &str, rules: &[Rule]) -> ApiResult<()> {
        self.call(Operation::AuthorizeSecurityGroupIngress, |s| s.allow(group, rules))
    }

    async fn revoke(&self, group: &str, rules: &[Rule]) -> ApiResult<()> {
        self.call(Operation::RevokeSecurityGroupIngress, |s| s.revoke(group, rules))
    }

    async fn tag_security_group(&self, id: &str, tags: &Tags) -> ApiResult<()> {
        self.call(Operation::CreateTags, |s| {
            s.security_group(id)?.tags.extend(tags.clone());
            Ok(())
        })
    }

    async fn untag_security_group(&self, id: &str, keys: &[String]) -> ApiResult<()> {
        self.call(Operation::DeleteTags, |s| {
            s.security_group(id)?.tags.retain(|key, _| !keys.contains(key));
            Ok(())
        })
    }

    async fn create_load_balancer(&self, new: &NewLoadBalancer) -> ApiResult<CreatedLoadBalancer> {
        self.call(Operation::CreateLoadBalancer, |s| s.create_load_balancer(new))
    }

    async fn delete_load_balancer(&self, arn: &str) -> ApiResult<()> {
        self.call(Operation::DeleteLoadBalancer, |s| s.delete_load_balancer(arn))
    }

    async fn set_load_balancer_attributes(&self, arn: &str, attributes: &Attributes) -> ApiResult<()> {
        self.call(Operation::ModifyLoadBalancerAttributes, |s| {
            elb::check_attributes(attributes, &elb::LOAD_BALANCER_ATTRIBUTES)?;
            s.detail(arn)?.attributes.extend(attributes.clone());
            Ok(())
        })
    }

    async fn set_subnets(&self, arn: &str, subnets: &[String]) -> ApiResult<()> {
        self.call(Operation::SetSubnets, |s| s.set_subnets(arn, subnets))
    }

    async fn set_security_groups(&self, arn: &str, groups: &[String]) -> ApiResult<()> {
        self.call(Operation::SetSecurityGroups, |s| s.set_security_groups(arn, groups))
    }

    async fn create_target_group(&self, new: &NewTargetGroup) -> ApiResult<String> {
        self.call(Operation::CreateTargetGroup, |s| s.create_target_group(new))
    }

    async fn delete_target_group(&self, arn: &str) -> ApiResult<()> {
        self.call(Operation::DeleteTargetGroup, |s| s.delete_target_group(arn))
    }

    async fn set_health_check(&self, arn: &str, check: &HealthCheck) -> ApiResult<()> {
        self.call(Operation::ModifyTargetGroup, |s| s.set_health_check(arn, check))
    }

    async fn set_target_group_attributes(&self, arn: &str, attributes: &Attributes) -> ApiResult<()> {
        self.call(Operation::ModifyTargetGroupAttributes, |s| {
            elb::check_attributes(attributes, &elb::TARGET_GROUP_ATTRIBUTES)?;
            s.group_detail(arn)?.attributes.extend(attributes.clone());
            Ok(())
        })
    }

    async fn register(&self, target_group: &str, targets: &[Target]) -> ApiResult<()> {
        self.call(Operation::RegisterTargets, |s| s.register(target_group, targets))
    }

    async fn deregister(&self, target_group: &str, targets: &[Target]) -> ApiResult<()> {
        self.call(Operation::DeregisterTargets, |s| {
            s.group_detail(target_group)?.targets.retain(|t| !targets.contains(t));
            Ok(())
        })
    }

    async fn create_listener(&self, new: &NewListener) -> ApiResult<String> {
        self.call(Operation::CreateListener, |s| s.create_listener(new))
    }

    async fn set_listener(&self, arn: &str, protocol: Protocol, target_group: &str) -> ApiResult<()> {
        self.call(Operation::ModifyListener, |s| s.set_listener(arn, protocol, target_group))
    }

    async fn delete_listener(&self, arn: &str) -> ApiResult<()> {
        self.call(Operation::DeleteListener, |s| s.delete_listener(arn))
    }

    async fn add_tags(&self, arns: &[String], tags: &Tags) -> ApiResult<()> {
        self.call(Operation::AddTags, |s| s.add_tags(arns, tags))
    }

    async fn remove_tags(&self, arns: &[String], keys: &[String]) -> ApiResult<()> {
        self.call(Operation::RemoveTags, |s| {
            for arn in arns {
                s.tags(arn)?.retain(|key, _| !keys.contains(key));
            }
            Ok(())
        })
    }
}
