use std::{
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _, symlink},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use sha2::{Digest as _, Sha256};

use super::{super::mapped, *};

/// A directory that goes with the test.
struct Trees(PathBuf);

impl Trees {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("copy-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(path.join("from")).unwrap();
        Self(path)
    }

    fn from(&self) -> PathBuf {
        self.0.join("from")
    }

    fn to(&self) -> PathBuf {
        self.0.join("to")
    }

    fn begin(&self) -> Copying {
        Copying::begin(&self.from(), &self.to(), Shift::new(0, 0), Unwanted::default()).unwrap()
    }

    fn live(copy: &mut Copying, mut still: impl FnMut(&mut dyn FnMut())) {
        while copy.wants_live_pass() {
            let mut stamp = None;
            still(&mut || {
                let mapped = mapped::written_by(nix::unistd::getpid()).unwrap();
                stamp = Some(copy.stamp(mapped).unwrap());
            });
            copy.live_pass(stamp.unwrap()).unwrap();
        }
    }

    fn copy(&self) {
        let mut copy = self.begin();
        copy.last().unwrap();
        copy.finish().unwrap();
    }

    fn are_equal(&self) {
        let (from, to) = (manifest(&self.from()), manifest(&self.to()));
        for (path, is) in &from {
            assert_eq!(to.get(path), Some(is), "{}", path.display());
        }
        assert_eq!(from.len(), to.len());
    }
}

impl Drop for Trees {
    fn drop(&mut self) {
        remove_tree(&self.0).unwrap();
    }
}

/// All that can be told of a tree, and which names are one file.
fn manifest(top: &Path) -> BTreeMap<PathBuf, String> {
    let (mut found, mut waiting, mut first) = (BTreeMap::new(), vec![top.to_owned()], HashMap::new());
    while let Some(path) = waiting.pop() {
        let meta = path.symlink_metadata().unwrap();
        let inside = path.strip_prefix(top).unwrap().to_owned();
        let kind = meta.file_type();
        let what = if kind.is_symlink() {
            format!("-> {:?}", fs::read_link(&path).unwrap())
        } else if kind.is_file() {
            let text = fs::read(&path).unwrap();
            format!("{} bytes {:x}", text.len(), Sha256::digest(text))
        } else if kind.is_dir() {
            let mut entries: Vec<_> =
                fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            entries.sort();
            waiting.extend(entries.into_iter().rev());
            "directory".to_owned()
        } else {
            format!("fifo {}", kind.is_fifo())
        };
        let attributes = match kind.is_file() || kind.is_dir() {
            true => attributes(File::open(&path).unwrap().as_fd()).unwrap(),
            false => Vec::new(),
        };
        let link = first.entry(meta.ino()).or_insert_with(|| inside.clone());
        let (owner, mode) = ((meta.uid(), meta.gid()), meta.mode());
        let changed = (meta.mtime(), meta.mtime_nsec());
        found.insert(
            inside,
            format!("{what} {owner:?} {mode:o} {changed:?} {attributes:?} as {}", link.display()),
        );
    }
    found
}

fn set_attribute(path: &Path, name: &CStr, value: &[u8]) {
    sys::set_attribute(File::open(path).unwrap().as_fd(), name, value).unwrap();
}

