//! Reads the account into a [`Snapshot`]: the lists in bulk with their tags, the rest for the one
//! Service that needs it.

use super::api::{Api, ApiResult};
use super::apply::Mirror;
use super::resources::{Listener, LoadBalancer, LoadBalancerDetail, TargetGroup, TargetGroupDetail};
use super::snapshot::{Lacking, Snapshot};

/// Everything that AWS lists in bulk: pages of load balancers, target groups, security groups and
/// subnets, and one call for the tags of 20 resources.
///
/// # Errors
/// What could not be read.
pub async fn bulk<A: Api>(api: &A, vpc: &str) -> ApiResult<Snapshot> {
    let (load_balancers, target_groups) = (api.load_balancers().await?, api.target_groups().await?);
    let arns: Vec<String> = load_balancers
        .iter()
        .map(|lb| lb.arn.clone())
        .chain(target_groups.iter().map(|g| g.arn.clone()))
        .collect();
    let mut tags = api.tags(&arns).await?;
    let mut tags_of = |arn: &str| tags.remove(arn).unwrap_or_default();
    let balancer = |lb: LoadBalancer| (lb.name.clone(), LoadBalancer { tags: tags_of(&lb.arn), ..lb });
    let load_balancers = load_balancers.into_iter().map(balancer).collect();
    let group = |g: TargetGroup| (g.name.clone(), TargetGroup { tags: tags_of(&g.arn), ..g });
    let target_groups = target_groups.into_iter().map(group).collect();
    let security_groups = api.security_groups(vpc).await?.into_iter().map(|g| (g.name.clone(), g)).collect();
    let subnets = api.subnets(vpc).await?.into_iter().map(|s| (s.id.clone(), s)).collect();
    Ok(Snapshot { subnets, security_groups, load_balancers, target_groups })
}

/// The security groups alone: their rules are what other people change.
///
/// # Errors
/// What could not be read.
pub async fn security_groups<A: Api>(api: &A, vpc: &str, mirror: &Mirror) -> ApiResult<()> {
    let groups = api.security_groups(vpc).await?.into_iter().map(|g| (g.name.clone(), g)).collect();
    mirror.patch(|s| s.security_groups = groups);
    Ok(())
}

/// What AWS tells about one load balancer or target group at a time.
///
/// # Errors
/// What could not be read.
pub async fn details<A: Api>(api: &A, mirror: &Mirror, lacking: &Lacking) -> ApiResult<()> {
    for arn in &lacking.load_balancers {
        let listeners = api.listeners(arn).await?;
        let arns: Vec<String> = listeners.iter().map(|l| l.arn.clone()).collect();
        let mut tags = api.tags(&arns).await?;
        let tagged = |l: Listener| (l.port, Listener { tags: tags.remove(&l.arn).unwrap_or_default(), ..l });
        let listeners = listeners.into_iter().map(tagged).collect();
        let attributes = api.load_balancer_attributes(arn).await?;
        mirror.patch(|s| {
            if let Some(balancer) = s.load_balancer_by_arn(arn) {
                balancer.detail = Some(LoadBalancerDetail { attributes, listeners });
            }
        });
    }
    for arn in &lacking.target_groups {
        let attributes = api.target_group_attributes(arn).await?;
        let targets = api.targets(arn).await?.into_iter().collect();
        mirror.patch(|s| {
            if let Some(group) = s.target_group_by_arn(arn) {
                group.detail = Some(TargetGroupDetail { attributes, targets });
            }
        });
    }
    Ok(())
}
