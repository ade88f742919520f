//! Which user of the host a sprite's machine runs as: each has its own, so that one that broke out owns nothing of another.

use std::{collections::BTreeSet, fs, io, path::Path};

use super::files::write_durably;

/// The file in a sprite's directory that says which user is its own.
pub(super) const RECORD: &str = "uid";

/// The user of the sprite whose directory is `sprite`, among those in `sprites`: the one that it has, or the first from
/// `first` on that no other one has. One caller at a time.
pub(super) fn user(sprites: &Path, sprite: &Path, first: u32) -> io::Result<u32> {
    if let Some(uid) = read(&sprite.join(RECORD))? {
        return Ok(uid);
    }
    let mut taken = BTreeSet::new();
    for entry in fs::read_dir(sprites)? {
        taken.extend(read(&entry?.path().join(RECORD))?);
    }
    let uid = (first..).find(|uid| !taken.contains(uid)).ok_or(io::ErrorKind::StorageFull)?;
    write_durably(&sprite.join(RECORD), uid.to_string().as_bytes())?;
    Ok(uid)
}

fn read(path: &Path) -> io::Result<Option<u32>> {
    match fs::read_to_string(path) {
        Ok(text) => text.trim().parse().map(Some).map_err(io::Error::other),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_sprites_share_a_user_and_one_that_is_gone_leaves_its_own_behind() {
        let dir = tempfile::tempdir().unwrap();
        let sprite = |name: &str| {
            let sprite = dir.path().join(name);
            fs::create_dir_all(&sprite).unwrap();
            user(dir.path(), &sprite, 1000).unwrap()
        };
        assert_eq!([sprite("a"), sprite("b"), sprite("c")], [1000, 1001, 1002]);
        assert_eq!(sprite("b"), 1001, "it keeps its own");
        fs::remove_dir_all(dir.path().join("b")).unwrap();
        assert_eq!(sprite("d"), 1001);
    }
}
