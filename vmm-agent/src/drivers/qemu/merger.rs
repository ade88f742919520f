//! How two layers become one: a QEMU without a machine writes what both hold into a new file.
//!
//! It is QEMU's own `block-stream`, over an empty layer that is put on the two for it:
//!
//! ```text
//!   below ◄── lower ◄── upper ◄── new       streams into `new` what it is missing down to `below`
//!   below ◄──────────────────── new
//! ```
//!
//! Both are only read, by a machine that runs or by a fork at the same time as well, so it makes no difference what the
//! sprite does. A machine that runs keeps the two files open, and goes on with the new one when it is started next. What
//! a machine has written is not to be believed (a layer can name any file of the host), so this QEMU is kept as the
//! machine's is: as the sprite's user, behind a filter, over the files that it is given.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{prctl::set_pdeathsig, signal::Signal},
};
use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt as _,
    net::UnixStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::{
    arguments,
    disk::{self, create, virtual_size},
    faults::{Point, pass},
    layers::{Layer, Layers},
    layout::Files,
    machine::{Failure, failed, open_directory},
    merges::Merge,
    owner::Owner,
    qmp::Qmp,
};

/// How fast it writes at most, in bytes a second: there is no hurry, and sprites need the disk.
const PACE: u64 = 64 << 20;
/// How nice it is to all else that wants the CPUs.
const NICENESS: libc::c_int = 19;
/// The pause between two looks at how far it is.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// How long it may get no further.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to write out what it still has, and end.
const END_LIMIT: Duration = Duration::from_secs(60);
/// How long the rest of what it said may take to be read.
const WORDS_LIMIT: Duration = Duration::from_secs(1);

/// What it takes to start QEMU.
#[derive(Clone, Copy, Debug)]
pub(super) struct With<'a> {
    pub(super) program: &'a Path,
    /// The tool for disk images.
    pub(super) tool: &'a Path,
    /// Where images are.
    pub(super) images: &'a Path,
    /// Who it runs as; as the agent if nobody else.
    pub(super) owner: Option<Owner>,
}

/// Makes the file of one layer that holds what two hold, on the disk, whole. Nothing knows of it yet.
///
/// # Cancel safety
/// A dropped future ends QEMU, and leaves a file that the record of layers does not name.
pub(super) async fn merge(
    files: &Files,
    layers: &Layers,
    merge: Merge,
    with: With<'_>,
) -> Result<Layer, Failure> {
    let new = layers.next();
    let (below, format) = match layers.below(merge.lower) {
        Some(below) => (below.file(), "qcow2"),
        None => (disk::image(files, merge.lower)?.to_string_lossy().into_owned(), "raw"),
    };
    let size =
        virtual_size(&Layers::path(files, merge.upper)).map_err(failed("read the size of its disk"))?;
    create(files, with.tool, new, &below, format, &size.to_string()).await?;
    let path = Layers::path(files, new);
    if let Some(owner) = with.owner {
        // Its machine may never have been started.
        owner
            .let_in(files)
            .and_then(|()| owner.give(&path))
            .map_err(failed("let the merge write its layer"))?;
    }
    let mut disk = disk::chain(files, layers, merge.upper)?;
    disk.insert(0, files.inside(&path).to_owned());
    let (mut qemu, monitor) = start(files, &disk, with)?;
    pass(Point::MergeBegun, files);
    if let Err(failure) = stream(monitor, &below).await {
        let words = last_words(&mut qemu).await;
        return Err(Failure::new(format!("{}: {words}", failure.step), failure.source));
    }
    let ended = timeout(END_LIMIT, qemu.wait()).await;
    let ended = ended.map_err(|late| Failure::new("see the end of QEMU", late))?;
    if !ended.as_ref().is_ok_and(ExitStatus::success) {
        let words = last_words(&mut qemu).await;
        return Err(Failure::new("merge two layers", io::Error::other(format!("QEMU ended: {words}"))));
    }
    disk::keep_if(with.owner, files, new)?;
    // It may be large, and the disk slow.
    let synced = tokio::task::spawn_blocking(move || fs::File::open(path)?.sync_all()).await;
    synced.map_err(io::Error::other).flatten().map_err(failed("write the merged layer out"))?;
    pass(Point::MergeWritten, files);
    Ok(new)
}

