//! The `qemu` driver: a sprite is a virtual machine, with a kernel of its own.
//!
//! - The machine's RAM is a file. Pause stops its CPUs; suspend writes down what is not RAM (a tenth of a mebibyte),
//!   and ends QEMU; resume starts one anew that maps the same file ([`memory`]).
//! - Its disk is what it has changed of an image ([`disk`]).
//! - A fork can go on from a copy of its memory ([`kept`]).
//! - Its runtime is reached through one serial port ([`channel`]), for a QEMU with vsock can't suspend.
//! - A machine outlives a killed agent, which finds it again by pid and start time ([`machine`]).

mod arguments;
mod channel;
mod disk;
mod faults;
mod kept;
mod layers;
mod layout;
mod machine;
mod memory;
mod merger;
mod merges;
mod owner;
mod probe;
mod qmp;
mod settings;

use std::{
    fs::File,
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use agent_api::{Capabilities, lease::Endpoint};
use async_trait::async_trait;
use dashmap::DashMap;
use ids::{CheckpointId, Epoch, SpriteId};
use runtime_api::{Address, Command, ask_sync, open_control};
use tokio::{
    sync::{Mutex, Semaphore},
    task::spawn_blocking,
    time::timeout,
};
use tracing::{debug, info, warn};

use self::{
    arguments::Runs,
    faults::{Point, pass},
    layers::Layers,
    layout::{Files, Layout},
    machine::{Failure, Machine, Start, failed},
    memory::Found,
    owner::{Owner, Owners},
};
pub(crate) use self::{faults::Point as FaultPoint, probe::Report, settings::Settings};
use super::{Adopted, Driver, DriverError, Resumed, SpriteSpec, Verb, files::remove_if_there, size::Host};
use crate::{config::images_in, images::Image};

/// The driver's name in settings and in a sprite's record.
pub(crate) const NAME: &str = "qemu";
/// How long it may take to put a line into a runtime's socket.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// What a machine may need beyond the grace of its processes: to write out its disk.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take before a pause, which a request may be waiting for the end of.
const PAUSE_SYNC_LIMIT: Duration = Duration::from_secs(2);
/// How long a machine may take to write everything to its disk before a checkpoint.
const SYNC_LIMIT: Duration = Duration::from_secs(60);
/// How long a state that was being loaded when the agent was killed may take to be.
const LOAD_LIMIT: Duration = Duration::from_secs(5);
/// The pause between two looks at it.
const LOAD_PAUSE: Duration = Duration::from_millis(5);

/// See the module.
#[derive(Debug)]
pub(crate) struct QemuDriver {
    layout: Layout,
    settings: Settings,
    host: Host,
    runs: Runs,
    /// QEMU, as it calls itself.
    version: String,
    /// Where images are.
    images: PathBuf,
    tsc_khz: Option<u64>,
    owners: Owners,
    machines: DashMap<SpriteId, Arc<Machine>>,
    /// Held from when it is read which layers a disk has until QEMU has opened them, and while that is changed for
    /// merged ones.
    opening: DashMap<SpriteId, Arc<Mutex<()>>>,
    /// One merge at a time: it is for later, and sprites need the disk now.
    merging: Semaphore,
}

impl QemuDriver {
    /// Looks at the host and at what earlier agents left in `state`. Blocks.
    ///
    /// # Errors
    /// Machines can't run here at all; the message says why and what to do.
    pub(crate) fn new(state: &Path, settings: Settings) -> io::Result<Self> {
        faults::arm().map_err(|wrong| io::Error::new(io::ErrorKind::InvalidInput, wrong))?;
        let report = Report::of_host(&settings);
        let version = report.version.map_err(io::Error::other)?;
        let runs = report.runs.map_err(io::Error::other)?;
        let layout = Layout::create(state)?;
        layout.remove_doomed()?;
        let images = settings.images_dir.clone().unwrap_or_else(|| images_in(state));
        let images = std::path::absolute(images)?;
        let host = Host::look()?;
        if let Some(shortfall) = settings.size().shortfall(host) {
            warn!(shortfall, "This host is small");
        }
        // Said now, and not at the first sprite.
        let image = Image::open(&images, &settings.image).map_err(io::Error::other)?;
        let owners = Owners::new(&images, settings.first_id);
        if let Some(path) = owners.unreadable(&image)? {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "{} can't be read by the users that machines run as: let everybody read images (chmod -R o+rX), or set qemu.first_id = 0",
                    path.display()
                ),
            ));
        }
        Ok(Self {
            layout,
            host,
            runs,
            version,
            images,
            tsc_khz: probe::tsc_khz(),
            owners,
            machines: DashMap::new(),
            opening: DashMap::new(),
            merging: Semaphore::new(1),
            settings,
        })
    }

    /// What the host can and can't do, for the agent to say. Blocks.
    pub(crate) fn probe(settings: &Settings) -> Report {
        Report::of_host(settings)
    }

    fn machine(&self, id: SpriteId) -> Option<Arc<Machine>> {
        self.machines.get(&id).map(|machine| Arc::clone(&machine))
    }

    fn running(&self, verb: Verb, id: SpriteId) -> Result<Arc<Machine>, DriverError> {
        self.machine(id).ok_or(DriverError::NotRunning { verb, id })
    }

    /// Refuses to fill the disk that all sprites' memories are on.
    fn check_room(&self, files: &Files) -> Result<(), Failure> {
        self.check_room_for(files, 0)
    }

    /// The same for what takes so many bytes more.
    fn check_room_for(&self, files: &Files, bytes: u64) -> Result<(), Failure> {
        let step = "find room on the disk";
        let at = nix::sys::statvfs::statvfs(files.root()).map_err(|error| Failure::new(step, error))?;
        let free_mib = at.blocks_available().saturating_mul(at.fragment_size()) >> 20;
        let (wanted, more) = (self.settings.min_free_disk_mib, bytes >> 20);
        if free_mib < wanted.saturating_add(more) {
            let for_this = if more == 0 { String::new() } else { format!(" beside the {more} for this") };
            let message = format!(
                "{free_mib} MiB are free at {}, and qemu.min_free_disk_mib wants {wanted}{for_this}; remove something, or lower it",
                files.root().display()
            );
            return Err(Failure::new(step, io::Error::new(io::ErrorKind::StorageFull, message)));
        }
        Ok(())
    }

    /// See the field. Who holds it takes no longer than a start, or than writing one small file.
    fn opening(&self, id: SpriteId) -> Arc<Mutex<()>> {
        Arc::clone(&self.opening.entry(id).or_default())
    }

    fn image(&self) -> Result<Image, Failure> {
        Image::open(&self.images, &self.settings.image)
            .map_err(|error| Failure::new("open the image", io::Error::other(error)))
    }

    fn owner(&self, files: &Files) -> Result<Option<Owner>, Failure> {
        self.owners.of(&self.layout, files).map_err(failed("choose the user that it runs as"))
    }

    /// Starts QEMU for a machine that is made of `words`.
    async fn spawn(
        &self,
        words: &[String],
        incoming: bool,
        files: &Files,
        layers: &Layers,
    ) -> Result<Machine, Failure> {
        let owner = self.owner(files)?;
        if let Some(owner) = owner {
            std::fs::create_dir_all(files.run()).map_err(failed("make its directory"))?;
            owner.hand_over(files, layers).map_err(failed("give its user what it writes"))?;
        }
        let (program, images) = (self.settings.program.as_path(), self.images.as_path());
        Machine::spawn(Start { program, words, incoming, images, owner }, files).await
    }

    async fn boot(&self, sprite: &SpriteSpec) -> Result<(), Failure> {
        let files = self.layout.sprite(sprite.id);
        self.check_room(&files)?;
        let image = self.image()?;
        memory::forget(&files).map_err(failed("forget its last memory"))?;
        let opening = self.opening(sprite.id);
        let _opening = opening.lock().await;
        let layers = disk::settled(&files)?;
        let machine = arguments::Machine {
            kind: self.settings.machine,
            runs: self.runs,
            size: self.settings.size().of(sprite.resources, self.host),
            egress: self.settings.egress,
            name: sprite.name.as_str(),
            disk: &disk::chain(&files, &layers, layers.active())?,
            kernel: &image.kernel_elf(),
            initramfs: &image.initramfs(),
            tsc_khz: self.tsc_khz,
        };
        let words = machine.arguments(&files);
        let machine = self.spawn(&words, false, &files, &layers).await?;
        pass(Point::BootSpawned, &files);
        machine.open(&files)?;
        self.machines.insert(sprite.id, Arc::new(machine));
        Ok(())
    }

    /// Loads a memory from disk.
    async fn load(&self, id: SpriteId) -> Result<(), Unloaded> {
        let files = self.layout.sprite(id);
        let found = memory::find(&files, &self.version).map_err(failed("look for its memory"));
        let manifest = match found.map_err(Unloaded::AsItWas)? {
            Found::Whole(manifest) => manifest,
            Found::Nothing => {
                return Err(Unloaded::Lost(Failure::new("find its memory", io::ErrorKind::NotFound)));
            }
            Found::Unusable(why) => {
                return Err(Unloaded::Lost(Failure::new("use its memory", io::Error::other(why))));
            }
        };
        // Room on the disk is not asked for: its memory takes its room already.
        let began = std::time::Instant::now();
        let opening = self.opening(id);
        let opened = opening.lock().await;
        let layers = disk::settled(&files).map_err(Unloaded::AsItWas)?;
        let disk = disk::chain(&files, &layers, layers.active()).map_err(Unloaded::AsItWas)?;
        let words = arguments::with_disk(&manifest.machine, &disk);
        let spawned = self.spawn(&words, true, &files, &layers).await;
        drop(opened);
        let machine = spawned.map_err(Unloaded::AsItWas)?;
        pass(Point::LoadSpawned, &files);
        let spawned = began.elapsed();
        let state = match self.claim(&machine, &files).await {
            Ok(state) => state,
            Err(failure) => {
                // It waits for a state that it does not get any more. As long as it is there, so is its claim.
                machine.quit().await.map_err(Unloaded::Lost)?;
                let unclaimed = memory::unclaim(&files).map_err(failed("give its memory back"));
                unclaimed.map_err(Unloaded::Lost)?;
                return Err(Unloaded::AsItWas(failure));
            }
        };
        self.go_on(machine, &state, &files, id).await.map_err(Unloaded::Lost)?;
        debug!(sprite = %id, ?spawned, whole = ?began.elapsed(), "A memory was loaded");
        Ok(())
    }

    /// Takes a memory for a machine that waits for one. Nothing of the memory has changed when this returns.
    async fn claim(&self, machine: &Machine, files: &Files) -> Result<File, Failure> {
        memory::without_ram(&mut *machine.monitor().lock().await).await?;
        let state = File::open(files.state()).map_err(failed("open its memory"))?;
        memory::claim(files).map_err(failed("claim its memory"))?;
        pass(Point::LoadClaimed, files);
        Ok(state)
    }

    /// Lets a machine go on from a state.
    async fn go_on(
        &self,
        machine: Machine,
        state: &File,
        files: &Files,
        id: SpriteId,
    ) -> Result<(), Failure> {
        machine.monitor().lock().await.migrate(qmp::Direction::Load, state.as_fd()).await?;
        pass(Point::LoadLoaded, files);
        machine.unpause().await?;
        pass(Point::LoadRunning, files);
        machine.open(files)?;
        memory::forget_state(files).map_err(failed("forget the state that was used"))?;
        pass(Point::LoadForgotten, files);
        self.machines.insert(id, Arc::new(machine));
        Ok(())
    }

    /// Finds what an earlier agent left of a sprite.
    async fn find(&self, id: SpriteId) -> Result<Option<Adopted>, Failure> {
        let files = self.layout.sprite(id);
        disk::tidy(&files)?;
        kept::forget_all(&files).map_err(failed("remove what an interrupted fork left"))?;
        let Some(machine) = Machine::find(&files).await? else {
            machine::end_unknown(&files).await;
            machine::clean(&files).map_err(failed("remove what its last run left"))?;
            return match memory::find(&files, &self.version).map_err(failed("look for its memory"))? {
                Found::Whole(_) => Ok(Some(Adopted::Suspended)),
                Found::Nothing => Ok(None),
                Found::Unusable(why) => {
                    info!(sprite = %id, why, "A sprite's memory is lost; it starts cold");
                    memory::forget(&files).map_err(failed("forget its memory"))?;
                    Ok(None)
                }
            };
        };
        let mut status = machine.monitor().lock().await.status().await?;
        if status == "inmigrate" && !machine.monitor().lock().await.is_loading().await? {
            // It waits for a state that it was not given, and will not be by an agent that is gone: the memory is as it
            // was. As long as it is there, so is the claim.
            machine.quit().await?;
            memory::unclaim(&files).map_err(failed("give its memory back"))?;
            machine::clean(&files).map_err(failed("remove what its last run left"))?;
            return Ok(Some(Adopted::Suspended));
        }
        let loading = async {
            while status == "inmigrate" {
                tokio::time::sleep(LOAD_PAUSE).await;
                status = machine.monitor().lock().await.status().await?;
            }
            Ok::<_, Failure>(())
        };
        if !matches!(timeout(LOAD_LIMIT, loading).await, Ok(Ok(()))) {
            machine.quit().await?;
            memory::forget(&files).map_err(failed("forget its memory"))?;
            info!(sprite = %id, "A sprite's memory could not be loaded; it starts cold");
            return Ok(None);
        }
        // A state that was saved and not yet left behind is not its own once it runs on.
        memory::forget_state(&files).map_err(failed("forget a state"))?;
        machine.open(&files)?;
        let adopted = match status.as_str() {
            "running" => Adopted::Running,
            _ => Adopted::Paused,
        };
        self.machines.insert(id, Arc::new(machine));
        Ok(Some(adopted))
    }

    async fn end(&self, id: SpriteId, grace: Duration) -> Result<(), Failure> {
        let files = self.layout.sprite(id);
        if self.machine(id).is_none() {
            // It may be one that nobody has adopted yet.
            if let Some(machine) = Machine::find(&files).await? {
                self.machines.insert(id, Arc::new(machine));
            } else {
                machine::end_unknown(&files).await;
            }
        }
        if let Some(machine) = self.machine(id) {
            if grace.is_zero() {
                machine.end(Duration::ZERO).await?;
            } else {
                machine.open(&files)?;
                // One that is paused hears it as soon as it goes on.
                let told = tokio::join!(ask_to_end(&files, grace), machine.unpause());
                pass(Point::StopTold, &files);
                match told {
                    (true, Ok(())) => machine.end(grace + POWER_OFF_LIMIT).await?,
                    // A machine that can't be told any more has nothing to end in order.
                    (false, _) | (_, Err(_)) => machine.end(Duration::ZERO).await?,
                }
            }
            machine.close();
            pass(Point::StopEnded, &files);
        }
        machine::clean(&files).map_err(failed("remove what it left"))?;
        pass(Point::StopCleaned, &files);
        memory::forget(&files).map_err(failed("forget its memory"))?;
        self.machines.remove(&id);
        Ok(())
    }

    /// Keeps the disk as it is at one instant, in which the machine stands still.
    async fn cut(&self, id: SpriteId, checkpoint: &CheckpointId) -> Result<(), Failure> {
        let files = self.layout.sprite(id);
        let (tool, most) = (&self.settings.image_program, self.settings.max_layers);
        let owner = self.owner(&files)?;
        let Some(machine) = self.machine(id) else {
            return disk::checkpoint(&files, tool, None, owner, checkpoint, most).await;
        };
        let runs = machine.monitor().lock().await.status().await? == "running";
        if !runs {
            return disk::checkpoint(&files, tool, Some(&machine), owner, checkpoint, most).await;
        }
        ask_sync(&Address::Vsock(files.vsock()), SYNC_LIMIT)
            .await
            .map_err(|error| Failure::new("write its disk out", io::Error::other(error)))?;
        machine.pause().await?;
        let cut = disk::checkpoint(&files, tool, Some(&machine), owner, checkpoint, most).await;
        machine.unpause().await?;
        pass(Point::CheckpointRunning, &files);
        if let Err(error) = machine.tell_woken(&files).await {
            // The checkpoint is there; the machine's clock is behind by the instant of the cut.
            warn!(sprite = %id, error = crate::api::chain(&error), "Could not set a machine's clock after a checkpoint");
        }
        cut
    }

    /// The same while it is suspended, and keeps a copy of its memory.
    async fn cut_with_memory(&self, id: SpriteId, checkpoint: CheckpointId) -> Result<(), Failure> {
        let files = self.layout.sprite(id);
        let found = memory::find(&files, &self.version).map_err(failed("look for its memory"))?;
        if self.machine(id).is_some() || !matches!(found, Found::Whole(_)) {
            let message = "it is not on disk (any more): put the sprite to sleep with the depth \"suspended\", and try again";
            return Err(Failure::new("copy its memory", io::Error::other(message)));
        }
        self.check_room_for(&files, kept::size(&files).map_err(failed("look at its memory"))?)?;
        let source = files.clone();
        let copied = spawn_blocking(move || kept::keep(&source, &checkpoint)).await;
        copied.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(failed("copy its memory"))?;
        pass(Point::ForkKept, &files);
        let cut = self.cut(id, &checkpoint).await;
        if cut.is_err() {
            kept::forget(&files, &checkpoint).map_err(failed("remove the copy of its memory"))?;
        }
        cut
    }

    /// Merges layers if a check says that there are too many for one more, and checks again.
    async fn make_room_for_a_layer(
        &self,
        id: SpriteId,
        check: impl Fn() -> Result<(), Failure> + Send,
    ) -> Result<(), Failure> {
        if check().is_ok() {
            return Ok(());
        }
        self.merge_layers(id).await?;
        check()
    }

    /// Merges layers until what is left is worth its room.
    async fn merge_layers(&self, id: SpriteId) -> Result<(), Failure> {
        let turn = self.merging.acquire().await;
        let _turn = turn.map_err(|closed| Failure::new("wait for its turn", io::Error::other(closed)))?;
        let files = self.layout.sprite(id);
        while let Some(layers) = disk::read(&files)? {
            let measures = disk::measure(&files, &layers)?;
            let Some(merge) = merges::next(&layers, &measures, self.settings.max_layers) else { break };
            self.check_room_for(&files, merge.cost(&measures))?;
            self.merge(id, &files, &layers, merge).await?;
        }
        Ok(())
    }

    /// Makes one layer of two. Nothing but a start changes the record meanwhile, and that adds and removes no layer.
    async fn merge(
        &self,
        id: SpriteId,
        files: &Files,
        layers: &Layers,
        merge: merges::Merge,
    ) -> Result<(), Failure> {
        let began = std::time::Instant::now();
        let with = merger::With {
            program: &self.settings.program,
            tool: &self.settings.image_program,
            images: &self.images,
            owner: self.owner(files)?,
        };
        let new = merger::merge(files, layers, merge, with).await?;
        {
            // A start that has read the old record has opened the old files when this is had; a later one reads the new.
            let opening = self.opening(id);
            let _opening = opening.lock().await;
            let merged = disk::layers(files)?.merged(merge);
            merged.commit(files).map_err(failed("write down the merged layer"))?;
        }
        pass(Point::MergeNoted, files);
        // A machine that has them open keeps them until it ends. So does a fork, which has names of its own for them.
        for layer in [merge.lower, merge.upper] {
            remove_if_there(&Layers::path(files, layer)).map_err(failed("remove a layer that was merged"))?;
        }
        pass(Point::MergeSwept, files);
        let (lower, upper, new) = (merge.lower.number(), merge.upper.number(), new.number());
        info!(sprite = %id, lower, upper, new, elapsed = ?began.elapsed(), "Two layers of a disk were merged");
        Ok(())
    }

    async fn put_on_disk(&self, id: SpriteId, machine: &Machine) -> Result<(), Failure> {
        let files = self.layout.sprite(id);
        self.check_room(&files)?;
        let words = machine::words(&files).map_err(failed("read what it is made of"))?;
        let saved = memory::save(machine, &files, &self.version, self.runs, &words).await;
        if saved.is_err() {
            // It is paused, and whoever wakes it wants to get in.
            machine.open(&files)?;
            return saved;
        }
        pass(Point::SuspendEnded, &files);
        self.machines.remove(&id);
        machine::clean(&files).map_err(failed("remove what its run left"))?;
        write_out(files);
        Ok(())
    }
}

