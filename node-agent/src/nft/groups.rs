//! A set of [`Group`]s in 16 bytes: the mirror holds one for each frontend.

use std::fmt;

use super::layout::{Group, Pool, Shape, SizeClass};

#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Groups(u128);

impl Groups {
    pub fn insert(&mut self, group: Group) {
        self.0 |= bit(group);
    }

    pub fn remove(&mut self, group: Group) {
        self.0 &= !bit(group);
    }

    pub fn contains(self, group: Group) -> bool {
        self.0 & bit(group) != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those that `other` lacks.
    pub fn without(self, other: Groups) -> Groups {
        Groups(self.0 & !other.0)
    }

    /// In a fixed order, [`Group::Served`] first.
    pub fn iter(self) -> impl Iterator<Item = Group> {
        Group::all(Shape::Vip).filter(move |group| self.contains(*group))
    }
}

/// Groups are numbered: six kinds, then the classes of either pool.
fn bit(group: Group) -> u128 {
    let number = match group {
        Group::Served => 0,
        Group::External => 1,
        Group::ExternalLocal => 2,
        Group::Reject => 3,
        Group::Drop => 4,
        Group::Firewalled => 5,
        Group::Count(Pool::Cluster, class) => 6 + class.number(),
        Group::Count(Pool::Local, class) => 6 + SizeClass::NUMBER + class.number(),
    };
    1 << number
}

const _: () = assert!(6 + 2 * SizeClass::NUMBER <= u128::BITS as usize);

impl FromIterator<Group> for Groups {
    fn from_iter<I: IntoIterator<Item = Group>>(groups: I) -> Self {
        let mut set = Self::default();
        for group in groups {
            set.insert(group);
        }
        set
    }
}

impl fmt::Debug for Groups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_group_has_a_bit_of_its_own() {
        let mut groups = Groups::default();
        for group in Group::all(Shape::Vip) {
            assert!(!groups.contains(group));
            groups.insert(group);
            assert!(groups.contains(group));
        }
        assert_eq!(groups.iter().count(), Group::all(Shape::Vip).count());
        groups.remove(Group::Served);
        assert!(!groups.contains(Group::Served) && !groups.is_empty());
    }
}
