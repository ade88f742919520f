//! When a sprite wakes and sleeps.
//!
//! [`Machine`] is one sprite's life: it decides what the driver does next, and when. [`Wakes`] is its
//! host's scheduler: how many sprites wake at once, and whose turn it is. [`Memory`] is its host's memory: for how many
//! there is room, and who makes room.
//!
//! Neither does anything. They take what happened, whether the sprite is needed and the time, and return
//! effects. The crate refuses to know who needs a sprite (that is the lease's matter) and how a driver works.

mod backoff;
mod machine;
mod memory;
mod state;
mod vocabulary;
mod wakes;

pub use machine::Machine;
pub use memory::{Memory, MemoryLimits, Reading, Resident, Verdict};
pub use vocabulary::{
    Capabilities, Confirmation, Demand, Depth, Effect, Event, Found, Public, Refusal, Residence, Revocation,
    Settings, Timing, Transition, Trouble,
};
pub use wakes::{Ask, Full, Load, WakeLimits, Wakes};
