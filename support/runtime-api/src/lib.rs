//! What the host and the runtime (PID 1 of a sprite) say to each other.
//!
//! A driver gives the host a byte stream to the runtime: a Unix socket for `process`, hybrid vsock
//! for virtual machines. On every new stream the host sends one [`Request`] line (JSON, newline) and
//! the runtime answers with one [`Answer`] line. What follows depends on the request:
//!
//! - [`Request::Dial`] with `handoff`: the answer carries a connected socket as ancillary data
//!   (`SCM_RIGHTS`) and the stream is done: no byte of the connection is copied by anyone.
//! - [`Request::Dial`] without: the stream itself becomes the connection, relayed by the runtime.
//! - [`Request::Woken`]: a virtual machine learns the time after a sleep; the answer says that it has.
//! - [`Request::Sync`]: a virtual machine writes everything to its disk; the answer says that it has.
//! - [`Request::Control`]: a line-delimited stream of [`Command`]s in and [`Event`]s out. A newer
//!   control stream replaces an older one.
//!
//! The runtime cannot tell which driver runs it, only what its transport can carry.

mod client;
mod wire;

pub use client::{
    Address, CommandWriter, ControlStream, DialError, Dialed, EventReader, ask_sync, dial, open_control,
    tell_woken,
};
pub use wire::{
    Activity, ActivityKind, Answer, Command, Configuration, DialRefusal, DialRequest, Event, ListeningPort,
    MAX_LINE_BYTES, Question, RefusalCode, Reply, Request, SERIAL_PORT_NAME, SessionActivity, SessionLimits,
    Target, VSOCK_PORT, Woken,
};
