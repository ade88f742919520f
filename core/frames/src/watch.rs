//! Watching files and ports: text messages only.

use serde::{Deserialize, Serialize};

use crate::{PortNotice, TextError, from_json, to_json};

/// A client's first message on a watch of files.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FileWatchRequest {
    /// Tell what happens to these.
    Subscribe {
        /// Files and directories.
        paths: Vec<String>,
        /// Whether what is below counts.
        #[serde(default)]
        recursive: bool,
        /// What relative paths are relative to.
        #[serde(
            default,
            rename = "workingDir",
            alias = "working_dir",
            skip_serializing_if = "Option::is_none"
        )]
        working_dir: Option<String>,
    },
    /// Something that a newer client says, to be ignored.
    #[serde(other)]
    Other,
}

/// What a server says on a watch of files.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FileWatchMessage {
    /// From now on changes are told.
    Subscribed {
        /// Of these.
        paths: Vec<String>,
    },
    /// Something happened.
    Event(FileEvent),
    /// Something can't be watched.
    Error {
        /// Why, for people.
        message: String,
    },
    /// Something that a newer server says, to be ignored.
    #[serde(other)]
    Other,
}

/// A change of a file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileEvent {
    /// Of which.
    pub path: String,
    /// What happened to it.
    pub event: FileEventKind,
    /// When, in RFC 3339.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub timestamp: String,
    /// Its size now, in bytes.
    #[serde(default)]
    pub size: u64,
    /// Whether it is a directory.
    #[serde(default, rename = "isDir")]
    pub is_dir: bool,
}

/// Kinds of [`FileEvent`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileEventKind {
    /// Its content changed.
    Write,
    /// It is new here.
    Create,
    /// It is gone.
    Remove,
    /// It has another name.
    Rename,
    /// Its mode or owner changed.
    Chmod,
    /// Something newer.
    #[serde(other)]
    Other,
}

/// What a server says on a watch of ports.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PortWatchMessage {
    /// The first message: all that are open.
    PortList {
        /// In the order of their opening.
        #[serde(default)]
        ports: Vec<PortNotice>,
    },
    /// One was opened.
    PortOpened(PortNotice),
    /// One was closed.
    PortClosed(PortNotice),
    /// Something that a newer server says, to be ignored.
    #[serde(other)]
    Other,
}

macro_rules! text_codec {
    ($($name:ident),*) => {$(
        impl $name {
            /// Reads a message.
            ///
            /// # Errors
            /// See [`TextError`].
            pub fn decode(text: &[u8]) -> Result<Self, TextError> {
                from_json(text)
            }

            /// Writes a message.
            #[must_use]
            pub fn encode(&self) -> String {
                to_json(self)
            }
        }
    )*};
}
text_codec!(FileWatchRequest, FileWatchMessage, PortWatchMessage);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_as_clients_know_them() {
        assert_eq!(
            FileWatchRequest::decode(
                br#"{"type":"subscribe","paths":["/a"],"recursive":true,"workingDir":"/"}"#
            ),
            Ok(FileWatchRequest::Subscribe {
                paths: vec!["/a".into()],
                recursive: true,
                working_dir: Some("/".into())
            })
        );
        assert_eq!(
            PortWatchMessage::PortList { ports: vec![] }.encode(),
            r#"{"type":"port_list","ports":[]}"#
        );
        let event = FileEvent {
            path: "/a".into(),
            event: FileEventKind::Write,
            timestamp: "2026-01-01T00:00:00Z".into(),
            size: 5,
            is_dir: false,
        };
        assert_eq!(
            FileWatchMessage::Event(event).encode(),
            r#"{"type":"event","path":"/a","event":"write","timestamp":"2026-01-01T00:00:00Z","size":5,"isDir":false}"#
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(paths: Vec<String>, flag: bool, text in "\\PC*", port: u16, size: u64) {
            let request =
                FileWatchRequest::Subscribe { paths: paths.clone(), recursive: flag, working_dir: flag.then(|| text.clone()) };
            if request.encode().len() <= crate::MAX_TEXT_BYTES {
                prop_assert_eq!(FileWatchRequest::decode(request.encode().as_bytes()), Ok(request));
            }
            let event = FileEvent {
                path: text.clone(), event: FileEventKind::Chmod, timestamp: text.clone(), size, is_dir: flag,
            };
            for message in [FileWatchMessage::Event(event), FileWatchMessage::Error { message: text.clone() }] {
                prop_assert_eq!(FileWatchMessage::decode(message.encode().as_bytes()), Ok(message));
            }
            let notice = PortNotice { port, address: text, pid: None };
            for message in [
                PortWatchMessage::PortList { ports: vec![notice.clone()] },
                PortWatchMessage::PortOpened(notice.clone()),
                PortWatchMessage::PortClosed(notice),
            ] {
                prop_assert_eq!(PortWatchMessage::decode(message.encode().as_bytes()), Ok(message));
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = (
                FileWatchRequest::decode(&bytes),
                FileWatchMessage::decode(&bytes),
                PortWatchMessage::decode(&bytes),
            );
        }
    }
}
