//! What the survival stories begin and end with.
#![allow(dead_code, unreachable_pub, reason = "shared by scenarios; each uses its own part")]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::traffic::{Curler, Heartbeat, Story};
use lab::{Lab, wait};

pub const WEB: &str = include_str!("../../fixtures/web.yaml");

/// Long enough for a loaded machine; never what a story measures.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Two pods behind an external address, with a client that curls and one that stays connected.
pub struct UnderLoad {
    pub vip: SocketAddr,
    pub curler: Curler,
    pub heartbeat: Heartbeat,
}

impl UnderLoad {
    pub async fn start(lab: &Lab) -> Result<Self> {
        lab.apply(WEB).await?;
        let (ip, _) = lab.external_ip("web", LIMIT).await?;
        lab.pods_ready("app=web", 2).await?;
        lab.endpoints_ready("web", 2).await?;
        let vip = SocketAddr::new(ip, lab.service("web").await?.port()?);
        lab.client().http_spread(vip, 20, 2).await?;
        let heartbeat = lab.client().stay_connected(vip).await?;
        Ok(Self { vip, curler: lab.client().curl_along(vip), heartbeat })
    }

    /// Waits for that many more requests: time enough for trouble to show.
    pub async fn requests(&self, count: usize) -> Result<()> {
        let goal = self.curler.so_far().requests + count;
        wait::until("more requests", LIMIT * 3, async || {
            let seen = self.curler.so_far().requests;
            ensure!(seen >= goal, "{seen} of {goal}");
            Ok(())
        })
        .await
    }

    /// Nothing has failed, on new connections or the old one.
    pub async fn nothing_failed(self, what: &str) -> Result<Story> {
        let pulse = self.heartbeat.pulse();
        ensure!(pulse.broken.is_none(), "{what}: the established connection: {pulse:?}");
        let story = self.curler.stop().await;
        eprintln!("{what}: {story}");
        ensure!(story.failures.is_empty(), "{what}: {story}");
        Ok(story)
    }
}
