//! The `process` driver: a sprite is a tree of processes in namespaces of its own, on the host's kernel.
//!
//! It needs nothing installed and starts in milliseconds. It is for development and for code that one
//! trusts: namespaces, dropped capabilities and a system call filter keep mistakes in, but the kernel is
//! shared, and an attacker with a kernel bug walks out. Virtual machines are for hostile code.
//!
//! - The runtime is PID 1 of a pid namespace; it inherits its listening socket, whose path lies
//!   where the sprite can't see it. A sprite outlives a killed agent, which finds it again by pid and
//!   start time.
//! - Its root is its own disk, with the host's `/usr` on it, read-only. Root inside is an unprivileged
//!   user outside, another one for each sprite when the agent is root.
//! - Pause is the cgroup freezer, or SIGSTOP to every process where cgroups can't be written.
//! - Its network is a loopback interface: programs inside reach each other, gateways reach them through
//!   descriptors that the runtime hands over, and there is no way out to other hosts.

mod cgroups;
mod checkpoints;
mod copy;
mod disk;
mod freezer;
mod identity;
pub(crate) mod launcher;
mod layout;
mod mapped;
mod probe;
mod record;
mod removal;
mod settings;
mod spawn;
mod sys;
#[cfg(test)]
mod tests;
mod tree;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use agent_api::{Capabilities, lease::Endpoint};
use async_trait::async_trait;
use dashmap::DashMap;
use ids::{CheckpointId, Epoch, SpriteId};
use nix::sys::signal::Signal;
use runtime_api::{Address, Command, open_control};
use tokio::time::timeout;
use tracing::warn;

use self::{
    cgroups::Cgroups,
    checkpoints::{Staged, Staging},
    freezer::{FREEZE_LIMIT, FreezeError},
    identity::IdPool,
    launcher::Plan,
    layout::{Layout, SpriteFiles},
    record::{Process, Record},
    removal::Remover,
};
pub(crate) use self::{probe::Report, settings::Settings};
use super::{
    Adopted, Driver, DriverError, Resumed, SpriteSpec, Verb, files::remove_if_there, pid::Footprint,
};

/// How long the kernel may take to end a killed sprite.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How long it may take to put a line into a runtime's socket.
const ASK_LIMIT: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug)]
pub(crate) struct ProcessDriver {
    host: Arc<Host>,
}

/// What all verbs share.
#[derive(Debug)]
struct Host {
    layout: Layout,
    settings: Settings,
    runtime: PathBuf,
    cgroups: Cgroups,
    ids: Arc<IdPool>,
    remover: Remover,
    running: DashMap<SpriteId, Arc<Process>>,
    /// One lock for each sprite that a verb works on; a verb whose caller left still holds it.
    busy: DashMap<SpriteId, Arc<tokio::sync::Mutex<()>>>,
    /// What was made ahead for checkpoints and restores. Locked before `busy`.
    staging: DashMap<SpriteId, Arc<Staging>>,
}

impl ProcessDriver {
    /// Looks at the host and at what earlier agents left in `state`. Blocks.
    ///
    /// # Errors
    /// Sprites can't run here at all; the message says why and what to do.
    pub(crate) fn new(state: &Path, settings: Settings) -> io::Result<Self> {
        let runtime = probe::runtime(&settings)?;
        let layout = Layout::create(state)?;
        let (ids, cgroups) = (probe::ids(&layout, &settings)?, Cgroups::discover());
        sys::adopt_orphans()?;
        let ids = Arc::new(ids);
        let remover = Remover::start({
            let ids = Arc::clone(&ids);
            move |doomed| remove(&ids, doomed)
        })?;
        for doomed in layout.all_doomed()? {
            remover.remove(doomed);
        }
        let host = Host {
            layout,
            settings,
            runtime,
            cgroups,
            ids,
            remover,
            running: DashMap::new(),
            busy: DashMap::new(),
            staging: DashMap::new(),
        };
        Ok(Self { host: Arc::new(host) })
    }

    /// What the host can and can't do, for the agent to say. Blocks.
    pub(crate) fn probe(settings: &Settings) -> Report {
        Report::of_host(settings)
    }

