//! `.sprite`: which sprite a directory and those below it are about.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::error::Error;

const FILE: &str = ".sprite";

/// The file's content.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Project {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) organization: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sprite: Option<String>,
}

/// The nearest file, from a directory upward.
pub(crate) fn find(from: &Path) -> Result<Option<(PathBuf, Project)>, Error> {
    for directory in from.ancestors() {
        let path = directory.join(FILE);
        // A directory of this name is somebody else's; what can't be read is not for us.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let project = serde_json::from_str(&text).map_err(|error| {
            Error::said(format!("{} is damaged ({error}). `sprite use NAME` writes it anew.", path.display()))
        })?;
        return Ok(Some((path, project)));
    }
    Ok(None)
}

/// Writes the file of a directory.
pub(crate) fn write(directory: &Path, project: &Project) -> Result<PathBuf, Error> {
    let path = directory.join(FILE);
    let text = serde_json::to_string(project).map_err(|error| Error::said(error.to_string()))?;
    fs::write(&path, text + "\n")
        .map_err(|error| Error::said(format!("could not write {}: {error}", path.display())))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_file_upward_counts() {
        let top = tempfile::tempdir().expect("a directory");
        let deep = top.path().join("a/b");
        fs::create_dir_all(&deep).expect("makes");
        assert_eq!(find(&deep).expect("searches"), None);
        let project = |name: &str| Project { organization: None, sprite: Some(name.to_owned()) };
        write(top.path(), &project("far")).expect("writes");
        assert_eq!(find(&deep).expect("searches").map(|found| found.1), Some(project("far")));
        write(&top.path().join("a"), &project("near")).expect("writes");
        assert_eq!(find(&deep).expect("searches").map(|found| found.1), Some(project("near")));
        fs::write(deep.join(FILE), "nonsense").expect("writes");
        assert!(find(&deep).expect_err("damaged").to_string().contains("is damaged"));
    }
}
