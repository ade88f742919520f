//! Where a sprite's files are on the host.
//!
//! ```text
//! {state}/sprites/{id}/   the agent's alone
//!   uid                   the user that its machine runs as, if it is jailed
//!   process.json          which process is Firecracker
//!   ready.json            which memory it goes on from: there only while it is suspended
//!   used.json             which memory it went on from
//!   firecracker.log       what Firecracker says, and the guest on its serial port
//! {machine}/              Firecracker's working directory: {state}/sprites/{id}/machine, or, of a jailed one,
//!                         its root, {state}/jails/firecracker/{id}/root
//!   disk.ext4             the sprite's disk
//!   state.N, memory.N     the devices and the memory of its Nth suspension
//!   vmlinux, initramfs    links to the image's
//!   a.sock                where Firecracker is commanded
//!   v.sock                where the runtime is reached
//!   p.sock                where Firecracker asks for memory, if not of the kernel
//! {state}/bin/firecracker a copy of the program, if machines are jailed
//! ```
//!
//! A Firecracker that its guest has taken over may have put anything into its directory: what the agent opens
//! there, it opens by [`open_own`], and what it believes is elsewhere.
//!
//! Firecracker is told names without directories. So a jailed one needs no other, a path's length does not
//! matter to it, and the state of a machine, which has such names in it, can be loaded in another
//! directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ids::SpriteId;

/// The longest path that a Unix socket can be connected to: `sun_path` less its final zero.
const MAX_SOCKET_PATH_BYTES: usize = 107;

pub(super) const DISK: &str = "disk.ext4";
pub(super) const KERNEL: &str = "vmlinux";
pub(super) const INITRAMFS: &str = "initramfs";
pub(super) const API: &str = "a.sock";
pub(super) const VSOCK: &str = "v.sock";
pub(super) const PAGER: &str = "p.sock";
const LOG: &str = "firecracker.log";

/// The program's name, after which the jailer calls the directory of all jails.
pub(super) const PROGRAM: &str = "firecracker";

/// All sprites' directories.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    sprites: PathBuf,
    jails: Option<PathBuf>,
}

/// Whether machines have roots of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Jailed {
    Yes,
    No,
}

/// One sprite's directories.
#[derive(Clone, Debug)]
pub(super) struct Files {
    root: PathBuf,
    machine: PathBuf,
    /// Above the root of a jail, everything that the jailer makes for it.
    jail: Option<PathBuf>,
}

impl Layout {
    /// Makes the directory of all sprites, for the agent's eyes only, and one for jails if machines are `jailed`.
    ///
    /// # Errors
    /// They can't be made, or lie so deep that sockets in them could not be connected to.
    pub(super) fn create(state: &Path, jailed: Jailed) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let state = std::path::absolute(state)?;
        let layout = Self {
            sprites: state.join("sprites"),
            jails: (jailed == Jailed::Yes).then(|| state.join("jails").join(PROGRAM)),
        };
        let longest = layout.sprite(SpriteId::from_u128(0)).vsock();
        if let Some(over @ 1..) = longest.as_os_str().len().checked_sub(MAX_SOCKET_PATH_BYTES) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "the state directory's path is {over} bytes too long for sockets in it: choose a shorter one"
                ),
            ));
        }
        for dir in [Some(&layout.sprites), layout.jails.as_ref()].into_iter().flatten() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        Ok(layout)
    }

    /// The directory that holds all sprites.
    pub(super) fn sprites(&self) -> &Path {
        &self.sprites
    }

    /// The jailer's `--chroot-base-dir`.
    pub(super) fn jail_base(&self) -> Option<&Path> {
        self.jails.as_deref()?.parent()
    }

    /// The files of one sprite, there or not.
    pub(super) fn sprite(&self, id: SpriteId) -> Files {
        let root = self.sprites.join(id.to_string());
        let jail = self.jails.as_ref().map(|jails| jails.join(id.to_string()));
        let machine = jail.as_ref().map_or_else(|| root.join("machine"), |jail| jail.join("root"));
        Files { root, machine, jail }
    }

    /// Removes what interrupted removals have left.
    pub(super) fn remove_doomed(&self) -> io::Result<()> {
        for dir in [Some(&self.sprites), self.jails.as_ref()].into_iter().flatten() {
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with(".removing-") {
                    fs::remove_dir_all(entry.path())?;
                }
            }
        }
        Ok(())
    }
}

impl Files {
    pub(super) fn root(&self) -> &Path {
        &self.root
    }
    pub(super) fn machine(&self) -> &Path {
        &self.machine
    }
    pub(super) fn process(&self) -> PathBuf {
        self.root.join("process.json")
    }
    pub(super) fn ready(&self) -> PathBuf {
        self.root.join("ready.json")
    }
    pub(super) fn used(&self) -> PathBuf {
        self.root.join("used.json")
    }
    pub(super) fn disk(&self) -> PathBuf {
        self.machine.join(DISK)
    }
    /// Where a disk is made before it is given its name.
    pub(super) fn unfinished_disk(&self) -> PathBuf {
        self.machine.join("disk.unfinished")
    }
    pub(super) fn api(&self) -> PathBuf {
        self.machine.join(API)
    }
    pub(super) fn vsock(&self) -> PathBuf {
        self.machine.join(VSOCK)
    }
    pub(super) fn pager(&self) -> PathBuf {
        self.machine.join(PAGER)
    }
    pub(super) fn log(&self) -> PathBuf {
        self.root.join(LOG)
    }

    /// Sets everything aside under a name that says that it is to go, the agent's own files first: without
    /// them there is no sprite.
    pub(super) fn doom(&self) -> io::Result<Vec<PathBuf>> {
        let mut doomed = Vec::new();
        for path in [Some(&self.root), self.jail.as_ref()].into_iter().flatten() {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let to = path.with_file_name(format!(".removing-{name}"));
            match fs::rename(path, &to) {
                Ok(()) => doomed.push(to),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(doomed)
    }
}

/// Opens a file that a machine may have replaced: only if it is one, and not by way of a link.
pub(super) fn open_own(path: &Path) -> io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // A FIFO would be waited for.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = fs::File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other(format!("{} is no file", path.display())));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_has_put_in_the_place_of_a_file_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at("link")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(open_own(&at("file")).is_ok());
        for name in ["link", "fifo", ".", "absent"] {
            assert!(open_own(&at(name)).is_err(), "{name} was opened");
        }
    }
}
