//! Every AWS operation that this controller makes: one table for the call counter, the budget and
//! the IAM policy, which a test compares with it.

use std::fmt;

/// Which bucket of calls an operation is paid from. AWS throttles by account, region and kind of
/// operation, so one kind must not starve another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Category {
    /// ELBv2 `Describe*`
    ElbDescribe,
    /// ELBv2 `RegisterTargets`, `DeregisterTargets`
    ElbTargets,
    /// Every other ELBv2 operation
    ElbMutate,
    Ec2Describe,
    Ec2Mutate,
}

/// Named exactly as the API's actions are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    DescribeLoadBalancers,
    DescribeLoadBalancerAttributes,
    DescribeListeners,
    DescribeTargetGroups,
    DescribeTargetGroupAttributes,
    DescribeTargetHealth,
    DescribeTags,
    RegisterTargets,
    DeregisterTargets,
    CreateLoadBalancer,
    DeleteLoadBalancer,
    ModifyLoadBalancerAttributes,
    SetSubnets,
    SetSecurityGroups,
    CreateTargetGroup,
    DeleteTargetGroup,
    ModifyTargetGroup,
    ModifyTargetGroupAttributes,
    CreateListener,
    ModifyListener,
    DeleteListener,
    AddTags,
    RemoveTags,
    DescribeSubnets,
    DescribeRouteTables,
    DescribeSecurityGroups,
    CreateSecurityGroup,
    DeleteSecurityGroup,
    AuthorizeSecurityGroupIngress,
    RevokeSecurityGroupIngress,
    CreateTags,
    DeleteTags,
}

impl Operation {
    pub const ALL: [Self; 32] = [
        Self::DescribeLoadBalancers,
        Self::DescribeLoadBalancerAttributes,
        Self::DescribeListeners,
        Self::DescribeTargetGroups,
        Self::DescribeTargetGroupAttributes,
        Self::DescribeTargetHealth,
        Self::DescribeTags,
        Self::RegisterTargets,
        Self::DeregisterTargets,
        Self::CreateLoadBalancer,
        Self::DeleteLoadBalancer,
        Self::ModifyLoadBalancerAttributes,
        Self::SetSubnets,
        Self::SetSecurityGroups,
        Self::CreateTargetGroup,
        Self::DeleteTargetGroup,
        Self::ModifyTargetGroup,
        Self::ModifyTargetGroupAttributes,
        Self::CreateListener,
        Self::ModifyListener,
        Self::DeleteListener,
        Self::AddTags,
        Self::RemoveTags,
        Self::DescribeSubnets,
        Self::DescribeRouteTables,
        Self::DescribeSecurityGroups,
        Self::CreateSecurityGroup,
        Self::DeleteSecurityGroup,
        Self::AuthorizeSecurityGroupIngress,
        Self::RevokeSecurityGroupIngress,
        Self::CreateTags,
        Self::DeleteTags,
    ];

    pub fn category(self) -> Category {
        match self {
            Self::DescribeLoadBalancers
            | Self::DescribeLoadBalancerAttributes
            | Self::DescribeListeners
            | Self::DescribeTargetGroups
            | Self::DescribeTargetGroupAttributes
            | Self::DescribeTargetHealth
            | Self::DescribeTags => Category::ElbDescribe,
            Self::RegisterTargets | Self::DeregisterTargets => Category::ElbTargets,
            Self::CreateLoadBalancer
            | Self::DeleteLoadBalancer
            | Self::ModifyLoadBalancerAttributes
            | Self::SetSubnets
            | Self::SetSecurityGroups
            | Self::CreateTargetGroup
            | Self::DeleteTargetGroup
            | Self::ModifyTargetGroup
            | Self::ModifyTargetGroupAttributes
            | Self::CreateListener
            | Self::ModifyListener
            | Self::DeleteListener
            | Self::AddTags
            | Self::RemoveTags => Category::ElbMutate,
            Self::DescribeSubnets | Self::DescribeRouteTables | Self::DescribeSecurityGroups => {
                Category::Ec2Describe
            }
            Self::CreateSecurityGroup
            | Self::DeleteSecurityGroup
            | Self::AuthorizeSecurityGroupIngress
            | Self::RevokeSecurityGroupIngress
            | Self::CreateTags
            | Self::DeleteTags => Category::Ec2Mutate,
        }
    }

    /// Whether it changes something.
    pub fn is_write(self) -> bool {
        !matches!(self.category(), Category::ElbDescribe | Category::Ec2Describe)
    }

    /// As IAM writes it, such as `elasticloadbalancing:CreateLoadBalancer`.
    pub fn iam_action(self) -> String {
        let service = match self.category() {
            Category::ElbDescribe | Category::ElbTargets | Category::ElbMutate => "elasticloadbalancing",
            Category::Ec2Describe | Category::Ec2Mutate => "ec2",
        };
        format!("{service}:{self}")
    }

    /// What Elastic Load Balancing looks up with the caller's rights while it carries this out
    /// (Elastic Load Balancing user guide, "API permissions": dependent EC2 actions).
    pub fn dependent_actions(self) -> &'static [&'static str] {
        match self {
            Self::CreateLoadBalancer => &[
                "ec2:DescribeAccountAttributes",
                "ec2:DescribeInternetGateways",
                "ec2:DescribeSecurityGroups",
                "ec2:DescribeSubnets",
                "ec2:DescribeVpcs",
                "iam:CreateServiceLinkedRole",
            ],
            Self::CreateTargetGroup => &["ec2:DescribeInternetGateways", "ec2:DescribeVpcs"],
            Self::RegisterTargets => &[
                "ec2:DescribeInstances",
                "ec2:DescribeInternetGateways",
                "ec2:DescribeSubnets",
                "ec2:DescribeVpcs",
            ],
            Self::SetSubnets => &["ec2:DescribeSubnets"],
            Self::SetSecurityGroups => &["ec2:DescribeSecurityGroups"],
            _ => &[],
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
