//! The root filesystems `default` and `full`: Debian, of the release that this host's apt knows.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use serde::Serialize;
use tar::EntryType;

use super::{
    ImageError,
    apt::{Apt, Sources},
    manifest, minimal,
    tool::{Progress, Tool},
    tree::{Content, Entry, Kind, MOMENT, Tree},
};

const MMDEBSTRAP: Tool = Tool {
    name: "mmdebstrap",
    package: "mmdebstrap",
    advice: "It needs Debian's mirror (for `full` also the npm registry) and, unless it is root, user namespaces \
             and a range of ids in /etc/subuid (package uidmap).",
};

/// What people expect on a machine that they log in to.
const DEFAULT_PACKAGES: &[&str] = &[
    "bash-completion",
    "ca-certificates",
    "curl",
    "file",
    "git",
    "htop",
    "iproute2",
    "iputils-ping",
    "jq",
    "less",
    "lsof",
    "nano",
    "netcat-openbsd",
    "nodejs",
    "openssh-client",
    "procps",
    "psmisc",
    "python3",
    "python3-pip",
    "python3-venv",
    "ripgrep",
    "rsync",
    "sqlite3",
    "strace",
    "sudo",
    "tmux",
    "tree",
    "tzdata",
    "unzip",
    "vim",
    "wget",
    "xz-utils",
    "zip",
    "zstd",
];
/// What people compile with, beside that.
const FULL_PACKAGES: &[&str] = &[
    "build-essential",
    "cargo",
    "default-jdk-headless",
    "elixir",
    "erlang-base",
    "golang-go",
    "npm",
    "pkg-config",
    "python3-dev",
    "ruby-full",
    "rustc",
];
/// From the npm registry: what Debian has too old, or not at all.
const NPM_PACKAGES: &[&str] =
    &["node@22", "bun", "deno", "@anthropic-ai/claude-code", "@google/gemini-cli", "@openai/codex"];

/// Nobody reads them in a sprite; licenses stay.
const LEFT_OUT: &[&str] = &[
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
];
/// Where Debian keeps the authorities that the host trusts.
const HOST_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// What the kernel or the runtime mounts something over.
const MOUNTED_OVER: &[&str] = &["dev", "proc", "run", "sys", "tmp"];

/// A tree, and the versions of the packages that are in it.
pub(super) type TreeAndPackages = (Tree, BTreeMap<String, String>);

/// What an image is made from.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ingredients {
    sources: Sources,
    packages: Vec<&'static str>,
    npm: &'static [&'static str],
    left_out: &'static [&'static str],
}

impl Ingredients {
    pub(super) fn new(recipe: manifest::Recipe, apt: &Apt<'_>) -> Result<Self, ImageError> {
        let (more, npm): (&[&str], &[&str]) = match recipe {
            manifest::Recipe::Minimal | manifest::Recipe::Default => (&[], &[]),
            manifest::Recipe::Full => (FULL_PACKAGES, NPM_PACKAGES),
        };
        let packages = DEFAULT_PACKAGES.iter().chain(more).copied().collect();
        Ok(Self { sources: apt.sources()?, packages, npm, left_out: LEFT_OUT })
    }

    /// Makes the tree with the help of an empty directory, in which its files' contents stay.
    pub(super) fn make(&self, dir: &Path, progress: &Progress) -> Result<TreeAndPackages, ImageError> {
        progress.say(format_args!("Installing Debian {} into the image (minutes)", self.sources.release));
        let list = dir.join("sources.list");
        fs::write(&list, self.sources.lines.join("\n") + "\n")
            .map_err(ImageError::io(format!("write {}", list.display())))?;
        let mut command = MMDEBSTRAP.command();
        command
            // Times in the archive are no later, so that the same packages give the same bytes.
            .env("SOURCE_DATE_EPOCH", MOMENT.to_string())
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["--variant=minbase", "--format=tar"])
            .arg("--aptopt=APT::Install-Recommends \"false\"")
            .arg(format!("--include={}", self.packages.join(",")));
        command.args(self.left_out.iter().map(|option| format!("--dpkgopt={option}")));
        // Java's packages link into it, and fail where it is left out.
        command.arg("--essential-hook=mkdir -p \"$1\"/usr/share/man/man1");
        if !self.npm.is_empty() {
            command.args(npm_hooks(self.npm).map(|hook| format!("--customize-hook={hook}")));
        }
        // The archive is read as it is written.
        command.arg(&self.sources.release).arg("-").arg(&list);
        let contents = dir.join("contents");
        fs::create_dir(&contents).map_err(ImageError::io(format!("make {}", contents.display())))?;
        let mut tree = MMDEBSTRAP.run_aloud(&mut command, progress, |archive| read(archive, &contents))?;
        let packages = installed(&tree)?;
        adapt(&mut tree)?;
        Ok((tree, packages))
    }
}

