//! Names of checkpoints.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Names a checkpoint of one sprite, for ever: no number is given out twice, not even after a delete.
///
/// Its text (`v7`, `auto-3`) is one plain path component.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum CheckpointId {
    /// Made by itself, before something that can't be undone.
    Automatic(u32),
    /// Asked for.
    Numbered(u32),
}

/// Why a text is not a [`CheckpointId`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a checkpoint is named like v7, or auto-7 if it was made by itself")]
pub struct CheckpointIdError;

impl CheckpointId {
    /// Whether it was made by itself.
    #[must_use]
    pub const fn is_automatic(self) -> bool {
        matches!(self, Self::Automatic(_))
    }
}

impl FromStr for CheckpointId {
    type Err = CheckpointIdError;
    /// Strict: `v07` and `v+7` are refused, so that one checkpoint has one spelling.
    fn from_str(text: &str) -> Result<Self, CheckpointIdError> {
        let (make, number): (fn(u32) -> Self, _) = match text.strip_prefix("auto-") {
            Some(number) => (Self::Automatic, number),
            None => (Self::Numbered, text.strip_prefix('v').ok_or(CheckpointIdError)?),
        };
        let canonical = number == "0" || number.starts_with(|first: char| matches!(first, '1'..='9'));
        if !canonical {
            return Err(CheckpointIdError);
        }
        number.parse().map(make).map_err(|_| CheckpointIdError)
    }
}

impl TryFrom<String> for CheckpointId {
    type Error = CheckpointIdError;
    fn try_from(text: String) -> Result<Self, CheckpointIdError> {
        text.parse()
    }
}

impl From<CheckpointId> for String {
    fn from(id: CheckpointId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Automatic(number) => write!(f, "auto-{number}"),
            Self::Numbered(number) => write!(f, "v{number}"),
        }
    }
}

impl fmt::Debug for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_has_one_spelling() {
        for id in [CheckpointId::Numbered(0), CheckpointId::Numbered(u32::MAX), CheckpointId::Automatic(12)] {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        for bad in
            ["", "v", "v07", "v+7", "V7", "7", "auto", "auto-", "auto--1", "v1/../v2", "v4294967296", "v1 "]
        {
            assert_eq!(bad.parse::<CheckpointId>(), Err(CheckpointIdError), "{bad:?}");
        }
    }
}
