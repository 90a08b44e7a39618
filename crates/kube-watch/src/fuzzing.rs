//! What reads bytes of API servers and of people, for a fuzzer to feed. Nothing here is in an
//! ordinary build.

use kube::Resource;
use serde::de::DeserializeOwned;
use service_model::Change;

use crate::WatchConfig;
use crate::changes::{Changes, Convert, Listing, Nodes, Services, Slices};
use crate::dir;
use crate::requests::{Line, parse_line, parse_page};

/// The three watches of one API server, all lists being complete.
#[derive(Debug)]
pub struct Watches {
    services: Changes<Services>,
    slices: Changes<Slices>,
    nodes: Changes<Nodes>,
}

impl Watches {
    pub fn new(config: &WatchConfig) -> Self {
        Self {
            services: Changes::new(Services(config.detail)),
            slices: Changes::new(Slices::new(config.detail)),
            nodes: Changes::new(Nodes),
        }
    }

    /// The change in a line of a watch. Before the line stands which watch: `S` for Services, `E` for
    /// EndpointSlices, `N` for Nodes.
    pub fn line(&mut self, line: &[u8]) -> Option<Change> {
        match line.split_first()? {
            (b'S', line) => change(&mut self.services, line),
            (b'E', line) => change(&mut self.slices, line),
            (b'N', line) => change(&mut self.nodes, line),
            _ => None,
        }
    }

    /// The changes in a page of a list, which is marked as a line is.
    pub fn page(&mut self, page: &[u8]) -> Vec<Change> {
        match page.split_first() {
            Some((b'S', page)) => list(&mut self.services, page),
            Some((b'E', page)) => list(&mut self.slices, page),
            Some((b'N', page)) => list(&mut self.nodes, page),
            _ => Vec::new(),
        }
    }
}

/// The changes in a YAML file of a `dir:` source.
///
/// # Errors
/// When it is not YAML.
pub fn yaml(text: &str, config: &WatchConfig) -> anyhow::Result<Vec<Change>> {
    dir::read_text(text, config)
}

fn change<C>(changes: &mut Changes<C>, line: &[u8]) -> Option<Change>
where
    C: Convert<Wire: Resource + DeserializeOwned>,
{
    match parse_line(line).ok()? {
        Line::Apply(object) => Some(changes.of(Listing::Apply(object))),
        Line::Delete(object) => Some(changes.of(Listing::Delete(object))),
        Line::Bookmark { .. } | Line::Unreadable { .. } | Line::DeletedUnread => None,
    }
}

fn list<C>(changes: &mut Changes<C>, page: &[u8]) -> Vec<Change>
where
    C: Convert<Wire: Resource + DeserializeOwned>,
{
    let objects = parse_page(page).map(|page| page.objects).unwrap_or_default();
    objects.into_iter().map(|object| changes.of(Listing::Apply(object))).collect()
}