/// Commands that install from the npm registry in the tree `$1`. What this host trusts is trusted meanwhile: its
/// network may lead through a proxy that is an authority of its own.
fn npm_hooks(packages: &[&str]) -> [String; 3] {
    [
        format!("if [ -r {HOST_AUTHORITIES} ]; then cp {HOST_AUTHORITIES} \"$1\"/root/authorities; fi"),
        format!(
            "NODE_EXTRA_CA_CERTS=/root/authorities chroot \"$1\" npm install --global --no-fund --no-audit \
             --loglevel=error {}",
            packages.join(" ")
        ),
        "rm -rf \"$1\"/root/.npm \"$1\"/root/authorities".into(),
    ]
}

/// Reads an archive into a tree; contents of files go into `contents`.
fn read(archive: impl Read, contents: &Path) -> Result<Tree, ImageError> {
    let failed = || "read the archive of the root filesystem";
    let mut archive = tar::Archive::new(io::BufReader::new(archive));
    let mut tree = Tree::default();
    for (number, entry) in archive.entries().map_err(ImageError::io(failed()))?.enumerate() {
        let mut entry = entry.map_err(ImageError::io(failed()))?;
        let path = plain(&String::from_utf8_lossy(&entry.path_bytes()));
        if path.is_empty() || is_mounted_over(&path) {
            continue;
        }
        let header = entry.header().clone();
        let target = entry.link_name_bytes().map(|name| String::from_utf8_lossy(&name).into_owned());
        let target = target.unwrap_or_default();
        let device = || -> io::Result<(u32, u32)> {
            Ok((header.device_major()?.unwrap_or_default(), header.device_minor()?.unwrap_or_default()))
        };
        let kind = match header.entry_type() {
            EntryType::Directory => Kind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let at = contents.join(number.to_string());
                let copied = File::create(&at).and_then(|mut to| io::copy(&mut entry, &mut to));
                copied.map_err(ImageError::io(format!("write {}", at.display())))?;
                Kind::File(Content::At(at))
            }
            EntryType::Symlink => Kind::Link { target },
            EntryType::Link => Kind::Same { as_path: plain(&target) },
            EntryType::Char => {
                let (major, minor) = device().map_err(ImageError::io(failed()))?;
                Kind::CharDevice { major, minor }
            }
            EntryType::Block => {
                let (major, minor) = device().map_err(ImageError::io(failed()))?;
                Kind::BlockDevice { major, minor }
            }
            EntryType::Fifo => Kind::Fifo,
            _ => return Err(ImageError::Entry { path, reason: "it is of a kind that no image has" }),
        };
        let number = |number: io::Result<u64>| -> Result<u32, ImageError> {
            let number = number.map_err(ImageError::io(failed()))?;
            u32::try_from(number).map_err(|_| ImageError::Entry {
                path: path.clone(),
                reason: "its owner's number is too large",
            })
        };
        let (uid, gid) = (number(header.uid())?, number(header.gid())?);
        let mode = header.mode().map_err(ImageError::io(failed()))? & 0o7777;
        let mtime = header.mtime().map_err(ImageError::io(failed()))?;
        tree.add(path, Entry { kind, mode, uid, gid, mtime: mtime.cast_signed() })?;
    }
    Ok(tree)
}

/// `./usr/bin/` is `usr/bin`.
fn plain(path: &str) -> String {
    let path = path.strip_prefix('.').filter(|rest| rest.is_empty() || rest.starts_with('/')).unwrap_or(path);
    path.trim_matches('/').to_owned()
}

fn is_mounted_over(path: &str) -> bool {
    path.split_once('/').is_some_and(|(top, _)| MOUNTED_OVER.contains(&top))
}

/// The packages that dpkg knows, and their versions.
fn installed(tree: &Tree) -> Result<BTreeMap<String, String>, ImageError> {
    let status = text(tree, "var/lib/dpkg/status")?;
    let packages = status.split("\n\n").filter_map(|paragraph| {
        let field = |name: &str| paragraph.lines().find_map(|line| line.strip_prefix(name));
        Some((field("Package: ")?.to_owned(), field("Version: ")?.to_owned()))
    });
    Ok(packages.collect())
}

