//! The beginning of a virtual machine: from the kernel's first process to a runtime that serves its host.
//!
//! The kernel starts this program as `/init` of an initial file system that holds nothing else but kernel modules.
//! It loads them, mounts the sprite's disk, grows its file system to the size of the disk, makes it the root, and brings
//! up what every Linux program expects. The disk brings the programs; the runtime, the kernel and its modules are the
//! host's, so that each cold start takes the newest.

mod command_line;
mod disk;
mod modules;
mod mounts;
mod network;
mod wake;

use std::{fs, io, path::PathBuf, time::Duration};

pub(crate) use self::command_line::CommandLine;
pub(crate) use self::wake::woken;

/// How long the kernel may take to find the disk and the host's port.
const DEVICE_LIMIT: Duration = Duration::from_secs(10);
/// The pause between two looks.
const DEVICE_PAUSE: Duration = Duration::from_millis(1);

/// Which way the host reaches this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Channel {
    /// Over a virtio serial port: this device.
    Serial(PathBuf),
    /// Over vsock.
    Vsock,
}

/// What could not be done on the way. There is nothing to fall back to.
#[derive(Debug, thiserror::Error)]
#[error("could not {step}")]
pub(crate) struct BootError {
    step: String,
    #[source]
    source: io::Error,
}

/// Names the step that an error belongs to.
fn failed(step: impl Into<String>) -> impl FnOnce(io::Error) -> BootError {
    let step = step.into();
    move |source| BootError { step, source }
}

/// Makes a Linux system of what the kernel gave us. There must be only one thread: the root changes.
pub(crate) fn boot() -> Result<Channel, BootError> {
    mounts::first().map_err(failed("mount what the kernel offers"))?;
    let line = fs::read_to_string("/proc/cmdline").map_err(failed("read the kernel's command line"))?;
    let line = CommandLine::parse(&line);
    modules::load(&line)?;
    let disk = disk::find().map_err(failed("find the disk"))?;
    disk::mount(&disk, mounts::NEW_ROOT)?;
    mounts::enter(&line)?;
    modules::settle().map_err(failed("keep the kernel from looking for modules"))?;
    network::up(&line)?;
    match line.vsock {
        true => Ok(Channel::Vsock),
        false => find_port().map(Channel::Serial).map_err(failed("find the port to the host")),
    }
}

/// Takes another name: this machine was made from the memory of the one that had the last.
pub(crate) fn rename(name: &str) -> io::Result<()> {
    mounts::name(name)
}

/// The last thing that a machine does. The host starts no other in its place.
pub(crate) fn power_off() -> io::Error {
    nix::unistd::sync();
    if let Err(error) = mounts::freeze_root() {
        // The journal has everything that matters.
        eprintln!("runtime: could not make the root read-only: {error}");
    }
    match nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_AUTOBOOT) {
        Ok(never) => match never {},
        Err(error) => error.into(),
    }
}

/// The serial port to the host, which the kernel numbers as it likes.
fn find_port() -> io::Result<PathBuf> {
    wait_for(|| {
        let ports = match fs::read_dir("/sys/class/virtio-ports") {
            Ok(ports) => ports,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        for port in ports {
            let port = port?;
            // One that was made this moment has no name yet.
            let name = fs::read_to_string(port.path().join("name")).unwrap_or_default();
            let device = PathBuf::from("/dev").join(port.file_name());
            if name.trim() == runtime_api::SERIAL_PORT_NAME && device.exists() {
                return Ok(Some(device));
            }
        }
        Ok(None)
    })
}

/// Looks until there is something.
fn wait_for<T>(mut look: impl FnMut() -> io::Result<Option<T>>) -> io::Result<T> {
    let deadline = std::time::Instant::now() + DEVICE_LIMIT;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if std::time::Instant::now() > deadline {
            return Err(io::ErrorKind::NotFound.into());
        }
        std::thread::sleep(DEVICE_PAUSE);
    }
}