/// Begins to write a memory out: until that is done it survives all but a loss of power, after which the sprite starts
/// cold.
fn write_out(files: Files) {
    spawn_blocking(move || {
        if let Err(error) = memory::make_durable(&files) {
            debug!(%error, "Could not write a sprite's memory out");
        }
    });
}

/// Why a memory on disk was not loaded.
enum Unloaded {
    /// It is as it was: it can be tried again.
    AsItWas(Failure),
    /// It is not to be used any more.
    Lost(Failure),
}

/// Asks the runtime to end everything within `grace`; `false` if it could not be told.
async fn ask_to_end(files: &Files, grace: Duration) -> bool {
    let runtime = Address::Vsock(files.vsock());
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    let told = timeout(ASK_LIMIT, async {
        open_control(&runtime).await?.send(&Command::Shutdown { grace_ms }).await
    });
    matches!(told.await, Ok(Ok(())))
}

/// The driver's error of a failure.
fn error(verb: Verb, id: SpriteId) -> impl FnOnce(Failure) -> DriverError {
    move |Failure { step, source }| DriverError::Host { verb, id, step, source }
}

#[async_trait]
impl Driver for QemuDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self, _: SpriteId) -> Capabilities {
        Capabilities { pause: true, suspend: true, checkpoint: true, fork_memory: true }
    }

    fn endpoint(&self, id: SpriteId) -> Endpoint {
        Endpoint::Vsock { path: self.layout.sprite(id).vsock() }
    }

    fn footprint(&self, id: SpriteId) -> u64 {
        self.machine(id).map_or(0, |machine| machine.footprint())
    }

    async fn prepare(&self, sprite: &SpriteSpec) -> Result<(), DriverError> {
        let files = self.layout.sprite(sprite.id);
        let size = self.settings.size().of(sprite.resources, self.host);
        let made = async {
            let image = self.image()?;
            disk::make(&files, &self.settings.image_program, &image.root(), size).await
        };
        made.await.map_err(error(Verb::Prepare, sprite.id))
    }

    async fn start(&self, sprite: &SpriteSpec, _: Epoch) -> Result<(), DriverError> {
        if self.machine(sprite.id).is_some() {
            return Err(DriverError::AlreadyRunning { verb: Verb::Start, id: sprite.id });
        }
        self.boot(sprite).await.map_err(error(Verb::Start, sprite.id))
    }

    async fn pause(&self, id: SpriteId) -> Result<(), DriverError> {
        let machine = self.running(Verb::Pause, id)?;
        // So that its disk, which may be all that is left of it or be kept as a checkpoint, has what its programs wrote.
        if let Err(error) = ask_sync(&Address::Vsock(self.layout.sprite(id).vsock()), PAUSE_SYNC_LIMIT).await
        {
            debug!(sprite = %id, %error, "A machine did not write its disk out before it was paused");
        }
        let files = self.layout.sprite(id);
        pass(Point::PauseSynced, &files);
        machine.pause().await.map_err(error(Verb::Pause, id))?;
        pass(Point::PauseStopped, &files);
        Ok(())
    }

    async fn resume(&self, id: SpriteId) -> Result<Resumed, DriverError> {
        let Some(machine) = self.machine(id) else {
            let verb = Verb::Resume;
            return match self.load(id).await {
                Ok(()) => Ok(Resumed::FromDisk),
                Err(Unloaded::AsItWas(Failure { step, source })) => {
                    Err(DriverError::AsItWas { verb, id, step, source })
                }
                Err(Unloaded::Lost(failure)) => Err(error(verb, id)(failure)),
            };
        };
        let files = self.layout.sprite(id);
        let resumed = async {
            machine.unpause().await?;
            pass(Point::ResumeRunning, &files);
            machine.tell_woken(&files).await
        };
        resumed.await.map_err(error(Verb::Resume, id))?;
        Ok(Resumed::FromRam)
    }

    async fn suspend(&self, id: SpriteId) -> Result<(), DriverError> {
        let machine = self.running(Verb::Suspend, id)?;
        self.put_on_disk(id, &machine).await.map_err(error(Verb::Suspend, id))
    }

    async fn stage_checkpoint(&self, id: SpriteId, _: CheckpointId) -> Result<(), DriverError> {
        let (files, most) = (self.layout.sprite(id), self.settings.max_layers);
        let check = || {
            let layers = disk::layers(&files)?;
            disk::check_depth(&layers, layers.active(), most)
        };
        self.make_room_for_a_layer(id, check).await.map_err(error(Verb::Checkpoint, id))
    }

    async fn checkpoint(&self, id: SpriteId, checkpoint: CheckpointId) -> Result<(), DriverError> {
        self.cut(id, &checkpoint).await.map_err(error(Verb::Checkpoint, id))
    }

    async fn checkpoint_with_memory(
        &self,
        id: SpriteId,
        checkpoint: CheckpointId,
    ) -> Result<(), DriverError> {
        self.cut_with_memory(id, checkpoint).await.map_err(error(Verb::Fork, id))
    }

    async fn stage_restore(&self, id: SpriteId, checkpoint: CheckpointId) -> Result<(), DriverError> {
        let (files, most) = (self.layout.sprite(id), self.settings.max_layers);
        let check = || disk::check_restore(&files, &checkpoint, None, most);
        self.make_room_for_a_layer(id, check).await.map_err(error(Verb::Restore, id))
    }

    async fn restore(
        &self,
        id: SpriteId,
        checkpoint: CheckpointId,
        replaced: CheckpointId,
    ) -> Result<(), DriverError> {
        let verb = Verb::Restore;
        if self.machine(id).is_some() {
            return Err(DriverError::AlreadyRunning { verb, id });
        }
        let (files, most) = (self.layout.sprite(id), self.settings.max_layers);
        disk::check_restore(&files, &checkpoint, Some(&replaced), most).map_err(error(verb, id))?;
        // It knows the disk that is about to go.
        memory::forget(&files).map_err(failed("forget its memory")).map_err(error(verb, id))?;
        pass(Point::RestoreForgotten, &files);
        let owner = self.owner(&files).map_err(error(verb, id))?;
        let tool = &self.settings.image_program;
        let restored = disk::restore(&files, tool, owner, &checkpoint, &replaced).await;
        restored.map_err(error(verb, id))?.ok_or(DriverError::NoCheckpoint { verb, id, checkpoint })
    }

    async fn forget_checkpoint(&self, id: SpriteId, checkpoint: CheckpointId) -> Result<(), DriverError> {
        let files = self.layout.sprite(id);
        kept::forget(&files, &checkpoint)
            .map_err(failed("remove a copy of its memory"))
            .and_then(|()| disk::forget_checkpoint(&files, &checkpoint))
            .map_err(error(Verb::ForgetCheckpoint, id))
    }

    async fn fork(
        &self,
        source: SpriteId,
        checkpoint: CheckpointId,
        sprite: &SpriteSpec,
    ) -> Result<(), DriverError> {
        let (theirs, ours) = (self.layout.sprite(source), self.layout.sprite(sprite.id));
        let (tool, most) = (&self.settings.image_program, self.settings.max_layers);
        let layers = disk::layers(&theirs).map_err(error(Verb::Fork, source))?;
        let depth = layers.checkpoint(&checkpoint).map_or(0, |below| layers.depth(below));
        if depth >= most {
            return Err(DriverError::TooManyLayers { verb: Verb::Fork, id: source, depth, most });
        }
        let taken = kept::take(&theirs, &checkpoint, &ours).map_err(failed("take the copied memory"));
        let has_memory = taken.map_err(error(Verb::Fork, sprite.id))?;
        if has_memory {
            pass(Point::ForkTaken, &theirs);
        }
        let forked = disk::fork(&theirs, tool, &checkpoint, &ours).await;
        let missing = DriverError::NoCheckpoint { verb: Verb::Fork, id: source, checkpoint };
        forked.map_err(error(Verb::Fork, sprite.id))?.ok_or(missing)?;
        if has_memory {
            write_out(ours);
        }
        Ok(())
    }

    async fn compact(&self, id: SpriteId) -> Result<(), DriverError> {
        self.merge_layers(id).await.map_err(error(Verb::Compact, id))
    }

    async fn stop(&self, id: SpriteId, grace: Duration) -> Result<(), DriverError> {
        self.end(id, grace).await.map_err(error(Verb::Stop, id))
    }

    async fn destroy(&self, id: SpriteId) -> Result<(), DriverError> {
        self.stop(id, Duration::ZERO).await?;
        self.opening.remove(&id);
        let (root, doomed) = (self.layout.sprite(id).root().to_owned(), self.layout.doomed(id));
        let removed = spawn_blocking(move || match std::fs::rename(&root, &doomed) {
            Ok(()) => std::fs::remove_dir_all(&doomed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        });
        let removed = removed.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        removed.map_err(failed("remove its files")).map_err(error(Verb::Destroy, id))
    }

    async fn adopt(&self, id: SpriteId) -> Result<Option<Adopted>, DriverError> {
        self.find(id).await.map_err(error(Verb::Adopt, id))
    }

    async fn exited(&self, id: SpriteId) {
        if let Some(machine) = self.machine(id) {
            machine.exited().await;
            // Whoever waits to be let in must hear that nobody is there.
            machine.close();
        }
    }
}