/// Has everything written that `below` does not hold, and QEMU end itself.
async fn stream(monitor: UnixStream, below: &str) -> Result<(), Failure> {
    let mut monitor = Qmp::over(monitor).await?;
    let arguments = json!({
        "job-id": "merge",
        "device": arguments::TOP_NODE,
        "base-node": arguments::BASE_NODE,
        "backing-file": below,
        "speed": PACE,
        "auto-dismiss": false,
    });
    monitor.command("block-stream", arguments).await?;
    let (mut progress, mut since) = (None, Instant::now());
    loop {
        let jobs = monitor.command("query-jobs", json!({})).await?;
        let job = &jobs[0];
        match (job["status"].as_str(), job["error"].as_str()) {
            (Some("concluded"), None) => break,
            (Some("concluded") | None, error) => {
                let error = error.unwrap_or("it does not know of it any more").to_owned();
                return Err(Failure::new("merge two layers", io::Error::other(error)));
            }
            (Some(_), _) if progress != job["current-progress"].as_u64() => {
                (progress, since) = (job["current-progress"].as_u64(), Instant::now());
            }
            (Some(_), _) if since.elapsed() > STALL_LIMIT => {
                return Err(Failure::new("merge two layers", io::ErrorKind::TimedOut));
            }
            (Some(_), _) => {}
        }
        sleep(LOOK_PAUSE).await;
    }
    // It may leave before it has answered; how it ended says whether all was well.
    let _leaves: Result<Value, _> = monitor.command("quit", json!({})).await;
    Ok(())
}

/// Starts a QEMU that has this disk and no machine, and is killed with us.
fn start(files: &Files, disk: &[PathBuf], with: With<'_>) -> Result<(Child, UnixStream), Failure> {
    let (ours, theirs) = StdUnixStream::pair().map_err(failed("make a socket for QEMU"))?;
    let ours = ours.set_nonblocking(true).and_then(|()| UnixStream::from_std(ours));
    let ours = ours.map_err(failed("make a socket for QEMU"))?;
    let images_fd = open_directory(with.images).map_err(failed("open the directory of images"))?;
    let images = (with.images, images_fd.as_raw_fd());
    let inherited: [OwnedFd; 2] = [theirs.into(), images_fd];
    let mut command = Command::new(with.program);
    command.args(arguments::merge(disk, inherited[0].as_raw_fd(), images)).env_clear();
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.current_dir(files.root()).kill_on_drop(true);
    let owner = with.owner;
    // SAFETY: only system calls that may be made between fork and exec.
    unsafe {
        command.pre_exec(move || {
            for descriptor in &inherited {
                fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            // Where it is refused it only competes.
            let _refused = libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS);
            owner.map_or(Ok(()), Owner::become_it)?;
            // Last, for whoever becomes somebody else forgets it. What it writes for a dead agent nobody wants.
            Ok(set_pdeathsig(Signal::SIGKILL)?)
        });
    }
    let child = command.spawn().map_err(failed(format!("execute {}", with.program.display())))?;
    Ok((child, ours))
}

/// What a QEMU that failed has said.
async fn last_words(qemu: &mut Child) -> String {
    // It may have ended by itself.
    let _ended = qemu.start_kill();
    let mut words = Vec::new();
    if let Some(stderr) = qemu.stderr.as_mut() {
        // What could not be read is not the reason.
        let _late = timeout(WORDS_LIMIT, stderr.read_to_end(&mut words)).await;
    }
    let words = String::from_utf8_lossy(&words).trim().replace('\n', "; ");
    if words.is_empty() { "it said nothing".to_owned() } else { words }
}
