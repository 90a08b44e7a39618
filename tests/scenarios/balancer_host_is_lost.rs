//! The balancer host that owns a VIP is lost under load: the other one takes over at once.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::Lab;

const WEB: &str = include_str!("../fixtures/web.yaml");

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_succeed_within_a_second_after_the_owner_is_lost() -> Result<()> {
    let lab = Lab::builder("lost").start().await?;
    lab.apply(WEB).await?;
    let (ip, _) = lab.external_ip("web", Duration::from_secs(10)).await?;
    lab.pods_ready("app=web", 2).await?;
    lab.endpoints_ready("web", 2).await?;
    let vip = SocketAddr::new(ip, lab.service("web").await?.port()?);
    lab.client().http_spread(vip, 20, 2).await?;

    let curler = lab.client().curl_along(vip);
    curler.more(100).await?;
    let owner = lab.owner_of(ip)?.host.name.clone();
    let lost = Instant::now();
    lab.cut_link(&owner)?;
    lab::wait::until("the other host owns the VIP", Duration::from_secs(10), async || {
        ensure!(lab.owner_of(ip)?.host.name != owner, "{owner} still does, after {:?}", lost.elapsed());
        Ok(())
    })
    .await?;
    curler.more(200).await?;
    let story = curler.stop().await;
    // A client whose first packet was lost tries again after 1 s: that is the kernel's doing. The
    // time between two answers says how long nobody answered.
    eprintln!("{owner} was lost: {story}");

    // Back again, the host takes nothing away from the other.
    let second = lab.owner_of(ip)?.host.name.clone();
    let curler = lab.client().curl_along(vip);
    lab.mend_link(&owner)?;
    curler.more(300).await?;
    ensure!(lab.owner_of(ip)?.host.name == second, "{ip} moved back to {owner}");
    curler.stop().await.without_failure()?;
    Ok(())
}
