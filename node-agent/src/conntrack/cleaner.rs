//! Looks the kernel's table through and ends what is stale.

use nfnetlink::conntrack::{Conntrack, Flow};
use nfnetlink::{Family, Result};
use service_model::IpFamily;

use super::served::Index;

/// As many are ended together. However many are stale, no more are held.
const AT_ONCE: usize = 256;
/// `IPPROTO_UDP`
const UDP: u8 = 17;

/// Two sockets: on one the listing goes on while the other ends entries.
#[derive(Debug)]
pub struct Cleaner {
    listing: Conntrack,
    ending: Conntrack,
}

impl Cleaner {
    /// For the network namespace of the calling thread, wherever it is used later.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open() -> Result<Self> {
        Ok(Self { listing: Conntrack::open()?, ending: Conntrack::open()? })
    }

    /// Ends the stale entries of a family; how many.
    ///
    /// # Errors
    /// When the table cannot be listed or changed. What was ended by then stays so.
    pub fn clean(&mut self, index: &Index<'_>, family: IpFamily) -> Result<usize> {
        let Self { listing, ending } = self;
        let (mut ended, mut failed) = (0, None);
        let mut end = |stale: &mut Vec<Flow>| {
            if failed.is_none() {
                match ending.delete(stale) {
                    Ok(were_there) => ended += were_there,
                    Err(error) => failed = Some(error),
                }
            }
            stale.clear();
        };
        let mut stale = Vec::new();
        let family = if family == IpFamily::V4 { Family::Ip } else { Family::Ip6 };
        listing.visit(family, UDP, |flow| {
            if index.is_stale(flow) {
                let (from, to, led_to) = (flow.original.source, flow.original.destination, flow.reply.source);
                tracing::debug!(%from, %to, %led_to, "ending a stale UDP connection");
                stale.push(*flow);
                if stale.len() == AT_ONCE {
                    end(&mut stale);
                }
            }
        })?;
        end(&mut stale);
        failed.map_or(Ok(ended), Err)
    }
}
