//! The drivers of one host: sprites of different kinds, side by side.

use std::{sync::Arc, time::Duration};

use agent_api::{Capabilities, lease::Endpoint};
use async_trait::async_trait;
use ids::{CheckpointId, Epoch, SpriteId};

use super::{Adopted, Driver, DriverError, Resumed, SpriteSpec, command::CommandDriver};

/// Sends each sprite's verbs to the driver that runs it.
#[derive(Debug)]
pub(crate) struct DriverSet {
    /// Runs the sprites that are made over the API.
    usual: Arc<dyn Driver>,
    /// Runs those that the configuration names.
    command: CommandDriver,
}

impl DriverSet {
    pub(crate) const fn new(usual: Arc<dyn Driver>, command: CommandDriver) -> Self {
        Self { usual, command }
    }

    fn of(&self, id: SpriteId) -> &dyn Driver {
        if self.command.has(id) { &self.command } else { &*self.usual }
    }
}

#[async_trait]
impl Driver for DriverSet {
    fn name(&self) -> &'static str {
        self.usual.name()
    }

    fn capabilities(&self, id: SpriteId) -> Capabilities {
        self.of(id).capabilities(id)
    }

    fn endpoint(&self, id: SpriteId) -> Endpoint {
        self.of(id).endpoint(id)
    }

    fn footprint(&self, id: SpriteId) -> u64 {
        self.of(id).footprint(id)
    }

    async fn prepare(&self, sprite: &SpriteSpec) -> Result<(), DriverError> {
        self.of(sprite.id).prepare(sprite).await
    }

    async fn start(&self, sprite: &SpriteSpec, epoch: Epoch) -> Result<(), DriverError> {
        self.of(sprite.id).start(sprite, epoch).await
    }

    async fn pause(&self, id: SpriteId) -> Result<(), DriverError> {
        self.of(id).pause(id).await
    }

    async fn resume(&self, id: SpriteId) -> Result<Resumed, DriverError> {
        self.of(id).resume(id).await
    }

    async fn suspend(&self, id: SpriteId) -> Result<(), DriverError> {
        self.of(id).suspend(id).await
    }

    async fn stop(&self, id: SpriteId, grace: Duration) -> Result<(), DriverError> {
        self.of(id).stop(id, grace).await
    }

    async fn destroy(&self, id: SpriteId) -> Result<(), DriverError> {
        self.of(id).destroy(id).await
    }

    async fn adopt(&self, id: SpriteId) -> Result<Option<Adopted>, DriverError> {
        self.of(id).adopt(id).await
    }

    async fn exited(&self, id: SpriteId) {
        self.of(id).exited(id).await;
    }

    async fn stage_checkpoint(&self, id: SpriteId, checkpoint: CheckpointId) -> Result<(), DriverError> {
        self.of(id).stage_checkpoint(id, checkpoint).await
    }

    async fn checkpoint(&self, id: SpriteId, checkpoint: CheckpointId) -> Result<(), DriverError> {
        self.of(id).checkpoint(id, checkpoint).await
    }

    async fn checkpoint_with_memory(
        &self,
        id: SpriteId,
        checkpoint: CheckpointId,
    ) -> Result<(), DriverError> {
        self.of(id).checkpoint_with_memory(id, checkpoint).await
    }

    async fn complete_checkpoint(&self, id: SpriteId, checkpoint: CheckpointId) -> Result<(), DriverError> {
        self.of(id).complete_checkpoint(id, checkpoint).await
    }

    async fn stage_restore(&self, id: SpriteId, checkpoint: CheckpointId) -> Result<(), DriverError> {
        self.of(id).stage_restore(id, checkpoint).await
    }

    async fn restore(
        &self,
        id: SpriteId,
        checkpoint: CheckpointId,
        replaced: CheckpointId,
    ) -> Result<(), DriverError> {
        self.of(id).restore(id, checkpoint, replaced).await
    }

    async fn forget_checkpoint(&self, id: SpriteId, checkpoint: CheckpointId) -> Result<(), DriverError> {
        self.of(id).forget_checkpoint(id, checkpoint).await
    }

    async fn fork(
        &self,
        source: SpriteId,
        checkpoint: CheckpointId,
        sprite: &SpriteSpec,
    ) -> Result<(), DriverError> {
        self.of(source).fork(source, checkpoint, sprite).await
    }

    async fn compact(&self, id: SpriteId) -> Result<(), DriverError> {
        self.of(id).compact(id).await
    }
}
