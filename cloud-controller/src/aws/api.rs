//! What we ask of AWS: the one interface that the SDK and the fake implement.
//!
//! Paging and the sizes of batches are the implementation's business; each page costs a call.

use std::collections::BTreeMap;

use super::operation::Operation;
use super::resources::{
    Attributes, HealthCheck, Listener, LoadBalancer, Protocol, Rule, Scheme, SecurityGroup, Subnet, Tags,
    Target, TargetGroup,
};

/// Why a call failed, as far as somebody decides from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Too many calls; nothing was done.
    Throttled,
    /// What is named does not exist (any more).
    NotFound,
    /// Something of that name, port or content exists already.
    Duplicate,
    /// Something else still uses it.
    InUse,
    /// The credentials do not allow it, or there are none.
    Denied,
    /// A quota is used up.
    Limit,
    /// AWS refuses the request as it stands; trying again changes nothing.
    Refused,
    /// No answer, or none that can be read: it may have been done.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: {code}: {message}")]
pub struct ApiError {
    pub operation: Operation,
    pub kind: ErrorKind,
    /// AWS's error code, such as `ResourceInUse`.
    pub code: String,
    pub message: String,
}

/// The code, as if it were AWS's, of an error that AWS never saw.
pub const NO_CREDENTIALS: &str = "NoCredentials";

