//! What the sprite's programs get less of than the runtime: descriptors, and mercy.
//!
//! The runtime may need thousands at once, when a sprite wakes and everybody comes. Programs that still
//! use select(2) break when they are given a descriptor above 1023, so they keep the usual soft limit, which
//! those that want more raise themselves.

use std::{io, sync::OnceLock};

use nix::{
    fcntl::{OFlag, open},
    sys::{
        resource::{Resource, getrlimit, rlim_t, setrlimit},
        stat::Mode,
    },
    unistd::write,
};

/// The soft limit of programs, as systemd and login shells have it.
const FOR_PROGRAMS: rlim_t = 1024;

/// How much rather than others a program is ended when memory is short, of 1000.
const OOM_SCORE: &[u8] = b"500";

/// The hard limit, once the runtime has raised its own soft limit to it.
static HARD: OnceLock<rlim_t> = OnceLock::new();

/// Raises the runtime's own limit as far as it may.
pub(crate) fn raise_descriptors() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    HARD.get_or_init(|| hard);
    Ok(())
}

/// Between fork and exec of a program: gives it the usual limit of descriptors, and makes it go before
/// the runtime when memory is short. Async-signal-safe.
pub(crate) fn of_program() -> io::Result<()> {
    if let Some(hard) = HARD.get().copied() {
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(FOR_PROGRAMS), hard)?;
    }
    // Refused where the runtime itself goes first already, and then it is not needed.
    if let Ok(file) = open(c"/proc/self/oom_score_adj", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()) {
        let _refused = write(&file, OOM_SCORE);
    }
    Ok(())
}