#[test]
fn all_that_a_tree_holds_is_kept() {
    let trees = Trees::new();
    let from = trees.from();
    fs::create_dir_all(from.join("a/b/c")).unwrap();
    fs::write(from.join("a/file"), "content").unwrap();
    fs::set_permissions(from.join("a/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(from.join("a/file"), from.join("a/b/other name")).unwrap();
    symlink("/etc/passwd", from.join("a/b/out")).unwrap();
    symlink("nowhere", from.join("a/b/c/dangling")).unwrap();
    nix::unistd::mkfifo(&from.join("fifo"), Mode::S_IRUSR | Mode::S_IWGRP).unwrap();
    drop(std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap());
    fs::write(from.join(OsStr::from_bytes(b"not \xff text\n")), "x").unwrap();
    set_attribute(&from.join("a/file"), c"user.one", b"1");
    set_attribute(&from.join("a/b"), c"user.two", b"22");
    fs::set_permissions(from.join("a/b"), fs::Permissions::from_mode(0o1555)).unwrap();
    if Uid::effective().is_root() {
        std::os::unix::fs::lchown(from.join("a/b/out"), Some(7), Some(8)).unwrap();
        std::os::unix::fs::chown(from.join("a/file"), Some(9), Some(10)).unwrap();
        fs::set_permissions(from.join("a/file"), fs::Permissions::from_mode(0o4000)).unwrap();
    }
    trees.copy();
    trees.are_equal();
    assert!(trees.to().join("fifo").symlink_metadata().unwrap().file_type().is_fifo());
}

#[test]
fn holes_stay_holes() {
    let trees = Trees::new();
    let path = trees.from().join("sparse");
    let file = File::create(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    file.write_all_at(b"in the middle", 1 << 30).unwrap();
    file.write_all_at(b"at the end", (1 << 40) - 10).unwrap();
    trees.copy();
    let (from, to) = (path.metadata().unwrap(), trees.to().join("sparse").metadata().unwrap());
    assert_eq!((to.len(), to.mtime_nsec()), (from.len(), from.mtime_nsec()));
    assert!(to.blocks() <= from.blocks() + 16, "{} blocks", to.blocks());
    let mut text = [0; 13];
    File::open(trees.to().join("sparse")).unwrap().read_exact_at(&mut text, 1 << 30).unwrap();
    assert_eq!(&text, b"in the middle");
}

#[test]
fn a_moved_directory_and_links_into_it_are_seen() {
    let trees = Trees::new();
    let from = trees.from();
    for name in ["one", "two"] {
        fs::create_dir_all(from.join(name).join("deep")).unwrap();
        fs::write(from.join(name).join("deep/file"), name).unwrap();
    }
    fs::hard_link(from.join("one/deep/file"), from.join("link")).unwrap();
    let mut copy = trees.begin();
    Trees::live(&mut copy, |look| look());
    fs::rename(from.join("one"), from.join("was one")).unwrap();
    fs::rename(from.join("two"), from.join("one")).unwrap();
    fs::rename(from.join("was one"), from.join("two")).unwrap();
    copy.last().unwrap();
    copy.finish().unwrap();
    trees.are_equal();
}

/// One random change to a tree, of the kinds that programs make.
fn change(random: &mut StdRng, top: &Path) -> io::Result<()> {
    let name = |random: &mut StdRng| format!("n{}", random.random_range(0..6));
    let mut at = top.to_owned();
    for _ in 0..random.random_range(0..4) {
        let below = at.join(name(random));
        if below.is_dir() && !below.is_symlink() {
            at = below;
        }
    }
    let (one, other) = (at.join(name(random)), top.join(name(random)));
    match random.random_range(0..10) {
        0 | 1 => fs::create_dir(one),
        2 => fs::write(one, vec![random.random::<u8>(); random.random_range(0..2_000)]),
        3 => File::options().append(true).open(one)?.write_all_at(b"more", 0),
        4 => fs::rename(one, other),
        5 => fs::rename(other, one),
        6 => fs::hard_link(one, other),
        7 => fs::remove_file(one),
        8 => symlink(name(random), one),
        _ => fs::set_permissions(one, fs::Permissions::from_mode(0o700 | random.random_range(0..0o77))),
    }
}

#[test]
fn whatever_happens_meanwhile_the_copy_is_the_tree_at_the_cut() {
    for seed in 0..20 {
        let trees = Trees::new();
        let from = trees.from();
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..2_000 {
            // Most fail: there is nothing there, or something else.
            let _often = change(&mut random, &from);
        }
        let (done, turn) = (AtomicBool::new(false), Mutex::new(()));
        std::thread::scope(|scope| {
            let (from, done, turn) = (&from, &done, &turn);
            let busy = scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let _turn = turn.lock();
                    let _often = change(&mut random, from);
                }
            });
            let mut copy = trees.begin();
            Trees::live(&mut copy, |look| {
                let _still = turn.lock();
                look();
            });
            done.store(true, Ordering::Relaxed);
            busy.join().unwrap();
            copy.last().unwrap();
            copy.finish().unwrap();
        });
        trees.are_equal();
    }
}

#[test]
fn writes_through_a_mapping_are_seen() {
    let trees = Trees::new();
    let path = trees.from().join("mapped");
    fs::write(&path, vec![0; 8192]).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    // SAFETY: a new mapping, at an address that the kernel chooses.
    let map = unsafe { libc::mmap(std::ptr::null_mut(), 8192, protection, flags, fd, 0) };
    assert_ne!(map, libc::MAP_FAILED);
    // SAFETY: inside the mapping, which stays until the test's process ends.
    let write = |value: u8| unsafe { map.cast::<u8>().write_volatile(value) };
    write(1);
    let mut copy = trees.begin();
    Trees::live(&mut copy, |look| look());
    write(2);
    copy.last().unwrap();
    copy.finish().unwrap();
    assert_eq!(fs::read(trees.to().join("mapped")).unwrap()[0], 2);
}

#[test]
fn a_copy_that_nobody_wants_ends() {
    let trees = Trees::new();
    fs::write(trees.from().join("file"), "x").unwrap();
    let wanted = Wanted::default();
    let half = wanted.other_half();
    let mut copy = Copying::begin(&trees.from(), &trees.to(), Shift::new(0, 0), half).unwrap();
    drop(wanted);
    assert!(
        matches!(copy.last(), Err(CopyError::At(_, error)) if error.kind() == io::ErrorKind::Interrupted)
    );
}

#[test]
fn ids_are_shifted_within_their_range_only() {
    let shift = Shift::new(100_000, 165_536);
    assert_eq!([0, 100_000, 165_535, 165_536].map(|id| shift.id(id)), [0, 165_536, 231_071, 165_536]);
    let mut list = vec![2, 0, 0, 0, 2, 0, 7, 0];
    list.extend_from_slice(&100_007_u32.to_le_bytes());
    shift.access_list(&mut list);
    assert_eq!(list[8..], 165_543_u32.to_le_bytes());
}

#[test]
fn only_plain_files_are_rewritten() {
    let trees = Trees::new();
    let (from, outside) = (trees.from(), trees.0.join("outside"));
    fs::create_dir(from.join("etc")).unwrap();
    fs::write(from.join("etc/hostname"), "old\n").unwrap();
    fs::write(&outside, "old\n").unwrap();
    symlink("../../outside", from.join("etc/hosts")).unwrap();
    symlink("..", from.join("up")).unwrap();
    for path in ["etc/hostname", "etc/hosts", "up/outside", "none", "etc"] {
        rewrite(&from, Path::new(path), |text| Some(text.replace("old", "new"))).unwrap();
    }
    assert_eq!(fs::read_to_string(from.join("etc/hostname")).unwrap(), "new\n");
    assert_eq!(fs::read_to_string(&outside).unwrap(), "old\n");
}
