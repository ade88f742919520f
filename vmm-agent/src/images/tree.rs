//! Files to be: names, owners, modes, times and contents, independent of any disk's own.

use std::{collections::BTreeMap, path::PathBuf};

use super::ImageError;

/// The one moment at which all that has no better time was made (1 January 2025), so that the same
/// inputs give the same bytes.
pub(super) const MOMENT: i64 = 1_735_689_600;

/// What an entry is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Directory,
    File(Content),
    Link {
        target: String,
    },
    /// Another name of the file at this path.
    Same {
        as_path: String,
    },
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// What is in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Content {
    Bytes(Vec<u8>),
    /// The content of a file of this host.
    At(PathBuf),
}

/// One of a tree's entries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    /// Permissions, without the type.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970.
    pub(super) mtime: i64,
}

/// Entries by their paths, which have no slash at either end; each after its directory.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Tree {
    entries: BTreeMap<String, Entry>,
}

impl Entry {
    /// An entry of root's.
    pub(super) const fn new(kind: Kind, mode: u32) -> Self {
        Self { kind, mode, uid: 0, gid: 0, mtime: MOMENT }
    }
}

impl Tree {
    /// Adds an entry, in place of one that was there.
    ///
    /// # Errors
    /// Its path is none that every writer can write.
    pub(super) fn add(&mut self, path: impl Into<String>, entry: Entry) -> Result<(), ImageError> {
        let path = path.into();
        let strange = |part: &str| part.is_empty() || part == "." || part == "..";
        if path.split('/').any(strange) || path.contains(['\n', '\r', '\0']) {
            let reason = "its path is not plain (empty, . or .. in it, or the end of a line)";
            return Err(ImageError::Entry { path, reason });
        }
        self.entries.insert(path, entry);
        Ok(())
    }

    pub(super) fn directory(&mut self, path: impl Into<String>, mode: u32) -> Result<(), ImageError> {
        self.add(path, Entry::new(Kind::Directory, mode))
    }

    pub(super) fn file(
        &mut self,
        path: impl Into<String>,
        mode: u32,
        content: impl Into<Vec<u8>>,
    ) -> Result<(), ImageError> {
        self.add(path, Entry::new(Kind::File(Content::Bytes(content.into())), mode))
    }

    pub(super) fn link(
        &mut self,
        path: impl Into<String>,
        target: impl Into<String>,
    ) -> Result<(), ImageError> {
        self.add(path, Entry::new(Kind::Link { target: target.into() }, 0o777))
    }

    pub(super) fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// In the order of their paths: a directory before what is in it.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }
}

impl Content {
    /// Its size in bytes.
    pub(super) fn size(&self) -> Result<u64, ImageError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
            Self::At(path) => {
                Ok(path.metadata().map_err(ImageError::io(format!("look at {}", path.display())))?.len())
            }
        }
    }

    pub(super) fn read(&self) -> Result<Vec<u8>, ImageError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::At(path) => std::fs::read(path).map_err(ImageError::io(format!("read {}", path.display()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leads_elsewhere_is_refused() {
        for path in ["", "/etc", "etc/", "a//b", "../etc", "a/./b", "two\nlines"] {
            assert!(Tree::default().directory(path, 0o755).is_err(), "{path:?} was taken");
        }
    }

    #[test]
    fn a_directory_comes_before_what_is_in_it() {
        let mut tree = Tree::default();
        for path in ["a/b", "a-b", "a/b/c", "a"] {
            tree.directory(path, 0o755).unwrap();
        }
        let paths: Vec<_> = tree.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["a", "a-b", "a/b", "a/b/c"]);
    }
}
