//! How many descriptors the runtime and the sprite's programs may have open.
//!
//! The runtime may need thousands at once, when a sprite wakes and everybody comes. Programs that still
//! use select(2) break when they are given a descriptor above 1023, so they keep the usual soft limit, which
//! those that want more raise themselves.

use std::{io, sync::OnceLock};

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// The soft limit of programs, as systemd and login shells have it.
const FOR_PROGRAMS: rlim_t = 1024;

/// The hard limit, once the runtime has raised its own soft limit to it.
static HARD: OnceLock<rlim_t> = OnceLock::new();

/// Raises the runtime's own limit as far as it may.
pub(crate) fn raise_descriptors() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    HARD.get_or_init(|| hard);
    Ok(())
}

/// Between fork and exec of a program: gives it the usual limit. Async-signal-safe.
pub(crate) fn usual_descriptors() -> io::Result<()> {
    let Some(hard) = HARD.get().copied() else { return Ok(()) };
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(FOR_PROGRAMS), hard)?;
    Ok(())
}
