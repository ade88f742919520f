//! Which file a client means.

use std::path::{Component, Path, PathBuf};

use super::Fault;

/// Where relative paths begin if the client does not say.
pub(crate) const HOME: &str = "/home/sprite";
/// The longest path that the kernel takes (`PATH_MAX`).
const MAX_PATH_BYTES: usize = 4096;

/// The absolute path that `path` means from `working_dir`, without `.` and `..`. Links are not looked at:
/// `..` takes the last name away, as shells do, and never climbs above the root.
pub(crate) fn place(working_dir: Option<&str>, path: &str) -> Result<PathBuf, Fault> {
    if path.is_empty() {
        return Err(Fault::invalid("the path is empty; say which file is meant", Some(path)));
    }
    let from = working_dir.filter(|dir| !dir.is_empty()).unwrap_or(HOME);
    let whole = Path::new("/").join(from).join(path);
    if whole.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(Fault::invalid("a path has no NUL byte", None));
    }
    if whole.as_os_str().len() >= MAX_PATH_BYTES {
        return Err(Fault::invalid(format!("the path is longer than {MAX_PATH_BYTES} bytes"), None));
    }
    let mut place = PathBuf::from("/");
    for component in whole.components() {
        match component {
            Component::Normal(name) => place.push(name),
            // At the root there is nothing to take away.
            Component::ParentDir => drop(place.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_begin_where_the_client_says_and_never_climb_above_the_root() {
        let of = |dir: Option<&str>, path: &str| place(dir, path).map(|place| place.display().to_string());
        assert_eq!(of(None, "a.txt").as_deref(), Ok("/home/sprite/a.txt"));
        assert_eq!(of(Some(""), "a.txt").as_deref(), Ok("/home/sprite/a.txt"));
        assert_eq!(of(Some("/"), "a.txt").as_deref(), Ok("/a.txt"));
        assert_eq!(of(Some("work"), "./b/../a").as_deref(), Ok("/work/a"));
        assert_eq!(of(Some("/x"), "/etc/passwd").as_deref(), Ok("/etc/passwd"));
        assert_eq!(of(None, "../../../../../etc").as_deref(), Ok("/etc"));
        assert_eq!(of(None, "/..").as_deref(), Ok("/"));
        assert_eq!(of(None, "ä ö//ü/").as_deref(), Ok("/home/sprite/ä ö/ü"));
    }

    #[test]
    fn what_can_be_no_path_is_refused() {
        assert!(place(None, "").is_err());
        assert!(place(None, "a\0b").is_err());
        assert!(place(Some("/\0"), "a").is_err());
        assert!(place(None, &"x/".repeat(3000)).is_err());
    }
}
