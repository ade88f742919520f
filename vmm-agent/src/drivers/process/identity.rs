//! Which user and group ids a sprite has on the host.

use std::{
    collections::BTreeSet,
    fs, io,
    path::Path,
    sync::{Mutex, PoisonError},
};

use super::{
    super::files::write_durably,
    launcher::Ids,
    layout::{Layout, SpriteFiles},
};

/// How many ids each sprite has: as many as programs inside expect (`nobody` is 65534).
pub(super) const IDS_PER_SPRITE: u32 = 65_536;

/// Gives each sprite a range of ids of its own, so that not even a process that broke out of its
/// namespaces owns anything of another sprite's.
#[derive(Debug)]
pub(super) struct IdPool {
    mode: Mode,
}

#[derive(Debug)]
enum Mode {
    Ranges { first: u32, taken: Mutex<BTreeSet<u32>> },
    Single(Ids),
}

impl IdPool {
    /// The pool of an agent that is root: ranges from `first` on, less those that sprites have.
    pub(super) fn of_ranges(layout: &Layout, first: u32) -> io::Result<Self> {
        let mut taken = BTreeSet::new();
        for entry in fs::read_dir(layout.sprites())? {
            if let Some(base) = read_base(&entry?.path().join("ids"))? {
                taken.insert(base);
            }
        }
        Ok(Self { mode: Mode::Ranges { first, taken: Mutex::new(taken) } })
    }

    /// The pool of an agent that is not root: every sprite has the agent's own id.
    pub(super) fn of_one(own: Ids) -> Self {
        Self { mode: Mode::Single(own) }
    }

    /// The ids of a sprite; the first call for it chooses them and writes them down.
    pub(super) fn ids_of(&self, sprite: &SpriteFiles) -> io::Result<Ids> {
        let (first, taken) = match &self.mode {
            Mode::Single(own) => return Ok(*own),
            Mode::Ranges { first, taken } => (*first, taken),
        };
        if let Some(base) = read_base(&sprite.ids())? {
            return Ok(Ids::Range { base });
        }
        let base = {
            let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
            let base = lowest_free(first, &taken).ok_or_else(|| {
                io::Error::other("every range of user ids on this host belongs to a sprite")
            })?;
            taken.insert(base);
            base
        };
        write_durably(&sprite.ids(), base.to_string().as_bytes()).inspect_err(|_| self.give_back(base))?;
        Ok(Ids::Range { base })
    }

    /// Forgets the ids of a sprite of which nothing is left; `base` was read by [`read_base`] before.
    pub(super) fn give_back(&self, base: u32) {
        if let Mode::Ranges { taken, .. } = &self.mode {
            taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&base);
        }
    }
}

/// What 0 inside is outside, according to the file at `path`; `None` if there is none.
pub(super) fn read_base(path: &Path) -> io::Result<Option<u32>> {
    match fs::read_to_string(path) {
        Ok(text) => text.trim().parse().map(Some).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{} holds no number", path.display()))
        }),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn lowest_free(first: u32, taken: &BTreeSet<u32>) -> Option<u32> {
    // The very last range would end in the id that means "none".
    (first..u32::MAX - IDS_PER_SPRITE).step_by(IDS_PER_SPRITE as usize).find(|base| !taken.contains(base))
}

/// Gives the new user namespace of process `pid` its ids.
pub(super) fn map_ids(pid: u32, ids: Ids) -> io::Result<()> {
    let write = |file: &str, text: &str| fs::write(format!("/proc/{pid}/{file}"), text);
    match ids {
        Ids::Range { base } => {
            let line = format!("0 {base} {IDS_PER_SPRITE}\n");
            write("uid_map", &line)?;
            write("gid_map", &line)
        }
        Ids::Single { uid, gid } => {
            write("uid_map", &format!("0 {uid} 1\n"))?;
            // The kernel lets nobody map a group who could then drop out of another one.
            write("setgroups", "deny")?;
            write("gid_map", &format!("0 {gid} 1\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_sprites_share_an_id() {
        let mut taken = BTreeSet::new();
        for _ in 0..100 {
            let base = lowest_free(100_000, &taken).expect("there are thousands");
            assert!(taken.iter().all(|other: &u32| other.abs_diff(base) >= IDS_PER_SPRITE));
            taken.insert(base);
        }
        taken.remove(&165_536);
        assert_eq!(lowest_free(100_000, &taken), Some(165_536), "ranges are used again");
        assert_eq!(lowest_free(u32::MAX - 10, &BTreeSet::new()), None);
    }
}
