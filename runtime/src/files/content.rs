//! Reading and writing what is in a file.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use super::{Code, Fault, fault::at};

/// What a new file may be done with if nobody says.
const DEFAULT_MODE: u32 = 0o644;
/// Tells unfinished files of one directory apart.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A file that is open for reading.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) file: File,
    pub(crate) size: u64,
}

/// Opens a regular file.
pub(crate) fn open(path: &Path) -> Result<Contents, Fault> {
    // Or a FIFO would wait for its writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(at(path))?;
    let metadata = file.metadata().map_err(at(path))?;
    regular(&metadata, path)?;
    Ok(Contents { file, size: metadata.len() })
}

fn regular(metadata: &fs::Metadata, path: &Path) -> Result<(), Fault> {
    if metadata.is_dir() {
        return Err(Fault::new(Code::IsDirectory, format!("{}: is a directory", path.display()), path));
    }
    if !metadata.is_file() {
        let message = format!("{}: is a device, socket or pipe, not a file", path.display());
        return Err(Fault::new(Code::Invalid, message, path));
    }
    Ok(())
}

/// A file that is being written, beside the one that it will replace. Dropped before it is finished, it is
/// gone, and the old file is as it was.
#[derive(Debug)]
pub(crate) struct Upload {
    /// Where it will be.
    target: PathBuf,
    unfinished: PathBuf,
    file: Option<File>,
    mode: u32,
    /// Whom the file that it replaces belongs to.
    owner: Option<(u32, u32)>,
    written: u64,
}

impl Upload {
    /// Begins. `mode` defaults to that of the file which is replaced.
    pub(crate) fn begin(path: &Path, mode: Option<u32>, make_parents: bool) -> Result<Self, Fault> {
        // What a link leads to is replaced, not the link.
        let target = match fs::canonicalize(path) {
            Ok(target) => target,
            Err(_) => path.to_owned(),
        };
        let (directory, Some(name)) = (target.parent().unwrap_or(Path::new("/")), target.file_name()) else {
            return Err(Fault::new(Code::IsDirectory, format!("{}: is a directory", path.display()), path));
        };
        if make_parents {
            fs::create_dir_all(directory).map_err(at(directory))?;
        }
        let present = match fs::metadata(&target) {
            Ok(metadata) => {
                regular(&metadata, path)?;
                Some(metadata)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(at(path)(error)),
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut unfinished = std::ffi::OsString::from(format!(".upload-{number}-"));
        // A name may be as long as the kernel allows; ours has to be no longer.
        let kept = name.to_string_lossy();
        unfinished.push(&kept[..kept.floor_char_boundary(100)]);
        let unfinished = directory.join(unfinished);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)
            .or_else(|error| match error.kind() {
                // Left by a runtime that was killed; nobody else makes such names.
                io::ErrorKind::AlreadyExists => OpenOptions::new()
                    .write(true)
                    .truncate(true)
                    .custom_flags(libc::O_NOFOLLOW)
                    .open(&unfinished),
                _ => Err(error),
            })
            .map_err(at(path))?;
        Ok(Self {
            unfinished,
            file: Some(file),
            mode: mode.or_else(|| present.as_ref().map(|it| it.mode() & 0o7777)).unwrap_or(DEFAULT_MODE),
            owner: present.map(|metadata| (metadata.uid(), metadata.gid())),
            target,
            written: 0,
        })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let Some(file) = &mut self.file else {
            return Err(Fault::internal("the file was finished already".into()));
        };
        file.write_all(bytes).map_err(at(&self.target))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Puts it in its place, at once. Returns its size and mode.
    pub(crate) fn finish(mut self) -> Result<(u64, u32), Fault> {
        let Some(file) = self.file.take() else {
            return Err(Fault::internal("the file was finished already".into()));
        };
        if let Some((uid, gid)) = self.owner {
            // Where that is not allowed the new file belongs to the runtime, which is root here.
            let _kept = std::os::unix::fs::fchown(&file, Some(uid), Some(gid));
        }
        file.set_permissions(Permissions::from_mode(self.mode)).map_err(at(&self.target))?;
        fs::rename(&self.unfinished, &self.target).map_err(at(&self.target))?;
        Ok((self.written, self.mode))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.file.is_some() || self.unfinished.exists() {
            // After a rename there is nothing to remove.
            let _gone = fs::remove_file(&self.unfinished);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("deep/er/file");
        assert_eq!(Upload::begin(&path, None, false).expect_err("no parents").code, Code::NotFound);
        let mut upload = Upload::begin(&path, Some(0o640), true).expect("begun");
        upload.write(b"old").expect("written");
        assert!(!path.exists(), "not before it is finished");
        assert_eq!(upload.finish(), Ok((3, 0o640)));

        let mut broken = Upload::begin(&path, None, false).expect("begun");
        broken.write(b"half of the n").expect("written");
        drop(broken);
        assert_eq!(fs::read(&path).expect("there"), b"old");
        let mut upload = Upload::begin(&path, None, false).expect("begun");
        upload.write(b"new").expect("written");
        assert_eq!(upload.finish(), Ok((3, 0o640)), "it keeps the mode");
        assert_eq!(fs::read(&path).expect("there"), b"new");
        let left = fs::read_dir(path.parent().expect("a parent")).expect("a directory").count();
        assert_eq!(left, 1, "nothing unfinished is left");
    }

    #[test]
    fn a_link_goes_on_leading_to_what_is_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "1").expect("written");
        symlink("file", &link).expect("linked");
        let mut upload = Upload::begin(&link, None, false).expect("begun");
        upload.write(b"2").expect("written");
        upload.finish().expect("finished");
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).expect("there"), b"2");
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().expect("a directory");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).expect("made");
        for (path, code) in [
            (fifo.as_path(), Code::Invalid),
            (Path::new("/dev/zero"), Code::Invalid),
            (dir.path(), Code::IsDirectory),
            (Path::new("/"), Code::IsDirectory),
        ] {
            assert_eq!(open(path).expect_err("no file").code, code, "{}", path.display());
            let fault = Upload::begin(path, None, true).expect_err("no file");
            assert_eq!(fault.code, code, "{}", path.display());
        }
    }
}
