//! Real processes for tests: a gateway, an agent and sprites in a directory of their own.
//!
//! Nothing here is a stand-in. [`World::start`] runs the optimized programs that `make build` made,
//! with ports from the OS, and dropping the world stops them and fails the test if anything is left
//! behind.

mod child;
mod cli;
mod client;
mod exec;
mod world;

pub use child::Child;
pub use cli::{Cli, Run};
pub use client::{Answer, Raw};
pub use exec::{Socket, exit_of, next_text};
pub use world::{Driver, Options, Program, SpriteUrl, World, eventually, program};