pub type ApiResult<T> = Result<T, ApiError>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSecurityGroup {
    pub name: String,
    pub vpc: String,
    pub description: String,
    pub tags: Tags,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLoadBalancer {
    pub name: String,
    pub scheme: Scheme,
    pub subnets: Vec<String>,
    /// Ids.
    pub security_groups: Vec<String>,
    pub tags: Tags,
}

/// What AWS answers to it; for a name that exists with the same settings, the existing one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedLoadBalancer {
    pub arn: String,
    pub dns_name: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTargetGroup {
    pub name: String,
    pub vpc: String,
    pub protocol: Protocol,
    pub port: u16,
    pub health_check: HealthCheck,
    pub tags: Tags,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewListener {
    pub load_balancer: String,
    pub port: u16,
    pub protocol: Protocol,
    pub target_group: String,
    pub tags: Tags,
}

/// Resources are named by ARN or id. Creation returns the new one's.
pub trait Api: Send + Sync + 'static {
    /// Network load balancers and others, without tags and details.
    fn load_balancers(&self) -> impl Future<Output = ApiResult<Vec<LoadBalancer>>> + Send;
    /// Without tags and details.
    fn target_groups(&self) -> impl Future<Output = ApiResult<Vec<TargetGroup>>> + Send;
    /// Of load balancers, target groups and listeners.
    fn tags(&self, arns: &[String]) -> impl Future<Output = ApiResult<BTreeMap<String, Tags>>> + Send;
    /// With tags, and whether they are public.
    fn subnets(&self, vpc: &str) -> impl Future<Output = ApiResult<Vec<Subnet>>> + Send;
    /// With tags and rules.
    fn security_groups(&self, vpc: &str) -> impl Future<Output = ApiResult<Vec<SecurityGroup>>> + Send;
    /// Without tags.
    fn listeners(&self, load_balancer: &str) -> impl Future<Output = ApiResult<Vec<Listener>>> + Send;
    fn load_balancer_attributes(&self, arn: &str) -> impl Future<Output = ApiResult<Attributes>> + Send;
    fn target_group_attributes(&self, arn: &str) -> impl Future<Output = ApiResult<Attributes>> + Send;
    /// Those that are not being drained.
    fn targets(&self, target_group: &str) -> impl Future<Output = ApiResult<Vec<Target>>> + Send;

    fn create_security_group(&self, new: &NewSecurityGroup)
    -> impl Future<Output = ApiResult<String>> + Send;
    fn delete_security_group(&self, id: &str) -> impl Future<Output = ApiResult<()>> + Send;
    fn allow(&self, group: &str, rules: &[Rule]) -> impl Future<Output = ApiResult<()>> + Send;
    fn revoke(&self, group: &str, rules: &[Rule]) -> impl Future<Output = ApiResult<()>> + Send;
    fn tag_security_group(&self, id: &str, tags: &Tags) -> impl Future<Output = ApiResult<()>> + Send;
    fn untag_security_group(&self, id: &str, keys: &[String]) -> impl Future<Output = ApiResult<()>> + Send;

    fn create_load_balancer(
        &self,
        new: &NewLoadBalancer,
    ) -> impl Future<Output = ApiResult<CreatedLoadBalancer>> + Send;
    fn delete_load_balancer(&self, arn: &str) -> impl Future<Output = ApiResult<()>> + Send;
    fn set_load_balancer_attributes(
        &self,
        arn: &str,
        attributes: &Attributes,
    ) -> impl Future<Output = ApiResult<()>> + Send;
    fn set_subnets(&self, arn: &str, subnets: &[String]) -> impl Future<Output = ApiResult<()>> + Send;
    fn set_security_groups(&self, arn: &str, groups: &[String])
    -> impl Future<Output = ApiResult<()>> + Send;

    fn create_target_group(&self, new: &NewTargetGroup) -> impl Future<Output = ApiResult<String>> + Send;
    fn delete_target_group(&self, arn: &str) -> impl Future<Output = ApiResult<()>> + Send;
    fn set_health_check(&self, arn: &str, check: &HealthCheck) -> impl Future<Output = ApiResult<()>> + Send;
    fn set_target_group_attributes(
        &self,
        arn: &str,
        attributes: &Attributes,
    ) -> impl Future<Output = ApiResult<()>> + Send;
    fn register(&self, target_group: &str, targets: &[Target]) -> impl Future<Output = ApiResult<()>> + Send;
    fn deregister(
        &self,
        target_group: &str,
        targets: &[Target],
    ) -> impl Future<Output = ApiResult<()>> + Send;

    fn create_listener(&self, new: &NewListener) -> impl Future<Output = ApiResult<String>> + Send;
    fn set_listener(
        &self,
        arn: &str,
        protocol: Protocol,
        target_group: &str,
    ) -> impl Future<Output = ApiResult<()>> + Send;
    fn delete_listener(&self, arn: &str) -> impl Future<Output = ApiResult<()>> + Send;

    /// Of load balancers, target groups and listeners.
    fn add_tags(&self, arns: &[String], tags: &Tags) -> impl Future<Output = ApiResult<()>> + Send;
    fn remove_tags(&self, arns: &[String], keys: &[String]) -> impl Future<Output = ApiResult<()>> + Send;
}

impl ErrorKind {
    /// By AWS's error code. Codes of EC2 and ELBv2 that are not listed are refusals.
    pub fn of_code(code: &str) -> Self {
        match code {
            "Throttling"
            | "ThrottlingException"
            | "RequestLimitExceeded"
            | "RequestThrottled"
            | "TooManyRequestsException"
            | "BandwidthLimitExceeded" => Self::Throttled,
            "ResourceInUse" | "DependencyViolation" => Self::InUse,
            NO_CREDENTIALS
            | "AccessDenied"
            | "AccessDeniedException"
            | "UnauthorizedOperation"
            | "AuthFailure"
            | "InvalidClientTokenId"
            | "UnrecognizedClientException"
            | "ExpiredToken"
            | "ExpiredTokenException"
            | "SignatureDoesNotMatch" => Self::Denied,
            "InternalError" | "InternalFailure" | "ServiceUnavailable" | "Unavailable" => Self::Unknown,
            "TargetGroupAssociationLimit" => Self::Limit,
            _ if code.ends_with("NotFound") => Self::NotFound,
            _ if code.starts_with("Duplicate") || code.ends_with(".Duplicate") => Self::Duplicate,
            _ if code.starts_with("TooMany") || code.ends_with("LimitExceeded") => Self::Limit,
            _ => Self::Refused,
        }
    }
}

impl ApiError {
    /// The error that AWS's code stands for.
    pub fn of_code(operation: Operation, code: &str, message: impl Into<String>) -> Self {
        Self { operation, kind: ErrorKind::of_code(code), code: code.to_owned(), message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_codes_fall_into_the_kinds_that_decisions_need() {
        for (code, kind) in [
            ("ThrottlingException", ErrorKind::Throttled),
            ("RequestLimitExceeded", ErrorKind::Throttled),
            ("LoadBalancerNotFound", ErrorKind::NotFound),
            ("InvalidGroup.NotFound", ErrorKind::NotFound),
            ("DuplicateTargetGroupName", ErrorKind::Duplicate),
            ("InvalidPermission.Duplicate", ErrorKind::Duplicate),
            ("ResourceInUse", ErrorKind::InUse),
            ("DependencyViolation", ErrorKind::InUse),
            ("UnauthorizedOperation", ErrorKind::Denied),
            ("TooManyLoadBalancers", ErrorKind::Limit),
            ("RulesPerSecurityGroupLimitExceeded", ErrorKind::Limit),
            ("InternalError", ErrorKind::Unknown),
            ("ValidationError", ErrorKind::Refused),
            ("OperationNotPermitted", ErrorKind::Refused),
        ] {
            assert_eq!(ErrorKind::of_code(code), kind, "{code}");
        }
    }
}
