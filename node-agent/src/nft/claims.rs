//! Who asks for what: several Services may want the same frontend or share an endpoint on this
//! node. The claimant whose name sorts first owns it, whatever the order in which they came, so
//! that a restart comes to the same end.

use std::collections::{BTreeMap, BTreeSet};

use service_model::ServiceName;

#[derive(Debug)]
pub struct Claims<R> {
    of: BTreeMap<ServiceName, Box<[R]>>,
    by: BTreeMap<R, Claimants>,
}

/// Nearly always one.
#[derive(Debug)]
enum Claimants {
    One(ServiceName),
    Many(BTreeSet<ServiceName>),
}

impl<R: Ord + Clone> Claims<R> {
    /// Replaces all that `service` claims. Returns what has another owner now, or none, or has one
    /// for the first time.
    pub fn replace(&mut self, service: &ServiceName, resources: impl IntoIterator<Item = R>) -> BTreeSet<R> {
        let after: BTreeSet<R> = resources.into_iter().collect();
        let before = self.of.remove(service).unwrap_or_default();
        let mut changed = BTreeSet::new();
        for resource in before.iter().filter(|resource| !after.contains(resource)) {
            if self.release(resource, service) {
                changed.insert(resource.clone());
            }
        }
        for resource in after.iter().filter(|resource| before.binary_search(resource).is_err()) {
            if self.claim(resource, service) {
                changed.insert(resource.clone());
            }
        }
        if !after.is_empty() {
            self.of.insert(service.clone(), after.into_iter().collect());
        }
        changed
    }

    pub fn owner(&self, resource: &R) -> Option<&ServiceName> {
        self.by.get(resource).map(Claimants::owner)
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

    fn claim(&mut self, resource: &R, service: &ServiceName) -> bool {
        let Some(claimants) = self.by.get_mut(resource) else {
            self.by.insert(resource.clone(), Claimants::One(service.clone()));
            return true;
        };
        let takes_over = service < claimants.owner();
        let mut names = claimants.names();
        names.insert(service.clone());
        *claimants = Claimants::Many(names);
        takes_over
    }

    fn release(&mut self, resource: &R, service: &ServiceName) -> bool {
        let Some(claimants) = self.by.get_mut(resource) else { return false };
        let owned = claimants.owner() == service;
        let mut names = claimants.names();
        names.remove(service);
        match (names.len(), names.pop_first()) {
            (_, None) => {
                self.by.remove(resource);
            }
            (1, Some(last)) => *claimants = Claimants::One(last),
            (_, Some(first)) => {
                names.insert(first);
                *claimants = Claimants::Many(names);
            }
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
            Claimants::One(name) => name,
            Claimants::Many(names) => names.first().expect("two claimants or more"),
        }
    }

    fn names(&self) -> BTreeSet<ServiceName> {
        match self {
            Claimants::One(name) => BTreeSet::from([name.clone()]),
            Claimants::Many(names) => names.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ServiceName {
        ServiceName::new("ns", name)
    }

    #[test]
    fn the_first_name_owns_and_its_leaving_passes_ownership_on() {
        let mut claims = Claims::default();
        assert_eq!(claims.replace(&name("b"), [1, 2]), BTreeSet::from([1, 2]));
        assert_eq!(claims.replace(&name("c"), [2, 3]), BTreeSet::from([3]), "2 stays with b");
        assert_eq!(claims.replace(&name("a"), [2]), BTreeSet::from([2]));
        assert_eq!(claims.owner(&2), Some(&name("a")));
        assert_eq!(claims.replace(&name("a"), []), BTreeSet::from([2]));
        assert_eq!(claims.owner(&2), Some(&name("b")));
        assert_eq!(claims.replace(&name("b"), [1]), BTreeSet::from([2]));
        assert_eq!(claims.owner(&2), Some(&name("c")));
        assert_eq!(claims.replace(&name("c"), []), BTreeSet::from([2, 3]));
        assert_eq!((claims.owner(&2), claims.owner(&1)), (None, Some(&name("b"))));
        assert_eq!(claims.replace(&name("b"), [1]), BTreeSet::new(), "nothing changed");
    }
}
