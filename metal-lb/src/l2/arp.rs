//! ARP frames (RFC 826).

use std::net::Ipv4Addr;

use crate::desired::Mac;

const BROADCAST: Mac = Mac([0xff; 6]);
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// An announcement in both operations: receivers differ in which one they believe (RFC 5227 §3).
pub(super) fn gratuitous(vip: Ipv4Addr, mac: Mac) -> [[u8; 42]; 2] {
    [frame(REQUEST, vip, mac), frame(REPLY, vip, mac)]
}

fn frame(operation: u16, vip: Ipv4Addr, mac: Mac) -> [u8; 42] {
    let target = if operation == REPLY { BROADCAST } else { Mac::default() };
    let parts: [&[u8]; 9] = [
        &BROADCAST.0,
        &mac.0,
        &[0x08, 0x06, 0, 1, 0x08, 0, 6, 4],
        &operation.to_be_bytes(),
        &mac.0,
        &vip.octets(),
        &target.0,
        &vip.octets(),
        &[],
    ];
    let mut frame = [0; 42];
    let mut at = 0;
    for part in parts {
        frame[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_names_the_vip_as_sender_and_target() {
        let (vip, mac) = (Ipv4Addr::new(172, 30, 0, 200), Mac([2, 0, 0, 0, 0, 1]));
        for (frame, operation) in gratuitous(vip, mac).iter().zip([1, 2]) {
            assert_eq!((&frame[..6], &frame[6..12]), (&[0xff; 6][..], &mac.0[..]));
            assert_eq!(frame[12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
            assert_eq!((&frame[22..28], &frame[28..32]), (&mac.0[..], &vip.octets()[..]));
            assert_eq!(frame[38..42], vip.octets());
        }
    }
}
