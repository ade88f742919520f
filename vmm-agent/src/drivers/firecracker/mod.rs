//! The `firecracker` driver: a sprite is a microVM with a kernel of its own, for hosts with KVM.
//!
//! - A paused sprite's Firecracker is stopped by SIGSTOP. A suspended one has written its memory to a file and
//!   is gone; the next one maps that file privately and reads what it touches. See [`memory`] for why no memory
//!   is ever used twice.
//! - Gateways dial the vsock that Firecracker itself serves. Connections over it end with a suspension;
//!   what listens inside goes on listening.
//! - With a jailer each machine has a user and a root of its own; without one it has the agent's user. Firecracker's
//!   own system call filter is there in both.
//!
//! There is no way out to other hosts: sprites can be reached, but reach nothing.

mod api;
mod disk;
mod jail;
mod layout;
mod machine;
mod memory;
pub(crate) mod pager;
mod probe;
mod settings;
#[cfg(test)]
mod tests;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use agent_api::{Capabilities, lease::Endpoint};
use async_trait::async_trait;
use dashmap::DashMap;
use ids::{Epoch, SpriteId};
use rand::Rng as _;
use runtime_api::{Address, Command, VSOCK_PORT, Woken, open_control, tell_woken};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::{sleep, timeout},
};
use tracing::warn;

use self::{
    layout::{DISK, Files, INITRAMFS, Jailed, KERNEL, Layout, PAGER, VSOCK},
    machine::{Machine, Phase},
    memory::Memory,
    settings::MemoryBackend,
};
pub(crate) use self::{probe::Report, settings::Settings};
use super::{
    Adopted, Driver, DriverError, Resumed, SpriteSpec, Verb, files::remove_if_there, size, user::user,
};
use crate::images::Image;

const NAME: &str = "firecracker";
/// Firecracker answers in milliseconds; a host that swaps, in more.
const COMMAND_LIMIT: Duration = Duration::from_secs(5);
/// For writing all memory to a slow disk: 8 GiB at 70 MB/s.
const SAVE_LIMIT: Duration = Duration::from_secs(120);
/// A kernel boots in a fraction of a second; a host with many wakes at once is slower.
const BOOT_LIMIT: Duration = Duration::from_secs(30);
/// How long a guest may take to hear that it slept: its runtime may have been swapped out.
const WOKEN_LIMIT: Duration = Duration::from_secs(5);
/// How long the kernel may take to end a killed machine.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to put a line into a runtime's socket.
const ASK_LIMIT: Duration = Duration::from_millis(500);
/// Between two tries at a guest that does not listen yet.
const KNOCK_PAUSE: Duration = Duration::from_millis(5);
/// Firecracker gives a machine no more.
const MOST_CPUS: u32 = 32;
/// The first that is not reserved. Each machine's network of these is its own.
const GUEST_CID: u32 = 3;

/// Without what a microVM lacks and the kernel would look for; after a stop in time, which is no fault of the
/// kernel's, without its complaint; a reboot by the keyboard ends Firecracker.
const BOOT_ARGUMENTS: &str = "reboot=k panic=1 pci=off i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd nosoftlockup \
                              random.trust_cpu=on quiet sprite.vsock";

/// See the module.
#[derive(Debug)]
pub(crate) struct FirecrackerDriver {
    host: Arc<Host>,
}

/// What all verbs share.
#[derive(Debug)]
struct Host {
    layout: Layout,
    settings: Settings,
    images: PathBuf,
    size: size::Host,
    /// What the program says of itself.
    version: String,
    running: DashMap<SpriteId, Arc<Machine>>,
    /// One lock for each sprite that a verb works on.
    busy: DashMap<SpriteId, Arc<tokio::sync::Mutex<()>>>,
    /// For the choice of a user.
    choosing: parking_lot::Mutex<()>,
}

impl FirecrackerDriver {
    /// Looks at the host and at what earlier agents left in `state`. Blocks.
    ///
    /// # Errors
    /// Sprites can't run here at all; the message says why and what to do.
    pub(crate) fn new(state: &Path, settings: Settings) -> io::Result<Self> {
        let version = probe::usable(&settings)?;
        Self::assemble(state, settings, version)
    }

