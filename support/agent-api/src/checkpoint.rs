//! Checkpoints and forks.

use ids::{CheckpointId, SpriteId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The longest comment, in bytes.
pub const MAX_COMMENT_BYTES: usize = 1024;

/// A sprite's disk as it was at one instant.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its name, among those of its sprite.
    pub id: CheckpointId,
    /// When it was asked for.
    pub create_time: Timestamp,
    /// The checkpoint that the disk had last been made into, or made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_id: Option<CheckpointId>,
    /// What it is for.
    #[serde(default)]
    pub comment: String,
    /// That one, and so on, oldest first. Some may have been deleted.
    #[serde(default)]
    pub history: Vec<CheckpointId>,
}

impl Checkpoint {
    /// As clients know it. Lists are never null and texts never absent: strict ones fail otherwise.
    #[must_use]
    pub fn in_public(&self) -> Value {
        json!({
            "id": self.id,
            // Older Pythons read a fraction of six digits, or none.
            "create_time": format!("{:.6}", self.create_time),
            "source_id": self.source_id.map(|id| id.to_string()).unwrap_or_default(),
            "comment": self.comment,
            "history": self.history,
            "is_auto": self.id.is_automatic(),
            "health": "",
        })
    }
}

/// Asks for a checkpoint. The answer is a stream of [`Progress`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CreateCheckpoint {
    /// What it is for.
    #[serde(default)]
    pub comment: String,
    /// Whether it is one of those that are made by themselves, and removed by themselves.
    #[serde(default)]
    pub automatic: bool,
}

/// From what a new sprite is made.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ForkSprite {
    /// A sprite of the same organization.
    pub source: SpriteId,
    /// One of its checkpoints; if absent, one is taken now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointId>,
    /// Whether it goes on from the source's memory, too. The source is suspended, and there is no checkpoint: those
    /// have no memory.
    #[serde(default)]
    pub memory: bool,
}

/// One line about something that takes a while.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// What kind of line.
    #[serde(rename = "type")]
    pub kind: ProgressKind,
    /// What goes on, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// What went wrong, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When.
    pub time: Timestamp,
}

/// Kinds of [`Progress`]. The last line is `complete` or `error`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgressKind {
    /// It goes on.
    Info,
    /// It is done.
    Complete,
    /// It has failed.
    Error,
}
