//! The root filesystem `minimal`: busybox, and what every root filesystem has.

use std::{fs, path::Path};

use super::{
    ImageError,
    apt::Package,
    tool::Tool,
    tree::{Entry, Kind, Tree},
};

/// The package that busybox is from.
pub(super) const PACKAGE: &str = "busybox-static";
const BUSYBOX: Tool =
    Tool { name: "busybox", package: PACKAGE, advice: "Does this machine run programs for x86-64?" };

/// Directories of every root filesystem, with their modes.
const DIRECTORIES: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/lib", 0o755),
    ("usr/local", 0o755),
    ("usr/local/bin", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/local", 0o755),
    ("var/log", 0o755),
    ("var/spool", 0o755),
    ("var/tmp", 0o1777),
];
/// What the runtime keeps on a sprite's disk.
const OF_THE_RUNTIME: &[&str] = &[".sprite", ".sprite/bin", ".sprite/logs", ".sprite/logs/services"];

/// The user whom people are inside, beside root.
const USER: u32 = 1000;

const PASSWD: &str = "\
root:x:0:0:root:/home/sprite:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
sprite:x:1000:1000:sprite:/home/sprite:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
";
const GROUP: &str = "\
root:x:0:
daemon:x:1:
tty:x:5:
staff:x:50:
www-data:x:33:
sprite:x:1000:
nogroup:x:65534:
";
const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";
const PROFILE: &str = "\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
if [ \"$(id -u)\" = 0 ]; then PS1='\\h:\\w# '; else PS1='\\h:\\w$ '; fi
";
const OS_RELEASE: &str = "ID=sprite\nNAME=\"Sprite\"\nPRETTY_NAME=\"Sprite (minimal)\"\n";

/// The filesystem, with the busybox of an unpacked package.
pub(super) fn tree(package: &Package, root: &Path) -> Result<Tree, ImageError> {
    let busybox = ["usr/bin/busybox", "bin/busybox"]
        .iter()
        .map(|path| root.join(path))
        .find(|path| path.is_file())
        .ok_or_else(|| ImageError::Package {
            package: package.name.clone(),
            reason: "it has no busybox".into(),
        })?;
    let program = fs::read(&busybox).map_err(ImageError::io(format!("read {}", busybox.display())))?;
    let applets = BUSYBOX.run(std::process::Command::new(&busybox).arg("--list-full"))?;

    let mut tree = Tree::default();
    for (path, mode) in DIRECTORIES {
        tree.directory(*path, *mode)?;
    }
    for name in ["bin", "lib", "sbin"] {
        tree.link(name, format!("usr/{name}"))?;
    }
    tree.link("lib64", "usr/lib")?;
    tree.link("var/run", "/run")?;
    tree.link("var/lock", "/run/lock")?;
    tree.file("usr/bin/busybox", 0o755, program)?;
    for applet in applets.lines().filter_map(place) {
        // A link rather than a second name: who looks at one sees what it is.
        if tree.get(&applet).is_none() {
            tree.link(applet, "/usr/bin/busybox")?;
        }
    }
    for (name, content) in [
        ("passwd", PASSWD),
        ("group", GROUP),
        ("nsswitch.conf", NSSWITCH),
        ("profile", PROFILE),
        ("os-release", OS_RELEASE),
        ("shells", "/bin/sh\n"),
    ] {
        tree.file(format!("etc/{name}"), 0o644, content)?;
    }
    common(&mut tree)?;
    Ok(tree)
}

/// Where an applet's link is: there is one directory for programs and one for root's.
fn place(applet: &str) -> Option<String> {
    let (dir, name) = applet.rsplit_once('/')?;
    let of_root = dir.ends_with("sbin");
    // Not "linuxrc", which is in no directory.
    Some(format!("usr/{}/{name}", if of_root { "sbin" } else { "bin" }))
}

/// What is in every image, whoever made the rest.
pub(super) fn common(tree: &mut Tree) -> Result<(), ImageError> {
    tree.file("etc/hosts", 0o644, HOSTS)?;
    tree.file("etc/hostname", 0o644, "sprite\n")?;
    // Filled at boot, if there is a network.
    tree.file("etc/resolv.conf", 0o644, "")?;
    for path in OF_THE_RUNTIME {
        tree.directory(*path, 0o755)?;
    }
    let home = Entry::new(Kind::Directory, 0o755);
    tree.add("home/sprite", Entry { uid: USER, gid: USER, ..home })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applets_are_where_programs_are_looked_for() {
        assert_eq!(place("bin/sh").as_deref(), Some("usr/bin/sh"));
        assert_eq!(place("usr/bin/env").as_deref(), Some("usr/bin/env"));
        assert_eq!(place("sbin/ip").as_deref(), Some("usr/sbin/ip"));
        assert_eq!(place("linuxrc"), None);
    }
}
