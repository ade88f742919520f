//! The lease channel: `POST /v1/leases` upgraded to [`UPGRADE_PROTOCOL`], then one JSON message a
//! line in each direction.
//!
//! The holder speaks first with [`HolderMessage::Hello`]. Leases belong to the [`HolderId`], not to
//! the connection: when a channel breaks, the agent keeps the holder's leases for the TTL that it
//! told in [`GrantorMessage::Welcome`], and a holder that comes back in time re-asserts them.

use std::{collections::BTreeMap, path::PathBuf};

use ids::{Attempt, Epoch, HolderId, Port, SpriteId};
use runtime_api::Address;
use serde::{Deserialize, Serialize};

/// The value of the `Upgrade` header.
pub const UPGRADE_PROTOCOL: &str = "sprite-leases/1";
/// The longest line either side accepts, in bytes.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// From the holder to the agent.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum HolderMessage {
    /// Always first.
    Hello {
        /// Who holds.
        holder: HolderId,
    },
    /// Wants the sprite awake. Answered by [`GrantorMessage::Granted`] or [`GrantorMessage::Refused`].
    Acquire {
        /// Which sprite.
        sprite: SpriteId,
        /// This try; the answer names it.
        attempt: Attempt,
        /// The request that caused it, for logs and `why awake`.
        request_id: String,
    },
    /// After a reconnect: still uses a lease of this epoch. Answered like an acquire.
    Reassert {
        /// Which sprite.
        sprite: SpriteId,
        /// The attempt under which the lease is held from now on.
        attempt: Attempt,
        /// The epoch in use.
        epoch: Epoch,
    },
    /// Needs the sprite no longer. Not answered. Older or unknown attempts are ignored.
    Release {
        /// Which sprite.
        sprite: SpriteId,
        /// The attempt that was granted, or is still unanswered.
        attempt: Attempt,
        /// Time since the last activity that the lease covered, in milliseconds.
        idle_for_ms: u64,
    },
    /// What goes on under a lease, for `why awake`.
    Report {
        /// Which sprite.
        sprite: SpriteId,
        /// What goes on.
        usage: Usage,
    },
    /// Proves that the holder lives. Sent at least every third of the TTL.
    Ping,
}

/// What goes on under a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Open client connections.
    pub connections: u32,
    /// Requests in flight.
    pub requests: u32,
    /// Time since the last byte in either direction, in milliseconds.
    pub last_byte_ms_ago: u64,
}

/// From the agent to the holder.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum GrantorMessage {
    /// Answer to Hello.
    Welcome {
        /// How long leases outlive a silent holder, in milliseconds.
        holder_ttl_ms: u64,
    },
    /// The sprite is awake and stays so until the release.
    Granted {
        /// Which sprite.
        sprite: SpriteId,
        /// The try that is answered.
        attempt: Attempt,
        /// The sprite's network identity.
        epoch: Epoch,
        /// How to reach it.
        endpoint: Endpoint,
        /// The state that the sprite was woken from.
        woken_from: crate::PublicState,
    },
    /// The sprite can't be had now.
    Refused {
        /// Which sprite.
        sprite: SpriteId,
        /// The try that is answered.
        attempt: Attempt,
        /// Why.
        refusal: Refusal,
    },
    /// A lease of this epoch or an older one has ended; the sprite sleeps, is gone or has moved.
    /// Whoever still needs it acquires again.
    Revoked {
        /// Which sprite.
        sprite: SpriteId,
        /// The epoch that has ended.
        epoch: Epoch,
        /// Why, for people.
        reason: String,
    },
    /// Answer to Ping.
    Pong,
}

/// Why a sprite can't be had.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people: what happened and what to do.
    pub message: String,
    /// When a retry can help, in milliseconds; absent if it can't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// Kinds of [`Refusal`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// There is no such sprite here.
    NotFound,
    /// It is being destroyed.
    Destroying,
    /// Its start or resume failed; it is tried again after the time told.
    StartFailed,
    /// The host has no room, or too many wakes are under way.
    HostFull,
    /// The agent shuts down.
    ShuttingDown,
}

/// How a gateway reaches a sprite.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Endpoint {
    /// The runtime's Unix socket on this host, which hands connected sockets over.
    Handoff {
        /// The socket's path.
        path: PathBuf,
    },
    /// The Unix socket of a virtual machine's vsock on this host, by the convention of Firecracker and Cloud
    /// Hypervisor; the runtime is at port 1024.
    Vsock {
        /// The socket's path.
        path: PathBuf,
    },
    /// Addresses of something that has no runtime of ours, each `host:port`.
    Address {
        /// Where the URL leads.
        web: String,
        /// Where `port--` URLs lead. A port that is not listed leads to the host of `web`.
        #[serde(default)]
        ports: BTreeMap<Port, String>,
    },
}

impl Endpoint {
    /// Where the sprite's runtime is; `None` if it has none of ours.
    #[must_use]
    pub fn runtime(&self) -> Option<Address> {
        match self {
            Self::Handoff { path } => Some(Address::Socket(path.clone())),
            Self::Vsock { path } => Some(Address::Vsock(path.clone())),
            Self::Address { .. } => None,
        }
    }
}
