//! The near end of a pseudo-terminal.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    pty::{Winsize, openpty},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::command::Size;

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);
nix::ioctl_read_bad!(foreground_group, libc::TIOCGPGRP, libc::pid_t);
nix::ioctl_read_bad!(bytes_waiting, libc::FIONREAD, libc::c_int);

/// The master of a pseudo-terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    master: AsyncFd<OwnedFd>,
}

impl Terminal {
    /// Opens a terminal of a size; the other end is for the program.
    ///
    /// # Errors
    /// There are no more terminals or descriptors.
    pub(super) fn open(size: Size) -> io::Result<(Self, OwnedFd)> {
        let pair = openpty(Some(&winsize(size)), None)?;
        for end in [&pair.master, &pair.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        fcntl(&pair.master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
        // SAFETY: an owned descriptor stays open, and the same, until it is dropped.
        let master = unsafe { AsyncFd::register(pair.master) }?;
        Ok((Self { master }, pair.slave))
    }

    /// Tells the program that its window has changed.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(crate) fn resize(&self, size: Size) -> io::Result<()> {
        let size = winsize(size);
        // SAFETY: the descriptor is open, and the kernel only reads the structure.
        unsafe { set_window_size(self.master.as_raw_fd(), &raw const size) }?;
        Ok(())
    }

    /// The process group that Ctrl-C would reach.
    pub(crate) fn foreground(&self) -> Option<i32> {
        let mut group = 0;
        // SAFETY: the descriptor is open, and the kernel writes one number.
        unsafe { foreground_group(self.master.as_raw_fd(), &raw mut group) }.ok()?;
        (group > 0).then_some(group)
    }

    /// Resolves when there may be something to read. Cancel safe.
    pub(super) async fn readable(&self) -> io::Result<()> {
        // What was found ready stays so until a read finds nothing.
        self.master.readable().await.map(|mut guard| guard.retain_ready())
    }

    /// Reads what is there. The end of the last program that has the terminal open is the end.
    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.master.try_io(Interest::READABLE, |master| Ok(nix::unistd::read(master, buffer)?));
        match read {
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => Ok(0),
            other => other,
        }
    }

    /// Types. Waits while the program does not read. Cancelling loses what was not written yet.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self
                .master
                .async_io(Interest::WRITABLE, |master| Ok(nix::unistd::write(master, bytes)?))
                .await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// How many bytes can be read now.
    pub(super) fn waiting(&self) -> usize {
        waiting(self.master.as_fd().as_raw_fd())
    }
}

/// How many bytes can be read from a descriptor now.
pub(super) fn waiting(descriptor: std::os::fd::RawFd) -> usize {
    let mut count = 0;
    // SAFETY: the kernel writes one number, or says that the descriptor knows no such question.
    let asked = unsafe { bytes_waiting(descriptor, &raw mut count) };
    asked.ok().and_then(|_| usize::try_from(count).ok()).unwrap_or(0)
}

fn winsize(size: Size) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 }
}
