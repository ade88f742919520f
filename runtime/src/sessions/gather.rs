//! Letting output gather before it is read.
//!
//! A program that writes a lot in small pieces wakes its reader for each, and both do hardly anything else. So
//! when much has come of late and the pipe has been emptied, the next read waits for a moment that is too short
//! for people and long enough for a hundred pieces.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use ids::Moment;
use nix::fcntl::{FcntlArg, fcntl};
use tokio::io::{Interest, unix::AsyncFd};

use crate::exec::Tap;

/// So much in [`WINDOW`] is a lot: 12 MiB a second.
const A_LOT: usize = 64 << 10;
const WINDOW: Duration = Duration::from_millis(5);
/// The moment. Timers of the asynchronous runtime count in milliseconds, in which a pipe fills many times.
const MOMENT_NANOS: i64 = 200_000;
/// How much a pipe holds of a program that writes a lot, in bytes: what it writes in that moment.
const PIPE_BYTES: i32 = 512 << 10;

/// Whether a program writes a lot. Pure.
#[derive(Debug, Default)]
struct Flow {
    since: Option<Moment>,
    bytes: usize,
}

impl Flow {
    fn is_large(&mut self, bytes: usize, now: Moment) -> bool {
        if self.since.is_none_or(|since| now - since > WINDOW) {
            (self.since, self.bytes) = (Some(now), 0);
        }
        self.bytes += bytes;
        self.bytes >= A_LOT
    }
}

/// One stream's pauses.
#[derive(Debug, Default)]
pub(super) struct Gather {
    flow: Flow,
    timer: Option<AsyncFd<OwnedFd>>,
    is_impossible: bool,
}

impl Gather {
    /// Waits if that pays, after `bytes` were read and nothing was left. Cancel safe.
    pub(super) async fn after(&mut self, bytes: usize, now: Moment, tap: &Tap) {
        // A terminal hands over a little at a time, whatever is there.
        let Tap::Pipe(pipe) = tap else { return };
        if self.is_impossible || !self.flow.is_large(bytes, now) {
            return;
        }
        if self.timer.is_none() {
            // Where pipes can't be larger, as when a user has too many large ones, waiting would cost more than
            // it saves.
            let larger = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
            self.timer = larger.ok().and_then(|_| timer().ok());
        }
        let Some(timer) = &self.timer else {
            self.is_impossible = true;
            return;
        };
        if rest(timer).await.is_err() {
            self.is_impossible = true;
        }
    }
}

fn timer() -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the call touches no memory of ours.
    let made = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    let timer = unsafe { OwnedFd::from_raw_fd(made) };
    // SAFETY: an owned descriptor stays open, and the same, until it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?)
}

async fn rest(timer: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let times =
        libc::itimerspec { it_interval: once, it_value: libc::timespec { tv_nsec: MOMENT_NANOS, ..once } };
    // SAFETY: the kernel only reads the times, and is not asked for the old ones.
    let set = unsafe { libc::timerfd_settime(timer.as_raw_fd(), 0, &raw const times, std::ptr::null_mut()) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut count = [0; 8];
    timer
        .async_io(Interest::READABLE, |timer| Ok(nix::unistd::read(timer.as_fd(), &mut count).map(drop)?))
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lot_is_much_in_a_short_time() {
        let at = |millis| Moment::from_origin(Duration::from_millis(millis));
        let mut flow = Flow::default();
        assert!(!flow.is_large(4096, at(0)));
        assert!(!flow.is_large(40_000, at(1)));
        assert!(flow.is_large(40_000, at(2)));
        assert!(flow.is_large(1, at(5)));
        assert!(!flow.is_large(60_000, at(8)), "that was another time");
        for second in 0..10 {
            assert!(!flow.is_large(60_000, at(100 + second * 6)));
        }
    }
}
