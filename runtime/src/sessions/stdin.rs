//! A session's input: typed by any of its clients, read by its process when it likes.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::exec::Feed;

/// How much input waits for a process that does not read, in bytes. A client that sends more waits.
const MAX_WAITING_BYTES: usize = 256 << 10;
/// And in how many pieces.
const MAX_WAITING: usize = 256;

#[derive(Debug)]
enum Input {
    Bytes(Bytes, OwnedSemaphorePermit),
    End,
}

/// The clients' end.
#[derive(Clone, Debug)]
pub(super) struct Stdin {
    inputs: mpsc::Sender<Input>,
    room: Arc<Semaphore>,
}

/// The process's end.
#[derive(Debug)]
pub(super) struct StdinQueue {
    inputs: mpsc::Receiver<Input>,
    room: Arc<Semaphore>,
}

pub(super) fn channel() -> (Stdin, StdinQueue) {
    let (sender, inputs) = mpsc::channel(MAX_WAITING);
    let room = Arc::new(Semaphore::new(MAX_WAITING_BYTES));
    (Stdin { inputs: sender, room: Arc::clone(&room) }, StdinQueue { inputs, room })
}

impl Stdin {
    /// Gives the process something to read; waits while it has enough. What it will not read is dropped.
    pub(super) async fn write(&self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        let weight = u32::try_from(bytes.len().min(MAX_WAITING_BYTES)).unwrap_or(u32::MAX);
        if let Ok(permit) = Arc::clone(&self.room).acquire_many_owned(weight).await {
            let _read_no_more = self.inputs.send(Input::Bytes(bytes, permit)).await;
        }
    }

    /// There will be no more.
    pub(super) async fn end(&self) {
        let _read_no_more = self.inputs.send(Input::End).await;
    }
}

impl StdinQueue {
    /// Carries input to the process until that, or the input, has ended. Then nobody waits any more.
    pub(super) async fn carry(mut self, feed: Option<Feed>) {
        let Some(mut feed) = feed else { return };
        while let Some(Input::Bytes(bytes, _room)) = self.inputs.recv().await {
            if feed.write_all(&bytes).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for StdinQueue {
    fn drop(&mut self) {
        self.room.close();
    }
}