    /// On a host that has been looked at.
    fn assemble(state: &Path, mut settings: Settings, version: String) -> io::Result<Self> {
        let jailed = if settings.jailer.is_some() { Jailed::Yes } else { Jailed::No };
        let layout = Layout::create(state, jailed)?;
        if jailed == Jailed::Yes {
            settings.program = jail::own_program(state, &settings.program)?;
        }
        layout.remove_doomed()?;
        let images = settings.images_dir.clone().unwrap_or_else(|| crate::config::images_in(state));
        let host = Host {
            layout,
            settings,
            images,
            size: size::Host::look()?,
            version,
            running: DashMap::new(),
            busy: DashMap::new(),
            choosing: parking_lot::Mutex::new(()),
        };
        Ok(Self { host: Arc::new(host) })
    }

    /// What the host can and can't do, for the agent to say. Blocks.
    pub(crate) fn probe(settings: &Settings) -> Report {
        Report::of_host(settings)
    }

    /// Performs a verb to its end, even if the caller leaves: half of one must not meet the next.
    async fn whole<T: Send + 'static>(
        &self,
        verb: Verb,
        id: SpriteId,
        work: impl Future<Output = Result<T, DriverError>> + Send + 'static,
    ) -> Result<T, DriverError> {
        tokio::spawn(work).await.unwrap_or_else(|panic| {
            Err(host_error(verb, id, "finish (a bug, or the agent ends)")(io::Error::other(panic)))
        })
    }
}

