//! What a control process tells its peers: the document it runs and the VIPs it owns,
//! authenticated by the tier's key.
//!
//! ```text
//! JSON {"host","boot","sequence","generation","owned":[claimed, resumed]} ‖ HMAC-SHA256 (RFC 2104) of it
//! ```
//!
//! Addresses travel as numbers, so that one datagram holds as many as a host can serve.

use metal_lb_api::{Generation, MemberKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Claims, RESUMED};

const TAG: usize = 32;
const BLOCK: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub host: String,
    /// Differs between lives of the process, so that `sequence` may begin anew.
    pub boot: u64,
    /// Grows with every hello: an old one cannot be replayed.
    pub sequence: u64,
    /// Of the document that is programmed.
    pub generation: Generation,
    /// The numbers of claims stay at home: peers learn which are [`RESUMED`], and 1 for the others.
    #[serde(with = "addresses")]
    pub owned: Claims,
}

mod addresses {
    use std::net::Ipv4Addr;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Claims, RESUMED};

    pub(super) fn serialize<S: Serializer>(claims: &Claims, serializer: S) -> Result<S::Ok, S::Error> {
        let (resumed, claimed): (Vec<_>, Vec<_>) = claims.iter().partition(|(_, claim)| **claim == RESUMED);
        let numbers =
            |of: Vec<(&Ipv4Addr, &u64)>| of.iter().map(|(vip, _)| vip.to_bits()).collect::<Vec<u32>>();
        (numbers(claimed), numbers(resumed)).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Claims, D::Error> {
        let (claimed, resumed) = <(Vec<u32>, Vec<u32>)>::deserialize(deserializer)?;
        let of = |numbers: Vec<u32>, claim| numbers.into_iter().map(move |n| (Ipv4Addr::from_bits(n), claim));
        Ok(of(claimed, 1).chain(of(resumed, RESUMED)).collect())
    }
}

impl Hello {
    pub fn seal(&self, key: &MemberKey) -> Vec<u8> {
        let mut message = serde_json::to_vec(self).expect("names and numbers always serialize");
        let tag = hmac_sha256(key.as_bytes(), &message);
        message.extend(tag);
        message
    }

    /// `None` when the message is not from a holder of the key.
    pub fn open(message: &[u8], key: &MemberKey) -> Option<Self> {
        let (body, tag) = message.split_at_checked(message.len().checked_sub(TAG)?)?;
        let expected = hmac_sha256(key.as_bytes(), body);
        // No early exit: the time taken tells nothing about the tag.
        let difference = expected.iter().zip(tag).fold(0, |d, (a, b)| d | (a ^ b));
        (difference == 0).then(|| serde_json::from_slice(body).ok()).flatten()
    }
}

/// RFC 2104 over SHA-256; `key` is at most a block long.
fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; TAG] {
    let pad = |byte: u8| {
        let mut block = [byte; BLOCK];
        block.iter_mut().zip(key).for_each(|(b, k)| *b ^= k);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_is_hmac_sha256_of_rfc_4231() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(
            hex(&hmac_sha256(b"Jefe", b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hex(&hmac_sha256(&[0x0b; 20], b"Hi There")),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
    }

    #[test]
    fn only_a_holder_of_the_key_is_heard() {
        let (key, other) = (MemberKey::new([7; 32]), MemberKey::new([8; 32]));
        let address = |n| std::net::Ipv4Addr::new(10, 0, 0, n);
        let owned = [(address(1), 1), (address(2), RESUMED)].into();
        let generation = Generation { term: 1, counter: 7 };
        let hello = Hello { host: "lb-1".into(), boot: 1, sequence: 2, generation, owned };
        let sealed = hello.seal(&key);
        assert_eq!(Hello::open(&sealed, &key), Some(hello));
        assert_eq!(Hello::open(&sealed, &other), None);
        let mut damaged = sealed.clone();
        damaged[10] ^= 1;
        assert_eq!(Hello::open(&damaged, &key), None);
        assert_eq!(Hello::open(&sealed[..10], &key), None);
    }

    #[test]
    fn all_addresses_that_a_host_can_serve_fit_into_one_datagram() {
        let addresses = (0..crate::plan::MAX_VIPS).map(|n| std::net::Ipv4Addr::from_bits(u32::MAX - n));
        let owned = addresses.map(|vip| (vip, u64::MAX)).collect();
        let generation = Generation { term: u64::MAX, counter: u64::MAX };
        let hello = Hello { host: "h".repeat(253), boot: u64::MAX, sequence: u64::MAX, generation, owned };
        // The largest UDP payload over IPv4.
        assert!(hello.seal(&MemberKey::new([7; 32])).len() <= 65_507);
    }
}
