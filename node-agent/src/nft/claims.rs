//! Who asks for what: several Services may want the same frontend or share an endpoint on this
//! node. Who has the better title owns it, then the name that sorts first, whatever the order in
//! which they came, so that a restart comes to the same end.

use std::collections::{BTreeMap, BTreeSet};

use service_model::ServiceName;

/// Where a Service has an address from; the earlier, the better its title. A ClusterIP is the API
/// server's to give and a load balancer's address a controller's, but whoever may write a Service
/// may name any address as an external one (CVE-2020-8554): that takes nothing from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Title {
    /// Also of what cannot be contested, or is the same for all who share it.
    Allocated,
    LoadBalancer,
    ExternalIp,
}

const TITLES: [Title; 3] = [Title::Allocated, Title::LoadBalancer, Title::ExternalIp];

#[derive(Debug)]
pub struct Claims<R> {
    of: BTreeMap<ServiceName, Box<[R]>>,
    by: BTreeMap<R, Claimants>,
}

/// Nearly always one.
#[derive(Debug)]
enum Claimants {
    One(Title, ServiceName),
    Many(BTreeSet<(Title, ServiceName)>),
}

impl<R: Ord + Clone> Claims<R> {
    /// Replaces all that `service` claims. Returns what has another owner now, or none, or has one
    /// for the first time.
    pub fn replace(
        &mut self,
        service: &ServiceName,
        resources: impl IntoIterator<Item = (R, Title)>,
    ) -> BTreeSet<R> {
        let after: BTreeMap<R, Title> = resources.into_iter().collect();
        let before = self.of.remove(service).unwrap_or_default();
        let mut changed = BTreeSet::new();
        for resource in before.iter().filter(|resource| !after.contains_key(resource)) {
            if self.release(resource, service) {
                changed.insert(resource.clone());
            }
        }
        for (resource, title) in &after {
            if self.claim(resource, *title, service) {
                changed.insert(resource.clone());
            }
        }
        if !after.is_empty() {
            self.of.insert(service.clone(), after.into_keys().collect());
        }
        changed
    }

    /// Claims more than it did, or with better titles.
    pub fn foresee(&mut self, service: &ServiceName, resources: impl IntoIterator<Item = (R, Title)>) {
        let mut all: BTreeSet<R> = self.of.remove(service).into_iter().flatten().collect();
        for (resource, title) in resources {
            self.claim(&resource, title, service);
            all.insert(resource);
        }
        if !all.is_empty() {
            self.of.insert(service.clone(), all.into_iter().collect());
        }
    }

    pub fn owner(&self, resource: &R) -> Option<&ServiceName> {
        self.by.get(resource).map(Claimants::owner)
    }

    /// Who asks for it and is not its owner.
    pub fn losers(&self, resource: &R) -> impl Iterator<Item = &ServiceName> {
        let many = match self.by.get(resource) {
            Some(Claimants::Many(names)) => Some(names),
            _ => None,
        };
        many.into_iter().flatten().skip(1).map(|(_, name)| name)
    }

    /// What the Service claims, in order, whether or not it owns it.
    pub fn of(&self, service: &ServiceName) -> &[R] {
        self.of.get(service).map_or(&[], |resources| resources)
    }

    pub fn all(&self) -> impl Iterator<Item = &R> {
        self.by.keys()
    }

    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.of.keys()
    }

    /// Anew, or with a title that may be another than before.
    fn claim(&mut self, resource: &R, title: Title, service: &ServiceName) -> bool {
        let Some(claimants) = self.by.get_mut(resource) else {
            self.by.insert(resource.clone(), Claimants::One(title, service.clone()));
            return true;
        };
        let owned = claimants.owner() == service;
        claimants.insert(title, service);
        owned != (claimants.owner() == service)
    }

    fn release(&mut self, resource: &R, service: &ServiceName) -> bool {
        let Some(claimants) = self.by.get_mut(resource) else { return false };
        let owned = claimants.owner() == service;
        if !claimants.remove(service) {
            self.by.remove(resource);
        }
        owned
    }
}

