//! What QEMU may reach on the host, where the agent is root.
//!
//! QEMU then runs as a user of the sprite's own, in the sprite's directory, and has none of the agent's rights. It finds
//! everything by names from there on, for it may not even look into the directories above; images are reached through a
//! descriptor of theirs. Directories stay the agent's, so that the agent never follows a link that a machine
//! which broke out of QEMU has made. What QEMU writes is its user's: RAM, the active layer, the console's log. Layers that
//! are only read may be shared with other sprites, and are the agent's.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
};

use nix::{
    sys::stat::stat,
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};
use parking_lot::Mutex;

use super::{
    layers::Layers,
    layout::{Files, Layout},
};
use crate::{drivers::user::user, images::Image};

/// Where KVM is.
const KVM: &str = "/dev/kvm";

/// How QEMU is kept apart.
#[derive(Debug)]
pub(super) struct Owners {
    images: PathBuf,
    /// The first user of a machine; `None` where each runs as the agent's.
    first: Option<u32>,
    choosing: Mutex<()>,
}

/// Who a QEMU runs as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Owner {
    user: Uid,
    group: Gid,
    /// The group that may use KVM.
    kvm: Gid,
}

impl Owners {
    /// `first_id` is the first user of a machine; zero: the agent's own.
    pub(super) fn new(images: &Path, first_id: u32) -> Self {
        let first = (Uid::effective().is_root() && first_id != 0).then_some(first_id);
        Self { images: images.to_owned(), first, choosing: Mutex::new(()) }
    }

    /// Why no user but the agent's could read this image; `None` if every one can, or need not.
    pub(super) fn unreadable(&self, image: &Image) -> io::Result<Option<PathBuf>> {
        if self.first.is_none() {
            return Ok(None);
        }
        for file in [image.root(), image.kernel_elf(), image.initramfs()] {
            let below = file.ancestors().take_while(|path| path.starts_with(&self.images));
            for path in below {
                let wanted = if path == file { 0o4 } else { 0o1 };
                if fs::metadata(path)?.mode() & wanted == 0 {
                    return Ok(Some(path.to_owned()));
                }
            }
        }
        Ok(None)
    }

    /// Who the QEMU of a sprite runs as; the first call for a sprite chooses. `None`: as the agent.
    pub(super) fn of(&self, layout: &Layout, files: &Files) -> io::Result<Option<Owner>> {
        let Some(first) = self.first else { return Ok(None) };
        let _one_at_a_time = self.choosing.lock();
        let id = user(layout.sprites(), files.root(), first)?;
        let group = Gid::from_raw(id);
        // Where there is no KVM there is nothing to be let at.
        let kvm = stat(KVM).map_or(group, |device| Gid::from_raw(device.st_gid));
        Ok(Some(Owner { user: Uid::from_raw(id), group, kvm }))
    }
}

impl Owner {
    /// Becomes this user, with none of the rights that were had before. Only system calls that may be made between fork
    /// and exec.
    pub(super) fn become_it(self) -> io::Result<()> {
        setgroups(&[self.kvm])?;
        setresgid(self.group, self.group, self.group)?;
        setresuid(self.user, self.user, self.user)?;
        Ok(())
    }

    /// Lets it find files by their names.
    pub(super) fn let_in(self, files: &Files) -> io::Result<()> {
        for directory in [files.root().to_owned(), files.layers(), files.memory(), files.run()] {
            chown(&directory, None, Some(self.group.as_raw()))?;
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o710))?;
        }
        Ok(())
    }

    /// Gives it what a machine writes, and lets it read the rest.
    pub(super) fn hand_over(self, files: &Files, layers: &Layers) -> io::Result<()> {
        self.let_in(files)?;
        let (active, below) = match layers.chain(layers.active()).split_first() {
            Some((active, below)) => (Layers::path(files, *active), below.to_vec()),
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        for layer in below {
            keep(&Layers::path(files, layer))?;
        }
        self.give(&active)?;
        for file in [files.ram(), files.console()] {
            // QEMU may make no names here.
            fs::File::options().create(true).append(true).mode(0o600).open(&file)?;
            self.give(&file)?;
        }
        Ok(())
    }

    /// Makes a file its own.
    pub(super) fn give(self, file: &Path) -> io::Result<()> {
        fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
        chown(file, Some(self.user.as_raw()), Some(self.group.as_raw()))
    }
}

/// Takes a layer that is only read from now on from whoever wrote it. The directory keeps all others out.
pub(super) fn keep(layer: &Path) -> io::Result<()> {
    chown(layer, Some(0), Some(0))?;
    fs::set_permissions(layer, fs::Permissions::from_mode(0o644))
}
