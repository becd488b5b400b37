//! Receipts: ids of predictions that only the pods of a service can make, so that what clients say of a prediction needs no shared
//! memory to be believed.
//!
//! A receipt says which process answered, where, when, with which version and which class, and is signed with HMAC-SHA-256 (RFC
//! 2104), cut to 128 bits, under a key of the user's and the service's name: services with one key do not know each other's. Whoever
//! has it knows nothing that the answer did not tell, but for the pod's address inside the cluster.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// Fewest bytes of a key.
pub const MIN_KEY_BYTES: usize = 32;
/// Most bytes of a key; more say nothing more.
pub const MAX_KEY_BYTES: usize = 4096;
/// First byte of what is signed.
const FORMAT: u8 = 1;
const SIGNED_BYTES: usize = 1 + 8 + 8 + 8 + 4 + 8 + 16;
const MAC_BYTES: usize = 16;

/// Makes and knows receipts of one service.
#[derive(Clone)]
pub struct Key(Hmac<Sha256>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// A key of [`MIN_KEY_BYTES`] to [`MAX_KEY_BYTES`], for the service of this name.
    ///
    /// # Errors
    /// One sentence, without the key.
    pub fn new(bytes: &[u8], service: &str) -> Result<Self, String> {
        if !(MIN_KEY_BYTES..=MAX_KEY_BYTES).contains(&bytes.len()) {
            return Err(format!(
                "the key of receipts has {} bytes, not {MIN_KEY_BYTES} to {MAX_KEY_BYTES}; make one with `openssl rand -hex 32`",
                bytes.len()
            ));
        }
        let mac = Hmac::new_from_slice(bytes).map_err(|e| format!("the key of receipts cannot be used: {e}"))?;
        // No name has such a byte, so none is the beginning of another one with what follows.
        Ok(Self(mac.chain_update(service).chain_update([0])))
    }
}

/// What a receipt says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Process that answered; differs between pods and between restarts of one.
    pub process: u64,
    /// Number of the prediction among those of the process, from 0.
    pub sequence: u64,
    /// When it was made, in seconds since 1970.
    pub issued: u64,
    /// Index of the class that was answered.
    pub class: u32,
    /// First bytes of the digest of the version's artifact.
    pub version: [u8; 8],
    /// Address of the pod.
    pub address: IpAddr,
}

impl Receipt {
    /// The receipt as text: letters, digits, `-` and `_`.
    #[must_use]
    pub fn sign(&self, key: &Key) -> String {
        let mut bytes = Vec::with_capacity(SIGNED_BYTES + MAC_BYTES);
        bytes.push(FORMAT);
        bytes.extend(self.process.to_be_bytes());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.issued.to_be_bytes());
        bytes.extend(self.class.to_be_bytes());
        bytes.extend(self.version);
        let address = match self.address {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        bytes.extend(address.octets());
        let mac = key.0.clone().chain_update(&bytes).finalize().into_bytes();
        bytes.extend(mac.iter().take(MAC_BYTES));
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// What a text says, if it is a receipt under this key.
    #[must_use]
    pub fn verify(text: &str, key: &Key) -> Option<Self> {
        // Longer ones are not decoded.
        if text.len() != (SIGNED_BYTES + MAC_BYTES).saturating_mul(4).div_ceil(3) {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (signed, mac) = bytes.split_at_checked(SIGNED_BYTES)?;
        // In a time that does not depend on where they differ.
        key.0.clone().chain_update(signed).verify_truncated_left(mac).ok()?;
        let mut fields = Fields(signed);
        if fields.take::<1>()? != [FORMAT] {
            return None;
        }
        Some(Self {
            process: u64::from_be_bytes(fields.take()?),
            sequence: u64::from_be_bytes(fields.take()?),
            issued: u64::from_be_bytes(fields.take()?),
            class: u32::from_be_bytes(fields.take()?),
            version: fields.take()?,
            address: Ipv6Addr::from(fields.take::<16>()?).to_canonical(),
        })
    }
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> Key {
        Key::new(&[byte; 32], "team/intent").unwrap()
    }

    fn receipt() -> impl Strategy<Value = Receipt> {
        let address = prop_oneof![
            any::<[u8; 4]>().prop_map(IpAddr::from),
            // Not one that stands for an address of IPv4.
            any::<[u8; 16]>().prop_map(|mut ip| {
                ip[0] = 0xfd;
                IpAddr::from(ip)
            })
        ];
        (any::<[u64; 3]>(), any::<u32>(), any::<[u8; 8]>(), address).prop_map(
            |([process, sequence, issued], class, version, address)| Receipt {
                process,
                sequence,
                issued,
                class,
                version,
                address,
            },
        )
    }

    #[test]
    fn a_receipt_is_what_another_implementation_of_the_mac_says() {
        let receipt = Receipt {
            process: 1,
            sequence: 2,
            issued: 1_800_000_000,
            class: 3,
            version: *b"abcdefgh",
            address: "10.1.2.3".parse().unwrap(),
        };
        let text = receipt.sign(&key(7));
        // Python: hmac.new(b"\x07"*32, b"team/intent\0" + body, "sha256").digest()[:16] behind the body, by base64.urlsafe_b64encode.
        assert_eq!(
            text,
            "AQAAAAAAAAABAAAAAAAAAAIAAAAAa0nSAAAAAANhYmNkZWZnaAAAAAAAAAAAAAD__woBAgOMeEGr6cYYQojMSnWObq3p"
        );
        assert_eq!(Receipt::verify(&text, &key(7)), Some(receipt));
    }

    #[test]
    fn keys_have_a_least_length_and_are_not_shown() {
        assert!(Key::new(&[1; 31], "s").unwrap_err().contains("31 bytes"));
        assert!(Key::new(&[1; 4097], "s").is_err());
        assert_eq!(format!("{:?}", key(1)), "Key");
    }

    proptest! {
        #[test]
        fn only_the_key_makes_receipts(receipt in receipt(), at in 0_usize..69, bit in 0_u8..8) {
            let text = receipt.sign(&key(1));
            prop_assert!(text.len() <= 128 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
            prop_assert_eq!(Receipt::verify(&text, &key(1)), Some(receipt));
            prop_assert_eq!(Receipt::verify(&text, &key(2)), None);
            let other = Key::new(&[1; 32], "team/other").unwrap();
            prop_assert_eq!(Receipt::verify(&text, &other), None);
            let mut bytes = URL_SAFE_NO_PAD.decode(&text).unwrap();
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(Receipt::verify(&URL_SAFE_NO_PAD.encode(&bytes), &key(1)), None);
            prop_assert_eq!(Receipt::verify(&text[1..], &key(1)), None);
        }

        #[test]
        fn anything_else_is_none(text in ".{0,200}") {
            prop_assert_eq!(Receipt::verify(&text, &key(1)), None);
        }
    }
}
