//! Files that processes have mapped so that they can write to them.
//!
//! The kernel moves a file's times when a page of it becomes dirty through a mapping, and not for further writes
//! to a page that is dirty already.

use std::{collections::HashSet, fs, io};

use nix::unistd::Pid;

use super::tree;

/// It looks again while new processes come, so that none hands a mapping on unseen; but not for ever.
const MOST_LOOKS: usize = 8;

/// The inodes of files that a process or a descendant of it has mapped so.
pub(super) fn written_by(root: Pid) -> io::Result<HashSet<u64>> {
    let (mut found, mut seen) = (HashSet::new(), Vec::new());
    for _ in 0..MOST_LOOKS {
        let all = tree::descendants(root)?;
        if all == seen {
            break;
        }
        for pid in &all {
            match fs::read_to_string(format!("/proc/{pid}/maps")) {
                Ok(maps) => found.extend(maps.lines().filter_map(inode)),
                // It has ended.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => return Err(error),
            }
        }
        seen = all;
    }
    Ok(found)
}

/// Of a line like `7f... rw-s 00000000 08:01 1234 /path`.
fn inode(line: &str) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let permissions = fields.next()?.as_bytes();
    let is_written = permissions.get(1) == Some(&b'w') && permissions.get(3) == Some(&b's');
    fields.nth(2)?.parse().ok().filter(|inode| is_written && *inode != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shared_and_writable_mappings_of_files_count() {
        for (line, expected) in [
            ("7f00-7f10 rw-s 00000000 08:01 1234                       /a b", Some(1234)),
            ("7f00-7f10 -w-s 00000000 08:01 77 /a", Some(77)),
            ("7f00-7f10 rw-p 00000000 08:01 1234 /a", None),
            ("7f00-7f10 r--s 00000000 08:01 1234 /a", None),
            ("7f00-7f10 rw-s 00000000 00:01 0", None),
            ("", None),
        ] {
            assert_eq!(inode(line), expected, "{line}");
        }
    }
}
