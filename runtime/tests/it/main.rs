//! The real runtime as an ordinary process, driven over its socket as a host and its clients would.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod activities;
mod client;
mod exec;
mod harness;
mod http;
mod limits;
mod ports;
mod protocol;
mod sessions;
