//! The agent as a whole: what its parts share, how it starts, and how it stops.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_api::{
    Changed, CreateSprite, ForkSprite, Organization, PublicState, Sprite, SpriteConfig, UrlSettings,
};
use anyhow::Context;
use axum::http::StatusCode;
use dashmap::DashMap;
use ids::{Epoch, Moment, SpriteId};
use jiff::Timestamp;
use lifecycle::Residence;
use rand::RngCore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    api::Failure,
    config::{Config, OnShutdown},
    directory::Directory,
    drivers::{
        Adopted, Driver, SpriteSpec,
        command::{self, configured_id},
    },
    holders::Holders,
    memory,
    metrics::Metrics,
    sprite::{self, Begin, Book, ForkFrom, Handle, SpriteError},
    store::{Store, StoreError, Stored},
    tokens,
    wakes::Wakes,
};

/// Idle timeouts and cold-after times that a sprite may have: less than a tenth of a second would
/// make it flap, and a century is for ever.
const TIMING_RANGE_MS: std::ops::RangeInclusive<u64> = 100..=100 * 365 * 24 * 3600 * 1000;

/// What the parts of the agent share.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) directory: Directory,
    pub(crate) holders: Holders,
    pub(crate) wakes: Wakes,
    pub(crate) driver: Arc<dyn Driver>,
    /// Turns to copy a disk: few at once, or they would only fight for the host's.
    pub(crate) copies: tokio::sync::Semaphore,
    pub(crate) metrics: Metrics,
    /// Cancelled when the agent is told to stop: sprites, streams and channels then end by themselves.
    pub(crate) shutdown: CancellationToken,
    /// Everything that was spawned and must end before the process does.
    pub(crate) tasks: TaskTracker,
    started: Instant,
    sprites: DashMap<SpriteId, Handle>,
}

impl Agent {
    /// Takes charge of what is stored: adopts sprites that still live, finishes destroys, and removes
    /// what belongs to no sprite.
    pub(crate) async fn start(
        config: Config,
        store: Store,
        stored: Stored,
        driver: Arc<dyn Driver>,
    ) -> anyhow::Result<Arc<Self>> {
        let mut known: Vec<Sprite> = stored.sprites.clone();
        let mut books = stored.books.clone();
        let destroying = stored.destroying.clone();
        let agent = Arc::new(Self {
            store,
            directory: Directory::new(stored),
            holders: Holders::default(),
            wakes: Wakes::new(config.wakes),
            driver,
            copies: tokio::sync::Semaphore::new(config.checkpoints.copies_at_once),
            metrics: Metrics::new()?,
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
            started: Instant::now(),
            sprites: DashMap::new(),
            config,
        });
        for id in destroying.iter().copied() {
            // One sprite must not keep the others from starting; the next agent tries again.
            if let Err(error) = agent.driver.destroy(id).await {
                warn!(sprite = %id, error = crate::api::chain(&error), "Could not finish an interrupted destroy");
                continue;
            }
            agent.store.remove_sprite(id).await?;
            info!(sprite = %id, "Finished an interrupted destroy");
        }
        agent.remove_orphans(&known, &destroying).await?;
        agent.follow_configuration(&mut known).await?;
        agent.check_drivers(&known)?;
        for sprite in known {
            let begin = match agent.driver.adopt(sprite.id).await {
                Ok(Some(adopted)) => {
                    info!(sprite = %sprite.id, name = %sprite.name, ?adopted, "Adopted a living sprite");
                    Begin::Adopted(adopted)
                }
                Ok(None) => Begin::Cold,
                Err(error) => {
                    // Its next start begins with a stop. One sprite must not keep the others from starting.
                    warn!(sprite = %sprite.id, error = crate::api::chain(&error), "Could not adopt a sprite");
                    Begin::Cold
                }
            };
            let book = books.remove(&sprite.id).unwrap_or_default();
            agent.own(sprite, book, begin);
        }
        agent.tasks.spawn(memory::look_after(Arc::clone(&agent)));
        Ok(agent)
    }

    /// Makes the sprites that the configuration names, and forgets those that it does not name any more.
    async fn follow_configuration(&self, known: &mut Vec<Sprite>) -> anyhow::Result<()> {
        let configured: HashSet<SpriteId> = self.config.commands.iter().map(configured_id).collect();
        let is_stale = |sprite: &Sprite| sprite.driver == command::NAME && !configured.contains(&sprite.id);
        for sprite in known.extract_if(.., |sprite| is_stale(sprite)) {
            self.store.remove_sprite(sprite.id).await?;
            self.directory.remove_sprite(sprite.id);
            info!(name = %sprite.name, "Forgot a sprite that is not configured any more");
        }
        for settings in &self.config.commands {
            let id = configured_id(settings);
            if known.iter().any(|sprite| sprite.id == id) {
                continue;
            }
            let organization =
                tokens::organization(&self.store, &self.directory, &settings.organization).await?;
            let ask = CreateSprite {
                name: settings.name.clone(),
                organization: settings.organization.clone(),
                url_settings: UrlSettings::default(),
                labels: Vec::new(),
                environment: std::collections::BTreeMap::new(),
                config: None,
                idle_timeout_ms: None,
                cold_after_ms: None,
                fork: None,
            };
            let sprite = self.record(id, command::NAME, organization, ask)?;
            let saved = self.store.save_sprite(sprite.clone()).await;
            saved.with_context(|| format!("could not make the configured sprite {}", sprite.name))?;
            self.directory.put_sprite(&sprite);
            known.push(sprite);
        }
        Ok(())
    }

