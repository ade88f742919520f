//! What is kept of a token.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The SHA-256 of a token's whole text: enough to verify it, useless for making it.
///
/// Tokens carry 256 bits of entropy, so a fast hash without salt is as good as a slow one.
#[derive(Clone, Copy)]
pub struct TokenDigest([u8; 32]);

/// Why a text is not a [`TokenDigest`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a token digest is 64 lowercase hexadecimal digits")]
pub struct DigestError;

impl TokenDigest {
    /// The digest of a token's text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// Whether both are of the same text, in a time that does not depend on where they differ.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl FromStr for TokenDigest {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, DigestError> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(DigestError),
        };
        let text: &[u8; 64] = text.as_bytes().try_into().map_err(|_| DigestError)?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_chunks::<2>().0) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_written_and_read_as_sha256sum_does() {
        let digest = TokenDigest::of("abc");
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), hex);
        assert!(hex.parse::<TokenDigest>().unwrap().matches(&digest));
        for bad in ["", "ba", &hex[1..], &format!("{hex}0"), &hex.to_uppercase(), &hex.replace('b', "g")] {
            assert!(bad.parse::<TokenDigest>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_bit_of_a_digest_counts() {
        let digest = TokenDigest::of("token");
        for bit in 0..256 {
            let mut other = digest;
            other.0[bit / 8] ^= 1 << (bit % 8);
            assert!(!other.matches(&digest), "bit {bit}");
        }
    }
}
