//! A guest's memory behind a pager, as Firecracker sets it up: anonymous, every missing page reported.

use std::{
    fs::File,
    io::{self, IoSlice},
    num::NonZeroUsize,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    ptr::NonNull,
};

use nix::{
    errno::Errno,
    sys::{
        mman::{MapFlags, ProtFlags, mmap_anonymous},
        socket::{ControlMessage, MsgFlags, sendmsg},
    },
};
use serde_json::json;

/// The size of the fake's memory.
pub(in super::super) const BYTES: usize = 64 * 4096;
/// Where in it the guest keeps what it counts.
pub(in super::super) const AT: usize = 37 * 4096;
/// How long that is at most.
const LENGTH: usize = 64;

// The kernel's include/uapi/linux/userfaultfd.h.
const USER_MODE_ONLY: libc::c_int = 1;
const API: u64 = 0xaa;
const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const MODE_MISSING: u64 = 1;

/// Memory that a pager fills.
pub(in super::super) struct Paged {
    at: NonNull<libc::c_void>,
}

impl Paged {
    /// Hands it to the pager at `socket`.
    pub(in super::super) fn connect(socket: &Path) -> io::Result<Self> {
        let length = NonZeroUsize::new(BYTES).expect("it is not empty");
        let (access, private) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let at = unsafe { mmap_anonymous(None, length, access, private) }?;
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
        // SAFETY: takes a number.
        let faults = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let faults = i32::try_from(Errno::result(faults)?).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor for us.
        let faults = File::from(unsafe { OwnedFd::from_raw_fd(faults) });
        let mut api = [API, FEATURE_EVENT_REMOVE, 0];
        let base = at.as_ptr() as u64;
        let mut register = [base, BYTES as u64, MODE_MISSING, 0];
        // SAFETY: both structures are as large as these requests say, all of 64-bit numbers.
        unsafe {
            Errno::result(libc::ioctl(faults.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()))?;
            Errno::result(libc::ioctl(faults.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr()))?;
        }
        let regions = json!([{ "base_host_virt_addr": base, "size": BYTES, "offset": 0, "page_size": 4096,
            "page_size_kib": 4096 }]);
        let stream = UnixStream::connect(socket)?;
        let descriptors = [faults.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let text = regions.to_string();
        sendmsg::<()>(
            stream.as_raw_fd(),
            &[IoSlice::new(text.as_bytes())],
            &rights,
            MsgFlags::empty(),
            None,
        )?;
        Ok(Self { at })
    }

    /// A byte of it, which may have to come first. Blocks.
    pub(in super::super) fn byte(&self, index: usize) -> u8 {
        assert!(index < BYTES);
        // SAFETY: inside of the mapping, which nobody unmaps.
        unsafe { self.at.cast::<u8>().add(index).read_volatile() }
    }

    /// Gives a page back, as the balloon does. Returns when the pager has heard of it.
    pub(in super::super) fn give_back(&self, page: usize) {
        // SAFETY: inside of the mapping; what is there is not needed.
        let done =
            unsafe { libc::madvise(self.at.byte_add(page * 4096).as_ptr(), 4096, libc::MADV_DONTNEED) };
        assert_eq!(done, 0);
    }
}

/// What a guest's memory says that a pager brings.
pub(in super::super) fn read(socket: &Path) -> io::Result<String> {
    let memory = Paged::connect(socket)?;
    let text = (AT..AT + LENGTH).map(|index| memory.byte(index)).collect();
    String::from_utf8(text).map_err(io::Error::other)
}
