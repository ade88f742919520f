//! Sprites, organizations and tokens as the agent tells of them.

use std::collections::BTreeMap;

use ids::{Epoch, OrgSlug, SpriteId, SpriteName, TokenId, UrlSuffix};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ForkSprite;

/// The states that the outside world knows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PublicState {
    /// Its processes run.
    Running,
    /// Asleep with its memory kept.
    Warm,
    /// Asleep with only its disk kept.
    Cold,
}

/// Who may use a sprite's URL.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UrlAuth {
    /// Anyone.
    Public,
    /// Members of the owning organization. `default` and the empty string are older spellings.
    #[default]
    #[serde(alias = "default", alias = "")]
    Sprite,
}

/// The URL settings of a sprite.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct UrlSettings {
    /// Who may use the URL.
    #[serde(default)]
    pub auth: UrlAuth,
    /// Which members: `admins` or `org_users`. Kept and echoed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private_access: Option<String>,
}

/// When a sprite sleeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SpriteConfig {
    /// From the last activity to warm, in milliseconds.
    pub idle_timeout_ms: u64,
    /// From warm to cold, in milliseconds.
    pub cold_after_ms: u64,
}

/// All that is known of a sprite from outside.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Sprite {
    /// Its identity.
    pub id: SpriteId,
    /// Its name within the organization.
    pub name: SpriteName,
    /// The owner.
    pub organization: OrgSlug,
    /// The owner's part of the URL label.
    pub url_suffix: UrlSuffix,
    /// Who may use the URL.
    pub url_settings: UrlSettings,
    /// The state the world sees.
    pub state: PublicState,
    /// The state inside, for operators, such as `resuming`.
    pub phase: String,
    /// The present network identity.
    pub epoch: Epoch,
    /// When it sleeps.
    pub timing: SpriteConfig,
    /// Labels that the owner gave.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Environment of its processes.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// The `config` object of its creation, kept and echoed (protocol §4.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<serde_json::Value>,
    /// The driver that runs it.
    pub driver: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its settings last changed.
    pub updated_at: Timestamp,
    /// When it last became running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_running_at: Option<Timestamp>,
    /// When it last became warm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_warming_at: Option<Timestamp>,
}

/// Asks for a new sprite.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateSprite {
    /// Its name.
    pub name: SpriteName,
    /// Its owner.
    pub organization: OrgSlug,
    /// Who may use the URL.
    #[serde(default)]
    pub url_settings: UrlSettings,
    /// Labels.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Environment of its processes.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Kept and echoed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<serde_json::Value>,
    /// From the last activity to warm; the agent's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
    /// From warm to cold; the agent's default if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold_after_ms: Option<u64>,
    /// From what its disk is made; a new one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fork: Option<ForkSprite>,
}

/// Changes a sprite's settings; what is absent stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ChangeSprite {
    /// New URL settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_settings: Option<UrlSettings>,
    /// New labels, replacing the old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// New idle timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
    /// New time from warm to cold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold_after_ms: Option<u64>,
}

/// An answer to a change: what is now, and from which revision of the watch stream on it can be seen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Changed<T> {
    /// The watch revision that carries the change.
    pub revision: u64,
    /// What is now.
    #[serde(flatten)]
    pub now: T,
}

/// How deep a forced sleep goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SleepDepth {
    /// Memory kept.
    #[default]
    Warm,
    /// Memory kept on disk, and the RAM given back, where the driver can; else as warm.
    Suspended,
    /// Only the disk kept.
    Cold,
}

/// Asks a sprite to sleep now, whoever uses it.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct SleepSprite {
    /// How deep.
    #[serde(default)]
    pub depth: SleepDepth,
}

/// Why a sprite is awake, and when it will sleep.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WhyAwake {
    /// The state the world sees.
    pub state: PublicState,
    /// The state inside.
    pub phase: String,
    /// The present network identity.
    pub epoch: Epoch,
    /// Who keeps it awake; empty if nobody does.
    pub holders: Vec<WhyHolder>,
    /// If nobody holds it: how long until it sinks deeper, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleeps_in_ms: Option<u64>,
    /// What is next: `warm`, `cold`, or nothing when it is cold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sinks_to: Option<PublicState>,
    /// A failure that matters now, such as a start that is being retried or a pause that was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Reason>,
}

/// Something that went wrong, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// What.
    pub message: String,
    /// In how many milliseconds it is tried again, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_in_ms: Option<u64>,
}

/// One holder of a lease.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WhyHolder {
    /// Who.
    pub holder: String,
    /// `connections` of a gateway; or inside the sprite an `exec` with a client, a `session` without one, a
    /// `task`; `more` stands for those that are too many to be listed.
    pub activity: String,
    /// What it is called, such as a command line, if it is something inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// For how long it has held, in milliseconds.
    pub held_for_ms: u64,
    /// Open client connections behind it.
    pub connections: u32,
    /// Requests in flight behind it.
    pub requests: u32,
    /// Time since the last byte, in milliseconds, if it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_byte_ms_ago: Option<u64>,
    /// The request that woke the sprite, if this holder did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// What a driver can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Whether it can stop a sprite's time and start it again.
    pub pause: bool,
    /// Whether it can put memory on disk and give the RAM back.
    pub suspend: bool,
    /// Whether it can take and restore checkpoints.
    pub checkpoint: bool,
    /// Whether a sprite can be made from the memory of a suspended one.
    pub fork_memory: bool,
}

/// An organization: the owner of sprites and tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Organization {
    /// Its name.
    pub slug: OrgSlug,
    /// Its part of every URL label.
    pub url_suffix: UrlSuffix,
}

/// Asks for a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MintToken {
    /// The organization that the token speaks for; made if it does not exist.
    pub organization: OrgSlug,
    /// What the token is for, for people.
    #[serde(default)]
    pub description: String,
}

/// A new token. Its text is shown here and never again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MintedToken {
    /// Its name, for revoking it.
    pub id: TokenId,
    /// The secret text: `slug/suffix/id/value`.
    pub token: String,
    /// Whom it speaks for.
    pub organization: Organization,
}

/// A token as it is kept: without its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Its name.
    pub id: TokenId,
    /// Whom it speaks for.
    pub organization: OrgSlug,
    /// SHA-256 of its text, in lowercase hex.
    pub sha256: String,
    /// What it is for.
    pub description: String,
    /// When it was minted.
    pub created_at: Timestamp,
}
