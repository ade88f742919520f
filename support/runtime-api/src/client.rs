//! The host's side: dial into a sprite, and open its control stream.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::socket::SockaddrLike;
use nix::sys::socket::{AddressFamily, ControlMessageOwned, MsgFlags, SockaddrStorage, getsockname, recvmsg};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest},
    net::{
        TcpStream, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{sleep, timeout},
};

use crate::wire::{
    Answer, Command, DialRefusal, DialRequest, Event, MAX_LINE_BYTES, Request, VSOCK_PORT, Woken,
};

/// The longest answer line that can come with a handed-over socket, in bytes.
const MAX_ANSWER_BYTES: usize = 16 * 1024;
/// What a dial may take beyond the waiting that the runtime was allowed to do.
const DIAL_OVERHEAD: Duration = Duration::from_secs(5);
/// The longest pause between attempts to get into the runtime's queue.
const LONGEST_CONNECT_PAUSE: Duration = Duration::from_millis(20);

/// A connection into a sprite.
#[derive(Debug)]
pub enum Dialed {
    /// To a program, over TCP inside the sprite's network.
    Tcp(TcpStream),
    /// To the runtime itself.
    Unix(UnixStream),
}

/// Why there is no connection. No byte of the caller's has reached the sprite.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The runtime answered no.
    #[error(transparent)]
    Refused(#[from] DialRefusal),
    /// The runtime could not be reached: it is gone, or never was.
    #[error("could not reach the sprite's runtime")]
    Unreachable(#[source] io::Error),
    /// The runtime did not answer in time: it is frozen, or too busy.
    #[error("the sprite's runtime did not answer within {0:?}")]
    TimedOut(Duration),
    /// The runtime spoke something else.
    #[error("the sprite's runtime broke its protocol: {0}")]
    Protocol(String),
}

/// Where a runtime is reached from its host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// Its own Unix socket, over which it hands connected sockets.
    Socket(PathBuf),
    /// The Unix socket of a virtual machine's vsock, by the convention of Firecracker and Cloud Hypervisor: whoever
    /// connects writes `CONNECT <port>`, reads `OK <number>`, and has a stream to that port.
    Vsock(PathBuf),
}

/// Dials through the runtime at `address`.
///
/// # Errors
/// See [`DialError`].
///
/// # Cancel safety
/// Dropping the future closes everything; the runtime notices and gives up waiting.
pub async fn dial(address: &Address, request: &DialRequest) -> Result<Dialed, DialError> {
    let limit = Duration::from_millis(request.wait_ms) + DIAL_OVERHEAD;
    timeout(limit, dial_unbounded(address, request)).await.map_err(|_| DialError::TimedOut(limit))?
}

async fn dial_unbounded(address: &Address, request: &DialRequest) -> Result<Dialed, DialError> {
    let mut stream = open(address).await.map_err(DialError::Unreachable)?;
    let handoff = matches!(address, Address::Socket(_));
    let line = to_line(&Request::Dial(DialRequest { handoff, ..request.clone() }))?;
    stream.write_all(&line).await.map_err(DialError::Unreachable)?;
    let (answer, socket) = receive_answer(&stream).await?;
    match (answer, socket) {
        (Answer::Refused(refusal), _) => Err(refusal.into()),
        (Answer::Ok { .. }, Some(socket)) if handoff => adopt(socket),
        (Answer::Ok { .. }, None) if !handoff => Ok(Dialed::Unix(stream)),
        (Answer::Ok { .. }, _) => Err(DialError::Protocol("a socket was missing, or one too many".into())),
    }
}

/// Tells the runtime of a virtual machine that it slept. Returns when it has set its clock.
///
/// # Errors
/// See [`DialError`].
///
/// # Cancel safety
/// A dropped future leaves it told or not; tell it again.
pub async fn tell_woken(address: &Address, woken: &Woken, limit: Duration) -> Result<(), DialError> {
    ask(address, &Request::Woken(woken.clone()), limit).await
}

/// Has the runtime of a virtual machine write to its disk what its programs have written. Returns when it has.
///
/// # Errors
/// See [`DialError`].
///
/// # Cancel safety
/// Cancel safe: it goes on by itself.
pub async fn ask_sync(address: &Address, limit: Duration) -> Result<(), DialError> {
    ask(address, &Request::Sync, limit).await
}