impl Host {
    async fn turn(&self, id: SpriteId) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = Arc::clone(&self.busy.entry(id).or_default());
        turn.lock_owned().await
    }

    fn machine(&self, id: SpriteId) -> Option<Arc<Machine>> {
        self.running.get(&id).map(|entry| Arc::clone(&entry))
    }

    fn image(&self) -> io::Result<Image> {
        Image::open(&self.images, &self.settings.image).map_err(io::Error::other)
    }

    /// The machine's user; `None` if it is not jailed.
    fn user(&self, files: &Files) -> io::Result<Option<u32>> {
        if self.settings.jailer.is_none() {
            return Ok(None);
        }
        let _one_at_a_time = self.choosing.lock();
        user(self.layout.sprites(), files.root(), self.settings.first_id).map(Some)
    }

    /// A Firecracker for the sprite that has been told nothing yet, and is to load `memory`, if any.
    async fn spawn(&self, id: SpriteId, files: &Files, memory: Option<&Memory>) -> io::Result<Machine> {
        let uid = self.user(files)?;
        let image = self.image()?;
        let (kernel, initramfs, own) = (image.kernel_elf(), image.initramfs(), files.clone());
        blocking(move || jail::furnish(&own, &kernel, &initramfs, uid)).await?;
        let paged = memory.filter(|_| self.settings.memory_backend == MemoryBackend::Uffd);
        let paged = paged.map(Memory::memory_name);
        let spawned = Machine::spawn(&self.settings, &self.layout, files, id, uid, paged.as_deref()).await;
        if spawned.is_err()
            && let Some((machine, _)) = Machine::find(files)?
        {
            // It lives, but takes no commands.
            machine.kill()?;
            machine.exited().await;
        }
        spawned
    }

    /// Boots the guest, up to where its runtime takes connections.
    async fn boot(&self, machine: &Machine, sprite: &SpriteSpec, files: &Files) -> io::Result<()> {
        let size = self.settings.size().of(sprite.resources, self.size);
        let console = if self.settings.console { "console=ttyS0" } else { "8250.nr_uarts=0" };
        let arguments = format!("{console} {BOOT_ARGUMENTS} sprite.name={}", sprite.name);
        let machine_config =
            json!({ "vcpu_count": size.cpus.min(MOST_CPUS), "mem_size_mib": size.memory_mib });
        let boot_source =
            json!({ "kernel_image_path": KERNEL, "initrd_path": INITRAMFS, "boot_args": arguments });
        let drive = json!({
            "drive_id": "disk",
            "path_on_host": DISK,
            "is_root_device": false,
            "is_read_only": false,
            // So that what the guest has synced is on the disk.
            "cache_type": "Writeback",
        });
        let vsock = json!({ "guest_cid": GUEST_CID, "uds_path": VSOCK });
        for (path, body) in [
            ("/machine-config", machine_config),
            ("/boot-source", boot_source),
            ("/drives/disk", drive),
            ("/vsock", vsock),
            ("/entropy", json!({})),
        ] {
            machine.api.put(path, &body, COMMAND_LIMIT).await?;
        }
        machine.api.put("/actions", &json!({ "action_type": "InstanceStart" }), COMMAND_LIMIT).await?;
        machine.note_running(files)?;
        let booted = async {
            while !listens(&files.vsock()).await {
                sleep(KNOCK_PAUSE).await;
            }
        };
        tokio::select! {
            booted = timeout(BOOT_LIMIT, booted) => booted.map_err(|_| {
                io::Error::other(format!("its runtime did not listen within {BOOT_LIMIT:?}"))
            }),
            () = machine.exited() => Err(io::Error::other("the machine ended while it booted")),
        }
    }

    /// Lets a suspended sprite go on in a new machine.
    async fn load(&self, machine: &Machine, files: &Files, memory: &Memory) -> io::Result<()> {
        if memory.version != self.version {
            return Err(io::Error::other(format!(
                "its memory was written by {} and can't be read by {}",
                memory.version, self.version
            )));
        }
        let (kind, path) = match self.settings.memory_backend {
            MemoryBackend::File => ("File", memory.memory_name()),
            MemoryBackend::Uffd => ("Uffd", PAGER.to_owned()),
        };
        let load = json!({
            "snapshot_path": memory.state_name(),
            "mem_backend": { "backend_type": kind, "backend_path": path },
            "resume_vm": false,
        });
        machine.api.put("/snapshot/load", &load, COMMAND_LIMIT).await?;
        let own = files.clone();
        blocking(move || Memory::take(&own)).await?;
        self.finish_load(machine, files).await
    }

    /// Lets a machine go on whose memory is loaded and used up.
    async fn finish_load(&self, machine: &Machine, files: &Files) -> io::Result<()> {
        if is_paused_inside(machine).await {
            machine.api.patch("/vm", &json!({ "state": "Resumed" }), COMMAND_LIMIT).await?;
        }
        machine.note_running(files)?;
        tell(files).await
    }

    /// Writes the memory of a machine that is stopped in time. After an error it is stopped again.
    async fn save(&self, machine: &Machine, files: &Files) -> io::Result<()> {
        let memory = Memory::next(files, &self.version)?;
        let written = async {
            // What can't run can't be commanded. The guest has a millisecond before it is paused again.
            machine.start_time()?;
            machine.is_doubtful.store(true, Ordering::Relaxed);
            machine.api.patch("/vm", &json!({ "state": "Paused" }), COMMAND_LIMIT).await?;
            let create = json!({
                "snapshot_type": "Full",
                "snapshot_path": memory.state_name(),
                "mem_file_path": memory.memory_name(),
            });
            machine.api.put("/snapshot/create", &create, SAVE_LIMIT).await?;
            let (memory, files) = (memory.clone(), files.clone());
            blocking(move || memory.commit(&files)).await
        };
        let outcome: io::Result<()> = written.await;
        if outcome.is_err() {
            machine.stop_time().await?;
            let files = files.clone();
            blocking(move || memory.withdraw(&files)).await?;
        }
        outcome
    }

    /// Kills a machine and waits for its end.
    async fn end(&self, verb: Verb, id: SpriteId, machine: &Machine) -> Result<(), DriverError> {
        machine.kill().map_err(host_error(verb, id, "kill it"))?;
        timeout(KILL_LIMIT, machine.exited()).await.map_err(|_| DriverError::TimedOut {
            verb,
            id,
            step: "its end after a KILL",
            limit: KILL_LIMIT,
        })
    }

    /// Forgets a machine that is gone.
    fn forget(&self, verb: Verb, id: SpriteId) -> Result<(), DriverError> {
        let files = self.layout.sprite(id);
        for path in [files.api(), files.vsock(), files.pager(), files.process()] {
            remove_if_there(&path).map_err(host_error(verb, id, "remove what it left"))?;
        }
        self.running.remove(&id);
        Ok(())
    }

    /// Asks the runtime to end everything within `grace`, and waits for that.
    async fn ask_to_end(&self, machine: &Machine, files: &Files, grace: Duration) {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let told = async {
            let runtime = Address::Vsock(files.vsock());
            open_control(&runtime).await?.send(&Command::Shutdown { grace_ms }).await
        };
        if matches!(timeout(ASK_LIMIT, told).await, Ok(Ok(()))) {
            // If it does not end by itself it is ended.
            let _late = timeout(grace, machine.exited()).await;
        }
    }

    /// Takes charge of what an earlier agent left, and brings it to where nothing is half done.
    async fn find(&self, verb: Verb, id: SpriteId) -> Result<Option<Adopted>, DriverError> {
        let failed = |step| host_error(verb, id, step);
        let files = self.layout.sprite(id);
        let is_ready = Memory::ready(&files).map_err(failed("read about its memory"))?.is_some();
        let adopted = if is_ready { Some(Adopted::Suspended) } else { None };
        let found = match self.machine(id) {
            Some(machine) => Some((machine, Phase::Running)),
            None => Machine::find(&files)
                .map_err(failed("look for its machine"))?
                .map(|(machine, phase)| (Arc::new(machine), phase)),
        };
        let Some((machine, phase)) = found else {
            self.forget(verb, id)?;
            return Ok(adopted);
        };
        // Its memory is in use, whether it has taken its first step or not.
        let is_loaded = phase == Phase::Starting
            && !is_ready
            && Memory::used(&files).map_err(failed("read about its memory"))?.is_some();
        if is_loaded && self.finish_load(&machine, &files).await.is_ok() {
            self.running.insert(id, machine);
            return Ok(Some(Adopted::Running));
        }
        // Its memory is written and counts: it has not run since. Or its guest never ran.
        if is_ready || phase == Phase::Starting {
            self.end(verb, id, &machine).await?;
            self.forget(verb, id)?;
            return Ok(adopted);
        }
        let is_stopped = machine.is_stopped().map_err(failed("see whether it is paused"))?;
        let Some(is_stopped) = is_stopped else {
            self.forget(verb, id)?;
            return Ok(None);
        };
        let adopted = if is_stopped || is_paused_inside(&machine).await {
            machine.is_doubtful.store(true, Ordering::Relaxed);
            machine.stop_time().await.map_err(failed("pause it again"))?;
            Adopted::Paused
        } else {
            Adopted::Running
        };
        self.running.insert(id, machine);
        Ok(Some(adopted))
    }

    /// Finds out whether a suspension was broken off, and if so takes it back.
    async fn undo_pause_inside(&self, machine: &Machine, files: &Files) -> io::Result<()> {
        if is_paused_inside(machine).await {
            machine.api.patch("/vm", &json!({ "state": "Resumed" }), COMMAND_LIMIT).await?;
            tell(files).await?;
        }
        machine.is_doubtful.store(false, Ordering::Relaxed);
        Ok(())
    }
}

