//! Writes a tree as an ext4 filesystem, without mounting anything: `mke2fs` makes an empty one and
//! `debugfs` fills it by a script of ours. So nothing depends on who we are, on the order in which
//! some directory lists its files, or on the time: the same tree gives the same bytes.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    ImageError,
    tool::Tool,
    tree::{Content, Entry, Kind, MOMENT, Tree},
};

const MKE2FS: Tool = Tool {
    name: "mke2fs",
    package: "e2fsprogs",
    advice: "Is there enough space, and is this e2fsprogs 1.46 or newer?",
};
const DEBUGFS: Tool = Tool { name: "debugfs", package: "e2fsprogs", advice: MKE2FS.advice };
const E2FSCK: Tool = Tool { name: "e2fsck", package: "e2fsprogs", advice: MKE2FS.advice };

/// `mke2fs` would ask the host's /etc/mke2fs.conf, and differ from host to host.
const MKE2FS_CONF: &str = "\
[defaults]
base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
blocksize = 4096
inode_size = 256
enable_periodic_fsck = 0
[fs_types]
ext4 = {
features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
}
small = {
}
";
const BLOCK: u64 = 4096;
const INODE: u64 = 256;
const GROUP_BLOCKS: u64 = 32_768;
/// One for each 32 KiB, told for each group, since the filesystem keeps it when it grows. It is half of what is usual:
/// the kernel writes zeros to the tables of all that it grows by, 1 MiB for each 128 MiB with this.
const GROUP_INODES: u64 = 4_096;
/// Beyond what is in the tree.
const SPARE_INODES: u64 = 1_024;
/// What `mke2fs` would take for a disk of a few gigabytes. It takes no space before it is used.
const JOURNAL_MIB: u64 = 16;
/// How far it can grow with tables in one place: 1 TiB.
const MAX_BLOCKS: u64 = 1 << 28;
/// For what is written at boot, before it has grown, and for tables that the sum below leaves out.
const SLACK_BLOCKS: u64 = (16 << 20) / BLOCK;
const UUID: &str = "0e5a1f3c-6c1d-4a0e-9f5d-7370726974e5";
const HASH_SEED: &str = "5d2f4c51-91c7-4b7e-8a43-7370726974e5";

/// Writes the filesystem to `image`, a file that is not there yet, with `scratch`, a directory that
/// is not there yet either and is left for the caller to remove.
pub(super) fn write(tree: &Tree, image: &Path, scratch: &Path) -> Result<(), ImageError> {
    fs::create_dir(scratch).map_err(ImageError::io(format!("make {}", scratch.display())))?;
    let save = |name: &str, text: &str| {
        let path = scratch.join(name);
        fs::write(&path, text).map_err(ImageError::io(format!("write {}", path.display())))?;
        Ok(path)
    };
    let conf = save("mke2fs.conf", MKE2FS_CONF)?;
    let script = save("script", &script(tree, scratch)?)?;

    let blocks = blocks(tree)?;
    let entries = tree.iter().count() as u64;
    let inodes = (blocks.div_ceil(GROUP_BLOCKS) * GROUP_INODES).max(entries + SPARE_INODES);
    let file = fs::File::create_new(image).map_err(ImageError::io(format!("make {}", image.display())))?;
    file.set_len(blocks * BLOCK).map_err(ImageError::io(format!("size {}", image.display())))?;
    let options = format!(
        "hash_seed={HASH_SEED},root_owner=0:0,lazy_journal_init=1,lazy_itable_init=1,resize={MAX_BLOCKS}"
    );
    let moment = MOMENT.to_string();
    MKE2FS.run(
        MKE2FS
            .command()
            .env("MKE2FS_CONFIG", &conf)
            .env("E2FSPROGS_FAKE_TIME", &moment)
            .args(["-q", "-F", "-t", "ext4", "-m", "0", "-U", UUID])
            .args(["-N", &inodes.to_string(), "-J", &format!("size={JOURNAL_MIB}"), "-E", &options])
            .arg(image),
    )?;
    fill(image, &script, &moment)?;
    // Indexes directories, and proves that nothing was to be mended: then it would not end with 0.
    E2FSCK.run(E2FSCK.command().env("E2FSCK_TIME", &moment).arg("-fyD").arg(image))?;
    file.sync_all().map_err(ImageError::io(format!("sync {}", image.display())))
}

