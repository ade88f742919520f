//! System calls that no dependency of ours wraps, each as a safe function.

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// Attributes for [`set_mount_attributes`], as the kernel numbers them.
pub(super) const MOUNT_READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
/// No set-uid programs.
pub(super) const MOUNT_NO_SUID: u64 = libc::MOUNT_ATTR_NOSUID;
/// No device files.
pub(super) const MOUNT_NO_DEVICES: u64 = libc::MOUNT_ATTR_NODEV;

/// What the kernel allows for the names of a file's extended attributes, and for the value of one.
const MOST_ATTRIBUTE_NAMES: usize = 64 << 10;
const LONGEST_ATTRIBUTE: usize = 64 << 10;

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let descriptor = RawFd::try_from(check(result)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// A detached copy of the mounts at and below `path`, to be attached with [`attach_mount`].
pub(super) fn clone_mounts(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as libc::c_uint;
    // SAFETY: `path` is a valid C string for the length of the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// Attaches a detached mount at `path`.
pub(super) fn attach_mount(mount: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: both paths are valid C strings for the length of the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// Adds attributes to a mount and to all mounts below it.
pub(super) fn set_mount_attributes(mount: BorrowedFd<'_>, attributes: u64) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is a valid C string and `attr` a valid structure of the size told.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Marks every descriptor from `first` on to be closed by the next exec.
pub(super) fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    // SAFETY: changes flags of descriptors, closes none.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    })
    .map(drop)
}

/// Makes us the parent of orphaned descendants, so that a sprite's PID 1 becomes our child when its
/// launcher leaves, and we can collect it.
pub(super) fn adopt_orphans() -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from)
}

/// Drops all capabilities but `keep` (a bit for each), from the bounding set too.
pub(super) fn keep_capabilities(keep: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`: two words of 32 capabilities each.
    const VERSION_3: u32 = 0x2008_0522;

    for capability in 0..u64::BITS {
        // SAFETY: takes numbers only.
        let known = unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(capability), 0, 0, 0) };
        if known < 0 {
            break; // the kernel's last one was the one before
        }
        if keep & (1 << capability) == 0 {
            // SAFETY: takes numbers only.
            let dropped =
                unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
            check(dropped.into())?;
        }
    }
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) }.into())?;
    let words = [keep as u32, (keep >> 32) as u32];
    let data = words.map(|word| Data { effective: word, permitted: word, inheritable: 0 });
    let header = Header { version: VERSION_3, pid: 0 };
    // SAFETY: the structures have the layout of version 3: one header, two words of data.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// Switches the loopback interface of our network namespace on.
pub(super) fn loopback_up() -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all zeros is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    // SAFETY: `request` is a valid `ifreq` with a terminated name.
    check(unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) }.into())?;
    // SAFETY: the call above has filled in the flags.
    unsafe { request.ifr_ifru.ifru_flags |= (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short };
    // SAFETY: as above.
    check(unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) }.into()).map(drop)
}

/// Writes everything that is dirty on the file system of `path` to its disk.
pub(super) fn sync_file_system(path: &Path) -> io::Result<()> {
    let directory = std::fs::File::open(path)?;
    // SAFETY: takes a descriptor that lives for the length of the call.
    check(unsafe { libc::syncfs(directory.as_raw_fd()) }.into()).map(drop)
}

/// Makes `to` share the content of `from`, copy-on-write. Fails where the file system can't.
pub(super) fn clone_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes two descriptors that live for the length of the call.
    check(unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) }.into()).map(drop)
}

/// Copies up to `length` bytes from an offset of one file to the same of the other, inside the kernel.
pub(super) fn copy_range(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    offset: i64,
    length: usize,
) -> io::Result<usize> {
    let (mut read, mut written) = (offset, offset);
    // SAFETY: takes descriptors that live for the length of the call, and two offsets of ours.
    let copied = check(unsafe {
        libc::copy_file_range(from.as_raw_fd(), &raw mut read, to.as_raw_fd(), &raw mut written, length, 0)
            as libc::c_long
    })?;
    usize::try_from(copied).map_err(io::Error::other)
}

/// Whether a file system keeps everything in memory. There, writes through a mapping leave no trace in a
/// file's times.
pub(super) fn is_in_memory(path: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: all zeros is a valid `statfs`.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a live descriptor, and a structure that the kernel fills in.
    check(unsafe { libc::fstatfs(path.as_raw_fd(), &raw mut found) }.into())?;
    Ok(found.f_type == libc::TMPFS_MAGIC)
}

/// The names of a file's extended attributes.
pub(super) fn attribute_names(file: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = vec![0_u8; MOST_ATTRIBUTE_NAMES];
    // SAFETY: the buffer is as long as told.
    let length = unsafe { libc::flistxattr(file.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(usize::try_from(check(length as libc::c_long)?).map_err(io::Error::other)?);
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| CString::new(name).map_err(io::Error::other)).collect()
}

/// The value of a file's extended attribute.
pub(super) fn attribute(file: BorrowedFd<'_>, name: &CStr) -> io::Result<Vec<u8>> {
    let mut value = vec![0_u8; LONGEST_ATTRIBUTE];
    // SAFETY: the name is a C string, and the buffer is as long as told.
    let length =
        unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(check(length as libc::c_long)?).map_err(io::Error::other)?);
    value.shrink_to_fit();
    Ok(value)
}

/// Sets an extended attribute of a file.
pub(super) fn set_attribute(file: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: the name is a C string, and the value is as long as told.
    check(
        unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) }
            .into(),
    )
    .map(drop)
}