    /// A sprite's disk is of the driver that made it.
    fn check_drivers(&self, known: &[Sprite]) -> anyhow::Result<()> {
        let usual = self.driver.name();
        let other = known.iter().find(|sprite| sprite.driver != usual && sprite.driver != command::NAME);
        if let Some(Sprite { name, organization, driver, .. }) = other {
            anyhow::bail!(
                "the sprite {organization}/{name} is of the driver \"{driver}\" and the configuration says \"{usual}\": \
                 set driver = \"{driver}\", or give the other driver a state_dir of its own"
            );
        }
        Ok(())
    }

    /// Directories of sprites that the store does not know: a create that was cut short.
    async fn remove_orphans(&self, known: &[Sprite], destroying: &[SpriteId]) -> anyhow::Result<()> {
        let known: HashSet<SpriteId> =
            known.iter().map(|sprite| sprite.id).chain(destroying.iter().copied()).collect();
        let root = self.config.state_dir.join("sprites");
        tokio::fs::create_dir_all(&root).await?;
        let mut entries = tokio::fs::read_dir(&root).await?;
        while let Some(entry) = entries.next_entry().await? {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<SpriteId>().ok()) else {
                continue;
            };
            if !known.contains(&id) {
                match self.driver.destroy(id).await {
                    Ok(()) => info!(sprite = %id, "Removed what an interrupted create had left"),
                    Err(error) => {
                        let error = crate::api::chain(&error);
                        warn!(sprite = %id, error, "Could not remove what an interrupted create had left");
                    }
                }
            }
        }
        Ok(())
    }

    /// Starts the task that owns a sprite.
    fn own(self: &Arc<Self>, sprite: Sprite, book: Book, begin: Begin) {
        let id = sprite.id;
        let handle = sprite::spawn(self.clone(), sprite, book, begin);
        self.sprites.insert(id, handle);
    }

    /// The sprite's task, unless it was destroyed.
    pub(crate) fn sprite(&self, id: SpriteId) -> Option<Handle> {
        self.sprites.get(&id).map(|handle| handle.clone())
    }

    /// What each sprite has of the host's RAM.
    pub(crate) fn residences(&self) -> Vec<(SpriteId, Residence)> {
        self.sprites.iter().map(|handle| (*handle.key(), handle.residence())).collect()
    }

    /// Called by a sprite's task on its way out of a destroy.
    pub(crate) fn disown(&self, id: SpriteId) {
        self.sprites.remove(&id);
    }

    /// The agent's monotonic clock, as core crates want it.
    pub(crate) fn now(&self) -> Moment {
        Moment::from_origin(self.started.elapsed())
    }

    /// The runtime instant of a core moment.
    pub(crate) fn instant(&self, moment: Moment) -> tokio::time::Instant {
        (self.started + moment.since_origin()).into()
    }

    pub(crate) fn spec(sprite: &Sprite) -> SpriteSpec {
        // What makes no sense there was refused when the sprite was made.
        let resources = sprite.config.clone().and_then(|config| serde_json::from_value(config).ok());
        SpriteSpec { id: sprite.id, name: sprite.name.clone(), resources: resources.unwrap_or_default() }
    }

    /// The sprite's public URL.
    pub(crate) fn url(&self, sprite: &Sprite) -> String {
        self.config.url_template.replace("{label}", &format!("{}-{}", sprite.name, sprite.url_suffix))
    }

    /// Makes a sprite: recorded first, then its disk, then visible.
    pub(crate) async fn create_sprite(
        self: &Arc<Self>,
        ask: CreateSprite,
    ) -> Result<Changed<Sprite>, Failure> {
        if self.shutdown.is_cancelled() {
            return Err(StoreError::Stopped.into());
        }
        let organization = tokens::organization(&self.store, &self.directory, &ask.organization).await?;
        let mut random = [0u8; 16];
        rand::rng().fill_bytes(&mut random);
        let id = SpriteId::from_uuid(uuid::Builder::from_random_bytes(random).into_uuid());
        let fork = ask.fork;
        let sprite = self.record(id, self.driver.name(), organization, ask)?;
        if let Some(fork) = fork {
            return self.fork_sprite(sprite, fork).await;
        }
        self.store.save_sprite(sprite.clone()).await?;
        if let Err(error) = self.driver.prepare(&Self::spec(&sprite)).await {
            // What can't be undone now is undone at the next start, as an orphan.
            if let Err(error) = self.driver.destroy(sprite.id).await {
                warn!(sprite = %sprite.id, error = crate::api::chain(&error), "Could not undo a failed create");
            }
            self.store.remove_sprite(sprite.id).await?;
            return Err(error.into());
        }
        Ok(self.created(sprite, Begin::Cold))
    }

    /// Makes a sprite from another one: its disk (and memory) first, then recorded, then visible. A disk that
    /// no record knows is removed by the next agent; the other way round, an interrupted fork would wake
    /// with an empty disk.
    async fn fork_sprite(
        self: &Arc<Self>,
        mut sprite: Sprite,
        fork: ForkSprite,
    ) -> Result<Changed<Sprite>, Failure> {
        let from = match (fork.checkpoint, fork.memory) {
            (None, false) => ForkFrom::Disk,
            (None, true) => ForkFrom::DiskAndMemory,
            (Some(checkpoint), false) => ForkFrom::Checkpoint(checkpoint),
            (Some(_), true) => {
                let message = "a checkpoint has no memory: leave out \"checkpoint\" or \"memory\"";
                return Err(Failure::new(StatusCode::BAD_REQUEST, "bad_fork", message));
            }
        };
        let mut begin = Begin::Cold;
        if fork.memory {
            begin = Begin::Adopted(Adopted::Suspended);
            (sprite.state, sprite.phase) = (PublicState::Warm, "suspended".into());
        }
        let source = self.directory.sprite(fork.source);
        let source = source.filter(|source| source.organization == sprite.organization);
        let (source, handle) =
            source.zip(self.sprite(fork.source)).ok_or_else(|| Failure::not_found("sprite"))?;
        let is_taken =
            |other: &Sprite| other.organization == sprite.organization && other.name == sprite.name;
        if self.directory.sprites().iter().any(is_taken) {
            return Err(StoreError::NameTaken.into());
        }
        // What the source's processes find in their environment, theirs find too, unless it is said anew.
        for (name, value) in source.environment {
            sprite.environment.entry(name).or_insert(value);
        }
        let made = match handle.fork(from, Self::spec(&sprite)).await {
            Ok(()) => self.store.save_sprite(sprite.clone()).await.map_err(Failure::from),
            Err(error) => Err(error.into()),
        };
        if let Err(failure) = made {
            if let Err(error) = self.driver.destroy(sprite.id).await {
                warn!(sprite = %sprite.id, error = crate::api::chain(&error), "Could not undo a failed fork");
            }
            return Err(failure);
        }
        Ok(self.created(sprite, begin))
    }

    /// From now on it is there for everybody.
    fn created(self: &Arc<Self>, sprite: Sprite, begin: Begin) -> Changed<Sprite> {
        info!(sprite = %sprite.id, name = %sprite.name, organization = %sprite.organization, "Sprite created");
        self.own(sprite.clone(), Book::default(), begin);
        let revision = self.directory.put_sprite(&sprite);
        Changed { revision, now: sprite }
    }

    /// A new sprite's record.
    fn record(
        &self,
        id: SpriteId,
        driver: &str,
        organization: Organization,
        ask: CreateSprite,
    ) -> Result<Sprite, SpriteError> {
        let now = Timestamp::now();
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let timing = SpriteConfig {
            idle_timeout_ms: ask.idle_timeout_ms.unwrap_or_else(|| millis(self.config.idle_timeout)),
            cold_after_ms: ask.cold_after_ms.unwrap_or_else(|| millis(self.config.cold_after)),
        };
        check_timing(timing)?;
        Ok(Sprite {
            id,
            name: ask.name,
            organization: organization.slug,
            url_suffix: organization.url_suffix,
            url_settings: ask.url_settings,
            state: PublicState::Cold,
            phase: "cold".into(),
            epoch: Epoch::default(),
            timing,
            labels: ask.labels,
            environment: ask.environment,
            config: ask.config,
            driver: driver.into(),
            created_at: now,
            updated_at: now,
            last_running_at: None,
            last_warming_at: None,
        })
    }

    /// Ends every task. With [`OnShutdown::Stop`] the sprites' tasks stop their sprites first.
    pub(crate) async fn stop(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        // A sprite may use its whole grace, twice if a stop fails at first; then its PID 1 is killed.
        let limit = 3 * self.config.stop_grace + Duration::from_secs(10);
        if tokio::time::timeout(limit, self.tasks.wait()).await.is_err() {
            warn!(left = self.tasks.len(), "Some tasks did not end in time");
        }
        match self.config.on_shutdown {
            OnShutdown::Stop => info!("Sprites are stopped"),
            OnShutdown::Leave => info!("Sprites live on; the next agent adopts them"),
        }
    }
}

/// Refuses times that can't be meant.
pub(crate) fn check_timing(timing: SpriteConfig) -> Result<(), SpriteError> {
    let named = [("idle_timeout_ms", timing.idle_timeout_ms), ("cold_after_ms", timing.cold_after_ms)];
    for (key, value) in named {
        if !TIMING_RANGE_MS.contains(&value) {
            let (from, to) = (TIMING_RANGE_MS.start(), TIMING_RANGE_MS.end());
            return Err(SpriteError::BadTiming(format!("{key} is {value}; it must be from {from} to {to}")));
        }
    }
    Ok(())
}
