//! Names under which programs are looked for and that the sprite's system does not have.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::symlink,
    path::Path,
};

use tracing::debug;

use crate::exec::find;

/// A name, and the program that is meant where there is none of that name.
const SHIMS: &[(&str, &str)] = &[("python", "python3")];

/// Puts a link into `bin`, which is the last place of the search path, for each name that is missing; takes it
/// away again when there is a program of that name.
pub(crate) fn make(bin: &Path, environment: &BTreeMap<String, String>) {
    let places = environment.get("PATH").map_or("", String::as_str);
    let elsewhere: Vec<_> = std::env::split_paths(places).filter(|place| place != bin).collect();
    let Ok(elsewhere) = std::env::join_paths(elsewhere) else { return };
    for (name, meant) in SHIMS {
        // Programs run without it, unless they want exactly this.
        if let Err(error) = make_one(&bin.join(name), name, meant, &elsewhere) {
            debug!(name, %error, "Could not make a link to a program");
        }
    }
}

fn make_one(link: &Path, name: &str, meant: &str, elsewhere: &OsString) -> io::Result<()> {
    let found = |program: &str| find(OsStr::new(program), Some(elsewhere), Path::new("/")).ok();
    if link.is_symlink() {
        fs::remove_file(link)?;
    }
    match (found(name), found(meant)) {
        (None, Some(program)) => symlink(program, link),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_missing_name_leads_to_what_is_meant() {
        let home = tempfile::tempdir().unwrap();
        let (usr, bin) = (home.path().join("usr"), home.path().join("bin"));
        fs::create_dir(&usr).unwrap();
        fs::create_dir(&bin).unwrap();
        let program = |name: &str| {
            fs::write(usr.join(name), "").unwrap();
            fs::set_permissions(usr.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        };
        let path = format!("{}:{}", usr.display(), bin.display());
        let environment = BTreeMap::from([("PATH".to_owned(), path)]);
        make(&bin, &environment);
        assert!(!bin.join("python").is_symlink(), "there is nothing to lead to");
        program("python3");
        make(&bin, &environment);
        make(&bin, &environment);
        assert_eq!(fs::read_link(bin.join("python")).unwrap(), usr.join("python3"));
        program("python");
        make(&bin, &environment);
        assert!(!bin.join("python").is_symlink());
    }
}
