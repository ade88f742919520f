//! Programs that a client runs: what exactly, and how they are started, listened to and signalled.

mod command;
mod process;
mod terminal;

pub(crate) use self::{
    command::{Command, Size, Unfit, find},
    process::{Feed, Spawned, Tap, belongs, kill_session, signal_group, spawn},
    terminal::Terminal,
};
