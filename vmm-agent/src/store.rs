//! What survives the power cord: sprites, organizations and tokens, in SQLite.
//!
//! One thread owns the connection; callers send it closures and wait. Every write is committed, with
//! an fsync, before the call returns (promise 6), so that the agent only ever acts on what it has
//! written. Writes that wait at the same time share one commit, or a wake storm would be an fsync
//! storm. Secrets are stored as hashes.

use std::{collections::HashMap, path::Path, time::Duration};

use agent_api::{Organization, PublicState, Sprite, SpriteConfig, TokenRecord, UrlSettings};
use ids::{Epoch, OrgSlug, SpriteId, TokenId};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use crate::sprite::Book;

/// Closures waiting for the store's thread; more callers than this wait in line.
const QUEUE: usize = 256;
/// How long SQLite waits for a lock that a backup tool may hold.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS organizations (
    slug TEXT PRIMARY KEY,
    url_suffix TEXT NOT NULL UNIQUE
) STRICT;
CREATE TABLE IF NOT EXISTS tokens (
    id TEXT PRIMARY KEY,
    organization TEXT NOT NULL REFERENCES organizations (slug),
    sha256 TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS sprites (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    organization TEXT NOT NULL REFERENCES organizations (slug),
    driver TEXT NOT NULL,
    -- Settings, as JSON: they are read and written whole.
    settings TEXT NOT NULL,
    state TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    last_running_at TEXT,
    last_warming_at TEXT,
    -- Set before a destroy begins, so that a killed agent finishes it.
    destroying INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS sprite_names ON sprites (organization, name) WHERE destroying = 0;
CREATE TABLE IF NOT EXISTS checkpoints (
    sprite TEXT PRIMARY KEY REFERENCES sprites (id) ON DELETE CASCADE,
    -- All of a sprite's, as JSON: each step of a checkpoint or a restore changes it in one write.
    book TEXT NOT NULL
) STRICT;
";

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("the name is taken")]
    NameTaken,
    #[error("the disk of the agent's state directory is full")]
    DiskFull,
    #[error("the store failed")]
    Sqlite(#[source] rusqlite::Error),
    #[error("the store holds something unreadable in {what}")]
    Corrupt { what: &'static str },
    #[error("the store has stopped")]
    Stopped,
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::DiskFull,
            Some(rusqlite::ErrorCode::ConstraintViolation) => Self::NameTaken,
            _ => Self::Sqlite(error),
        }
    }
}

/// One write: does its statement, and returns what to do when the commit is known.
type Job = Box<dyn FnOnce(&Connection) -> Acknowledge + Send>;
type Acknowledge = Box<dyn FnOnce(Committed) + Send>;

/// How the commit of a batch ended.
#[derive(Clone, Copy, Debug)]
enum Committed {
    Yes,
    DiskFull,
    No,
}

/// A handle to the store; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    jobs: mpsc::Sender<Job>,
}

/// Everything that was stored, read once at start.
#[derive(Debug)]
pub(crate) struct Stored {
    /// How often this state directory has been opened, this time included. It makes watch revisions
    /// grow over restarts.
    pub(crate) boots: u64,
    pub(crate) organizations: Vec<Organization>,
    pub(crate) tokens: Vec<TokenRecord>,
    pub(crate) sprites: Vec<Sprite>,
    /// The records of checkpoints, of sprites that have one.
    pub(crate) books: HashMap<SpriteId, Book>,
    /// Sprites whose destroy was under way.
    pub(crate) destroying: Vec<SpriteId>,
}