/// Whether a file begins as an ext4 filesystem does: its superblock is at 1024, a magic number in it.
pub(super) fn is_one(file: &fs::File) -> io::Result<bool> {
    use std::os::unix::fs::FileExt as _;
    let mut magic = [0; 2];
    match file.read_exact_at(&mut magic, 1024 + 56) {
        Ok(()) => Ok(magic == 0xef53_u16.to_le_bytes()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn fill(image: &Path, script: &Path, moment: &str) -> Result<(), ImageError> {
    let mut command = DEBUGFS.command();
    command.env("E2FSPROGS_FAKE_TIME", moment).arg("-w").arg("-f").arg(script).arg(image);
    let output = DEBUGFS.output(&mut command)?;
    // It ends with 0 whatever went wrong, but says so.
    let said = String::from_utf8_lossy(&output.stderr);
    let complaints: Vec<&str> = said.lines().filter(|line| !line.starts_with("debugfs ")).collect();
    if output.status.success() && complaints.is_empty() {
        return Ok(());
    }
    Err(DEBUGFS.failed(&command, output.status, &complaints.join("\n")))
}

/// How many blocks hold the tree.
fn blocks(tree: &Tree) -> Result<u64, ImageError> {
    let mut blocks = SLACK_BLOCKS + JOURNAL_MIB * (1 << 20) / BLOCK;
    let mut names = BTreeMap::<&str, u64>::new();
    for (path, entry) in tree.iter() {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        *names.entry(parent).or_default() += name_size(name);
        blocks += match &entry.kind {
            Kind::File(content) => content.size()?.div_ceil(BLOCK),
            Kind::Directory | Kind::Link { .. } => 1,
            Kind::Same { .. } | Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => 0,
        };
    }
    // Directories are never quite full, and some are made larger first.
    blocks += names.values().map(|bytes| bytes / (BLOCK / 2) + 1).sum::<u64>();
    // Tables of inodes, which small files may need more of, bitmaps, copies of the superblock with room to grow.
    let per_group = GROUP_INODES * INODE / BLOCK + 130;
    blocks += (blocks / (GROUP_BLOCKS - per_group) + 1) * per_group;
    blocks += tree.iter().count() as u64 * INODE / BLOCK;
    // Whole megabytes.
    Ok(blocks.next_multiple_of((1 << 20) / BLOCK))
}

/// What `debugfs` must do. Contents that are in no file yet are put into `scratch`.
fn script(tree: &Tree, scratch: &Path) -> Result<String, ImageError> {
    let mut script = String::new();
    let mut links = BTreeMap::<&str, u32>::new();
    let mut inside = "";
    for (path, entry) in tree.iter() {
        // Some commands make what they make in the current directory only.
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if inside != parent {
            line(&mut script, &["cd", &quoted(&format!("/{parent}"))]);
            inside = parent;
        }
        let name = quoted(name);
        let (kind, command) = match &entry.kind {
            Kind::Directory if path == "lost+found" => continue,
            Kind::Directory => (libc::S_IFDIR, format!("mkdir {name}")),
            Kind::File(content) => {
                let from = staged(content, scratch, path)?;
                (libc::S_IFREG, format!("write {} {name}", quoted(&from)))
            }
            Kind::Link { target } => (libc::S_IFLNK, format!("symlink {name} {}", quoted(target))),
            Kind::CharDevice { major, minor } => (libc::S_IFCHR, format!("mknod {name} c {major} {minor}")),
            Kind::BlockDevice { major, minor } => (libc::S_IFBLK, format!("mknod {name} b {major} {minor}")),
            Kind::Fifo => (libc::S_IFIFO, format!("mknod {name} p")),
            Kind::Same { as_path } => {
                *links.entry(as_path).or_insert(1) += 1;
                continue;
            }
        };
        line(&mut script, &[&command]);
        attributes(&mut script, path, entry, kind);
    }
    make_room(&mut script, tree);
    for (path, entry) in tree.iter() {
        if let Kind::Same { as_path } = &entry.kind {
            line(&mut script, &["ln", &absolute(as_path), &absolute(path)]);
        }
    }
    for (path, count) in links {
        set(&mut script, path, "links_count", &count.to_string());
    }
    Ok(script)
}

/// Makes directories larger that get second names of files: unlike other commands, `ln` does not do it itself.
fn make_room(script: &mut String, tree: &Tree) {
    let mut names = BTreeMap::<&str, u64>::new();
    for (path, entry) in tree.iter() {
        if let Kind::Same { .. } = &entry.kind {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            *names.entry(parent).or_default() += name_size(name);
        }
    }
    for (parent, size) in names {
        // Names do not cross the ends of blocks.
        for _ in 0..=size / (BLOCK / 2) {
            line(script, &["expand_dir", &absolute(parent)]);
        }
    }
}

/// What an entry takes in a directory: 8 bytes beside its name, in multiples of 4.
const fn name_size(name: &str) -> u64 {
    (name.len() as u64 + 8).next_multiple_of(4)
}

/// Sets what differs from what `debugfs` gives: root's, at the moment that it was told.
fn attributes(script: &mut String, path: &str, entry: &Entry, kind: u32) {
    set(script, path, "mode", &format!("0{:o}", kind | entry.mode));
    if entry.uid != 0 {
        set(script, path, "uid", &entry.uid.to_string());
    }
    if entry.gid != 0 {
        set(script, path, "gid", &entry.gid.to_string());
    }
    if entry.mtime != MOMENT {
        set(script, path, "mtime", &format!("@{}", entry.mtime));
    }
}

fn set(script: &mut String, path: &str, field: &str, value: &str) {
    line(script, &["sif", &absolute(path), field, value]);
}

fn line(script: &mut String, words: &[&str]) {
    script.push_str(&words.join(" "));
    script.push('\n');
}

fn absolute(path: &str) -> String {
    quoted(&format!("/{path}"))
}

/// A word for `debugfs`, in which a quote is doubled.
fn quoted(word: &str) -> String {
    format!("\"{}\"", word.replace('"', "\"\""))
}

/// Where a content can be read.
fn staged(content: &Content, scratch: &Path, path: &str) -> Result<String, ImageError> {
    let at = match content {
        Content::At(at) => at.clone(),
        Content::Bytes(bytes) => {
            let at = scratch.join(name_for(path));
            fs::write(&at, bytes).map_err(ImageError::io(format!("write {}", at.display())))?;
            at
        }
    };
    at.into_os_string().into_string().map_err(|at| ImageError::Entry {
        path: at.to_string_lossy().into_owned(),
        reason: "its path on this machine is not UTF-8",
    })
}

/// A file name that no other path gets.
fn name_for(path: &str) -> PathBuf {
    let mut name = String::from("content-");
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => name.push(char::from(byte)),
            // Writing to a String can't fail.
            _ => _ = write!(name, "-{byte:02x}"),
        }
    }
    name.into()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn sample() -> Tree {
        let mut tree = Tree::default();
        tree.directory("bin", 0o755).unwrap();
        tree.file("bin/tool", 0o4755, vec![7; 10_000]).unwrap();
        tree.add("bin/a second name", Entry::new(Kind::Same { as_path: "bin/tool".into() }, 0)).unwrap();
        tree.link("bin/link", "tool").unwrap();
        tree.add("bin/console", Entry::new(Kind::CharDevice { major: 5, minor: 1 }, 0o600)).unwrap();
        let own = Entry { uid: 1000, gid: 1000, ..Entry::new(Kind::Directory, 0o700) };
        tree.add("home", own.clone()).unwrap();
        let letter = Kind::File(Content::Bytes(b"dear \"reader\"".to_vec()));
        tree.add("home/a \"letter\"", Entry { kind: letter, mode: 0o600, mtime: 1_000_000_000, ..own })
            .unwrap();
        tree
    }

    fn built(tree: &Tree, dir: &Path) -> PathBuf {
        let image = dir.join("image");
        write(tree, &image, &dir.join("scratch")).unwrap();
        image
    }

    fn asked(image: &Path, request: &str) -> String {
        let output = Command::new("/sbin/debugfs").arg("-R").arg(request).arg(image).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn what_is_in_the_tree_is_in_the_filesystem() {
        let dir = tempfile::tempdir().unwrap();
        let image = built(&sample(), dir.path());
        assert!(is_one(&fs::File::open(&image).unwrap()).unwrap());
        let tool = asked(&image, "stat /bin/tool");
        for part in ["Mode:  04755", "Links: 2", "Size: 10000", "User:     0"] {
            assert!(tool.contains(part), "{part:?} is not in {tool}");
        }
        let letter = asked(&image, "stat \"/home/a \"\"letter\"\"\"");
        for part in ["Mode:  0600", "User:  1000", "Group:  1000", "2001"] {
            assert!(letter.contains(part), "{part:?} is not in {letter}");
        }
        assert_eq!(asked(&image, "cat \"/home/a \"\"letter\"\"\""), "dear \"reader\"");
        assert!(asked(&image, "stat /bin/link").contains("Fast link dest: \"tool\""));
        assert!(asked(&image, "stat /bin/console").contains("major/minor number: 05:01"));
        assert!(asked(&image, "ls -p /bin").contains("/a second name/"));
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [one, other] = dirs.each_ref().map(|dir| fs::read(built(&sample(), dir.path())).unwrap());
        assert!(one == other);
    }

    #[test]
    fn a_directory_holds_any_number_of_names() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = sample();
        for number in 0..500_u32 {
            let name = format!("{number}-{}", "long".repeat(20));
            tree.add(format!("bin/{name}"), Entry::new(Kind::Same { as_path: "bin/tool".into() }, 0))
                .unwrap();
            tree.file(format!("home/{name}"), 0o644, *b"x").unwrap();
        }
        let image = built(&tree, dir.path());
        assert!(asked(&image, "stat /bin/tool").contains("Links: 502"));
        assert_eq!(asked(&image, "ls -p /home").matches("long").count(), 500 * 20);
    }

    #[test]
    fn a_filesystem_holds_any_number_of_small_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = Tree::default();
        for directory in 0..100 {
            tree.directory(directory.to_string(), 0o755).unwrap();
            for file in 0..100 {
                tree.link(format!("{directory}/{file}"), "nowhere").unwrap();
            }
        }
        let image = built(&tree, dir.path());
        assert!(asked(&image, "stat /99/99").contains("nowhere"));
    }

    #[test]
    fn what_debugfs_can_not_do_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = Tree::default();
        tree.add("lonely", Entry::new(Kind::Same { as_path: "nothing".into() }, 0)).unwrap();
        let error = write(&tree, &dir.path().join("image"), &dir.path().join("scratch")).unwrap_err();
        assert!(matches!(error, ImageError::Failed { .. }), "{error}");
    }
}
