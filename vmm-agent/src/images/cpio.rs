//! Writes a tree as a cpio archive in the form that Linux unpacks at boot ("newc": the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::{self, Write};

use super::{
    ImageError,
    tree::{Content, Entry, Kind, Tree},
};

/// The mark of the archive's end.
const TRAILER: &str = "TRAILER!!!";

/// Writes the archive. Numbers of files are counted up and devices are zero, so that the same tree
/// gives the same bytes.
pub(super) fn write(tree: &Tree, to: &mut impl Write) -> Result<(), ImageError> {
    let mut number = 0;
    for (path, entry) in tree.iter() {
        number += 1;
        let content = content(path, entry)?;
        header(to, number, path, entry, &content)
            .and_then(|()| padded(to, &content))
            .map_err(ImageError::io(format!("write {path} to the archive")))?;
    }
    let end = Entry { mtime: 0, ..Entry::new(Kind::File(Content::Bytes(Vec::new())), 0) };
    header(to, 0, TRAILER, &end, &[]).map_err(ImageError::io("end the archive"))
}

/// What follows an entry's head. A link's is its target.
fn content(path: &str, entry: &Entry) -> Result<Vec<u8>, ImageError> {
    let content = match &entry.kind {
        Kind::File(content) => content.read()?,
        Kind::Link { target } => target.clone().into_bytes(),
        Kind::Same { .. } => {
            return Err(ImageError::Entry { path: path.into(), reason: "a second name of a file" });
        }
        Kind::Directory | Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => Vec::new(),
    };
    if u32::try_from(content.len()).is_err() {
        return Err(ImageError::Entry { path: path.into(), reason: "it is 4 GiB or larger" });
    }
    Ok(content)
}

fn header(to: &mut impl Write, number: u32, path: &str, entry: &Entry, content: &[u8]) -> io::Result<()> {
    let (kind, links, (major, minor)) = match entry.kind {
        Kind::Directory => (libc::S_IFDIR, 2, (0, 0)),
        // The trailer has no type.
        Kind::File(_) if path == TRAILER => (0, 1, (0, 0)),
        Kind::File(_) | Kind::Same { .. } => (libc::S_IFREG, 1, (0, 0)),
        Kind::Link { .. } => (libc::S_IFLNK, 1, (0, 0)),
        Kind::CharDevice { major, minor } => (libc::S_IFCHR, 1, (major, minor)),
        Kind::BlockDevice { major, minor } => (libc::S_IFBLK, 1, (major, minor)),
        Kind::Fifo => (libc::S_IFIFO, 1, (0, 0)),
    };
    let fields = [
        number,
        kind | entry.mode,
        entry.uid,
        entry.gid,
        links,
        u32::try_from(entry.mtime).unwrap_or(u32::MAX),
        u32::try_from(content.len()).unwrap_or(u32::MAX),
        0,
        0,
        major,
        minor,
        u32::try_from(path.len() + 1).unwrap_or(u32::MAX),
        0,
    ];
    let mut head = b"070701".to_vec();
    for field in fields {
        write!(head, "{field:08X}")?;
    }
    head.extend_from_slice(path.as_bytes());
    head.push(0);
    padded(to, &head)
}

/// Every part begins at a multiple of four.
fn padded(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.write_all(&[0; 3][..bytes.len().next_multiple_of(4) - bytes.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Tree {
        let mut tree = Tree::default();
        tree.directory("dev", 0o755).unwrap();
        tree.add("dev/console", Entry::new(Kind::CharDevice { major: 5, minor: 1 }, 0o600)).unwrap();
        tree.file("init", 0o755, *b"12345").unwrap();
        tree.link("sh", "init").unwrap();
        tree
    }

    fn written(tree: &Tree) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(tree, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn an_entry_is_laid_out_as_the_kernel_reads_it() {
        let mut tree = Tree::default();
        tree.file("init", 0o755, *b"12345").unwrap();
        let bytes = written(&tree);
        let head = "0707010000000100 0081ED 00000000 00000000 00000001 67748580 00000005 \
                    00000000 00000000 00000000 00000000 00000005 00000000 init\0\0";
        let head: Vec<u8> = head.bytes().filter(|byte| *byte != b' ').collect();
        assert_eq!(&bytes[..head.len()], &head[..], "{}", String::from_utf8_lossy(&bytes));
        assert_eq!(&bytes[head.len()..head.len() + 8], b"12345\0\0\0");
        assert!(bytes[head.len() + 8..].starts_with(b"070701"));
    }

    #[test]
    fn every_part_begins_at_a_multiple_of_four() {
        let bytes = written(&sample());
        assert_eq!(bytes.len() % 4, 0);
        let found = |at: usize| bytes[at..].starts_with(b"070701");
        let heads: Vec<_> = (0..bytes.len()).filter(|at| found(*at)).collect();
        assert_eq!(heads.len(), 5);
        assert!(heads.iter().all(|at| at % 4 == 0), "{heads:?}");
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes() {
        assert_eq!(written(&sample()), written(&sample()));
    }

    #[test]
    fn a_hard_link_is_refused() {
        let mut tree = sample();
        tree.add("second", Entry::new(Kind::Same { as_path: "init".into() }, 0o755)).unwrap();
        assert!(write(&tree, &mut Vec::new()).is_err());
    }
}
