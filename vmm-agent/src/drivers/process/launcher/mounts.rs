//! The sprite's view of the file system.
//!
//! Its disk is its root, so whatever it writes anywhere persists, except in what is mounted on top:
//! the host's programs (`/usr`, read-only) and the kernel's file systems (`/proc`, `/sys`, `/dev`,
//! and `/run`, which starts empty at every boot, as on any machine).

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::symlink,
    },
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{fchdir, pivot_root},
};

use super::{
    super::sys,
    plan::{Failure, Ids, Plan, Step as _},
};

/// Device files that every program may expect.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];
/// Files of `/proc` that tell about the machine or reach into it, hidden behind `/dev/null`.
const HIDDEN: &[&str] = &["/proc/kcore", "/proc/keys", "/proc/sysrq-trigger", "/proc/timer_list"];
/// The group that owns terminals on Debian and its like.
const TTY_GROUP: u32 = 5;

/// The mounts that come from the host, opened but not yet attached anywhere.
///
/// They are descriptors and not paths, so that they can be opened while the launcher still may, and
/// so that nothing the sprite did to its disk can redirect them.
#[derive(Debug)]
pub(super) struct Sources {
    disk: OwnedFd,
    checkpoints: OwnedFd,
    trees: Vec<(PathBuf, OwnedFd)>,
    extra_trees: Vec<(PathBuf, OwnedFd)>,
    devices: Vec<(PathBuf, OwnedFd)>,
    hidden: Vec<(PathBuf, OwnedFd)>,
    runtime: OwnedFd,
    terminals_have_group: bool,
}

impl Sources {
    pub(super) fn open(plan: &Plan) -> Result<Self, Failure> {
        let clone = |path: &Path, attributes: u64| {
            let mount = sys::clone_mounts(path).step(&format!("open {}", path.display()))?;
            sys::set_mount_attributes(mount.as_fd(), attributes)
                .step(&format!("limit the mount of {}", path.display()))?;
            Ok::<_, Failure>(mount)
        };
        let read_only = sys::MOUNT_READ_ONLY | sys::MOUNT_NO_SUID | sys::MOUNT_NO_DEVICES;
        let read_only_trees = |paths: &[PathBuf]| {
            let trees = paths.iter().map(|path| Ok((path.clone(), clone(path, read_only)?)));
            trees.collect::<Result<Vec<_>, Failure>>()
        };
        let hidden = HIDDEN.iter().map(Path::new).filter(|path| path.exists());
        Ok(Self {
            disk: clone(&plan.disk, sys::MOUNT_NO_SUID | sys::MOUNT_NO_DEVICES)?,
            checkpoints: clone(&plan.checkpoints, read_only)?,
            trees: read_only_trees(&plan.host_trees)?,
            extra_trees: read_only_trees(&plan.extra_trees)?,
            devices: DEVICES
                .iter()
                .map(|name| Path::new("/dev").join(name))
                .map(|path| clone(&path, sys::MOUNT_NO_SUID).map(|mount| (path, mount)))
                .collect::<Result<_, Failure>>()?,
            hidden: hidden
                .map(|path| Ok((path.to_owned(), clone(Path::new("/dev/null"), sys::MOUNT_NO_SUID)?)))
                .collect::<Result<_, Failure>>()?,
            runtime: clone(&plan.runtime, read_only)?,
            terminals_have_group: matches!(plan.ids, Ids::Range { .. }),
        })
    }

    /// Makes the disk the root of this process and its mount namespace, with everything on it.
    ///
    /// From the pivot on, every path is one inside the sprite: a symbolic link that it planted leads
    /// nowhere but into itself.
    pub(super) fn become_root(self) -> Result<(), Failure> {
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .step("detach mounts from the host's")?;
        let old_root = File::open("/").step("open the old root")?;
        // Any directory that surely exists will do: it disappears with the old root.
        sys::attach_mount(self.disk.as_fd(), Path::new("/usr")).step("attach the disk")?;
        fchdir(&self.disk).step("enter the disk")?;
        pivot_root(".", ".").step("make the disk the root")?;

        // While the old root is still there: the kernel only mounts a new /proc or /sys for one who
        // can see all of an old one.
        let closed = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        file_system("proc", "/proc", closed, none).step("mount /proc")?;
        // Some hosts refuse; few programs notice.
        let _optional = file_system("sysfs", "/sys", closed | MsFlags::MS_RDONLY, none);
        file_system("tmpfs", "/dev", MsFlags::MS_NOSUID, Some("mode=755,size=64k")).step("mount /dev")?;
        file_system("tmpfs", "/run", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=755,size=64m"))
            .step("mount /run")?;

        for (path, tree) in &self.trees {
            directory(path)
                .and_then(|()| sys::attach_mount(tree.as_fd(), path))
                .step(&format!("attach {}", path.display()))?;
        }
        for (path, tree) in &self.extra_trees {
            // The sprite may have put something else in the way.
            let _optional = directory(path).and_then(|()| sys::attach_mount(tree.as_fd(), path));
        }
        let checkpoints = Path::new("/.sprite/checkpoints");
        let _optional =
            directory(checkpoints).and_then(|()| sys::attach_mount(self.checkpoints.as_fd(), checkpoints));
        for (path, device) in &self.devices {
            file(path)
                .and_then(|()| sys::attach_mount(device.as_fd(), path))
                .step(&format!("attach {}", path.display()))?;
        }
        for (path, nothing) in &self.hidden {
            sys::attach_mount(nothing.as_fd(), path).step(&format!("hide {}", path.display()))?;
        }
        self.rest_of_dev()?;
        directory(Path::new("/run/lock")).step("make /run/lock")?;
        let runtime = Path::new("/.sprite/bin/runtime");
        directory(Path::new("/.sprite/bin"))
            .and_then(|()| file(runtime))
            .and_then(|()| sys::attach_mount(self.runtime.as_fd(), runtime))
            .step("attach the runtime")?;

        fchdir(&old_root).step("go back to the old root")?;
        umount2(".", MntFlags::MNT_DETACH).step("leave the old root")?;
        nix::unistd::chdir("/").step("enter the new root")
    }

    fn rest_of_dev(&self) -> Result<(), Failure> {
        let terminals = if self.terminals_have_group {
            format!("newinstance,ptmxmode=0666,mode=620,gid={TTY_GROUP}")
        } else {
            "newinstance,ptmxmode=0666,mode=620".into()
        };
        let closed = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        file_system("devpts", "/dev/pts", closed, Some(&terminals)).step("mount /dev/pts")?;
        file_system("tmpfs", "/dev/shm", closed | MsFlags::MS_NODEV, Some("mode=1777"))
            .step("mount /dev/shm")?;
        for (target, link) in [
            ("pts/ptmx", "/dev/ptmx"),
            ("/proc/self/fd", "/dev/fd"),
            ("/proc/self/fd/0", "/dev/stdin"),
            ("/proc/self/fd/1", "/dev/stdout"),
            ("/proc/self/fd/2", "/dev/stderr"),
        ] {
            symlink(target, link).step(&format!("make {link}"))?;
        }
        Ok(())
    }
}

fn file_system(kind: &str, path: &str, flags: MsFlags, options: Option<&str>) -> io::Result<()> {
    directory(Path::new(path))?;
    mount(Some(kind), path, Some(kind), flags, options)?;
    Ok(())
}

fn directory(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}

fn file(path: &Path) -> io::Result<()> {
    File::options().create(true).append(true).open(path).map(drop)
}
