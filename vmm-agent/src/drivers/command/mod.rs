//! The `command` driver: wakes and puts to sleep anything that has a command line and an address, such as
//! a systemd unit, a container, a virtual machine of one's own, or a machine that wakes by LAN.
//!
//! There is no runtime of ours inside, so there are no services, and the gateway dials the address
//! itself. The disk is whoever's the commands are: creating and destroying a sprite touches nothing.

mod run;
mod settings;

use std::{
    collections::{HashMap, HashSet},
    future::pending,
    time::Duration,
};

use agent_api::{Capabilities, lease::Endpoint};
use async_trait::async_trait;
use ids::{Epoch, SpriteId};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

pub(crate) use self::settings::Settings;
use super::{Adopted, Driver, DriverError, Resumed, SpriteSpec, Verb};

/// What the records of configured sprites say.
pub(crate) const NAME: &str = "command";

/// The identity of a configured sprite: the same at every start of the agent, whatever is stored.
pub(crate) fn configured_id(settings: &Settings) -> SpriteId {
    let name = format!("command/{}/{}", settings.organization, settings.name);
    let digest = Sha256::digest(name);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    SpriteId::from_uuid(uuid::Builder::from_custom_bytes(bytes).into_uuid())
}

/// See the module.
#[derive(Debug)]
pub(crate) struct CommandDriver {
    sprites: HashMap<SpriteId, Settings>,
    /// Those that this run of the agent has paused and not resumed.
    paused: Mutex<HashSet<SpriteId>>,
}

impl CommandDriver {
    pub(crate) fn new(sprites: HashMap<SpriteId, Settings>) -> Self {
        Self { sprites, paused: Mutex::default() }
    }

    /// Whether this driver runs the sprite.
    pub(crate) fn has(&self, id: SpriteId) -> bool {
        self.sprites.contains_key(&id)
    }

    async fn run(&self, verb: Verb, id: SpriteId, command: Option<&Vec<String>>) -> Result<(), DriverError> {
        let settings = self.settings(verb, id)?;
        let Some(command) = command else {
            return Err(DriverError::Unsupported { driver: self.name(), verb });
        };
        run::to_success(verb, id, command, settings.deadline()).await
    }

    fn settings(&self, verb: Verb, id: SpriteId) -> Result<&Settings, DriverError> {
        self.sprites.get(&id).ok_or(DriverError::NotRunning { verb, id })
    }
}

#[async_trait]
impl Driver for CommandDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self, id: SpriteId) -> Capabilities {
        let pause = self.sprites.get(&id).is_some_and(|settings| settings.pause.is_some());
        Capabilities { pause, suspend: false, checkpoint: false, fork_memory: false }
    }

    fn endpoint(&self, id: SpriteId) -> Endpoint {
        let settings = self.sprites.get(&id);
        Endpoint::Address {
            web: settings.map(|settings| settings.web.clone()).unwrap_or_default(),
            ports: settings.map(|settings| settings.ports.clone()).unwrap_or_default(),
        }
    }

    async fn prepare(&self, _: &SpriteSpec) -> Result<(), DriverError> {
        Ok(())
    }

    async fn start(&self, sprite: &SpriteSpec, _: Epoch) -> Result<(), DriverError> {
        let command = self.sprites.get(&sprite.id).map(|settings| &settings.start);
        self.run(Verb::Start, sprite.id, command).await
    }

    async fn pause(&self, id: SpriteId) -> Result<(), DriverError> {
        let command = self.sprites.get(&id).and_then(|settings| settings.pause.as_ref());
        self.run(Verb::Pause, id, command).await?;
        self.paused.lock().insert(id);
        Ok(())
    }

    async fn resume(&self, id: SpriteId) -> Result<Resumed, DriverError> {
        let command = self.sprites.get(&id).and_then(|settings| settings.resume.as_ref());
        self.run(Verb::Resume, id, command).await?;
        self.paused.lock().remove(&id);
        Ok(Resumed::FromRam)
    }

    async fn suspend(&self, _: SpriteId) -> Result<(), DriverError> {
        Err(DriverError::Unsupported { driver: self.name(), verb: Verb::Suspend })
    }

    /// The grace is the command's own matter; what bounds it is its deadline.
    async fn stop(&self, id: SpriteId, _: Duration) -> Result<(), DriverError> {
        // What has no time can't hear that it should end.
        let paused = self.paused.lock().contains(&id);
        if paused {
            self.resume(id).await?;
        }
        let command = self.sprites.get(&id).map(|settings| &settings.stop);
        self.run(Verb::Stop, id, command).await
    }

    async fn destroy(&self, _: SpriteId) -> Result<(), DriverError> {
        Ok(())
    }

    async fn adopt(&self, id: SpriteId) -> Result<Option<Adopted>, DriverError> {
        let settings = self.settings(Verb::Adopt, id)?;
        let Some(status) = &settings.status else { return Ok(None) };
        if !run::is_success(Verb::Adopt, id, status, settings.deadline()).await? {
            return Ok(None);
        }
        // Nobody knows whether an earlier agent had paused it.
        if settings.resume.is_some() {
            self.resume(id).await?;
        }
        Ok(Some(Adopted::Running))
    }

    async fn exited(&self, id: SpriteId) {
        let watched = self.sprites.get(&id).and_then(|settings| Some((settings, settings.status.as_ref()?)));
        let Some((settings, status)) = watched else { return pending().await };
        loop {
            tokio::time::sleep(settings.status_period()).await;
            // A status that can't be asked for says nothing.
            if let Ok(false) = run::is_success(Verb::Adopt, id, status, settings.deadline()).await {
                return;
            }
        }
    }
}
