//! Gratuitous ARP: tells the segment that a VIP has moved here.

mod arp;
mod schedule;

use std::time::Instant;

use tokio::sync::watch;

use crate::desired::Mac;
use crate::members::Standing;
use crate::metrics::Events;
use crate::xdp::frames::FrameSocket;
use schedule::Schedule;

/// Announces what is owned until the sender is gone.
///
/// # Errors
/// When no packet socket can be opened.
pub async fn run(
    interface: String,
    mac: Mac,
    mut standing: watch::Receiver<Standing>,
    events: Events,
) -> anyhow::Result<()> {
    let socket = FrameSocket::open(&interface)?;
    let (start, mut schedule) = (Instant::now(), Schedule::default());
    loop {
        schedule.set_owned(&standing.borrow_and_update().claims, start.elapsed());
        for vip in schedule.due(start.elapsed()) {
            for frame in arp::gratuitous(vip, mac) {
                match socket.send(&frame) {
                    Ok(()) => events.gratuitous_sent(vip),
                    Err(error) => tracing::warn!(%error, %vip, "announcing failed; it is repeated"),
                }
            }
        }
        let pause = schedule.next().map(|at| at.saturating_sub(start.elapsed()));
        tokio::select! {
            changed = standing.changed() => if changed.is_err() { return Ok(()) },
            () = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            } => {}
        }
    }
}
