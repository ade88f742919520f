//! The control stream to the runtime of a sprite that is awake: it says what goes on inside.
//!
//! A link lives from the sprite's start (or adoption) to its stop, through any number of pauses, in which
//! nothing comes. When the stream breaks meanwhile it is opened again, and the runtime says everything anew.

use std::time::Duration;

use runtime_api::{
    Activity, Address, Command, CommandWriter, ControlStream, Event, EventReader, Question, open_control,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::debug;

/// News that may wait for the sprite's task; beyond, the runtime waits.
const MAX_WAITING: usize = 64;
/// Answers that may wait for the runtime to read them; further ones are lost.
const MOST_ANSWERS: usize = 16;
/// How long connecting may take; a runtime that is frozen or busy is tried again.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What is heard from inside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum News {
    /// What was said before no longer counts: all of it is about to be said anew.
    Anew,
    /// Something began to keep the sprite awake.
    Begun(Activity),
    /// It ended.
    Ended(u64),
    /// The sprite was used.
    Touched,
    /// It has answered a [`Command::Ping`].
    Answered,
    /// A program inside wants to know something, or have something done.
    Asked(u64, Question),
}

/// See the module's documentation. Dropping it closes the stream.
#[derive(Debug)]
pub(super) struct Link {
    news: mpsc::Receiver<News>,
    commands: mpsc::Sender<Command>,
    /// Ends with the link.
    _listener: JoinSet<()>,
}

impl Link {
    /// To the runtime at `runtime`, over `stream` if there is one already that has told its hello.
    pub(super) fn new(runtime: Address, stream: Option<ControlStream>) -> Self {
        let (sender, news) = mpsc::channel(MAX_WAITING);
        let (commands, to_send) = mpsc::channel(MOST_ANSWERS);
        let mut listener = JoinSet::new();
        listener.spawn(listen(runtime, stream, sender, to_send));
        Self { news, commands, _listener: listener }
    }

    /// Where answers to what is asked inside go. What can't be sent is lost, as with a broken stream.
    pub(super) fn commands(&self) -> mpsc::Sender<Command> {
        self.commands.clone()
    }

    /// The next news. Cancel safe.
    pub(super) async fn next(&mut self) -> News {
        match self.news.recv().await {
            Some(news) => news,
            // The listener goes on for as long as we do.
            None => std::future::pending().await,
        }
    }

    /// News that has come already.
    pub(super) fn try_next(&mut self) -> Option<News> {
        self.news.try_recv().ok()
    }
}

async fn listen(
    runtime: Address,
    mut stream: Option<ControlStream>,
    news: mpsc::Sender<News>,
    mut commands: mpsc::Receiver<Command>,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let opened = match stream.take() {
            Some(stream) => Ok(stream),
            None => {
                timeout(CONNECT_LIMIT, open_control(&runtime)).await.unwrap_or_else(|late| Err(late.into()))
            }
        };
        let broken = match opened {
            Ok(stream) => {
                let (mut events, mut writer) = stream.split();
                pause = FIRST_PAUSE;
                tokio::select! {
                    broken = pass_on(&mut events, &news) => match broken {
                        Err(error) => Some(error),
                        Ok(Ended::Stream) => None,
                        Ok(Ended::Link) => return,
                    },
                    error = send(&mut writer, &mut commands) => Some(error),
                }
            }
            Err(error) => Some(error),
        };
        debug!(?runtime, error = ?broken, "The control stream ended; opening it again");
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What ended.
enum Ended {
    Stream,
    Link,
}

/// Passes on what the runtime says, however long it says nothing: it may have nothing to say, or be frozen.
async fn pass_on(events: &mut EventReader, news: &mpsc::Sender<News>) -> std::io::Result<Ended> {
    while let Some(event) = events.next().await? {
        let told = match event {
            Event::Hello { .. } => News::Anew,
            Event::ActivityBegun(activity) => News::Begun(activity),
            Event::ActivityEnded { id } => News::Ended(id),
            Event::Touched => News::Touched,
            Event::Asked { id, question } => News::Asked(id, question),
            Event::Pong => News::Answered,
            Event::Ready | Event::PortOpened(_) | Event::PortClosed(_) => continue,
        };
        if news.send(told).await.is_err() {
            return Ok(Ended::Link);
        }
    }
    Ok(Ended::Stream)
}

/// Sends what there is to send, until that fails.
async fn send(writer: &mut CommandWriter, commands: &mut mpsc::Receiver<Command>) -> std::io::Error {
    loop {
        let Some(command) = commands.recv().await else { return std::future::pending().await };
        if let Err(error) = writer.send(&command).await {
            return error;
        }
    }
}
