//! What the agent and its launcher say to each other: one JSON message a packet.

use std::{io, os::fd::OwnedFd, path::PathBuf};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

/// The longest packet, in bytes. Plans hold a few paths.
const MAX_PACKET_BYTES: usize = 32 * 1024;

/// What to build.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in super::super) struct Plan {
    /// The sprite's host name.
    pub(in super::super) hostname: String,
    /// The directory that becomes the sprite's root.
    pub(in super::super) disk: PathBuf,
    /// The directory of the last checkpoints, which the sprite sees read-only.
    pub(in super::super) checkpoints: PathBuf,
    /// Directories of the host that the sprite sees at the same place, read-only.
    pub(in super::super) host_trees: Vec<PathBuf>,
    /// More of them, without which it starts all the same.
    pub(in super::super) extra_trees: Vec<PathBuf>,
    /// The runtime's binary.
    pub(in super::super) runtime: PathBuf,
    /// Which ids the sprite has.
    pub(in super::super) ids: Ids,
}

/// Which user and group ids a sprite has, and who may open its directories.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in super::super) enum Ids {
    /// The ids 0 to 65535 inside are `base` to `base + 65535` outside. The agent is root; the mounts
    /// are opened before the launcher gives up its rights, for only root may pass the agent's
    /// directories.
    Range {
        /// What 0 inside is outside.
        base: u32,
    },
    /// The id 0 inside is the agent's own id outside, and there are no others.
    Single {
        /// The agent's user.
        uid: u32,
        /// The agent's group.
        gid: u32,
    },
}

/// From the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in super::super) enum Order {
    /// First, with the listening socket attached: start a sprite.
    Build(Plan),
    /// First, instead: make the namespaces and report [`Report::Executed`], to see whether one can.
    Try {
        /// With these ids.
        ids: Ids,
    },
    /// The ids are mapped and the launcher is in its cgroups.
    Mapped,
    /// PID 1 has been recorded and may go on.
    Go,
}

/// From the launcher.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in super::super) enum Report {
    /// It is in a user namespace that has no ids yet.
    Unshared,
    /// PID 1 exists and waits for [`Order::Go`].
    Forked {
        /// Its pid, as the agent sees it.
        pid: i32,
    },
    /// PID 1 has become the runtime; or the trial went well.
    Executed,
    /// It ended here; nothing is left running.
    Failed(Failure),
}

/// A step that the host refused.
#[derive(Debug, Serialize, Deserialize)]
pub(in super::super) struct Failure {
    /// Which, and on what.
    pub(in super::super) step: String,
    /// The error number.
    pub(in super::super) errno: i32,
}

impl Failure {
    /// Names the step of an error.
    pub(in super::super) fn of(step: impl Into<String>, error: &io::Error) -> Self {
        Self { step: step.into(), errno: error.raw_os_error().unwrap_or(libc::EIO) }
    }

    /// The host's error.
    pub(in super::super) fn source(&self) -> io::Error {
        io::Error::from_raw_os_error(self.errno)
    }
}

/// Names the step in the error of a result.
pub(super) trait Step<T> {
    fn step(self, step: &str) -> Result<T, Failure>;
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, step: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::of(step, &error))
    }
}

impl<T> Step<T> for nix::Result<T> {
    fn step(self, step: &str) -> Result<T, Failure> {
        self.map_err(|errno| Failure { step: step.into(), errno: errno as i32 })
    }
}

/// One end of the packet channel between agent and launcher.
#[derive(Debug)]
pub(in super::super) struct Channel(OwnedFd);

impl Channel {
    /// Wraps a `SOCK_SEQPACKET` socket.
    pub(in super::super) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Sends a message, with a descriptor if one is given.
    pub(in super::super) fn send(
        &self,
        message: &impl Serialize,
        descriptor: Option<RawFd>,
    ) -> io::Result<()> {
        let packet = serde_json::to_vec(message)?;
        let descriptors: Vec<RawFd> = descriptor.into_iter().collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let control = if descriptors.is_empty() { &rights[..0] } else { &rights[..] };
        sendmsg::<()>(
            self.0.as_raw_fd(),
            &[io::IoSlice::new(&packet)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(())
    }

    /// Receives a message and the descriptor that came with it, if one did. An end of the channel is
    /// [`io::ErrorKind::UnexpectedEof`]; silence beyond the socket's timeout is
    /// [`io::ErrorKind::TimedOut`].
    pub(in super::super) fn receive<T: DeserializeOwned>(&self) -> io::Result<(T, Option<OwnedFd>)> {
        let mut packet = vec![0; MAX_PACKET_BYTES];
        let mut space = nix::cmsg_space!(RawFd);
        let mut descriptor = None;
        let length = {
            let mut slices = [io::IoSliceMut::new(&mut packet)];
            let received = loop {
                match recvmsg::<()>(
                    self.0.as_raw_fd(),
                    &mut slices,
                    Some(&mut space),
                    MsgFlags::MSG_CMSG_CLOEXEC,
                ) {
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                    other => break other?,
                }
            };
            for control in received.cmsgs()? {
                if let ControlMessageOwned::ScmRights(descriptors) = control {
                    for raw in descriptors {
                        // SAFETY: the kernel has just installed it for us; nobody else owns it.
                        descriptor = Some(unsafe { OwnedFd::from_raw_fd(raw) });
                    }
                }
            }
            received.bytes
        };
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((serde_json::from_slice(&packet[..length])?, descriptor))
    }
}
