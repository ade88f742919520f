//! Answers that take a while: one JSON object a line, as things happen.

use std::{collections::VecDeque, convert::Infallible, path::Path};

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::stream;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    time::{Instant, timeout_at},
};

use crate::services::{Line, Notice};

/// When an answer is complete, besides when its time is up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Until {
    /// The service ended by itself, or could not be started.
    Ended,
    /// It was stopped.
    Stopped,
    /// Not before its time is up.
    TimeIsUp,
}

/// An answer that is being given.
pub(crate) struct Answer {
    pub(crate) notices: broadcast::Receiver<Notice>,
    pub(crate) deadline: Instant,
    pub(crate) until: Until,
    /// Lines that come first. Of what is heard, lines that are not newer than these are left out.
    pub(crate) first: Vec<Line>,
}

struct State {
    answer: Answer,
    ready: VecDeque<Value>,
    newest: Option<Timestamp>,
    log: String,
    complete: bool,
}

/// Makes the response. It ends with a `complete` object that names the log.
pub(crate) fn respond(answer: Answer, log: &Path) -> Response {
    let ready = answer.first.iter().map(output).collect();
    let newest = answer.first.last().map(|line| line.at);
    let state = State { answer, ready, newest, log: log.display().to_string(), complete: false };
    let lines = stream::unfold(state, |mut state| async move {
        let mut line = serde_json::to_vec(&state.next().await?).ok()?;
        line.push(b'\n');
        Some((Ok::<_, Infallible>(Bytes::from(line)), state))
    });
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(lines)).into_response()
}

impl State {
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(value) = self.ready.pop_front() {
                return Some(value);
            }
            if self.complete {
                return None;
            }
            // A service that never falls silent must not stretch the time: the wait below looks at
            // the clock only when there is nothing to read.
            if Instant::now() >= self.answer.deadline {
                self.end();
                continue;
            }
            match timeout_at(self.answer.deadline, self.answer.notices.recv()).await {
                Ok(Ok(notice)) => self.take(&notice),
                Ok(Err(RecvError::Lagged(count))) => {
                    let data = format!("{count} lines came too fast and are only in the log");
                    self.ready.push_back(event("error", json!({ "data": data })));
                }
                // The service was deleted, or the time is up.
                Ok(Err(RecvError::Closed)) | Err(_) => self.end(),
            }
        }
    }

    fn take(&mut self, notice: &Notice) {
        let until = self.answer.until;
        let (value, over) = match notice {
            Notice::Started => (event("started", json!({})), false),
            Notice::Output(line) => {
                if self.newest.is_some_and(|newest| line.at <= newest) {
                    return;
                }
                (output(line), false)
            }
            Notice::Exited(ended) => {
                (event("exit", json!({ "exit_code": ended.exit_code() })), until == Until::Ended)
            }
            Notice::NotSpawned(error) => (event("error", json!({ "data": error })), until == Until::Ended),
            Notice::Stopping => (event("stopping", json!({})), false),
            Notice::Stopped(ended) => {
                let code = ended.map_or(0, crate::services::Ended::exit_code);
                (event("stopped", json!({ "exit_code": code })), until == Until::Stopped)
            }
        };
        self.ready.push_back(value);
        if over {
            self.end();
        }
    }

    fn end(&mut self) {
        self.complete = true;
        // One file holds both; the names are the protocol's.
        let files = json!({ "combined": self.log, "stdout": self.log, "stderr": self.log });
        self.ready.push_back(event("complete", json!({ "log_files": files })));
    }
}

fn event(kind: &str, mut fields: Value) -> Value {
    fields["type"] = kind.into();
    fields["timestamp"] = Timestamp::now().as_millisecond().into();
    fields
}

fn output(line: &Line) -> Value {
    json!({
        "type": line.source.as_str(),
        "data": format!("{}\n", line.text),
        "timestamp": line.at.as_millisecond(),
    })
}