impl<R> Default for Claims<R> {
    fn default() -> Self {
        Self { of: BTreeMap::new(), by: BTreeMap::new() }
    }
}

impl Claimants {
    fn owner(&self) -> &ServiceName {
        match self {
            Claimants::One(_, name) => name,
            Claimants::Many(names) => &names.first().expect("two claimants or more").1,
        }
    }

    fn insert(&mut self, title: Title, service: &ServiceName) {
        match self {
            Claimants::One(of, name) if name == service => *of = title,
            Claimants::One(of, name) => {
                *self = Claimants::Many(BTreeSet::from([(*of, name.clone()), (title, service.clone())]));
            }
            Claimants::Many(names) => {
                take(names, service);
                names.insert((title, service.clone()));
            }
        }
    }

    /// Returns whether anybody is left.
    fn remove(&mut self, service: &ServiceName) -> bool {
        match self {
            Claimants::One(_, name) => name != service,
            Claimants::Many(names) => {
                take(names, service);
                if let Some((title, last)) = names.first().filter(|_| names.len() == 1).cloned() {
                    *self = Claimants::One(title, last);
                }
                true
            }
        }
    }
}

fn take(names: &mut BTreeSet<(Title, ServiceName)>, service: &ServiceName) {
    for title in TITLES {
        names.remove(&(title, service.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ServiceName {
        ServiceName::new("ns", name)
    }

    fn replace(claims: &mut Claims<i32>, service: &str, resources: &[i32]) -> BTreeSet<i32> {
        claims.replace(&name(service), resources.iter().map(|resource| (*resource, Title::LoadBalancer)))
    }

    #[test]
    fn the_first_name_owns_and_its_leaving_passes_ownership_on() {
        let mut claims = Claims::default();
        assert_eq!(replace(&mut claims, "b", &[1, 2]), BTreeSet::from([1, 2]));
        assert_eq!(replace(&mut claims, "c", &[2, 3]), BTreeSet::from([3]), "2 stays with b");
        assert_eq!(replace(&mut claims, "a", &[2]), BTreeSet::from([2]));
        assert_eq!(claims.owner(&2), Some(&name("a")));
        assert_eq!(replace(&mut claims, "a", &[]), BTreeSet::from([2]));
        assert_eq!(claims.owner(&2), Some(&name("b")));
        assert_eq!(replace(&mut claims, "b", &[1]), BTreeSet::from([2]));
        assert_eq!(claims.owner(&2), Some(&name("c")));
        assert_eq!(replace(&mut claims, "c", &[]), BTreeSet::from([2, 3]));
        assert_eq!((claims.owner(&2), claims.owner(&1)), (None, Some(&name("b"))));
        assert_eq!(replace(&mut claims, "b", &[1]), BTreeSet::new(), "nothing changed");
    }

    #[test]
    fn the_better_title_owns_whatever_the_names() {
        let mut claims = Claims::default();
        let mut of = |service: &str, title| claims.replace(&name(service), [(1, title)]);
        assert_eq!(of("a", Title::ExternalIp), BTreeSet::from([1]));
        assert_eq!(of("c", Title::Allocated), BTreeSet::from([1]), "it takes its own address back");
        assert_eq!(of("b", Title::LoadBalancer), BTreeSet::new());
        assert_eq!(of("c", Title::ExternalIp), BTreeSet::from([1]), "b's, now that c has a lesser title");
        assert_eq!(of("c", Title::Allocated), BTreeSet::from([1]));
        assert_eq!(of("c", Title::Allocated), BTreeSet::new());
        assert_eq!(claims.owner(&1), Some(&name("c")));
        for service in ["c", "b", "a"] {
            assert_eq!(claims.replace(&name(service), []), BTreeSet::from([1]));
        }
        assert_eq!(claims.all().next(), None);
    }
}
