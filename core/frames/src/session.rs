//! The list of sessions.

use serde::{Deserialize, Serialize};

use crate::{TextError, lenient, to_json};

/// The answer to `GET /exec`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct SessionList {
    /// All that run, the oldest first.
    #[serde(default)]
    pub sessions: Vec<SessionEntry>,
    /// How many.
    #[serde(default)]
    pub count: usize,
}

/// A session that runs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SessionEntry {
    /// Its id.
    #[serde(deserialize_with = "lenient::text")]
    pub id: String,
    /// The absolute path of its program and the arguments, joined by spaces.
    #[serde(default)]
    pub command: String,
    /// Where it was started.
    #[serde(default)]
    pub workdir: String,
    /// When it was started, in RFC 3339.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created: String,
    /// What it wrote of late.
    #[serde(default)]
    pub bytes_per_second: f64,
    /// Whether it wrote of late or has a client.
    #[serde(default)]
    pub is_active: bool,
    /// When it last wrote or was written to, in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_activity: Option<String>,
    /// Whether it has a terminal.
    #[serde(default)]
    pub tty: bool,
}

impl From<Vec<SessionEntry>> for SessionList {
    fn from(sessions: Vec<SessionEntry>) -> Self {
        Self { count: sessions.len(), sessions }
    }
}

impl SessionList {
    /// Reads a list. The caller bounds its length.
    ///
    /// # Errors
    /// See [`TextError`].
    pub fn decode(body: &[u8]) -> Result<Self, TextError> {
        serde_json::from_slice(body).map_err(|error| TextError::Malformed(error.to_string()))
    }

    /// Writes a list.
    #[must_use]
    pub fn encode(&self) -> String {
        to_json(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_may_be_numbers_and_the_rest_missing() {
        let list = SessionList::decode(br#"{"sessions":[{"id":28}],"count":1}"#).unwrap();
        assert_eq!(list.sessions[0].id, "28");
        assert_eq!(SessionList::default().encode(), r#"{"sessions":[],"count":0}"#);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(text in "\\PC*", rate: u32, flag: bool) {
            let entry = SessionEntry {
                id: text.clone(), command: text.clone(), workdir: text.clone(), created: text.clone(),
                bytes_per_second: rate.into(), is_active: flag, last_activity: flag.then_some(text), tty: !flag,
            };
            let list = SessionList::from(vec![entry]);
            prop_assert_eq!(SessionList::decode(list.encode().as_bytes()), Ok(list));
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = SessionList::decode(&bytes);
        }
    }
}
