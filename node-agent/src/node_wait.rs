//! What of the Node object is waited for, and how long: a node serves its pods also where nobody fills the object in.

use std::time::{Duration, Instant};

use service_model::Node;

use crate::config::Config;
use crate::local::DetectLocal;

/// As kube-proxy, which then ends (`NewNodeManager`, pkg/proxy/node.go).
const POD_CIDR_PATIENCE: Duration = Duration::from_secs(300);
/// About as long as kube-proxy asks for the Node (`GetNodeHostIPs`, pkg/proxy/util/nodeport_addresses.go).
const ADDRESS_PATIENCE: Duration = Duration::from_secs(30);

/// Whether the Node's podCIDRs still have to be waited for. Nothing is programmed before.
#[derive(Debug, Clone)]
pub struct PodCidrWait(Wait);

/// Whether the Node's addresses, which answer NodePorts, still have to be waited for.
#[derive(Debug, Clone)]
pub struct AddressWait(Wait);

#[derive(Debug, Clone)]
struct Wait {
    patience: Duration,
    until: Option<Instant>,
    over: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Begins,
    GoesOn,
    GivesUp,
    Over,
}

impl PodCidrWait {
    pub fn new(detect_local: DetectLocal) -> Self {
        Self(Wait::new(POD_CIDR_PATIENCE, detect_local == DetectLocal::NodeCidr))
    }

    /// Asked once everything is listed. After five minutes the answer is yes: Services work, and
    /// nobody is known as a pod until the Node has podCIDRs.
    pub fn is_over(&mut self, node: Option<&Node>, now: Instant) -> bool {
        let waiting = self.0.ask(node.is_some_and(|node| !node.pod_cidrs.is_empty()), now);
        match waiting {
            Waiting::Begins => tracing::info!("waiting for the Node's podCIDRs"),
            Waiting::GivesUp => tracing::warn!(
                "the Node still has no podCIDRs: going on without, so nobody is known as a pod. Does the controller-manager allocate them (--allocate-node-cidrs)?"
            ),
            Waiting::GoesOn | Waiting::Over => {}
        }
        matches!(waiting, Waiting::GivesUp | Waiting::Over)
    }

    /// When the answer changes by itself.
    pub fn next_due(&self) -> Option<Instant> {
        self.0.next_due()
    }
}

impl AddressWait {
    pub fn new(config: &Config) -> Self {
        Self(Wait::new(ADDRESS_PATIENCE, config.awaits_addresses()))
    }

    /// Asked once everything is listed. True once, after half a minute: NodePorts answer on all addresses then.
    pub fn gives_up(&mut self, node: Option<&Node>, now: Instant) -> bool {
        let waiting = self.0.ask(node.is_some_and(|node| node.primary_ips().next().is_some()), now);
        match waiting {
            Waiting::Begins => tracing::info!("NodePorts wait for the Node's addresses"),
            Waiting::GivesUp => tracing::warn!(
                "there is no Node of this name, or it has no address: NodePorts answer on all addresses of this host. Is --hostname-override the Node's name?"
            ),
            Waiting::GoesOn | Waiting::Over => {}
        }
        waiting == Waiting::GivesUp
    }

    /// When the answer changes by itself.
    pub fn next_due(&self) -> Option<Instant> {
        self.0.next_due()
    }
}

impl Wait {
    fn new(patience: Duration, needed: bool) -> Self {
        Self { patience, until: None, over: !needed }
    }

    fn ask(&mut self, known: bool, now: Instant) -> Waiting {
        if self.over || known {
            self.over = true;
            return Waiting::Over;
        }
        let begun = self.until.is_some();
        let until = *self.until.get_or_insert(now + self.patience);
        self.over = until <= now;
        match (self.over, begun) {
            (true, _) => Waiting::GivesUp,
            (false, true) => Waiting::GoesOn,
            (false, false) => Waiting::Begins,
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.until.filter(|_| !self.over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClusterCidrs;

    #[test]
    fn pod_cidrs_are_waited_for_five_minutes_and_only_where_they_matter() {
        let start = Instant::now();
        let minutes = |n: u64| start + Duration::from_secs(60 * n);
        let mut node = Node::new("here".into());
        let mut wait = PodCidrWait::new(DetectLocal::ClusterCidr(ClusterCidrs::default()));
        assert!(wait.is_over(Some(&node), start));

        let mut wait = PodCidrWait::new(DetectLocal::NodeCidr);
        assert!(!wait.is_over(None, start));
        assert!(!wait.is_over(Some(&node), minutes(4)));
        assert_eq!(wait.next_due(), Some(minutes(5)));
        assert!(wait.is_over(Some(&node), minutes(5)));
        assert_eq!(wait.next_due(), None);

        let mut wait = PodCidrWait::new(DetectLocal::NodeCidr);
        assert!(!wait.is_over(Some(&node), start));
        node.pod_cidrs = vec!["10.244.1.0/24".parse().unwrap()];
        assert!(wait.is_over(Some(&node), minutes(1)));
        assert!(wait.is_over(None, minutes(2)), "not again, when the Node is made anew");
    }

    #[test]
    fn a_wait_is_given_up_once_and_not_begun_again() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut wait = Wait::new(Duration::from_secs(30), true);
        assert_eq!(wait.ask(false, at(0)), Waiting::Begins);
        assert_eq!(wait.ask(false, at(29)), Waiting::GoesOn);
        assert_eq!((wait.next_due(), wait.ask(false, at(30))), (Some(at(30)), Waiting::GivesUp));
        assert_eq!((wait.next_due(), wait.ask(false, at(90))), (None, Waiting::Over));
        let mut wait = Wait::new(Duration::from_secs(30), true);
        assert_eq!(wait.ask(true, at(0)), Waiting::Over);
        assert_eq!(wait.ask(false, at(60)), Waiting::Over);
    }
}