    /// Runs blocking work of a verb to its end, even if the caller leaves, one at a time for a sprite.
    async fn work<T: Send + 'static>(
        &self,
        verb: Verb,
        id: SpriteId,
        work: impl FnOnce(&Host) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let turn = Arc::clone(&self.host.busy.entry(id).or_default());
        let turn = turn.lock_owned().await;
        let host = Arc::clone(&self.host);
        let done = tokio::task::spawn_blocking(move || {
            let outcome = work(&host);
            drop(turn);
            outcome
        });
        done.await.unwrap_or_else(|panic| {
            Err(DriverError::Host {
                verb,
                id,
                step: "finish (a bug)".into(),
                source: io::Error::other(panic),
            })
        })
    }
}

/// Names the step of an error.
fn host_error(verb: Verb, id: SpriteId, step: impl Into<String>) -> impl FnOnce(io::Error) -> DriverError {
    let step = step.into();
    move |source| DriverError::Host { verb, id, step, source }
}

fn freeze_failed(verb: Verb, id: SpriteId) -> impl FnOnce(FreezeError) -> DriverError {
    move |error| match error {
        FreezeError::TimedOut => DriverError::TimedOut { verb, id, step: "the freeze", limit: FREEZE_LIMIT },
        FreezeError::Io(source) => DriverError::Host { verb, id, step: "freeze it".into(), source },
    }
}

impl Host {
    /// What its processes have that others don't: the host's programs are mapped in every sprite.
    fn footprint(&self, id: SpriteId) -> u64 {
        let Some(process) = self.running.get(&id).map(|process| Arc::clone(&process)) else { return 0 };
        let processes = process.cgroups.processes().or_else(|| tree::descendants(process.pid()).ok());
        processes.into_iter().flatten().map(|pid| Footprint::of(pid).own).sum()
    }

    fn running(&self, verb: Verb, id: SpriteId) -> Result<Arc<Process>, DriverError> {
        let process = self.running.get(&id).map(|entry| Arc::clone(&entry));
        process.ok_or(DriverError::NotRunning { verb, id })
    }

    fn prepare(&self, sprite: &SpriteSpec) -> Result<(), DriverError> {
        let failed = |step| host_error(Verb::Prepare, sprite.id, step);
        let files = self.layout.sprite(sprite.id);
        std::fs::create_dir_all(files.root()).map_err(failed("make its directory"))?;
        let ids = self.ids.ids_of(&files).map_err(failed("choose its user ids"))?;
        checkpoints::mend(&files).map_err(failed("finish an interrupted restore"))?;
        disk::make(&files, sprite.name.as_str(), ids).map_err(failed("make its disk"))
    }

    fn start(&self, sprite: &SpriteSpec) -> Result<(), DriverError> {
        let (verb, id) = (Verb::Start, sprite.id);
        let failed = |step| host_error(verb, id, step);
        let files = self.layout.sprite(id);
        if self.running.contains_key(&id) {
            return Err(DriverError::AlreadyRunning { verb, id });
        }
        if self.find(verb, id)?.is_some() {
            return Err(DriverError::AlreadyRunning { verb, id });
        }
        if !files.disk().try_exists().map_err(failed("look for its disk"))? {
            return Err(failed("find its disk (it is prepared first)")(io::ErrorKind::NotFound.into()));
        }
        checkpoints::make_directories(&files).map_err(failed("make directories for checkpoints"))?;
        let plan = Plan {
            hostname: sprite.name.to_string(),
            disk: files.disk(),
            checkpoints: files.shown(),
            host_trees: disk::host_trees(),
            extra_trees: disk::extra_trees(),
            runtime: self.runtime.clone(),
            ids: self.ids.ids_of(&files).map_err(failed("read its user ids"))?,
        };
        let cgroups = self.cgroups.make(id, &self.settings).map_err(failed("make its cgroups"))?;
        match spawn::launch(&files, plan, cgroups.clone()) {
            Ok(process) => {
                self.running.insert(id, Arc::new(process));
                Ok(())
            }
            Err(error) => {
                // The first error is the one that tells; what stays is removed by the next verb.
                let _secondary = clean(&files, &cgroups);
                Err(DriverError::Host { verb, id, step: error.step, source: error.source })
            }
        }
    }

