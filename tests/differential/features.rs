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
    /// Load balancers' addresses that several Services have, each with ports of its own.
    SharedAddresses,
    /// `loadBalancerSourceRanges`
    SourceRanges,
    /// `ipMode: Proxy`, both modes beside each other, and ingress that is a name only.
    IpModes,
    /// `sessionAffinity: ClientIP`, for as long as the API server says or for another time.
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
    /// Addresses with leading zeros.
    LegacyAddresses,
    /// The Service had other endpoints, policies or ports before.
    Changes,
}

/// The name in a fixture, and the feature.
const FEATURES: &[(&str, Feature)] = &[
    ("udp", Feature::Udp),
    ("ipv6", Feature::Ipv6),
    ("node-ports", Feature::NodePorts),
    ("load-balancers", Feature::LoadBalancers),
    ("external-ips", Feature::ExternalIps),
    ("many-slices", Feature::ManySlices),
    ("readiness", Feature::Readiness),
    ("terminating", Feature::Terminating),
    ("ghosts", Feature::Ghosts),
    ("external-local", Feature::ExternalLocal),
    ("internal-local", Feature::InternalLocal),
    ("node-names", Feature::NodeNames),
    ("topology", Feature::Topology),
    ("shared-addresses", Feature::SharedAddresses),
    ("source-ranges", Feature::SourceRanges),
    ("ip-modes", Feature::IpModes),
    ("affinity", Feature::Affinity),
    ("labels", Feature::Labels),
    ("undefined-ports", Feature::UndefinedPorts),
    ("unallocated-addresses", Feature::UnallocatedAddresses),
    ("oddities", Feature::Oddities),
    ("legacy-addresses", Feature::LegacyAddresses),
    ("changes", Feature::Changes),
];

/// What the run was asked for.
///
/// | variable | meaning | else |
/// |---|---|---|
/// | `FAIRLEAD_DIFFERENTIAL_CASES` | how many generated cases | 250 |
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
        let mut settings = Self::seeded(number("FAIRLEAD_DIFFERENTIAL_SEED")?.unwrap_or(now));
        if let Some(cases) = number("FAIRLEAD_DIFFERENTIAL_CASES")? {
            settings.cases = usize::try_from(cases)?;
        }
        Ok(settings)
    }

    /// Every feature.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self { cases: 250, features: FEATURES.iter().map(|(_, feature)| *feature).collect(), seed }
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

/// # Errors
/// With the names there are, when this is none.
pub(crate) fn named(name: &str) -> Result<Feature> {
    let names = || FEATURES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let found = FEATURES.iter().find(|(known, _)| *known == name);
    found.map(|(_, feature)| *feature).with_context(|| format!("no feature {name:?}: {}", names()))
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FAIRLEAD_DIFFERENTIAL_SEED={} repeats this run", self.seed)
    }
}