/// One request that is answered with yes or no.
async fn ask(address: &Address, request: &Request, limit: Duration) -> Result<(), DialError> {
    let told = async {
        let mut stream = open(address).await.map_err(DialError::Unreachable)?;
        let line = to_line(request)?;
        stream.write_all(&line).await.map_err(DialError::Unreachable)?;
        match receive_answer(&stream).await? {
            (Answer::Ok { .. }, _) => Ok(()),
            (Answer::Refused(refusal), _) => Err(refusal.into()),
        }
    };
    timeout(limit, told).await.map_err(|_| DialError::TimedOut(limit))?
}

/// A stream to the runtime, over which nothing has been said yet.
async fn open(address: &Address) -> io::Result<UnixStream> {
    match address {
        Address::Socket(path) => connect(path).await,
        Address::Vsock(path) => {
            let mut stream = connect(path).await?;
            stream.write_all(format!("CONNECT {VSOCK_PORT}\n").as_bytes()).await?;
            let line = read_line(&stream).await?;
            match line.starts_with(b"OK ") {
                true => Ok(stream),
                false => {
                    Err(io::Error::new(io::ErrorKind::InvalidData, "the machine's vsock did not say OK"))
                }
            }
        }
    }
}

/// Reads one short line and not a byte more: what follows is for somebody else.
async fn read_line(stream: &UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(32);
    while !line.ends_with(b"\n") {
        let received = stream.async_io(Interest::READABLE, || receive_to_line_end(stream)).await?;
        if received.bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend_from_slice(&received.bytes);
        if line.len() > MAX_ANSWER_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(line)
}

/// Connects, and waits while the runtime's queue of unaccepted streams is full: for a Unix socket the
/// kernel reports that at once instead of waiting.
async fn connect(path: &Path) -> io::Result<UnixStream> {
    let mut pause = Duration::from_millis(1);
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(pause).await,
            other => return other,
        }
        pause = (pause * 2).min(LONGEST_CONNECT_PAUSE);
    }
}

/// Reads one answer line and the socket that comes with it, if one does.
async fn receive_answer(stream: &UnixStream) -> Result<(Answer, Option<OwnedFd>), DialError> {
    let mut line = Vec::with_capacity(256);
    let mut socket = None;
    while !line.ends_with(b"\n") {
        let received = stream
            .async_io(Interest::READABLE, || receive_to_line_end(stream))
            .await
            .map_err(DialError::Unreachable)?;
        if received.bytes.is_empty() {
            return Err(DialError::Unreachable(io::ErrorKind::UnexpectedEof.into()));
        }
        socket = socket.or(received.socket);
        line.extend_from_slice(&received.bytes);
        if line.len() > MAX_ANSWER_BYTES {
            return Err(DialError::Protocol("its answer is too long".into()));
        }
    }
    let answer = serde_json::from_slice(&line).map_err(|error| DialError::Protocol(error.to_string()))?;
    Ok((answer, socket))
}

/// A part of a line, and the socket that came with it, if one did.
struct Received {
    bytes: Vec<u8>,
    socket: Option<OwnedFd>,
}

/// Receives what is there up to the end of a line, and leaves the rest: it may belong to the connection that the
/// line is about.
fn receive_to_line_end(stream: &UnixStream) -> io::Result<Received> {
    let mut bytes = [0u8; 4096];
    let there =
        nix::sys::socket::recv(stream.as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)?;
    let length = bytes[..there].iter().position(|byte| *byte == b'\n').map_or(there, |end| end + 1);
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 4]);
    let mut socket = None;
    let received = {
        // One byte asked for where the stream has ended gives the end.
        let mut io_slices = [io::IoSliceMut::new(&mut bytes[..length.max(1)])];
        let message = recvmsg::<()>(
            stream.as_raw_fd(),
            &mut io_slices,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT,
        )?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = control {
                for descriptor in descriptors {
                    // SAFETY: the kernel has just installed this descriptor for us; nobody else owns it.
                    let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
                    // A runtime that sends more than one gets the others closed.
                    socket = socket.or(Some(owned));
                }
            }
        }
        message.bytes
    };
    Ok(Received { bytes: bytes[..received].to_vec(), socket })
}