/// Names the step of an error.
fn host_error(verb: Verb, id: SpriteId, step: impl Into<String>) -> impl FnOnce(io::Error) -> DriverError {
    let step = step.into();
    move |source| DriverError::Host { verb, id, step, source }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

/// Whether Firecracker has paused its guest, or is busy with what it does to a paused one.
async fn is_paused_inside(machine: &Machine) -> bool {
    let told: Result<serde_json::Value, _> = machine.api.get("/", COMMAND_LIMIT).await;
    !told.is_ok_and(|told| told["state"] == "Running")
}

/// Whether the guest's runtime takes connections: before, Firecracker closes them without an OK.
async fn listens(vsock: &Path) -> bool {
    let knock = async {
        let mut stream = UnixStream::connect(vsock).await?;
        stream.write_all(format!("CONNECT {VSOCK_PORT}\n").as_bytes()).await?;
        let mut answer = [0; 3];
        stream.read_exact(&mut answer).await?;
        io::Result::Ok(answer == *b"OK ")
    };
    knock.await.unwrap_or(false)
}

/// Tells the guest that it slept, which also proves that it can be reached.
async fn tell(files: &Files) -> io::Result<()> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_err(io::Error::other)?;
    let entropy: [u8; 32] = rand::rng().random();
    let woken = Woken {
        unix_nanos: u64::try_from(since.as_nanos()).map_err(io::Error::other)?,
        entropy: entropy.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    tell_woken(&Address::Vsock(files.vsock()), &woken, WOKEN_LIMIT).await.map_err(io::Error::other)
}

impl Host {
    async fn prepare(&self, sprite: &SpriteSpec) -> Result<(), DriverError> {
        let failed = |step| host_error(Verb::Prepare, sprite.id, step);
        let _turn = self.turn(sprite.id).await;
        let files = self.layout.sprite(sprite.id);
        if files.disk().try_exists().map_err(failed("look for its disk"))? {
            return Ok(());
        }
        for dir in [files.root(), files.machine()] {
            std::fs::create_dir_all(dir).map_err(failed("make its directories"))?;
        }
        let uid = self.user(&files).map_err(failed("choose its user"))?;
        let image = self.image().map_err(failed("open its image"))?;
        let size = self.settings.size().of(sprite.resources, self.size);
        let made = blocking(move || disk::make(&files, &image.root(), size.disk_gib, uid));
        made.await.map_err(failed("make its disk"))
    }

    async fn start(&self, sprite: &SpriteSpec) -> Result<(), DriverError> {
        let (verb, id) = (Verb::Start, sprite.id);
        let failed = |step| host_error(verb, id, step);
        let _turn = self.turn(id).await;
        let files = self.layout.sprite(id);
        // A machine that is suspended is no machine, but its memory must not be found later.
        if let Some(Adopted::Running | Adopted::Paused) = self.find(verb, id).await? {
            return Err(DriverError::AlreadyRunning { verb, id });
        }
        let own = files.clone();
        blocking(move || Memory::forget(&own)).await.map_err(failed("drop its memory of before"))?;
        let machine = self.spawn(id, &files, None).await.map_err(failed("start firecracker"))?;
        let machine = Arc::new(machine);
        self.running.insert(id, Arc::clone(&machine));
        if let Err(error) = self.boot(&machine, sprite, &files).await {
            self.end(verb, id, &machine).await?;
            self.forget(verb, id)?;
            return Err(failed("boot it")(error));
        }
        Ok(())
    }

    async fn pause(&self, id: SpriteId) -> Result<(), DriverError> {
        let verb = Verb::Pause;
        let _turn = self.turn(id).await;
        let machine = self.machine(id).ok_or(DriverError::NotRunning { verb, id })?;
        if let Err(error) = machine.stop_time().await {
            machine.start_time().map_err(host_error(verb, id, "let it go on"))?;
            return Err(host_error(verb, id, "stop its threads")(error));
        }
        Ok(())
    }

    async fn resume(&self, id: SpriteId) -> Result<Resumed, DriverError> {
        let verb = Verb::Resume;
        let failed = |step| host_error(verb, id, step);
        let _turn = self.turn(id).await;
        let files = self.layout.sprite(id);
        if let Some(machine) = self.machine(id) {
            machine.start_time().map_err(failed("let its threads go on"))?;
            if machine.is_doubtful.load(Ordering::Relaxed) {
                let undone = self.undo_pause_inside(&machine, &files).await;
                undone.map_err(failed("resume it after a suspension that was broken off"))?;
            }
            return Ok(Resumed::FromRam);
        }
        let memory = Memory::ready(&files).map_err(failed("read about its memory"))?;
        let memory = memory.ok_or(DriverError::NotRunning { verb, id })?;
        let spawned = self.spawn(id, &files, Some(&memory)).await;
        let machine = spawned.map_err(|source| {
            let step = "start firecracker".to_owned();
            DriverError::AsItWas { verb, id, step, source }
        })?;
        let machine = Arc::new(machine);
        self.running.insert(id, Arc::clone(&machine));
        if let Err(error) = self.load(&machine, &files, &memory).await {
            self.end(verb, id, &machine).await?;
            self.forget(verb, id)?;
            return Err(failed("go on from its memory")(error));
        }
        Ok(Resumed::FromDisk)
    }

    async fn suspend(&self, id: SpriteId) -> Result<(), DriverError> {
        let verb = Verb::Suspend;
        let failed = |step| host_error(verb, id, step);
        let _turn = self.turn(id).await;
        let files = self.layout.sprite(id);
        let Some(machine) = self.machine(id) else {
            let memory = Memory::ready(&files).map_err(failed("read about its memory"))?;
            return memory.map(drop).ok_or(DriverError::NotRunning { verb, id });
        };
        self.save(&machine, &files).await.map_err(failed("write its memory"))?;
        self.end(verb, id, &machine).await?;
        self.forget(verb, id)?;
        // It is suspended, whatever becomes of older files: they are looked for at the next suspension again.
        if let Err(error) = remove_older(&files) {
            warn!(sprite = %id, %error, "Could not remove a sprite's older memory");
        }
        Ok(())
    }

    async fn stop(&self, id: SpriteId, grace: Duration) -> Result<(), DriverError> {
        let verb = Verb::Stop;
        let _turn = self.turn(id).await;
        let files = self.layout.sprite(id);
        let machine = match self.machine(id) {
            Some(machine) => Some(machine),
            // It may be one that nobody has adopted yet.
            None => Machine::find(&files)
                .map_err(host_error(verb, id, "look for its machine"))?
                .map(|(machine, _)| Arc::new(machine)),
        };
        if let Some(machine) = machine {
            if !grace.is_zero() && !machine.is_doubtful.load(Ordering::Relaxed) {
                machine.start_time().map_err(host_error(verb, id, "let it hear that it ends"))?;
                self.ask_to_end(&machine, &files, grace).await;
            }
            self.end(verb, id, &machine).await?;
            self.forget(verb, id)?;
        }
        blocking(move || Memory::forget(&files)).await.map_err(host_error(verb, id, "drop its memory"))
    }

    async fn destroy(&self, id: SpriteId) -> Result<(), DriverError> {
        self.stop(id, Duration::ZERO).await?;
        let doomed = {
            let _turn = self.turn(id).await;
            self.layout.sprite(id).doom().map_err(host_error(Verb::Destroy, id, "set its files aside"))?
        };
        self.busy.remove(&id);
        let removed = blocking(move || doomed.iter().try_for_each(std::fs::remove_dir_all)).await;
        if let Err(error) = removed {
            // The next agent tries again.
            warn!(sprite = %id, %error, "Could not remove a destroyed sprite's files");
        }
        Ok(())
    }

    async fn adopt(&self, id: SpriteId) -> Result<Option<Adopted>, DriverError> {
        let _turn = self.turn(id).await;
        self.find(Verb::Adopt, id).await
    }
}

fn remove_older(files: &Files) -> io::Result<()> {
    Memory::ready(files)?.map_or(Ok(()), |memory| memory.remove_older(files))
}

#[async_trait]
impl Driver for FirecrackerDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self, _: SpriteId) -> Capabilities {
        Capabilities { pause: true, suspend: true, checkpoint: false, fork_memory: false }
    }

    fn endpoint(&self, id: SpriteId) -> Endpoint {
        Endpoint::Vsock { path: self.host.layout.sprite(id).vsock() }
    }

    fn footprint(&self, id: SpriteId) -> u64 {
        self.host.machine(id).map_or(0, |machine| machine.footprint())
    }

    async fn prepare(&self, sprite: &SpriteSpec) -> Result<(), DriverError> {
        let (host, sprite) = (Arc::clone(&self.host), sprite.clone());
        self.whole(Verb::Prepare, sprite.id, async move { host.prepare(&sprite).await }).await
    }

    async fn start(&self, sprite: &SpriteSpec, _: Epoch) -> Result<(), DriverError> {
        let (host, sprite) = (Arc::clone(&self.host), sprite.clone());
        self.whole(Verb::Start, sprite.id, async move { host.start(&sprite).await }).await
    }

    async fn pause(&self, id: SpriteId) -> Result<(), DriverError> {
        let host = Arc::clone(&self.host);
        self.whole(Verb::Pause, id, async move { host.pause(id).await }).await
    }

    async fn resume(&self, id: SpriteId) -> Result<Resumed, DriverError> {
        let host = Arc::clone(&self.host);
        self.whole(Verb::Resume, id, async move { host.resume(id).await }).await
    }

    async fn suspend(&self, id: SpriteId) -> Result<(), DriverError> {
        let host = Arc::clone(&self.host);
        self.whole(Verb::Suspend, id, async move { host.suspend(id).await }).await
    }

    async fn stop(&self, id: SpriteId, grace: Duration) -> Result<(), DriverError> {
        let host = Arc::clone(&self.host);
        self.whole(Verb::Stop, id, async move { host.stop(id, grace).await }).await
    }

    async fn destroy(&self, id: SpriteId) -> Result<(), DriverError> {
        let host = Arc::clone(&self.host);
        self.whole(Verb::Destroy, id, async move { host.destroy(id).await }).await
    }

    async fn adopt(&self, id: SpriteId) -> Result<Option<Adopted>, DriverError> {
        let host = Arc::clone(&self.host);
        self.whole(Verb::Adopt, id, async move { host.adopt(id).await }).await
    }

    async fn exited(&self, id: SpriteId) {
        if let Some(machine) = self.host.machine(id) {
            machine.exited().await;
        }
    }
}
