//! What is in a directory.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use glob::{MatchOptions, Pattern};
use jiff::Timestamp;
use serde::Serialize;
use walkdir::WalkDir;

use super::{Code, Fault, fault::at, show_mode};

/// Entries of one answer, so that nobody's tree fills the runtime's memory.
const MAX_ENTRIES: usize = 100_000;
/// `*` stays within a directory, and names are taken as they are written.
const MATCHING: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: false,
};

/// One file, directory or link.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    name: String,
    path: String,
    #[serde(rename = "type")]
    kind: &'static str,
    size: u64,
    mode: String,
    #[serde(rename = "modTime")]
    modified: Timestamp,
    is_dir: bool,
}

impl Entry {
    pub(crate) fn of(path: &Path, metadata: &Metadata) -> Self {
        let kind = match metadata.file_type() {
            kind if kind.is_dir() => "directory",
            kind if kind.is_symlink() => "symlink",
            _ => "file",
        };
        let name = path.file_name().unwrap_or(path.as_os_str());
        Self {
            name: name.to_string_lossy().into_owned(),
            path: path.display().to_string(),
            kind,
            size: metadata.len(),
            mode: show_mode(metadata.mode()),
            modified: Timestamp::new(metadata.mtime(), i32::try_from(metadata.mtime_nsec()).unwrap_or(0))
                .unwrap_or(Timestamp::UNIX_EPOCH),
            is_dir: metadata.is_dir(),
        }
    }
}

/// What is listed, and how.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listing {
    /// With all below, too.
    pub(crate) recursive: bool,
    /// Only what matches: a file name, or with a `/` in it a path below the directory.
    pub(crate) pattern: Option<String>,
}

/// Lists a directory, sorted by path. Anything else is listed as its one entry: that is how clients find out
/// what a path is.
pub(crate) fn list(path: &Path, listing: &Listing) -> Result<Vec<Entry>, Fault> {
    let pattern = match listing.pattern.as_deref().filter(|pattern| !pattern.is_empty()) {
        Some(text) => Some(Pattern::new(text).map_err(|error| {
            Fault::invalid(
                format!("{text:?} is no pattern: {}", error.msg),
                Some(&path.display().to_string()),
            )
        })?),
        None => None,
    };
    // A link counts as what it leads to, unless that is nowhere.
    let metadata = fs::metadata(path).or_else(|_| fs::symlink_metadata(path)).map_err(at(path))?;
    if !metadata.is_dir() {
        return Ok(vec![Entry::of(path, &metadata)]);
    }
    let depth = if listing.recursive { usize::MAX } else { 1 };
    let mut entries = Vec::new();
    let walk = WalkDir::new(path).follow_root_links(true).min_depth(1).max_depth(depth).sort_by_file_name();
    for found in walk {
        let found = match found {
            Ok(found) => found,
            // Gone while we looked, or closed to us: the rest is still worth telling.
            Err(error) if error.depth() > 0 => continue,
            Err(error) => return Err(Fault::of(&error.into(), path)),
        };
        let below = found.path().strip_prefix(path).unwrap_or(found.path());
        if pattern.as_ref().is_some_and(|pattern| !matches(pattern, below)) {
            continue;
        }
        let Ok(metadata) = found.metadata() else { continue };
        if entries.len() == MAX_ENTRIES {
            let message = format!(
                "{} has more than {MAX_ENTRIES} entries; list a part of it, or give a pattern",
                path.display()
            );
            return Err(Fault::new(Code::Invalid, message, path));
        }
        entries.push(Entry::of(found.path(), &metadata));
    }
    Ok(entries)
}

fn matches(pattern: &Pattern, below: &Path) -> bool {
    let name = below.file_name().is_some_and(|name| pattern.matches_with(&name.to_string_lossy(), MATCHING));
    name || pattern.matches_path_with(below, MATCHING)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(path: &Path, recursive: bool, pattern: Option<&str>) -> Vec<String> {
        let listing = Listing { recursive, pattern: pattern.map(str::to_owned) };
        let entries = list(path, &listing).expect("listed");
        let below = |entry: Entry| entry.path.replacen(&format!("{}/", path.display()), "", 1);
        entries.into_iter().map(below).collect()
    }

    #[test]
    fn a_directory_lists_its_entries_and_anything_else_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path();
        fs::create_dir(root.join("sub")).expect("made");
        fs::write(root.join("sub/deep.txt"), "12345").expect("written");
        fs::write(root.join("a.txt"), "1").expect("written");
        symlink("sub", root.join("link")).expect("linked");
        symlink("nowhere", root.join("dangling")).expect("linked");

        assert_eq!(names(root, false, None), ["a.txt", "dangling", "link", "sub"]);
        assert_eq!(names(root, true, None), ["a.txt", "dangling", "link", "sub", "sub/deep.txt"]);
        assert_eq!(names(root, true, Some("*.txt")), ["a.txt", "sub/deep.txt"]);
        assert_eq!(names(root, true, Some("sub/*")), ["sub/deep.txt"]);
        let one = |name: &str| {
            let entries = list(&root.join(name), &Listing::default()).expect("listed");
            (entries.len(), entries[0].kind, entries[0].size)
        };
        assert_eq!(one("a.txt"), (1, "file", 1));
        assert_eq!(one("link"), (1, "file", 5), "a link to a directory lists that");
        assert_eq!(one("dangling").1, "symlink");
        let missing = list(&root.join("none"), &Listing::default()).expect_err("missing");
        assert_eq!(missing.code, Code::NotFound);
        let bad = Listing { pattern: Some("[".into()), ..Listing::default() };
        assert_eq!(list(root, &bad).expect_err("no pattern").code, Code::Invalid);
    }
}