/// A sprite is hostile: what it hands over must be a stream socket before we treat it as one.
fn adopt(socket: OwnedFd) -> Result<Dialed, DialError> {
    let protocol =
        |error: io::Error| DialError::Protocol(format!("it handed over something unusable: {error}"));
    let is_stream = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::SockType)
        .is_ok_and(|kind| kind == nix::sys::socket::SockType::Stream);
    let family = getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok().and_then(|address| address.family());
    match (is_stream, family) {
        (true, Some(AddressFamily::Inet | AddressFamily::Inet6)) => {
            let stream = std::net::TcpStream::from(socket);
            stream.set_nonblocking(true).map_err(protocol)?;
            stream.set_nodelay(true).map_err(protocol)?;
            TcpStream::from_std(stream).map(Dialed::Tcp).map_err(protocol)
        }
        (true, Some(AddressFamily::Unix)) => {
            let stream = std::os::unix::net::UnixStream::from(socket);
            stream.set_nonblocking(true).map_err(protocol)?;
            UnixStream::from_std(stream).map(Dialed::Unix).map_err(protocol)
        }
        _ => Err(DialError::Protocol("it handed over something that is not a stream socket".into())),
    }
}

/// An open control stream to a runtime.
#[derive(Debug)]
pub struct ControlStream {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

/// Opens the control stream of the runtime at `address`. The first event is always [`Event::Hello`].
/// Waits as long as the runtime takes no streams: give it a deadline.
///
/// # Errors
/// Whatever connecting or writing gives.
pub async fn open_control(address: &Address) -> io::Result<ControlStream> {
    let mut stream = open(address).await?;
    let line = to_line(&Request::Control).map_err(io::Error::other)?;
    stream.write_all(&line).await?;
    let (reader, writer) = stream.into_split();
    Ok(ControlStream { reader: BufReader::new(reader), writer })
}

impl ControlStream {
    /// The next event; `None` when the runtime has closed the stream.
    ///
    /// # Cancel safety
    /// Not cancel safe in the middle of a line: read from one task, in one loop.
    ///
    /// # Errors
    /// A broken stream, a line that is too long, or one that is no event.
    pub async fn next(&mut self) -> io::Result<Option<Event>> {
        read_event(&mut self.reader).await
    }

    /// Sends a command.
    ///
    /// # Errors
    /// A broken stream.
    pub async fn send(&mut self, command: &Command) -> io::Result<()> {
        send_command(&mut self.writer, command).await
    }

    /// Splits into a reading and a writing side, for two tasks.
    #[must_use]
    pub fn split(self) -> (EventReader, CommandWriter) {
        (EventReader(self.reader), CommandWriter(self.writer))
    }
}

/// The reading side of a [`ControlStream`].
#[derive(Debug)]
pub struct EventReader(BufReader<OwnedReadHalf>);

impl EventReader {
    /// See [`ControlStream::next`].
    ///
    /// # Errors
    /// See [`ControlStream::next`].
    pub async fn next(&mut self) -> io::Result<Option<Event>> {
        read_event(&mut self.0).await
    }
}

/// The writing side of a [`ControlStream`].
#[derive(Debug)]
pub struct CommandWriter(OwnedWriteHalf);

impl CommandWriter {
    /// See [`ControlStream::send`].
    ///
    /// # Errors
    /// See [`ControlStream::send`].
    pub async fn send(&mut self, command: &Command) -> io::Result<()> {
        send_command(&mut self.0, command).await
    }
}

async fn read_event(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Event>> {
    let mut line = Vec::new();
    let length = reader.take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut line).await?;
    if length == 0 {
        return Ok(None);
    }
    serde_json::from_slice(&line).map(Some).map_err(io::Error::other)
}

async fn send_command(writer: &mut OwnedWriteHalf, command: &Command) -> io::Result<()> {
    writer.write_all(&to_line(command).map_err(io::Error::other)?).await
}

fn to_line<T: serde::Serialize>(message: &T) -> Result<Vec<u8>, DialError> {
    let mut line = serde_json::to_vec(message).map_err(|error| DialError::Protocol(error.to_string()))?;
    line.push(b'\n');
    Ok(line)
}
