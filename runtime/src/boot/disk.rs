//! The sprite's disk.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use nix::mount::{MsFlags, mount as mount_at};

use super::{BootError, failed, wait_for};

/// Where the kernel shows the first virtio disk.
const DISK: &str = "/dev/vda";
/// Blocks that the host need not keep are given back as files are removed.
const OPTIONS: &str = "discard";

pub(super) fn find() -> io::Result<PathBuf> {
    wait_for(|| Ok(Path::new(DISK).exists().then(|| PathBuf::from(DISK))))
}

/// Mounts the disk and makes its file system as large as it is.
pub(super) fn mount(disk: &Path, at: &str) -> Result<(), BootError> {
    fs::create_dir_all(at).map_err(failed("make the directory of the new root"))?;
    mount_at(Some(disk), at, Some("ext4"), MsFlags::MS_NOATIME, Some(OPTIONS))
        .map_err(|error| failed("mount the disk, which must hold an ext4 file system")(error.into()))?;
    if let Err(error) = grow(disk, at) {
        // There is less room than there could be, which its programs will notice.
        eprintln!("runtime: could not grow the disk's file system: {error}");
    }
    Ok(())
}

fn grow(disk: &Path, at: &str) -> io::Result<()> {
    nix::ioctl_write_ptr!(resize, b'f', 16, u64);
    let mut device = File::open(disk)?;
    let size = device.seek(io::SeekFrom::End(0))?;
    let root = File::open(at)?;
    let block = block_size(&mut device)?;
    let wanted = size / block;
    let has = nix::sys::statvfs::statvfs(at)?;
    // What the file system keeps for itself is not counted there: a few percent say nothing.
    let has = has.blocks() * has.fragment_size();
    if has + size / 8 > size {
        return Ok(());
    }
    // SAFETY: the descriptor is open and the number of blocks lives for the length of the call.
    unsafe { resize(root.as_raw_fd(), &raw const wanted) }?;
    Ok(())
}

/// The block size of an ext4 file system, from its superblock.
fn block_size(device: &mut File) -> io::Result<u64> {
    const LOG_BLOCK_SIZE: u64 = 1024 + 24;
    let mut log = [0; 4];
    device.seek(io::SeekFrom::Start(LOG_BLOCK_SIZE))?;
    device.read_exact(&mut log)?;
    let log = u32::from_le_bytes(log);
    1024u64.checked_shl(log).filter(|_| log <= 6).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
