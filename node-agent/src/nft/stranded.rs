//! Which frontends have endpoints, but none that their traffic policy allows: kept beside the
//! mirror, so that counting them costs nothing per commit.

use std::collections::{BTreeMap, BTreeSet};

use service_model::IpFamily;

use super::layout::{Frontend, Group};
use super::mirror::{FrontendState, Mirror};
use super::step::{Element, Step};

#[derive(Debug, Default)]
pub struct Stranded {
    at: BTreeMap<Frontend, At>,
}

#[derive(Debug)]
struct At {
    label: Box<str>,
    /// It is externalTrafficPolicy that is Local.
    external: bool,
}

impl Stranded {
    /// From what was read of the kernel.
    pub fn of(mirror: &Mirror) -> Self {
        let dropped = mirror.frontends.iter().filter(|(_, state)| state.groups.contains(Group::Drop));
        Self { at: dropped.map(|(frontend, state)| (*frontend, at(*frontend, state))).collect() }
    }

    /// Follows steps that were committed, and that `mirror` has followed already.
    pub fn follow(&mut self, steps: &[Step], mirror: &Mirror) {
        for step in steps {
            match step {
                Step::Add(Element::Member { frontend, group: Group::Drop }) => {
                    if let Some(state) = mirror.frontends.get(frontend) {
                        self.at.insert(*frontend, at(*frontend, state));
                    }
                }
                Step::Delete(Element::Member { frontend, group: Group::Drop }) => {
                    self.at.remove(frontend);
                }
                Step::DeleteTable(family) => self.at.retain(|frontend, _| frontend.family() != *family),
                _ => {}
            }
        }
    }

    /// How many Service ports of the family are dropped because of their internal or external
    /// policy. A port with several addresses counts once.
    pub fn count(&self, family: IpFamily, external: bool) -> usize {
        let of =
            self.at.iter().filter(|(frontend, at)| frontend.family() == family && at.external == external);
        of.map(|(_, at)| &at.label).collect::<BTreeSet<_>>().len()
    }
}

fn at(frontend: Frontend, state: &FrontendState) -> At {
    let outside = [Group::External, Group::ExternalLocal].iter().any(|group| state.groups.contains(*group));
    let external = outside || matches!(frontend, Frontend::NodePort { .. });
    At { label: state.label.clone(), external }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service_model::Protocol;

    #[test]
    fn a_service_port_counts_once_however_many_addresses_it_has() {
        let vip = |last| Frontend::Vip { ip: [10, 96, 0, last].into(), protocol: Protocol::Tcp, port: 80 };
        let node_port = Frontend::NodePort { family: IpFamily::V4, protocol: Protocol::Tcp, port: 30_000 };
        let member = |frontend, group| Step::Add(Element::Member { frontend, group });
        let mut steps = Vec::new();
        for frontend in [vip(1), vip(2), node_port] {
            steps.push(Step::Add(Element::Served { frontend, label: "ns/web:http".into() }));
            steps.push(member(frontend, Group::Drop));
        }
        steps.push(member(vip(2), Group::ExternalLocal));
        let (mut mirror, mut stranded) = (Mirror::default(), Stranded::default());
        let mut commit = |steps: &[Step]| {
            steps.iter().for_each(|step| mirror.follow(step));
            stranded.follow(steps, &mirror);
            let read = Stranded::of(&mirror);
            let counts = |s: &Stranded| [false, true].map(|external| s.count(IpFamily::V4, external));
            assert_eq!(counts(&stranded), counts(&read));
            counts(&stranded)
        };
        assert_eq!(commit(&steps), [1, 1]);
        let gone =
            [vip(1), vip(2)].map(|frontend| Step::Delete(Element::Member { frontend, group: Group::Drop }));
        assert_eq!(commit(&gone), [0, 1]);
    }
}
