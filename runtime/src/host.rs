//! What programs in the sprite ask of its host: questions go out over the control stream, and answers come back
//! over it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use runtime_api::{Question, Reply};
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};

/// Questions that may be open at once. A program that asks more is told to wait.
const MOST_OPEN: usize = 16;
/// How long an answer may take: to copy a large disk takes a while.
const LIMIT: Duration = Duration::from_secs(600);

/// Why there is no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum HostError {
    #[error("{MOST_OPEN} questions to the host are open already; try again when one is answered")]
    TooMany,
    #[error("the host did not answer; look at what is there before you ask again")]
    Silent,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Host {
    open: Mutex<Open>,
    asked: Notify,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    unsent: VecDeque<(u64, Question)>,
    waiting: HashMap<u64, oneshot::Sender<Reply>>,
}

impl Host {
    /// Asks, and waits for the answer. A caller that leaves does not take the question back.
    pub(crate) async fn ask(&self, question: Question) -> Result<Reply, HostError> {
        let answer = {
            let mut open = self.lock();
            if open.waiting.len() >= MOST_OPEN {
                return Err(HostError::TooMany);
            }
            let (sender, answer) = oneshot::channel();
            let id = open.next;
            open.next += 1;
            open.unsent.push_back((id, question));
            open.waiting.insert(id, sender);
            answer
        };
        self.asked.notify_one();
        timeout(LIMIT, answer).await.ok().and_then(Result::ok).ok_or(HostError::Silent)
    }

    /// The next question to send. Cancel safe.
    pub(crate) async fn next(&self) -> (u64, Question) {
        loop {
            if let Some(next) = self.lock().unsent.pop_front() {
                return next;
            }
            self.asked.notified().await;
        }
    }

    /// The host has answered.
    pub(crate) fn answered(&self, id: u64, reply: Reply) {
        if let Some(waiting) = self.lock().waiting.remove(&id) {
            // Whoever asked may have left.
            let _ = waiting.send(reply);
        }
    }

    /// A new control stream was opened: what was asked over the last one is not answered any more.
    pub(crate) fn forget_asked(&self) {
        let mut open = self.lock();
        let unsent: Vec<u64> = open.unsent.iter().map(|(id, _)| *id).collect();
        open.waiting.retain(|id, _| unsent.contains(id));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reply() -> Reply {
        Reply { status: 200, body: json!([]) }
    }

    #[tokio::test]
    async fn an_answer_reaches_who_asked() {
        let host = Host::default();
        let asking = async { host.ask(Question::ListCheckpoints).await };
        let answering = async {
            let (id, question) = host.next().await;
            assert_eq!(question, Question::ListCheckpoints);
            host.answered(id, reply());
            host.answered(id + 1, reply());
        };
        assert_eq!(tokio::join!(asking, answering).0, Ok(reply()));
    }

    #[tokio::test]
    async fn what_was_asked_over_a_broken_stream_is_not_waited_for() {
        let host = Host::default();
        let first = host.ask(Question::ListCheckpoints);
        let broken = async {
            host.next().await;
            host.forget_asked();
        };
        assert_eq!(tokio::join!(first, broken).0, Err(HostError::Silent));
    }
}