impl Store {
    /// Opens or makes the database and reads all of it.
    pub(crate) fn open(path: &Path) -> Result<(Self, Stored), StoreError> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.execute_batch(SCHEMA)?;
        let stored = read_all(&mut connection)?;
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        // Ends when the last handle is dropped.
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                while let Some(first) = queue.blocking_recv() {
                    write_batch(&connection, first, &mut queue);
                }
            })
            .map_err(|_| StoreError::Stopped)?;
        Ok((Self { jobs }, stored))
    }

    /// Runs one statement on the store's thread and returns when it is committed. A caller that gives
    /// up does not stop what it has asked for.
    async fn run(
        &self,
        work: impl FnOnce(&Connection) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.queue(reply, work).await?;
        answer.await.map_err(|_| StoreError::Stopped)?
    }

    async fn queue(
        &self,
        reply: oneshot::Sender<Result<(), StoreError>>,
        work: impl FnOnce(&Connection) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), StoreError> {
        let job: Job = Box::new(move |connection| {
            let done = work(connection);
            Box::new(move |committed| {
                let outcome = done.and(match committed {
                    Committed::Yes => Ok(()),
                    Committed::DiskFull => Err(StoreError::DiskFull),
                    Committed::No => Err(StoreError::Stopped),
                });
                // Nobody may be waiting any more; the work is done all the same.
                let _ = reply.send(outcome);
            })
        });
        self.jobs.send(job).await.map_err(|_| StoreError::Stopped)
    }

    pub(crate) async fn add_organization(&self, organization: Organization) -> Result<(), StoreError> {
        self.run(move |db| {
            db.execute(
                "INSERT INTO organizations (slug, url_suffix) VALUES (?1, ?2)",
                params![organization.slug.as_str(), organization.url_suffix.as_str()],
            )?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn add_token(&self, token: TokenRecord) -> Result<(), StoreError> {
        self.run(move |db| {
            db.execute(
                "INSERT INTO tokens (id, organization, sha256, description, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    token.id.as_str(),
                    token.organization.as_str(),
                    token.sha256,
                    token.description,
                    token.created_at.to_string()
                ],
            )?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn remove_token(&self, id: TokenId) -> Result<(), StoreError> {
        self.run(move |db| {
            db.execute("DELETE FROM tokens WHERE id = ?1", [id.as_str()])?;
            Ok(())
        })
        .await
    }

    /// Adds a sprite or replaces its settings and state.
    pub(crate) async fn save_sprite(&self, sprite: Sprite) -> Result<(), StoreError> {
        self.run(move |db| write_sprite(db, &sprite)).await
    }

    /// As [`Store::save_sprite`], in order with it, without waiting for the commit: for state that the
    /// next agent finds out by looking.
    pub(crate) async fn save_sprite_soon(&self, sprite: Sprite) -> Result<(), StoreError> {
        let (reply, _) = oneshot::channel();
        self.queue(reply, move |db| write_sprite(db, &sprite)).await
    }

    /// Notes that a destroy has begun; from here on the name is free.
    pub(crate) async fn mark_destroying(&self, id: SpriteId) -> Result<(), StoreError> {
        self.run(move |db| {
            db.execute("UPDATE sprites SET destroying = 1 WHERE id = ?1", [id.to_string()])?;
            Ok(())
        })
        .await
    }

    /// Replaces the record of a sprite's checkpoints.
    pub(crate) async fn save_book(&self, id: SpriteId, book: Book) -> Result<(), StoreError> {
        self.run(move |db| {
            let book =
                serde_json::to_string(&book).map_err(|_| StoreError::Corrupt { what: "checkpoints" })?;
            db.execute(
                "INSERT INTO checkpoints (sprite, book) VALUES (?1, ?2)
                 ON CONFLICT (sprite) DO UPDATE SET book = excluded.book",
                params![id.to_string(), book],
            )?;
            Ok(())
        })
        .await
    }

    /// Forgets a sprite whose destroy is complete.
    pub(crate) async fn remove_sprite(&self, id: SpriteId) -> Result<(), StoreError> {
        self.run(move |db| {
            db.execute("DELETE FROM sprites WHERE id = ?1", [id.to_string()])?;
            Ok(())
        })
        .await
    }
}

/// The part of a sprite that its owner sets.
#[derive(serde::Serialize, serde::Deserialize)]
struct Settings {
    url_settings: UrlSettings,
    timing: SpriteConfig,
    labels: Vec<String>,
    environment: std::collections::BTreeMap<String, String>,
    config: Option<serde_json::Value>,
}

impl Settings {
    fn of(sprite: &Sprite) -> Self {
        Self {
            url_settings: sprite.url_settings.clone(),
            timing: sprite.timing,
            labels: sprite.labels.clone(),
            environment: sprite.environment.clone(),
            config: sprite.config.clone(),
        }
    }
}

fn write_sprite(db: &Connection, sprite: &Sprite) -> Result<(), StoreError> {
    let settings =
        serde_json::to_string(&Settings::of(sprite)).map_err(|_| StoreError::Corrupt { what: "settings" })?;
    let mut statement = db.prepare_cached(
        "INSERT INTO sprites (id, name, organization, settings, state, epoch, created_at, updated_at,
                              last_running_at, last_warming_at, driver)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
         ON CONFLICT (id) DO UPDATE SET settings = excluded.settings, state = excluded.state,
             epoch = excluded.epoch, updated_at = excluded.updated_at,
             last_running_at = excluded.last_running_at, last_warming_at = excluded.last_warming_at",
    )?;
    statement.execute(params![
        sprite.id.to_string(),
        sprite.name.as_str(),
        sprite.organization.as_str(),
        settings,
        state_text(sprite.state),
        i64::try_from(sprite.epoch.0).unwrap_or(i64::MAX),
        sprite.created_at.to_string(),
        sprite.updated_at.to_string(),
        sprite.last_running_at.map(|at| at.to_string()),
        sprite.last_warming_at.map(|at| at.to_string()),
        sprite.driver,
    ])?;
    Ok(())
}

/// Runs `first` and everything else that waits in one transaction. A statement that fails undoes only
/// itself (SQLite's ABORT), so one caller's duplicate name spoils nobody else's write.
fn write_batch(connection: &Connection, first: Job, queue: &mut mpsc::Receiver<Job>) {
    let begun = connection.execute_batch("BEGIN IMMEDIATE");
    let mut acknowledge = vec![first(connection)];
    while acknowledge.len() < QUEUE
        && let Ok(job) = queue.try_recv()
    {
        acknowledge.push(job(connection));
    }
    let committed = match begun.and_then(|()| connection.execute_batch("COMMIT")) {
        Ok(()) => Committed::Yes,
        Err(error) => {
            error!(%error, "The store could not commit");
            // Fails only when there is nothing to roll back.
            let _ = connection.execute_batch("ROLLBACK");
            match StoreError::from(error) {
                StoreError::DiskFull => Committed::DiskFull,
                StoreError::NameTaken
                | StoreError::Sqlite(_)
                | StoreError::Corrupt { .. }
                | StoreError::Stopped => Committed::No,
            }
        }
    };
    for acknowledge in acknowledge {
        acknowledge(committed);
    }
}

fn read_all(db: &mut Connection) -> Result<Stored, StoreError> {
    let transaction = db.transaction()?;
    transaction.execute(
        "INSERT INTO meta (key, value) VALUES ('boots', 1) ON CONFLICT (key) DO UPDATE SET value = value + 1",
        [],
    )?;
    let boots: Option<i64> = transaction
        .query_row("SELECT value FROM meta WHERE key = 'boots'", [], |row| row.get(0))
        .optional()?;
    let stored = Stored {
        boots: boots.and_then(|n| u64::try_from(n).ok()).ok_or(StoreError::Corrupt { what: "meta" })?,
        organizations: query(&transaction, "SELECT slug, url_suffix FROM organizations", |row| {
            Ok(Organization { slug: parsed(row, 0, "slug")?, url_suffix: parsed(row, 1, "url_suffix")? })
        })?,
        tokens: query(
            &transaction,
            "SELECT id, organization, sha256, description, created_at FROM tokens",
            |row| {
                Ok(TokenRecord {
                    id: parsed(row, 0, "token id")?,
                    organization: parsed(row, 1, "organization")?,
                    sha256: row.get(2)?,
                    description: row.get(3)?,
                    created_at: parsed(row, 4, "created_at")?,
                })
            },
        )?,
        sprites: query(
            &transaction,
            "SELECT s.id, s.name, s.organization, o.url_suffix, s.settings, s.state, s.epoch, s.created_at,
                    s.updated_at, s.last_running_at, s.last_warming_at, s.driver
             FROM sprites s JOIN organizations o ON o.slug = s.organization WHERE s.destroying = 0",
            read_sprite,
        )?,
        books: query(&transaction, "SELECT sprite, book FROM checkpoints", |row| {
            let book: String = row.get(1)?;
            let book =
                serde_json::from_str(&book).map_err(|_| StoreError::Corrupt { what: "checkpoints" })?;
            Ok((parsed(row, 0, "sprite id")?, book))
        })?
        .into_iter()
        .collect(),
        destroying: query(&transaction, "SELECT id FROM sprites WHERE destroying = 1", |row| {
            parsed(row, 0, "sprite id")
        })?,
    };
    transaction.commit()?;
    Ok(stored)
}

fn read_sprite(row: &Row<'_>) -> Result<Sprite, StoreError> {
    let settings: String = row.get(4)?;
    let settings: Settings =
        serde_json::from_str(&settings).map_err(|_| StoreError::Corrupt { what: "settings" })?;
    let state: String = row.get(5)?;
    let epoch: i64 = row.get(6)?;
    Ok(Sprite {
        id: parsed(row, 0, "sprite id")?,
        name: parsed(row, 1, "sprite name")?,
        organization: parsed::<OrgSlug>(row, 2, "organization")?,
        url_suffix: parsed(row, 3, "url_suffix")?,
        url_settings: settings.url_settings,
        state: parse_state(&state)?,
        phase: state,
        epoch: Epoch(u64::try_from(epoch).map_err(|_| StoreError::Corrupt { what: "epoch" })?),
        timing: settings.timing,
        labels: settings.labels,
        environment: settings.environment,
        config: settings.config,
        driver: row.get(11)?,
        created_at: parsed(row, 7, "created_at")?,
        updated_at: parsed(row, 8, "updated_at")?,
        last_running_at: parsed_optional(row, 9)?,
        last_warming_at: parsed_optional(row, 10)?,
    })
}

fn query<T>(
    db: &Connection,
    sql: &str,
    mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = db.prepare(sql)?;
    let mut rows = statement.query([])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push(read(row)?);
    }
    Ok(all)
}

fn parsed<T: std::str::FromStr>(row: &Row<'_>, column: usize, what: &'static str) -> Result<T, StoreError> {
    let text: String = row.get(column)?;
    text.parse().map_err(|_| StoreError::Corrupt { what })
}

fn parsed_optional(row: &Row<'_>, column: usize) -> Result<Option<Timestamp>, StoreError> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| text.parse().map_err(|_| StoreError::Corrupt { what: "a time" })).transpose()
}

const fn state_text(state: PublicState) -> &'static str {
    match state {
        PublicState::Running => "running",
        PublicState::Warm => "warm",
        PublicState::Cold => "cold",
    }
}

fn parse_state(text: &str) -> Result<PublicState, StoreError> {
    match text {
        "running" => Ok(PublicState::Running),
        "warm" => Ok(PublicState::Warm),
        "cold" => Ok(PublicState::Cold),
        _ => Err(StoreError::Corrupt { what: "state" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn organization() -> Organization {
        Organization { slug: "acme".parse().unwrap(), url_suffix: "k7f2q".parse().unwrap() }
    }

    fn sprite(n: u128, name: &str) -> Sprite {
        let now = Timestamp::UNIX_EPOCH;
        Sprite {
            id: SpriteId::from_u128(n),
            name: name.parse().unwrap(),
            organization: organization().slug,
            url_suffix: organization().url_suffix,
            url_settings: UrlSettings::default(),
            state: PublicState::Cold,
            phase: "cold".into(),
            epoch: Epoch(7),
            timing: SpriteConfig { idle_timeout_ms: 30_000, cold_after_ms: 600_000 },
            labels: vec!["a".into()],
            environment: [("K".to_owned(), "v".to_owned())].into(),
            config: None,
            driver: "process".into(),
            created_at: now,
            updated_at: now,
            last_running_at: Some(now),
            last_warming_at: None,
        }
    }

    #[tokio::test]
    async fn what_was_saved_is_there_after_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.db");
        let (store, stored) = Store::open(&path).unwrap();
        assert_eq!(stored.boots, 1);
        store.add_organization(organization()).await.unwrap();
        store.save_sprite(sprite(1, "one")).await.unwrap();
        store.save_sprite(sprite(2, "two")).await.unwrap();
        store.mark_destroying(SpriteId::from_u128(2)).await.unwrap();
        drop(store);
        let (_, stored) = Store::open(&path).unwrap();
        assert_eq!(stored.boots, 2);
        assert_eq!(stored.sprites, vec![sprite(1, "one")]);
        assert_eq!(stored.destroying, vec![SpriteId::from_u128(2)]);
    }

    #[tokio::test]
    async fn a_name_is_unique_until_its_sprite_is_destroyed() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&dir.path().join("agent.db")).unwrap();
        store.add_organization(organization()).await.unwrap();
        store.save_sprite(sprite(1, "one")).await.unwrap();
        assert!(matches!(store.save_sprite(sprite(2, "one")).await, Err(StoreError::NameTaken)));
        store.mark_destroying(SpriteId::from_u128(1)).await.unwrap();
        store.save_sprite(sprite(2, "one")).await.unwrap();
    }
}
