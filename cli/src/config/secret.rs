//! A token, which no log, trace or error shows.

use std::fmt;

use serde::{Deserialize, Serialize};

/// See the module. Only [`Secret::expose`] gives the text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that sends or stores it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// The organization that the token speaks for, if it has the usual form `org/…/…/value`.
    pub(crate) fn organization(&self) -> Option<&str> {
        self.0.split_once('/').map(|(org, _)| org).filter(|org| !org.is_empty())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("(secret)")
    }
}
