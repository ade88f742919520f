//! What is mounted, and the change of the root.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use nix::{
    mount::{MsFlags, mount},
    unistd::{chdir, chroot, sethostname},
};

use super::{BootError, CommandLine, failed};

/// Where the sprite's disk is mounted before it is the root.
pub(super) const NEW_ROOT: &str = "/newroot";
/// This program, in the initial file system.
const INIT: &str = "/init";
/// Where programs in the sprite find it.
const RUNTIME: &str = ".sprite/bin/runtime";

const NOTHING: Option<&str> = None;
const PLAIN: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// What the rest needs to begin with.
pub(super) fn first() -> io::Result<()> {
    for (kind, path, flags) in
        [("devtmpfs", "/dev", MsFlags::MS_NOSUID), ("proc", "/proc", PLAIN), ("sysfs", "/sys", PLAIN)]
    {
        fs::create_dir_all(path)?;
        mount(Some(kind), path, Some(kind), flags, NOTHING)?;
    }
    Ok(())
}

/// Makes the disk the root, and everything in it that a Linux program expects.
pub(super) fn enter(line: &CommandLine) -> Result<(), BootError> {
    let root = Path::new(NEW_ROOT);
    bind_runtime(root).map_err(failed("show the runtime in the sprite"))?;
    for place in ["dev", "proc", "sys"] {
        let to = root.join(place);
        fs::create_dir_all(&to)
            .and_then(|()| {
                Ok(mount(Some(&Path::new("/").join(place)), &to, NOTHING, MsFlags::MS_MOVE, NOTHING)?)
            })
            .map_err(failed(format!("move /{place} into the new root")))?;
    }
    chdir(root)
        .and_then(|()| mount(Some("."), "/", NOTHING, MsFlags::MS_MOVE, NOTHING))
        .and_then(|()| chroot("."))
        .and_then(|()| chdir("/"))
        .map_err(|error| failed("change the root")(error.into()))?;
    for (kind, path, flags, options) in [
        ("devpts", "/dev/pts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"),
        ("tmpfs", "/dev/shm", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777"),
        ("tmpfs", "/run", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=755"),
    ] {
        fs::create_dir_all(path)
            .and_then(|()| Ok(mount(Some(kind), path, Some(kind), flags, Some(options))?))
            .map_err(failed(format!("mount {path}")))?;
    }
    // Programs look for these beside the devices; a link that is there already is as good.
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        let _there = symlink(target, link);
    }
    for directory in ["/tmp", "/run/lock"] {
        fs::create_dir_all(directory)
            .and_then(|()| fs::set_permissions(directory, fs::Permissions::from_mode(0o1777)))
            .map_err(failed(format!("make {directory}")))?;
    }
    fs::create_dir_all(crate::services::HOME).map_err(failed("make the home directory"))?;
    name(line.name.as_deref().unwrap_or("sprite")).map_err(failed("give the machine its name"))
}

/// The host's runtime, whatever the disk has in its place.
fn bind_runtime(root: &Path) -> io::Result<()> {
    let runtime = root.join(RUNTIME);
    if let Some(directory) = runtime.parent() {
        fs::create_dir_all(directory)?;
    }
    if !runtime.exists() {
        fs::File::create(&runtime)?;
    }
    Ok(mount(Some(INIT), &runtime, NOTHING, MsFlags::MS_BIND, NOTHING)?)
}

/// Gives the machine its name, or another one: it was made from the memory of one with that.
pub(super) fn name(name: &str) -> io::Result<()> {
    sethostname(name)?;
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let is_known = hosts.lines().any(|line| line.split_whitespace().skip(1).any(|word| word == name));
    if !is_known {
        fs::write("/etc/hosts", format!("127.0.0.1 localhost {name}\n::1 localhost {name}\n{hosts}"))?;
    }
    fs::write("/etc/hostname", format!("{name}\n"))
}

/// Writes everything down and lets nothing more be written.
pub(super) fn freeze_root() -> io::Result<()> {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    Ok(mount(NOTHING, "/", NOTHING, flags, NOTHING)?)
}
