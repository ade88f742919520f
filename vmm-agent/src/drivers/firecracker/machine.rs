//! One Firecracker process: started, written down, found again, stopped in time and ended.

use std::{
    fs, io,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    sync::atomic::AtomicBool,
    time::Duration,
};

use ids::SpriteId;
use nix::{sys::signal::Signal, unistd::Pid};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::{
    Settings,
    api::Api,
    layout::{API, Files, Layout},
    pager,
};
use crate::drivers::{
    files::{remove_if_there, write_whole},
    pid::{self, Footprint, Identity, Watched},
};

/// Runs a program once a line has come on stdin, and not at all if none comes: so no process is ever without
/// a record, even if the agent is killed between the two.
const WAIT_FOR_THE_RECORD: &str = "read -r line && exec \"$0\" \"$@\" </dev/null";
/// How long all threads of a process may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(2);
const LOOK_PAUSE: Duration = Duration::from_micros(200);
/// Each connection over vsock is a descriptor of Firecracker's; the jailer would leave it 2048.
const MOST_FILES: &str = "no-file=65536";
/// How long a Firecracker may take until it can be commanded: the jailer copies it first.
const READY_LIMIT: Duration = Duration::from_secs(5);

/// How far a machine has come. What is written is at most behind what is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// Its guest has not run.
    Starting,
    /// Its guest runs, or will at the next resume.
    Running,
}

/// What is written down.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    identity: Identity,
    phase: Phase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pager: Option<Identity>,
}

/// A Firecracker that runs, or has just ended.
#[derive(Debug)]
pub(super) struct Machine {
    process: Watched,
    record: Record,
    pub(super) api: Api,
    /// Who brings its memory, if not the kernel.
    pager: Option<Watched>,
    /// Set when it may be paused by the API as well: a suspension was broken off, perhaps.
    pub(super) is_doubtful: AtomicBool,
}

impl Machine {
    /// Starts a Firecracker in the machine's directory and waits until it takes commands. If it is to load a
    /// memory by pages, `paged` names it, and a pager is there, too.
    ///
    /// Cancel safe: what was started is in the record.
    pub(super) async fn spawn(
        settings: &Settings,
        layout: &Layout,
        files: &Files,
        id: SpriteId,
        uid: Option<u32>,
        paged: Option<&str>,
    ) -> io::Result<Self> {
        remove_if_there(&files.api())?;
        remove_if_there(&files.vsock())?;
        let log = fs::File::create(files.log())?;
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(WAIT_FOR_THE_RECORD);
        arguments(&mut command, settings, layout, id, uid);
        let mut child = command
            .current_dir(files.machine())
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            // What ends the agent from a terminal does not end its machines.
            .process_group(0)
            .spawn()?;
        let (process, identity) = Watched::child(Pid::from_raw(child.id().cast_signed()))?;
        // It ends by itself if nobody connects to it.
        let pager = paged.map(|name| pager::start(files, name, uid)).transpose()?;
        let (pager, pager_identity) = pager.unzip();
        let record = Record { identity, phase: Phase::Starting, pager: pager_identity };
        write_whole(&files.process(), &serde_json::to_vec(&record)?)?;
        let go = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        io::Write::write_all(&mut &go, b"go\n")?;
        drop(go);

        let api = Api::at(&files.api());
        let machine = Self { process, api, pager, record, is_doubtful: AtomicBool::new(false) };
        tokio::select! {
            ready = timeout(READY_LIMIT, machine.api.wait()) => ready.map_err(|_| {
                io::Error::other(format!("it took no commands within {READY_LIMIT:?}"))
            })?,
            () = machine.exited() => {
                let log = fs::read_to_string(files.log()).unwrap_or_default();
                let last = log.trim().lines().last().unwrap_or("nothing").to_owned();
                return Err(io::Error::other(format!("it ended at once, saying: {last}")));
            }
        }
        Ok(machine)
    }

    /// Notes that the guest runs from now on.
    pub(super) fn note_running(&self, files: &Files) -> io::Result<()> {
        let record = Record { phase: Phase::Running, ..self.record.clone() };
        write_whole(&files.process(), &serde_json::to_vec(&record)?)
    }