    fn pause(&self, verb: Verb, id: SpriteId) -> Result<(), DriverError> {
        self.running(verb, id)?.freezer.freeze().map_err(freeze_failed(verb, id))
    }

    fn adopt(&self, id: SpriteId) -> Result<Option<Adopted>, DriverError> {
        let verb = Verb::Adopt;
        self.recover(id).map_err(host_error(
            verb,
            id,
            "clear what an interrupted checkpoint or restore left",
        ))?;
        if !self.take_charge(verb, id)? {
            return Ok(None);
        }
        let process = self.running(verb, id)?;
        checkpoints::release(&self.layout.sprite(id), &process).map_err(host_error(
            verb,
            id,
            "let it go on after an interrupted checkpoint",
        ))?;
        let freezer = &process.freezer;
        if freezer.begun().map_err(host_error(verb, id, "see whether it is frozen"))? {
            self.pause(verb, id)?;
            return Ok(Some(Adopted::Paused));
        }
        Ok(Some(Adopted::Running))
    }

    /// Knows the sprite's process from now on, if it has one.
    fn take_charge(&self, verb: Verb, id: SpriteId) -> Result<bool, DriverError> {
        if self.running.contains_key(&id) {
            return Ok(true);
        }
        let Some(process) = self.find(verb, id)? else { return Ok(false) };
        self.running.insert(id, Arc::new(process));
        Ok(true)
    }

    /// Asks the runtime to end everything within `grace`; `false` if it could not be told.
    async fn ask_to_end(&self, id: SpriteId, grace: Duration) -> bool {
        let socket = self.layout.sprite(id).socket();
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let told = timeout(ASK_LIMIT, async {
            // It need not answer: a frozen one can't, and finds this when it is thawed.
            open_control(&Address::Socket(socket)).await?.send(&Command::Shutdown { grace_ms }).await
        });
        matches!(told.await, Ok(Ok(())))
    }

    /// Forgets a sprite whose PID 1 is gone.
    fn forget(&self, verb: Verb, id: SpriteId) -> Result<(), DriverError> {
        let left = self.running.get(&id).map(|process| process.cgroups.clone());
        let left = left.unwrap_or_else(|| self.cgroups.of(id));
        clean(&self.layout.sprite(id), &left).map_err(host_error(verb, id, "remove what it left"))?;
        self.running.remove(&id);
        Ok(())
    }

    /// Looks for a sprite that an earlier agent started, and removes what one that has ended left.
    fn find(&self, verb: Verb, id: SpriteId) -> Result<Option<Process>, DriverError> {
        let failed = |step| host_error(verb, id, step);
        let files = self.layout.sprite(id);
        let mut left = self.cgroups.of(id);
        if let Some(record) = Record::read(&files).map_err(failed("read its record"))? {
            left = record.cgroups.clone();
            if let Some(process) = record.find(&files).map_err(failed("look for its process"))? {
                return Ok(Some(process));
            }
        }
        clean(&files, &left).map_err(failed("remove what its last run left"))?;
        Ok(None)
    }

    /// Sets a sprite's directory aside, which is the end of it, and has it removed.
    fn remove(&self, id: SpriteId) -> Result<(), DriverError> {
        let (files, doomed) = (self.layout.sprite(id), self.layout.doomed(id));
        match std::fs::rename(files.root(), &doomed) {
            Ok(()) => self.remover.remove(doomed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(host_error(Verb::Destroy, id, "set its directory aside")(error)),
        }
        Ok(())
    }
}

/// Removes what is left of a sprite; its ids are free when no file has them any more.
fn remove(ids: &IdPool, doomed: &Path) {
    let outcome = identity::read_base(&doomed.join("ids")).and_then(|base| {
        removal::remove_tree(doomed)?;
        Ok(base)
    });
    match outcome {
        Ok(Some(base)) => ids.give_back(base),
        Ok(None) => {}
        // Tried again by the next agent.
        Err(error) => warn!(path = %doomed.display(), %error, "Could not remove a destroyed sprite's files"),
    }
}

#[cfg(test)]
impl ProcessDriver {
    /// Ends a sprite outside of any tokio runtime.
    fn kill_for_test(&self, id: SpriteId) {
        if let Some(process) = self.host.running.get(&id) {
            process.end_now();
            process.cgroups.remove().expect("they are empty");
        }
    }
}

/// Removes what a run leaves on the host; the record goes last, so that it can be tried again.
fn clean(files: &SpriteFiles, cgroups: &cgroups::SpriteCgroups) -> io::Result<()> {
    cgroups.remove()?;
    remove_if_there(&files.stopped())?;
    remove_if_there(&files.held())?;
    remove_if_there(&files.socket())?;
    remove_if_there(&files.process())
}

#[async_trait]
impl Driver for ProcessDriver {
    fn name(&self) -> &'static str {
        "process"
    }

