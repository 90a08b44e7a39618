//! What a replica knows, kept up to date by its watches whether it leads or not.

use std::sync::Arc;

use daemon::ReadyToken;
use kube_watch::Listing;
use service_model::{Change, Kind, World};
use tokio::sync::mpsc;

use crate::aws;
use crate::desired::Classes;
use crate::metal;
use crate::metal::crds::IPAddressPool;
use crate::metal::pools::Pools;
use crate::metrics::Metrics;
use crate::providers::Writers;

/// What a replica knows, leading or not.
pub(crate) struct State {
    pub(crate) world: Arc<World>,
    pub(crate) pools: Pools,
    pub(crate) classes: Classes,
    pub(crate) metal: Option<metal::Setup>,
    pub(crate) aws: Option<aws::Setup>,
    pub(crate) writers: Writers,
    pub(crate) metrics: Metrics,
    pub(crate) changes: Changes,
    pub(crate) ready: Option<ReadyToken>,
    pub(crate) world_changed: bool,
    pub(crate) pools_changed: bool,
}

/// Where changes come from.
pub(crate) struct Changes {
    pub(crate) world: mpsc::Receiver<Change>,
    pub(crate) pools: mpsc::Receiver<Listing<IPAddressPool>>,
}

/// One change, and what is behind it in the channels.
#[expect(clippy::large_enum_variant, reason = "moved once, from the channel into the World")]
pub(crate) enum Received {
    World(Change),
    Pool(Box<Listing<IPAddressPool>>),
}

impl State {
    /// Whether everything that decisions are made from has been listed in full.
    pub(crate) fn has_synced(&self) -> bool {
        self.world.has_synced(&[Kind::Service, Kind::Node])
            && (self.metal.is_none() || self.pools.has_synced())
    }

    pub(crate) fn ready(&mut self) {
        if let Some(token) = self.ready.take() {
            token.done();
        }
    }

    /// Whether the World changed since the last call.
    pub(crate) fn world_changed(&mut self) -> bool {
        std::mem::take(&mut self.world_changed)
    }

    /// Whether the pools changed since the last call.
    pub(crate) fn pools_changed(&mut self) -> bool {
        std::mem::take(&mut self.pools_changed)
    }
}

impl Changes {
    /// # Errors
    /// When a watch ended, which only happens when the program does.
    pub(crate) async fn receive(&mut self) -> anyhow::Result<Received> {
        tokio::select! {
            Some(change) = self.world.recv() => Ok(Received::World(change)),
            Some(pool) = self.pools.recv() => Ok(Received::Pool(Box::new(pool))),
            else => anyhow::bail!("the watches ended"),
        }
    }

    /// What has arrived already.
    pub(crate) fn try_receive(&mut self) -> Option<Received> {
        let world = self.world.try_recv().ok().map(Received::World);
        world.or_else(|| self.pools.try_recv().ok().map(|pool| Received::Pool(Box::new(pool))))
    }
}

impl Received {
    /// Applies it, and whatever else has arrived: one look at the World for a whole burst.
    pub(crate) fn apply(self, state: &mut State) {
        let mut next = Some(self);
        while let Some(received) = next {
            match received {
                Received::World(change) => {
                    Arc::make_mut(&mut state.world).apply(change);
                    state.world_changed = true;
                }
                Received::Pool(pool) => state.pools_changed |= state.pools.apply(*pool),
            }
            next = state.changes.try_receive();
        }
    }
}
