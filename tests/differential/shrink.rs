//! From a case that differs to the least of it that still does.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::cases::Case;
use crate::generate::{Generator, Tree};

/// More failures are told as they are: they will have the same few reasons.
pub(crate) const MOST: usize = 4;

const DEADLINE: Duration = Duration::from_secs(60);

/// The simplest case found that differs alone; or the given one, if it does so only in company.
/// `judge` says in what a case differs.
///
/// # Errors
/// As `judge`.
pub(crate) async fn shrink<Difference>(
    judge: impl AsyncFn(&Case) -> Result<Vec<Difference>>,
    generator: &Generator,
    tree: &mut Tree,
    whole: (Case, Vec<Difference>),
) -> Result<(Case, Vec<Difference>)> {
    let started = Instant::now();
    let mut least = whole;
    let mut simpler = true;
    // The first look is at the case itself, alone.
    while simpler && started.elapsed() < DEADLINE {
        let case = generator.case(tree);
        let differences = judge(&case).await?;
        simpler = if differences.is_empty() {
            tree.complicate()
        } else {
            least = (case, differences);
            tree.simplify()
        };
    }
    Ok(least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::Settings;

    /// As if a program mistook UDP ports of Services that keep their clients.
    async fn sticky_udp_ports(case: &Case) -> Result<Vec<i32>> {
        let spec = case.now.service.spec.as_ref().unwrap();
        let sticky = spec.session_affinity.as_deref() == Some("ClientIP");
        let ports = spec.ports.iter().flatten();
        let udp = ports.filter(|port| port.protocol.as_deref() == Some("UDP"));
        Ok(udp.filter(|_| sticky).map(|port| port.port).collect())
    }

    #[tokio::test]
    async fn what_has_no_part_in_the_difference_goes() {
        let mut generator = Generator::new(&Settings::seeded(11));
        let mut shrunk = 0;
        for mut tree in generator.trees(200).unwrap() {
            let whole = generator.case(&tree);
            let differences = sticky_udp_ports(&whole).await.unwrap();
            if differences.is_empty() {
                continue;
            }
            shrunk += 1;
            let (least, differences) =
                shrink(sticky_udp_ports, &generator, &mut tree, (whole, differences)).await.unwrap();
            assert_eq!(differences.len(), 1);
            assert_eq!(sticky_udp_ports(&least).await.unwrap(), differences);
            let spec = least.now.service.spec.as_ref().unwrap();
            assert_eq!(spec.type_.as_deref(), Some("ClusterIP"));
            assert_eq!(spec.ports.as_ref().map(Vec::len), Some(1));
            assert!(spec.external_ips.is_none() && spec.load_balancer_source_ranges.is_none());
            assert!(least.before.is_none());
            assert!(least.now.slices.iter().all(|slice| slice.endpoints.iter().flatten().count() == 0));
        }
        assert!(shrunk > 10, "{shrunk} cases");
    }

    #[tokio::test]
    async fn what_differs_only_in_company_is_told_as_it_is() {
        let mut generator = Generator::new(&Settings::seeded(11));
        let mut tree = generator.trees(1).unwrap().remove(0);
        let whole = generator.case(&tree);
        let alone = async |_: &Case| Ok(Vec::new());
        let (least, differences) =
            shrink(alone, &generator, &mut tree, (whole.clone(), vec!["refused"])).await.unwrap();
        assert_eq!(least.to_yaml().unwrap(), whole.to_yaml().unwrap());
        assert_eq!(differences, ["refused"]);
    }
}