    fn capabilities(&self, _: SpriteId) -> Capabilities {
        Capabilities { pause: true, suspend: false, checkpoint: true, fork_memory: false }
    }

    fn endpoint(&self, id: SpriteId) -> Endpoint {
        Endpoint::Handoff { path: self.host.layout.sprite(id).socket() }
    }

    fn footprint(&self, id: SpriteId) -> u64 {
        self.host.footprint(id)
    }

    async fn prepare(&self, sprite: &SpriteSpec) -> Result<(), DriverError> {
        let sprite = sprite.clone();
        self.work(Verb::Prepare, sprite.id, move |host| host.prepare(&sprite)).await
    }

    async fn start(&self, sprite: &SpriteSpec, _epoch: Epoch) -> Result<(), DriverError> {
        let sprite = sprite.clone();
        self.work(Verb::Start, sprite.id, move |host| host.start(&sprite)).await
    }

    async fn pause(&self, id: SpriteId) -> Result<(), DriverError> {
        self.work(Verb::Pause, id, move |host| host.pause(Verb::Pause, id)).await
    }

    async fn resume(&self, id: SpriteId) -> Result<Resumed, DriverError> {
        self.work(Verb::Resume, id, move |host| {
            host.running(Verb::Resume, id)?.freezer.thaw().map_err(host_error(Verb::Resume, id, "thaw it"))
        })
        .await?;
        Ok(Resumed::FromRam)
    }

    async fn suspend(&self, _id: SpriteId) -> Result<(), DriverError> {
        Err(DriverError::Unsupported { driver: self.name(), verb: Verb::Suspend })
    }

    async fn stop(&self, id: SpriteId, grace: Duration) -> Result<(), DriverError> {
        let verb = Verb::Stop;
        let found = self
            .work(verb, id, move |host| {
                // It may be one that nobody has adopted yet.
                host.take_charge(verb, id)?;
                Ok(host.running(verb, id).ok())
            })
            .await?;
        if let Some(process) = &found {
            // Asked first and thawed then: it is the first thing that the runtime sees.
            if !grace.is_zero() && !self.host.ask_to_end(id, grace).await {
                process.signal(Signal::SIGTERM).map_err(host_error(verb, id, "ask it to end"))?;
            }
            let process = Arc::clone(process);
            let thaw = move |_: &Host| process.freezer.thaw().map_err(host_error(verb, id, "thaw it"));
            self.work(verb, id, thaw).await?;
        }
        if let Some(process) = found
            && timeout(grace, process.exited()).await.is_err()
        {
            process.signal(Signal::SIGKILL).map_err(host_error(verb, id, "kill it"))?;
            timeout(KILL_LIMIT, process.exited()).await.map_err(|_| DriverError::TimedOut {
                verb,
                id,
                step: "its end after a KILL",
                limit: KILL_LIMIT,
            })?;
        }
        self.work(verb, id, move |host| host.forget(verb, id)).await
    }

    async fn destroy(&self, id: SpriteId) -> Result<(), DriverError> {
        self.stop(id, Duration::ZERO).await?;
        // Whoever made something ahead has left, and a moment later nobody writes to the sprite's files.
        let mut staging = self.staging(id).await;
        *staging = Staged::Nothing;
        self.work(Verb::Destroy, id, move |host| host.remove(id)).await?;
        self.host.busy.remove(&id);
        self.host.staging.remove(&id);
        Ok(())
    }

    async fn adopt(&self, id: SpriteId) -> Result<Option<Adopted>, DriverError> {
        self.work(Verb::Adopt, id, move |host| host.adopt(id)).await
    }

