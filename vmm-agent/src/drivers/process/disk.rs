//! The disk of a new sprite, and its removal.
//!
//! A disk is filled once, before the sprite exists, and never opened by the agent again: whatever is
//! in it after the first start may be a trap (a symbolic link to the host's `/etc`, say).

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt as _, lchown, symlink},
    path::{Path, PathBuf},
};

use super::{launcher::Ids, layout::SpriteFiles, removal::remove_tree, sys};

/// Directories of every disk, with their modes.
const DIRECTORIES: &[(&str, u32)] = &[
    ("etc", 0o755),
    ("home", 0o755),
    ("home/sprite", 0o755),
    ("root", 0o700),
    ("opt", 0o755),
    ("srv", 0o755),
    ("mnt", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/local", 0o755),
    ("var/log", 0o755),
    ("var/spool", 0o755),
    ("var/tmp", 0o1777),
    ("proc", 0o555),
    ("sys", 0o555),
    ("dev", 0o755),
    ("run", 0o755),
    (".sprite", 0o755),
    (".sprite/bin", 0o755),
    (".sprite/logs", 0o755),
    (".sprite/logs/services", 0o755),
];

/// What of the host's `/etc` programs in `/usr` need in order to run. Nothing that names the host's
/// users, holds a key, or is a secret.
const COPIED_FROM_ETC: &[&str] = &[
    "bash.bashrc",
    "ca-certificates.conf",
    "debian_version",
    "gai.conf",
    "host.conf",
    "inputrc",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "login.defs",
    "magic",
    "mime.types",
    "nsswitch.conf",
    "os-release",
    "profile",
    "protocols",
    "services",
    "shells",
    "skel",
    "ssl/openssl.cnf",
    "timezone",
];

/// Directories of the host's `/etc` that every sprite sees read-only, like `/usr`, because they say
/// what is in there: links between its programs, its fonts, the authorities of its packages. They hold
/// hundreds of files, which a new sprite would wait for and a removed one too.
const SHARED_OF_ETC: &[&str] =
    &["alternatives", "fonts", "perl", "pki/ca-trust/extracted", "pki/tls/certs", "ssl/certs", "terminfo"];
/// Likewise, of names that end in a version.
const SHARED_OF_ETC_BY_PREFIX: &[&str] = &["java-", "python"];

/// Directories of the host that hold its programs, beside `/usr` itself. On most systems they are
/// links into it, and the disk gets the same links.
const BESIDE_USR: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// The host's directories that every sprite sees.
pub(super) fn host_trees() -> Vec<PathBuf> {
    let mut trees = vec![PathBuf::from("/usr")];
    let own = BESIDE_USR.iter().map(|name| Path::new("/").join(name));
    trees.extend(own.filter(|path| path.symlink_metadata().is_ok_and(|meta| meta.is_dir())));
    trees
}

/// Those that it sees if it has not made that impossible. Programs run without them.
pub(super) fn extra_trees() -> Vec<PathBuf> {
    let by_name = SHARED_OF_ETC.iter().map(|name| Path::new("/etc").join(name));
    let versioned = |name: &str| SHARED_OF_ETC_BY_PREFIX.iter().any(|prefix| name.starts_with(prefix));
    let entries = fs::read_dir("/etc").into_iter().flatten().flatten();
    let by_prefix =
        entries.filter(|entry| versioned(&entry.file_name().to_string_lossy())).map(|entry| entry.path());
    by_name.chain(by_prefix).filter(|path| path.symlink_metadata().is_ok_and(|meta| meta.is_dir())).collect()
}

/// Makes the disk of a sprite if it has none.
pub(super) fn make(files: &SpriteFiles, hostname: &str, ids: Ids) -> io::Result<()> {
    if files.disk().try_exists()? {
        return Ok(());
    }
    let unfinished = files.unfinished_disk();
    remove_tree(&unfinished)?;
    fs::create_dir_all(&unfinished)?;
    fill(&unfinished, hostname)?;
    if let Ids::Range { base } = ids {
        give_to(&unfinished, base)?;
    }
    // A disk that has its name is whole, whatever happens to the power from here on.
    sys::sync_file_system(&unfinished)?;
    fs::rename(&unfinished, files.disk())?;
    fs::File::open(files.root())?.sync_all()
}

/// Every mode is set by itself: the agent may have been started with an umask that forbids others
/// everything, and inside there are others.
fn fill(disk: &Path, hostname: &str) -> io::Result<()> {
    set_mode(disk, 0o755)?;
    for (path, mode) in DIRECTORIES {
        let path = disk.join(path);
        fs::create_dir(&path)?;
        set_mode(&path, *mode)?;
    }
    symlink("/run", disk.join("var/run"))?;
    symlink("/run/lock", disk.join("var/lock"))?;
    for name in BESIDE_USR {
        let on_host = Path::new("/").join(name);
        match on_host.symlink_metadata() {
            Ok(meta) if meta.is_symlink() => symlink(fs::read_link(&on_host)?, disk.join(name))?,
            Ok(meta) if meta.is_dir() => {
                fs::create_dir(disk.join(name))?;
                set_mode(&disk.join(name), 0o755)?;
            }
            Ok(_) | Err(_) => {}
        }
    }
    let etc = disk.join("etc");
    for name in COPIED_FROM_ETC {
        let to = etc.join(name);
        if let Some(parent) = to.parent().filter(|parent| !parent.exists()) {
            fs::create_dir(parent)?;
            set_mode(parent, 0o755)?;
        }
        copy_readable(&Path::new("/etc").join(name), &to)?;
    }
    let write = |name: &str, text: &str| {
        fs::write(etc.join(name), text)?;
        set_mode(&etc.join(name), 0o644)
    };
    write(
        "passwd",
        "root:x:0:0:root:/home/sprite:/bin/bash\n\
         daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n\
         www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
         sprite:x:1000:1000:sprite:/home/sprite:/bin/bash\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    )?;
    write(
        "group",
        "root:x:0:\ndaemon:x:1:\ntty:x:5:\nstaff:x:50:\nwww-data:x:33:\nsprite:x:1000:\nnogroup:x:65534:\n",
    )?;
    // For su and the like; only root, or somebody whom root has let be, can ask inside.
    fs::create_dir(etc.join("pam.d"))?;
    set_mode(&etc.join("pam.d"), 0o755)?;
    write(
        "pam.d/other",
        "auth sufficient pam_rootok.so\nauth required pam_deny.so\n\
         account required pam_permit.so\npassword required pam_deny.so\nsession required pam_permit.so\n",
    )?;
    write("hostname", &format!("{hostname}\n"))?;
    write(
        "hosts",
        &format!("127.0.0.1 localhost {hostname}\n::1 localhost ip6-localhost ip6-loopback {hostname}\n"),
    )?;
    copy_readable(Path::new("/etc/skel"), &disk.join("home/sprite"))?;
    // There is no network to ask a name server over.
    write("resolv.conf", "")?;
    if !etc.join("nsswitch.conf").exists() {
        write("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")?;
    }
    Ok(())
}

/// Copies files, directories and links; skips what is not there, what may not be read, and sockets
/// and the like. Modes are kept, less set-uid and write permission for others.
fn copy_readable(from: &Path, to: &Path) -> io::Result<()> {
    let Ok(meta) = from.symlink_metadata() else { return Ok(()) };
    if meta.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    if meta.is_dir() {
        let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
        fs::create_dir_all(to)?;
        set_mode(to, 0o755)?;
        for entry in entries {
            let entry = entry?;
            copy_readable(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    // What not everyone on the host may read is nothing for a sprite, even if the agent may read it.
    let for_everyone = meta.permissions().mode() & 0o004 != 0;
    if !meta.is_file() || !for_everyone {
        return Ok(());
    }
    match fs::copy(from, to) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        other => other?,
    };
    set_mode(to, meta.permissions().mode() & 0o755)
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Makes root inside the owner of everything.
fn give_to(path: &Path, base: u32) -> io::Result<()> {
    lchown(path, Some(base), Some(base))?;
    if path.symlink_metadata()?.is_dir() {
        for entry in fs::read_dir(path)? {
            give_to(&entry?.path(), base)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_private_is_copied() {
        let files = tempdir("private");
        let (from, to) = (files.join("from"), files.join("to"));
        fs::create_dir(&from).unwrap();
        fs::write(from.join("open"), "x").unwrap();
        fs::write(from.join("secret"), "x").unwrap();
        fs::set_permissions(from.join("secret"), fs::Permissions::from_mode(0o640)).unwrap();
        copy_readable(&from, &to).unwrap();
        assert!(to.join("open").exists());
        assert!(!to.join("secret").exists());
        remove_tree(&files).unwrap();
    }

    fn tempdir(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("disk-test-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }
}
