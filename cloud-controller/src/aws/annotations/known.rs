//! The annotation keys that exist, and which one a misspelt key was probably meant to be.

pub(crate) const PREFIX: &str = "service.beta.kubernetes.io/aws-load-balancer-";

/// What we do with a key (without [`PREFIX`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Supported,
    /// A key of AWS Load Balancer Controller that would change what the load balancer does, and
    /// that this version does not carry out: silence would be a load balancer other than asked for.
    NotYet,
    /// Of the classic load balancers that Kubernetes once made itself.
    Classic,
    Unknown,
}

const SUPPORTED: [&str; 22] = [
    "type",
    "nlb-target-type",
    "name",
    "scheme",
    "internal",
    "ip-address-type",
    "subnets",
    "proxy-protocol",
    "attributes",
    "cross-zone-load-balancing-enabled",
    "target-group-attributes",
    "enable-tcp-udp-listener",
    "healthcheck-protocol",
    "healthcheck-port",
    "healthcheck-path",
    "healthcheck-interval",
    "healthcheck-timeout",
    "healthcheck-healthy-threshold",
    "healthcheck-unhealthy-threshold",
    "healthcheck-success-codes",
    "additional-resource-tags",
    "target-node-labels",
];

const NOT_YET: [&str; 24] = [
    "eip-allocations",
    "private-ipv4-addresses",
    "ipv6-addresses",
    "enable-prefix-for-ipv6-source-nat",
    "source-nat-ipv6-prefixes",
    "proxy-protocol-per-target-group",
    "access-log-enabled",
    "access-log-s3-bucket-name",
    "access-log-s3-bucket-prefix",
    "listener-attributes",
    "ssl-cert",
    "ssl-ports",
    "ssl-negotiation-policy",
    "backend-protocol",
    "alpn-policy",
    "security-groups",
    "security-group-prefix-lists",
    "manage-backend-security-group-rules",
    "inbound-sg-rules-on-private-link-traffic",
    "disable-nlb-sg",
    "enable-icmp-for-path-mtu-discovery",
    "multi-cluster-target-group",
    "minimum-load-balancer-capacity",
    "quic-enabled-ports",
];

const CLASSIC: [&str; 5] = [
    "access-log-emit-interval",
    "connection-draining-enabled",
    "connection-draining-timeout",
    "connection-idle-timeout",
    "extra-security-groups",
];

/// Keys that end in a port or a listener.
const WITH_SUFFIX: [&str; 2] = ["target-group-attributes", "listener-attributes"];

pub(super) fn look_up(suffix: &str) -> Known {
    let suffix = match suffix.split_once('.') {
        Some((base, _)) if WITH_SUFFIX.contains(&base) => base,
        _ => suffix,
    };
    if SUPPORTED.contains(&suffix) {
        Known::Supported
    } else if NOT_YET.contains(&suffix) {
        Known::NotYet
    } else if CLASSIC.contains(&suffix) {
        Known::Classic
    } else {
        Known::Unknown
    }
}

/// The key that is at most three typing mistakes away.
pub(super) fn nearest(suffix: &str) -> Option<&'static str> {
    SUPPORTED
        .into_iter()
        .chain(NOT_YET)
        .map(|known| (distance(suffix, known), known))
        .filter(|(distance, known)| *distance <= 3.min(known.len() / 2))
        .min()
        .map(|(_, known)| known)
}

/// Levenshtein's.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.chars().count()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_is_recognised() {
        assert_eq!(look_up("scheme"), Known::Supported);
        assert_eq!(look_up("target-group-attributes.80"), Known::Supported);
        assert_eq!(look_up("ssl-cert"), Known::NotYet);
        assert_eq!(look_up("listener-attributes.TCP-80"), Known::NotYet);
        assert_eq!(look_up("connection-idle-timeout"), Known::Classic);
        for (written, meant) in [
            ("shceme", Some("scheme")),
            ("subnet", Some("subnets")),
            ("healthcheck-intervall", Some("healthcheck-interval")),
            ("whatever", None),
        ] {
            assert_eq!(look_up(written), Known::Unknown);
            assert_eq!(nearest(written), meant, "{written}");
        }
    }
}