/// Makes a sprite of what is a Debian system: its user, its home, what the runtime needs.
fn adapt(tree: &mut Tree) -> Result<(), ImageError> {
    minimal::common(tree)?;
    let passwd = text(tree, "etc/passwd")?.replace(":/root:", ":/home/sprite:");
    tree.file("etc/passwd", 0o644, passwd + "sprite:x:1000:1000:sprite:/home/sprite:/bin/bash\n")?;
    let group = text(tree, "etc/group")?;
    tree.file("etc/group", 0o644, group + "sprite:x:1000:\n")?;
    for (path, line) in [("etc/shadow", "sprite:*:20089:0:99999:7:::\n"), ("etc/gshadow", "sprite:!::\n")] {
        let Some(entry) = tree.get(path).cloned() else { continue };
        let content = Kind::File(Content::Bytes((text(tree, path)? + line).into_bytes()));
        tree.add(path, Entry { kind: content, ..entry })?;
    }
    tree.file("etc/sudoers.d/sprite", 0o440, "sprite ALL=(ALL:ALL) NOPASSWD: ALL\n")
}

fn text(tree: &Tree, path: &str) -> Result<String, ImageError> {
    match tree.get(path).map(|entry| &entry.kind) {
        Some(Kind::File(content)) => Ok(String::from_utf8_lossy(&content.read()?).into_owned()),
        _ => Err(ImageError::Package { package: "Debian".into(), reason: format!("it has no file {path}") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut add = |name: &str, kind: EntryType, mode: u32, target: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_uid(7);
            header.set_gid(8);
            header.set_mtime(9);
            header.set_size(content.len() as u64);
            if target.is_empty() {
                archive.append_data(&mut header, name, content).unwrap();
            } else {
                archive.append_link(&mut header, name, target).unwrap();
            }
        };
        let status = b"Package: a\nStatus: install ok installed\nVersion: 1\n\nPackage: b\nVersion: 2\n";
        for name in ["./", "./etc/", "./dev/"] {
            add(name, EntryType::Directory, 0o755, "", b"");
        }
        add("./etc/passwd", EntryType::Regular, 0o644, "", b"root:x:0:0:root:/root:/bin/bash\n");
        add("./etc/group", EntryType::Regular, 0o644, "", b"root:x:0:\n");
        add("./etc/shadow", EntryType::Regular, 0o640, "", b"root:*:1::::::\n");
        add("./etc/again", EntryType::Link, 0o644, "./etc/passwd", b"");
        add("./etc/mtab", EntryType::Symlink, 0o777, "../proc/self/mounts", b"");
        add("./dev/null", EntryType::Regular, 0o666, "", b"");
        add("./var/lib/dpkg/status", EntryType::Regular, 0o644, "", status);
        archive.into_inner().unwrap()
    }

    #[test]
    fn an_archive_becomes_a_tree() {
        let dir = tempfile::tempdir().unwrap();
        let tree = read(archive().as_slice(), dir.path()).unwrap();
        let group = tree.get("etc/group").unwrap();
        assert_eq!((group.mode, group.uid, group.gid, group.mtime), (0o644, 7, 8, 9));
        assert_eq!(tree.get("etc/again").unwrap().kind, Kind::Same { as_path: "etc/passwd".into() });
        let mtab = Kind::Link { target: "../proc/self/mounts".into() };
        assert_eq!(tree.get("etc/mtab").unwrap().kind, mtab);
        assert!(tree.get("dev").is_some() && tree.get("dev/null").is_none());
        assert_eq!(installed(&tree).unwrap(), [("a".into(), "1".into()), ("b".into(), "2".into())].into());
    }

    #[test]
    fn a_debian_system_becomes_a_sprite() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = read(archive().as_slice(), dir.path()).unwrap();
        adapt(&mut tree).unwrap();
        let passwd = text(&tree, "etc/passwd").unwrap();
        assert_eq!(
            passwd,
            "root:x:0:0:root:/home/sprite:/bin/bash\nsprite:x:1000:1000:sprite:/home/sprite:/bin/bash\n"
        );
        let shadow = tree.get("etc/shadow").unwrap();
        assert_eq!((shadow.mode, shadow.gid), (0o640, 8), "a secret stays one");
        assert!(tree.get(".sprite/bin").is_some());
    }
}
