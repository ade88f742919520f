//! The control stream: the host configures the sprite, hears of its ports and of what keeps it awake, and
//! ends it.

use std::{collections::HashSet, io, sync::Arc, time::Duration};

use runtime_api::{Command, Event, ListeningPort, MAX_LINE_BYTES};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::mpsc,
    time::timeout,
};
use tracing::{debug, warn};

use crate::{ports::to_wire, shutdown::Shutdown, state::Runtime};

/// How long the host may leave an event unread.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// Commands that were read and not yet carried out.
const MAX_WAITING: usize = 4;

/// Speaks with the host until it leaves or another control stream takes over. `early` is what it sent
/// together with its request.
pub(crate) async fn serve(
    runtime: &Runtime,
    shutdown: &Arc<Shutdown>,
    stream: UnixStream,
    early: Vec<u8>,
) -> io::Result<()> {
    let mut newer = runtime.take_control();
    runtime.host.forget_asked();
    let (reader, writer) = stream.into_split();
    let mut events = Events { writer: Some(writer), told: HashSet::new() };
    let configured = runtime.configured();
    events.send(&Event::Hello { version: env!("CARGO_PKG_VERSION").into(), configured }).await;
    let mut activities = runtime.activities.teller();

    let (sender, mut commands) = mpsc::channel(MAX_WAITING);
    let reading = read_commands(io::Cursor::new(early).chain(reader), sender);
    tokio::pin!(reading);
    let mut read = None;
    let mut ports = runtime.ports.attend();
    ports.mark_changed();
    let mut services = runtime.services.watch();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                // The host has left, and what it had said before has been carried out.
                None => return read.unwrap_or(Ok(())),
                Some(Command::Configure(configuration)) => {
                    debug!(sprite = %configuration.name, epoch = %configuration.epoch, "Configured");
                    runtime.configure(configuration).await;
                    events.send(&Event::Ready).await;
                }
                Some(Command::Shutdown { grace_ms }) => shutdown.begin(Duration::from_millis(grace_ms)),
                Some(Command::Ping) => events.send(&Event::Pong).await,
                Some(Command::Answered { id, reply }) => runtime.host.answered(id, reply),
            },
            ended = &mut reading, if read.is_none() => read = Some(ended),
            changed = newer.changed() => {
                debug!("Another control stream took over");
                return changed.map_err(io::Error::other);
            }
            () = activities.changed() => {
                for event in activities.events() {
                    runtime.ports.stir();
                    events.send(&event).await;
                }
            }
            // Its sender lives as long as the sprite.
            _ = services.changed() => runtime.ports.stir(),
            () = ports.changed() => events.tell_ports(runtime).await,
            (id, question) = runtime.host.next() => events.send(&Event::Asked { id, question }).await,
        }
    }
}

async fn read_commands(reader: impl AsyncRead + Unpin, commands: mpsc::Sender<Command>) -> io::Result<()> {
    let mut reader = BufReader::new(reader);
    loop {
        let mut line = Vec::new();
        if (&mut reader).take(MAX_LINE_BYTES as u64).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        match serde_json::from_slice(&line) {
            Ok(command) => commands.send(command).await.map_err(io::Error::other)?,
            // A newer agent may know commands that we don't; the rest of the stream is still good.
            Err(error) if line.ends_with(b"\n") => {
                warn!(%error, "The host sent something that is no command");
            }
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
}

struct Events {
    /// None once the host no longer listens. It may have said something before, which still counts.
    writer: Option<OwnedWriteHalf>,
    told: HashSet<ListeningPort>,
}

impl Events {
    async fn send(&mut self, event: &Event) {
        let Some(writer) = &mut self.writer else { return };
        let written = async {
            let mut line = serde_json::to_vec(event)?;
            line.push(b'\n');
            timeout(WRITE_LIMIT, writer.write_all(&line)).await.map_err(|_| io::ErrorKind::TimedOut)?
        };
        if let Err(error) = written.await {
            debug!(%error, "The host no longer listens to events");
            self.writer = None;
        }
    }

    /// Tells what has changed since the last time: first what closed, then what opened, in its order.
    async fn tell_ports(&mut self, runtime: &Runtime) {
        let now: Vec<ListeningPort> =
            runtime.ports.known().into_iter().map(|(listener, pid)| to_wire(listener, pid)).collect();
        let closed: Vec<ListeningPort> = self.told.iter().filter(|one| !now.contains(one)).cloned().collect();
        for port in closed {
            self.told.remove(&port);
            self.send(&Event::PortClosed(port)).await;
        }
        for port in now {
            if self.told.insert(port.clone()) {
                self.send(&Event::PortOpened(port)).await;
            }
        }
    }
}