    /// The machine that an earlier agent started, if it lives, and how far it came.
    ///
    /// Needs a tokio runtime.
    pub(super) fn find(files: &Files) -> io::Result<Option<(Self, Phase)>> {
        let text = match fs::read(files.process()) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let record: Record = serde_json::from_slice(&text)?;
        let Some(process) = record.identity.find()? else { return Ok(None) };
        let (phase, api) = (record.phase, Api::at(&files.api()));
        let pager = record.pager.as_ref().map(Identity::find).transpose()?;
        let machine = match pager {
            // Without its pager it would stand still.
            Some(None) => {
                process.signal(Signal::SIGKILL)?;
                return Ok(None);
            }
            pager => {
                let pager = pager.flatten();
                Self { process, record, api, pager, is_doubtful: AtomicBool::new(false) }
            }
        };
        Ok(Some((machine, phase)))
    }

    /// How much of the host's memory it has, in bytes.
    pub(super) fn footprint(&self) -> u64 {
        let Footprint { own, files } = Footprint::of(self.process.pid());
        own + files
    }

    /// Stops all its threads, and with them the guest's time: when this returns, none runs.
    ///
    /// Firecracker's own pause is not used for it: in several releases a machine that was paused and resumed
    /// without having been saved takes no connections over vsock any more (its issues 6074 and 6100).
    pub(super) async fn stop_time(&self) -> io::Result<()> {
        self.process.signal(Signal::SIGSTOP)?;
        let stopped = async {
            loop {
                match self.is_stopped()? {
                    Some(true) => return Ok(()),
                    Some(false) => sleep(LOOK_PAUSE).await,
                    None => return Err(io::Error::other("it has ended")),
                }
            }
        };
        let late = |_| io::Error::other(format!("its threads did not stop within {STOP_LIMIT:?}"));
        timeout(STOP_LIMIT, stopped).await.map_err(late)?
    }

    pub(super) fn start_time(&self) -> io::Result<()> {
        self.process.signal(Signal::SIGCONT)
    }

    /// Whether all its threads are stopped; `None` if it has ended.
    pub(super) fn is_stopped(&self) -> io::Result<Option<bool>> {
        let threads = match fs::read_dir(format!("/proc/{}/task", self.process.pid())) {
            Ok(threads) => threads,
            Err(error) if pid::gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        for thread in threads {
            let path = thread?.path().join("stat");
            // A thread that has ended does not run, either.
            let stat = pid::read_stat(&path.to_string_lossy())?;
            if stat.is_some_and(|stat| stat.state != b'T') {
                return Ok(Some(false));
            }
        }
        Ok(Some(true))
    }

    /// Kills it. Does nothing to one that is gone.
    pub(super) fn kill(&self) -> io::Result<()> {
        self.process.signal(Signal::SIGKILL)
    }

    /// Resolves when it is gone. Cancel safe.
    pub(super) async fn exited(&self) {
        if let Some(pager) = &self.pager {
            tokio::select! {
                () = self.process.exited() => return,
                () = pager.exited() => {
                    // A machine whose pages nobody brings is as good as dead. If it has ended too, nothing happens.
                    if let Err(error) = self.kill() {
                        warn!(%error, "Could not end a machine whose pager has ended");
                    }
                }
            }
        }
        self.process.exited().await;
    }
}

/// What follows `sh -c SCRIPT`: the program and its arguments.
fn arguments(command: &mut Command, settings: &Settings, layout: &Layout, id: SpriteId, uid: Option<u32>) {
    let id = id.to_string();
    match (&settings.jailer, layout.jail_base(), uid) {
        (Some(jailer), Some(base), Some(uid)) => {
            let uid = uid.to_string();
            command.arg(jailer).args(["--id", &id]).arg("--exec-file").arg(&settings.program);
            command.args(["--uid", &uid, "--gid", &uid]).arg("--chroot-base-dir").arg(base);
            command.args(["--resource-limit", MOST_FILES]);
            // What follows is for Firecracker, whose id the jailer tells it.
            command.args(["--", "--api-sock", API]);
        }
        _ => {
            command.arg(&settings.program).args(["--id", &id, "--api-sock", API]);
        }
    }
}
