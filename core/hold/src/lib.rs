//! One sprite's line of held requests: who waits, in which order, for how long, and at which pace they go.
//!
//! ```text
//!            arrive (room)                 open, or another was answered         answered or cancel
//!  request ────────────────► waiting ────────────────────────────────► released ───────────────────► gone
//!     │                         │ cancel, expire, fail                  (at most `release_at_once`)
//!     │ arrive (no room)        ▼
//!     └──────► refused         gone
//! ```
//!
//! While the sprite sleeps the line is closed and everyone waits. When it opens, requests leave in the
//! order in which they came, no more at once than a sprite fresh from sleep can take; whoever arrives
//! meanwhile queues behind them. Once the line is empty, requests pass without any bookkeeping.
//!
//! The crate refuses to know why a line opens or closes (that is the lease's matter), and to send anything.

mod line;

pub use line::{Arrival, Full, Limits, Line, Room, Ticket};
