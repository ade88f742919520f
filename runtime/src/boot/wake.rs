//! A machine that slept, or was made from the memory of another one, learns the time and gets randomness of its own.

use std::{fs::File, io, os::fd::AsRawFd as _, sync::OnceLock};

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};
use runtime_api::Woken;

/// The most random bytes that are taken at once.
const MOST_ENTROPY: usize = 64;

#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    pool: [u8; MOST_ENTROPY],
}

nix::ioctl_write_ptr!(add_entropy, b'R', 0x03, [libc::c_int; 2]);
nix::ioctl_none!(reseed, b'R', 0x07);

/// The kernel's pool, which stays open: to find a file is work for which a wake would wait.
fn pool() -> io::Result<&'static File> {
    static POOL: OnceLock<File> = OnceLock::new();
    if let Some(pool) = POOL.get() {
        return Ok(pool);
    }
    let opened = File::options().write(true).open("/dev/random")?;
    Ok(POOL.get_or_init(|| opened))
}

/// Sets the clock and stirs the kernel's pool.
pub(crate) fn woken(woken: &Woken) -> io::Result<()> {
    let seconds = i64::try_from(woken.unix_nanos / 1_000_000_000).map_err(io::Error::other)?;
    let nanos = i64::try_from(woken.unix_nanos % 1_000_000_000).map_err(io::Error::other)?;
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, nanos))?;
    let mut info = PoolInfo { entropy_bits: 0, bytes: 0, pool: [0; MOST_ENTROPY] };
    let bytes = woken.entropy.as_bytes();
    let length = bytes.len().min(MOST_ENTROPY);
    info.pool[..length].copy_from_slice(&bytes[..length]);
    info.bytes = libc::c_int::try_from(length).map_err(io::Error::other)?;
    // Hexadecimal: four bits in each character.
    info.entropy_bits = info.bytes * 4;
    let pool = pool()?;
    // SAFETY: the structure begins with the two numbers, and as many bytes follow as the second says.
    unsafe { add_entropy(pool.as_raw_fd(), (&raw const info).cast()) }?;
    // SAFETY: takes no argument.
    unsafe { reseed(pool.as_raw_fd()) }?;
    Ok(())
}
