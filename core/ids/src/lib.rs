//! Names and numbers that are parsed once, at the door, and trusted from then on.
//!
//! Every type here is a newtype whose constructor proves something. Past the door there is a
//! [`SpriteName`], never a `String`; a [`Moment`], never a bare number. The crate refuses to do
//! anything else: no clock, no randomness, no I/O.

mod checkpoint;
mod moment;
mod name;
mod number;

pub use checkpoint::{CheckpointId, CheckpointIdError};
pub use moment::Moment;
pub use name::{HolderId, NameError, OrgSlug, ServiceName, SpriteName, TokenId, UrlSuffix};
pub use number::{Attempt, Epoch, Port, PortError, SpriteId};