    async fn exited(&self, id: SpriteId) {
        let process = self.host.running.get(&id).map(|entry| Arc::clone(&entry));
        if let Some(process) = process {
            process.exited().await;
        }
    }

    async fn stage_checkpoint(&self, id: SpriteId, checkpoint: CheckpointId) -> Result<(), DriverError> {
        let mut staging = self.staging(id).await;
        *staging = Staged::Nothing;
        self.wanted(Verb::Checkpoint, id, move |host, unwanted| {
            let copy = host.stage_checkpoint(id, checkpoint, unwanted)?;
            *staging = Staged::Checkpoint(checkpoint, copy);
            Ok(())
        })
        .await
    }

    async fn checkpoint(&self, id: SpriteId, checkpoint: CheckpointId) -> Result<(), DriverError> {
        let mut staging = self.staging(id).await;
        if self.host.layout.sprite(id).checkpoint(checkpoint).is_some() {
            return Ok(());
        }
        let staged = match std::mem::take(&mut *staging) {
            Staged::Checkpoint(staged, copy) if staged == checkpoint => copy,
            Staged::Nothing | Staged::Checkpoint(..) | Staged::Cut(..) | Staged::Restore(_) => {
                let stage = move |host: &Host, unwanted| host.stage_checkpoint(id, checkpoint, unwanted);
                self.wanted(Verb::Checkpoint, id, stage).await?
            }
        };
        self.work(Verb::Checkpoint, id, move |host| {
            *staging = Staged::Cut(checkpoint, host.cut(id, checkpoint, staged)?);
            Ok(())
        })
        .await
    }

    async fn complete_checkpoint(&self, id: SpriteId, checkpoint: CheckpointId) -> Result<(), DriverError> {
        let mut staging = self.staging(id).await;
        match std::mem::take(&mut *staging) {
            Staged::Cut(cut, copy) if cut == checkpoint => {
                self.wanted(Verb::Checkpoint, id, move |host, _| {
                    let _until_its_end = staging;
                    host.complete_checkpoint(id, checkpoint, copy)
                })
                .await
            }
            Staged::Nothing | Staged::Checkpoint(..) | Staged::Cut(..) | Staged::Restore(_) => Ok(()),
        }
    }

    async fn stage_restore(&self, id: SpriteId, checkpoint: CheckpointId) -> Result<(), DriverError> {
        let mut staging = self.staging(id).await;
        *staging = Staged::Nothing;
        self.wanted(Verb::Restore, id, move |host, unwanted| {
            host.stage_restore(id, checkpoint, unwanted)?;
            *staging = Staged::Restore(checkpoint);
            Ok(())
        })
        .await
    }

    async fn restore(
        &self,
        id: SpriteId,
        checkpoint: CheckpointId,
        replaced: CheckpointId,
    ) -> Result<(), DriverError> {
        let verb = Verb::Restore;
        let mut staging = self.staging(id).await;
        if self.work(verb, id, move |host| host.is_restored(id, replaced)).await? {
            return Ok(());
        }
        let staged = std::mem::take(&mut *staging);
        if !matches!(staged, Staged::Restore(staged) if staged == checkpoint) {
            self.wanted(verb, id, move |host, unwanted| host.stage_restore(id, checkpoint, unwanted)).await?;
        }
        self.work(verb, id, move |host| {
            let _until_its_end = staging;
            host.restore(id, replaced)
        })
        .await
    }

    async fn forget_checkpoint(&self, id: SpriteId, checkpoint: CheckpointId) -> Result<(), DriverError> {
        let staging = self.staging(id).await;
        self.work(Verb::ForgetCheckpoint, id, move |host| {
            let _until_its_end = staging;
            host.forget_checkpoint(id, checkpoint)
        })
        .await
    }

    async fn fork(
        &self,
        source: SpriteId,
        checkpoint: CheckpointId,
        sprite: &SpriteSpec,
    ) -> Result<(), DriverError> {
        let (sprite, id) = (sprite.clone(), sprite.id);
        let mut staging = self.staging(id).await;
        self.wanted(Verb::Fork, id, move |host, unwanted| {
            *staging = Staged::Nothing;
            host.fork(source, checkpoint, &sprite, unwanted)
        })
        .await
    }
}
