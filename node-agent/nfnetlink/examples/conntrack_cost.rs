//! What looking through a connection table costs: `unshare -n conntrack_cost [UDP] [TCP]`.
//!
//! Makes that many entries of either protocol in this network namespace, lists the UDP ones and ends
//! half of them. The table's limit is the host's: nf_conntrack_max.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nfnetlink::conntrack::{Conntrack, Flow, Tuple, Zone};
use nfnetlink::{Family, Result};

const UDP: u8 = 17;

/// The entry of one client of many.
fn flow(number: u32, protocol: u8) -> Flow {
    let [_, a, b, c] = (number / 50_000).to_be_bytes();
    let client = SocketAddr::from(([172, a, b, c], 10_000 + (number % 50_000) as u16));
    let original = Tuple { protocol, ..Tuple::udp(client, ([10, 96, 0, 10], 53).into()) };
    let reply = Tuple { protocol, ..Tuple::udp(([10, 244, 1, 5], 5353).into(), client) };
    Flow { original, reply, zone: Zone::Usual, id: 0 }
}

#[expect(clippy::print_stdout, reason = "what the example is for")]
fn main() -> Result<()> {
    let mut counts = std::env::args().skip(1).map(|count| count.parse().unwrap_or(0));
    let (udp, tcp): (u32, u32) = (counts.next().unwrap_or(100_000), counts.next().unwrap_or(0));
    let (mut table, mut other) = (Conntrack::open()?, Conntrack::open()?);
    for (number, protocol) in [(udp, UDP), (tcp, 6)] {
        let flows: Vec<Flow> = (0..number).map(|number| flow(number, protocol)).collect();
        table.create(&flows, Duration::from_secs(600))?;
    }
    for attempt in 0..2 {
        let (start, mut seen, mut ended, mut stale) = (Instant::now(), 0, 0, Vec::new());
        table.visit(Family::Ip, UDP, |flow| {
            seen += 1;
            if attempt == 1 && seen % 2 == 0 {
                stale.push(*flow);
            }
            if stale.len() == 256 {
                ended += other.delete(&stale).unwrap_or_default();
                stale.clear();
            }
        })?;
        println!("{seen} of {} entries listed, {ended} ended: {:?}", udp + tcp, start.elapsed());
    }
    Ok(())
}
