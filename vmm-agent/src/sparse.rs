//! Copies of files with holes, such as disks.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
};

/// How much is read at once.
const STEP: usize = 1 << 20;

nix::ioctl_write_int!(share_blocks, 0x94, 9);

/// Copies `from` into the empty file `to`: by sharing blocks, where the filesystem can do that, and otherwise
/// what is data, leaving holes. Blocks.
pub(crate) fn copy(from: &File, to: &File) -> io::Result<()> {
    let source = u64::try_from(from.as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: both descriptors are open; the argument is the number of the source's.
    if unsafe { share_blocks(to.as_raw_fd(), source) }.is_ok() {
        return Ok(());
    }
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut buffer = vec![0; STEP];
    let mut at = 0;
    while let Some(start) = seek(from, at, libc::SEEK_DATA)? {
        let end = seek(from, start, libc::SEEK_HOLE)?.unwrap_or(size);
        at = start;
        while at < end {
            let length = usize::try_from(end - at).map_or(STEP, |left| left.min(STEP));
            from.read_exact_at(&mut buffer[..length], at)?;
            to.write_all_at(&buffer[..length], at)?;
            at += length as u64;
        }
    }
    Ok(())
}

/// Where data, or a hole, begins from `at` on; `None` if there is no more data.
fn seek(file: &File, at: u64, what: libc::c_int) -> io::Result<Option<u64>> {
    let at = libc::off_t::try_from(at).map_err(io::Error::other)?;
    // SAFETY: takes numbers only.
    match unsafe { libc::lseek(file.as_raw_fd(), at, what) } {
        found @ 0.. => Ok(Some(found.cast_unsigned())),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_copy_has_the_same_content_and_the_same_holes() {
        let dir = tempfile::tempdir().unwrap();
        let from =
            File::options().read(true).write(true).create_new(true).open(dir.path().join("from")).unwrap();
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"begin", 0).unwrap();
        from.write_all_at(&[7; 3_000_000], 20 << 20).unwrap();
        from.sync_all().unwrap();
        let path = dir.path().join("to");
        copy(&from, &File::create_new(&path).unwrap()).unwrap();
        let copied = std::fs::read(&path).unwrap();
        assert_eq!(copied.len(), 64 << 20);
        assert_eq!(&copied[..5], b"begin");
        assert!(copied[20 << 20..][..3_000_000].iter().all(|byte| *byte == 7));
        assert!(copied[40 << 20..].iter().all(|byte| *byte == 0));
        assert!(path.metadata().unwrap().blocks() * 512 < 8 << 20, "the holes were filled");
    }
}
