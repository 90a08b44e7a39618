//! Names of objects: `namespace/name`, shared cheaply between indexes and dirty sets.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A namespaced object's name, kept as one `namespace/name` string. Cloning is a reference count.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ObjectName {
    text: Arc<str>,
    slash: u16,
}

/// The name of a Service.
pub type ServiceName = ObjectName;

/// The name of a Node (cluster-scoped).
pub type NodeName = Arc<str>;

/// The text is not `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not NAMESPACE/NAME")]
pub struct InvalidName(pub String);

impl ObjectName {
    /// Kubernetes limits a namespace to 63 and a name to 253 characters, neither holding a `/`.
    pub fn new(namespace: &str, name: &str) -> Self {
        let slash = u16::try_from(namespace.len()).unwrap_or(u16::MAX);
        Self { text: format!("{namespace}/{name}").into(), slash }
    }

    pub fn namespace(&self) -> &str {
        &self.text[..usize::from(self.slash)]
    }

    pub fn name(&self) -> &str {
        &self.text[usize::from(self.slash) + 1..]
    }

    /// `namespace/name`
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for ObjectName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self::new(namespace, name))
            }
            _ => Err(InvalidName(text.to_owned())),
        }
    }
}

impl Ord for ObjectName {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.namespace(), self.name()).cmp(&(other.namespace(), other.name()))
    }
}

impl PartialOrd for ObjectName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_split_at_its_slash_and_anything_else_is_refused() {
        let name: ObjectName = "shop/web".parse().unwrap();
        assert_eq!((name.namespace(), name.name(), name.as_str()), ("shop", "web", "shop/web"));
        for wrong in ["", "web", "/web", "shop/", "a/b/c"] {
            assert_eq!(wrong.parse::<ObjectName>(), Err(InvalidName(wrong.to_owned())));
        }
    }

    #[test]
    fn names_sort_by_namespace_first() {
        let mut names = [ObjectName::new("a-b", "x"), ObjectName::new("a", "z"), ObjectName::new("a", "b")];
        names.sort();
        assert_eq!(names.map(|n| n.to_string()), ["a/b", "a/z", "a-b/x"]);
    }
}
