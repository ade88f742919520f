//! The whole path, with nothing simulated: each test starts a gateway and an agent of its own, makes
//! real sprites and talks to them over the network. Tests are named for what they claim.

mod activity;
mod api;
mod auth;
mod checkpoints;
mod cli;
mod command;
mod connections;
mod console;
mod crash;
mod databases;
mod delivery;
mod faults;
mod files;
mod firecracker;
mod framing;
mod idle;
mod images;
mod inside;
mod machine;
mod pressure;
mod proxy;
mod readiness;
mod relay;
mod sdk;
mod storm;
mod wake;
