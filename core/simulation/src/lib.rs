//! The pure crates at work together, under a simulated clock: several gateways (each a
//! [`lease::holder`] and a [`hold::Line`] for each sprite), one agent ([`lease::grantor`],
//! [`lifecycle::Machine`], [`lifecycle::Wakes`]), the channels between them, a driver and clients.
//!
//! ```text
//!   clients ──▶ gateways ══ channels (delay, break, come back) ══▶ agent ──▶ driver ──▶ sprites
//!      come, leave,   die, start anew            die, start anew and      takes its time,   run, freeze,
//!      stay, return                              adopt what runs          fails             die by themselves
//! ```
//!
//! What the shells do around the pure crates is done here too, as simply as can be: a mistake in how the
//! machines are put together shows here first. After every step the promises are checked
//! ([`check`](World::run)); a broken one ends the run with the seed and the last events.
//!
//! One seed gives one run, for ever. The crate refuses to read a clock, to be random by itself and to
//! import anything that does I/O.

mod agent;
mod channel;
mod chaos;
mod check;
mod client;
mod driver;
mod gateway;
mod random;
mod scenario;
mod world;

pub use random::Random;
pub use scenario::{Faults, Scenario};
pub use world::{Ending, Happening, Report, Violation, World};
