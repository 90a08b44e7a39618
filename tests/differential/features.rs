//! What the generated Services may have, and how many of them there are.

use std::collections::BTreeSet;
use std::env;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// A part of a Service's behaviour that the generator can leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Feature {
    Udp,
    Ipv6,
    NodePorts,
    LoadBalancers,
    ExternalIps,
    /// Several slices a family, whose endpoints and ports may be the same or not.
    ManySlices,
    /// Conditions that are false or absent.
    Readiness,
    Terminating,
    /// Addresses that a terminating pod had before: both are in slices.
    Ghosts,
    /// `externalTrafficPolicy: Local`
    ExternalLocal,
    /// `internalTrafficPolicy: Local`
    InternalLocal,
    /// Endpoints that say they are on another node than they are, or on none.
    NodeNames,
    /// Hints for zones and nodes, `trafficDistribution`.
    Topology,
    /// `loadBalancerSourceRanges`
    SourceRanges,
    /// `ipMode: Proxy`, and ingress that is a name only.
    IpModes,
    /// `sessionAffinity: ClientIP`
    Affinity,
    /// The labels `service-proxy-name` and `headless`, on the Service or on its slices.
    Labels,
    /// Ports of ClusterIPs that no Service has.
    UndefinedPorts,
    /// Addresses of the Service network that no Service has.
    UnallocatedAddresses,
    /// Headless, no NodePorts for a load balancer, `publishNotReadyAddresses`, external IPs of a
    /// family that the Service has not.
    Oddities,
    /// The Service had other endpoints, policies or ports before.
    Changes,
}

/// The name in the environment, the feature, and whether node-agent has it today.
const FEATURES: &[(&str, Feature, bool)] = &[
    ("udp", Feature::Udp, true),
    ("ipv6", Feature::Ipv6, true),
    ("node-ports", Feature::NodePorts, true),
    ("load-balancers", Feature::LoadBalancers, true),
    ("external-ips", Feature::ExternalIps, true),
    ("many-slices", Feature::ManySlices, true),
    ("readiness", Feature::Readiness, true),
    ("terminating", Feature::Terminating, true),
    ("ghosts", Feature::Ghosts, true),
    ("external-local", Feature::ExternalLocal, true),
    ("internal-local", Feature::InternalLocal, true),
    ("node-names", Feature::NodeNames, true),
    ("topology", Feature::Topology, true),
    ("source-ranges", Feature::SourceRanges, true),
    ("ip-modes", Feature::IpModes, true),
    ("affinity", Feature::Affinity, true),
    ("labels", Feature::Labels, true),
    ("undefined-ports", Feature::UndefinedPorts, true),
    ("unallocated-addresses", Feature::UnallocatedAddresses, true),
    ("oddities", Feature::Oddities, true),
    ("changes", Feature::Changes, true),
];

/// What the run was asked for.
///
/// | variable | meaning | else |
/// |---|---|---|
/// | `FAIRLEAD_DIFFERENTIAL_CASES` | how many generated cases | 500 |
/// | `FAIRLEAD_DIFFERENTIAL_FEATURES` | `all`, or names to add to today's: `affinity,topology` | today's |
/// | `FAIRLEAD_DIFFERENTIAL_SEED` | repeats a run | the time |
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub cases: usize,
    pub features: BTreeSet<Feature>,
    pub seed: u64,
}

impl Settings {
    /// # Errors
    /// When a variable says nothing that can be understood.
    pub(crate) fn from_environment() -> Result<Self> {
        let number = |name: &str| -> Result<Option<u64>> {
            env::var(name).ok().map(|text| text.parse().with_context(|| format!("{name}={text}"))).transpose()
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        Ok(Self {
            cases: number("FAIRLEAD_DIFFERENTIAL_CASES")?.map_or(Ok(500), usize::try_from)?,
            features: features(&env::var("FAIRLEAD_DIFFERENTIAL_FEATURES").unwrap_or_default())?,
            seed: number("FAIRLEAD_DIFFERENTIAL_SEED")?.unwrap_or(now),
        })
    }

    #[must_use]
    pub(crate) fn without(mut self, features: &[Feature]) -> Self {
        self.features.retain(|feature| !features.contains(feature));
        self
    }

    pub(crate) fn has(&self, feature: Feature) -> bool {
        self.features.contains(&feature)
    }
}

fn features(wanted: &str) -> Result<BTreeSet<Feature>> {
    let mut chosen: BTreeSet<Feature> =
        FEATURES.iter().filter(|(_, _, today)| *today || wanted == "all").map(|(_, f, _)| *f).collect();
    for name in wanted.split(',').filter(|name| !["", "all"].contains(name)) {
        chosen.insert(named(name)?);
    }
    Ok(chosen)
}

/// # Errors
/// With the names there are, when this is none.
pub(crate) fn named(name: &str) -> Result<Feature> {
    let names = || FEATURES.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ");
    let found = FEATURES.iter().find(|(known, ..)| *known == name);
    found.map(|(_, feature, _)| *feature).with_context(|| format!("no feature {name:?}: {}", names()))
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FAIRLEAD_DIFFERENTIAL_SEED={} repeats this run", self.seed)
    }
}
