//! The control stream to the runtime of a sprite that is awake: it says what goes on inside.
//!
//! A link lives from the sprite's start (or adoption) to its stop, through any number of pauses, in which
//! nothing comes. When the stream breaks meanwhile it is opened again, and the runtime says everything anew.

use std::time::Duration;

use runtime_api::{Activity, Address, ControlStream, Event, open_control};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::debug;

/// News that may wait for the sprite's task; beyond, the runtime waits.
const MAX_WAITING: usize = 64;
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
}

/// See the module's documentation. Dropping it closes the stream.
#[derive(Debug)]
pub(super) struct Link {
    news: mpsc::Receiver<News>,
    /// Ends with the link.
    _listener: JoinSet<()>,
}

impl Link {
    /// To the runtime at `runtime`, over `stream` if there is one already that has told its hello.
    pub(super) fn new(runtime: Address, stream: Option<ControlStream>) -> Self {
        let (sender, news) = mpsc::channel(MAX_WAITING);
        let mut listener = JoinSet::new();
        listener.spawn(listen(runtime, stream, sender));
        Self { news, _listener: listener }
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

async fn listen(runtime: Address, mut stream: Option<ControlStream>, news: mpsc::Sender<News>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let opened = match stream.take() {
            Some(stream) => Ok(stream),
            None => {
                timeout(CONNECT_LIMIT, open_control(&runtime)).await.unwrap_or_else(|late| Err(late.into()))
            }
        };
        let broken = match opened {
            Ok(mut stream) => loop {
                // However long: a runtime that has nothing to say, or is frozen, says nothing.
                let told = match stream.next().await {
                    Ok(Some(Event::Hello { .. })) => News::Anew,
                    Ok(Some(Event::ActivityBegun(activity))) => News::Begun(activity),
                    Ok(Some(Event::ActivityEnded { id })) => News::Ended(id),
                    Ok(Some(Event::Touched)) => News::Touched,
                    Ok(Some(Event::Ready | Event::PortOpened(_) | Event::PortClosed(_) | Event::Pong)) => {
                        continue;
                    }
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                };
                pause = FIRST_PAUSE;
                if news.send(told).await.is_err() {
                    return;
                }
            },
            Err(error) => Some(error),
        };
        debug!(?runtime, error = ?broken, "The control stream ended; opening it again");
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
