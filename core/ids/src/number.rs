//! Identifiers that are numbers.

use std::{fmt, num::NonZeroU16, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A sprite's identity, for ever: a name can be given to another sprite after a destroy, an id cannot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SpriteId(Uuid);

impl SpriteId {
    /// Wraps a UUID that the caller made (this crate has no randomness).
    #[must_use]
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// An id made from a number, for simulations and tests.
    #[must_use]
    pub const fn from_u128(n: u128) -> Self {
        Self(Uuid::from_u128(n))
    }
}

impl FromStr for SpriteId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl fmt::Display for SpriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for SpriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The one after this.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter! {
    /// Grows each time a sprite's network identity changes: every cold boot, every restore, every
    /// return from disk. A pooled connection belongs to one epoch and is never used in another.
    Epoch
}
counter! {
    /// One holder's one try at a lease on one sprite. An answer to an older attempt is given back.
    Attempt
}

/// A TCP port that can be dialled: 1 to 65535.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Port(NonZeroU16);

/// Why a text is not a [`Port`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a port is a whole number from 1 to 65535, without leading zeros")]
pub struct PortError;

impl Port {
    /// Where a sprite's web server is looked for when no service says otherwise.
    pub const DEFAULT_HTTP: Self = Self(NonZeroU16::new(8080).expect("8080 is not zero"));

    /// The port as a number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl TryFrom<u16> for Port {
    type Error = PortError;
    fn try_from(number: u16) -> Result<Self, PortError> {
        NonZeroU16::new(number).map(Self).ok_or(PortError)
    }
}

impl FromStr for Port {
    type Err = PortError;
    /// Strict: `03000`, `+80` and `65536` are refused, so that one port has one spelling.
    fn from_str(text: &str) -> Result<Self, PortError> {
        let canonical =
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
        if !canonical {
            return Err(PortError);
        }
        text.parse::<u16>().map_err(|_| PortError)?.try_into()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_one_spelling() {
        assert_eq!("3000".parse::<Port>().map(Port::get), Ok(3000));
        for bad in ["", "0", "00", "03000", "+80", "-1", "65536", "99999999999", "80 ", "８０"] {
            assert_eq!(bad.parse::<Port>(), Err(PortError), "{bad:?}");
        }
    }
}
