//! Many streams over the one serial port of a virtual machine.
//!
//! ```text
//!   streams          each with its own window: one that is stalled stalls no other
//!   yamux            a new session for every connection of the host
//!   link             frames that survive a host that was killed and a machine that slept
//!   serial port      virtio-serial: a Unix socket at the host, a character device in the guest
//! ```
//!
//! The host opens streams, the guest accepts them. Whoever loses the other loses all streams at once: they end with
//! an error, and the next session starts from nothing.

mod framed;
mod guest;
mod host;

pub use guest::Guest;
pub use host::{Host, Opener};
pub use stream::MuxStream;

mod stream {
    use tokio_util::compat::Compat;

    /// One stream. Dropped before its end, it is reset.
    pub type MuxStream = Compat<yamux::Stream>;
}

/// Streams of one machine at once; more wait to be opened. Each may have 256 KiB under way in each direction when
/// whoever it is for does not read, so this bounds what a machine can make the host keep: half a GiB.
pub const MAX_STREAMS: usize = 2048;

/// Both ends keep to the same limits.
fn limits() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(MAX_STREAMS);
    // The least that so many streams of 256 KiB may have.
    config.set_max_connection_receive_window(Some(MAX_STREAMS * yamux::DEFAULT_CREDIT as usize));
    config
}

#[cfg(test)]
mod tests;
