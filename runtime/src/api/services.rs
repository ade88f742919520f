//! `/services`: thin handlers over the services' actor.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Bytes,
    extract::{
        Path, RawQuery, State,
        rejection::{BytesRejection, PathRejection},
    },
    http::StatusCode,
    response::{IntoResponse, Response},
};
use ids::{Port, ServiceName};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::{sync::broadcast, time::Instant};

use super::{
    error::ApiError,
    stream::{self, Answer, Until},
};
use crate::{
    services::{Ask, DEFAULT_GRACE, Definition, Notice, View, tail},
    state::Runtime,
};

/// How long a start is watched if the client does not say.
const DEFAULT_WATCH: Duration = Duration::from_secs(5);
/// Nobody watches a service for longer in one request.
const LONGEST_WATCH: Duration = Duration::from_secs(24 * 3600);
/// What a killed service may need to be gone.
const KILL_MARGIN: Duration = Duration::from_secs(2);
/// How many lines of a log are sent if the client does not say.
const DEFAULT_LINES: usize = 100;
/// The most lines of a log that are sent.
const MAX_LINES: usize = 10_000;

type Shared = State<Arc<Runtime>>;
/// As results, so that what axum finds wrong is told in our form.
type Name = Result<Path<String>, PathRejection>;
type Content = Result<Bytes, BytesRejection>;

/// A definition as clients send it: lists and maps may be missing or null.
#[derive(Deserialize)]
struct Body {
    cmd: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<BTreeMap<String, String>>,
    #[serde(default)]
    dir: Option<String>,
    #[serde(default)]
    needs: Option<Vec<ServiceName>>,
    #[serde(default, alias = "httpPort")]
    http_port: Option<Port>,
}

/// A service as clients read it. What has no value is left out.
#[derive(Serialize)]
struct Shown<'a> {
    name: &'a ServiceName,
    cmd: &'a str,
    args: &'a [String],
    env: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dir: Option<&'a str>,
    needs: &'a [ServiceName],
    #[serde(skip_serializing_if = "Option::is_none")]
    http_port: Option<Port>,
    state: ShownState<'a>,
}

#[derive(Serialize)]
struct ShownState<'a> {
    name: &'a ServiceName,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_at: Option<jiff::Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    restart_count: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_restart_at: Option<jiff::Timestamp>,
}

impl<'a> Shown<'a> {
    fn of(name: &'a ServiceName, view: &'a View) -> Self {
        let definition = &view.definition;
        Self {
            name,
            cmd: &definition.cmd,
            args: &definition.args,
            env: &definition.env,
            dir: definition.dir.as_deref(),
            needs: &definition.needs,
            http_port: definition.http_port,
            state: ShownState {
                name,
                status: view.status(),
                pid: view.pid(),
                started_at: view.started_at,
                error: view.error(),
                restart_count: (view.restarts > 0).then_some(view.restarts),
                next_restart_at: view.next_restart_at,
            },
        }
    }
}

pub(super) async fn list(State(runtime): Shared) -> Response {
    let views = runtime.services.views();
    Json(views.iter().map(|(name, view)| Shown::of(name, view)).collect::<Vec<_>>()).into_response()
}

pub(super) async fn read(State(runtime): Shared, name: Name) -> Result<Response, ApiError> {
    let name = parse_name(&name?.0)?;
    let views = runtime.services.views();
    let view = views.get(&name).ok_or_else(|| unknown(&name))?;
    Ok(Json(Shown::of(&name, view)).into_response())
}

pub(super) async fn put(
    State(runtime): Shared,
    name: Name,
    RawQuery(query): RawQuery,
    body: Content,
) -> Result<Response, ApiError> {
    let name = parse_name(&name?.0)?;
    let watch = duration(query.as_deref(), "duration", DEFAULT_WATCH)?;
    let body: Body = serde_json::from_slice(&body?)
        .map_err(|error| ApiError::bad_request(format!("the body is no service definition: {error}")))?;
    let definition = Box::new(body.check()?);
    let ask = |reply| Ask::Put { name: name.clone(), definition, reply };
    let notices = runtime.services.ask(ask).await?;
    Ok(watched(&runtime, &name, notices, watch, Until::Ended))
}

pub(super) async fn delete(State(runtime): Shared, name: Name) -> Result<StatusCode, ApiError> {
    let name = parse_name(&name?.0)?;
    let runs = runtime.services.views().get(&name).is_some_and(|view| view.pid().is_some());
    let mut notices = runtime.services.ask(|reply| Ask::Delete { name, reply }).await?;
    if runs {
        // So that what it listened on is free when the client goes on.
        let stopped = async {
            while !matches!(
                notices.recv().await,
                Ok(Notice::Stopped(_)) | Err(broadcast::error::RecvError::Closed)
            ) {}
        };
        let _deleted_anyway = tokio::time::timeout(DEFAULT_GRACE + KILL_MARGIN, stopped).await;
    }
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn start(
    State(runtime): Shared,
    name: Name,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let name = parse_name(&name?.0)?;
    let watch = duration(query.as_deref(), "duration", DEFAULT_WATCH)?;
    let notices = runtime.services.ask(|reply| Ask::Start { name: name.clone(), reply }).await?;
    Ok(watched(&runtime, &name, notices, watch, Until::Ended))
}

pub(super) async fn stop(
    State(runtime): Shared,
    name: Name,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let name = parse_name(&name?.0)?;
    let grace = duration(query.as_deref(), "timeout", DEFAULT_GRACE)?;
    let notices = runtime.services.ask(|reply| Ask::Stop { name: name.clone(), grace, reply }).await?;
    Ok(watched(&runtime, &name, notices, grace + KILL_MARGIN, Until::Stopped))
}

pub(super) async fn restart(
    State(runtime): Shared,
    name: Name,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let name = parse_name(&name?.0)?;
    let watch = duration(query.as_deref(), "duration", DEFAULT_WATCH)?;
    let notices = runtime.services.ask(|reply| Ask::Restart { name: name.clone(), reply }).await?;
    Ok(watched(&runtime, &name, notices, watch, Until::Ended))
}

pub(super) async fn logs(
    State(runtime): Shared,
    name: Name,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let name = parse_name(&name?.0)?;
    let follow = duration(query.as_deref(), "duration", Duration::ZERO)?;
    let lines = match query.as_deref().and_then(|query| frames::query::text(query, "lines")) {
        None => DEFAULT_LINES,
        Some(text) => text
            .parse::<usize>()
            .map_err(|_| ApiError::bad_request(format!("lines must be a whole number, not {text:?}")))?,
    };
    // Listening begins before the log is read, so that no line falls between the two.
    let notices = runtime.services.ask(|reply| Ask::Listen { name: name.clone(), reply }).await?;
    let log = runtime.services.log_path(&name);
    let first = tail(&log, lines.min(MAX_LINES))
        .map_err(|error| ApiError::internal(format!("could not read {}: {error}", log.display())))?;
    let deadline = Instant::now() + follow;
    Ok(stream::respond(Answer { notices, deadline, until: Until::TimeIsUp, first }, &log))
}

#[derive(Deserialize)]
struct SignalBody {
    name: String,
    signal: String,
}

pub(super) async fn signal(State(runtime): Shared, body: Content) -> Result<StatusCode, ApiError> {
    let body: SignalBody = serde_json::from_slice(&body?)
        .map_err(|error| ApiError::bad_request(format!("the body must have a name and a signal: {error}")))?;
    let name = parse_name(&body.name)?;
    let signal: frames::Signal =
        body.signal.parse().map_err(|error| ApiError::bad_request(format!("{error}")))?;
    let signal = Signal::try_from(signal.number())
        .map_err(|_| ApiError::bad_request("real-time signals can't be sent to a service"))?;
    runtime.services.ask(|reply| Ask::Signal { name, signal, reply }).await?;
    Ok(StatusCode::NO_CONTENT)
}

impl Body {
    fn check(self) -> Result<Definition, ApiError> {
        if self.cmd.is_empty() {
            return Err(ApiError::bad_request("cmd must name a program"));
        }
        let dir = self.dir.filter(|dir| !dir.is_empty());
        if let Some(dir) = dir.as_deref().filter(|dir| !dir.starts_with('/')) {
            return Err(ApiError::bad_request(format!("dir must be an absolute path, not {dir:?}")));
        }
        let env = self.env.unwrap_or_default();
        if let Some(name) = env.keys().find(|name| name.is_empty() || name.contains('=')) {
            return Err(ApiError::bad_request(format!(
                "{name:?} can't be the name of an environment variable"
            )));
        }
        let args = self.args.unwrap_or_default();
        let texts = [&self.cmd].into_iter().chain(&args).chain(env.keys()).chain(env.values()).chain(&dir);
        if texts.into_iter().any(|text| text.contains('\0')) {
            return Err(ApiError::bad_request("cmd, args, env and dir can't hold a zero byte"));
        }
        Ok(Definition {
            cmd: self.cmd,
            args,
            env,
            dir,
            needs: self.needs.unwrap_or_default(),
            http_port: self.http_port,
            stopped_by_hand: false,
        })
    }
}

fn watched(
    runtime: &Runtime,
    name: &ServiceName,
    notices: broadcast::Receiver<Notice>,
    time: Duration,
    until: Until,
) -> Response {
    let deadline = Instant::now() + time;
    stream::respond(Answer { notices, deadline, until, first: Vec::new() }, &runtime.services.log_path(name))
}

fn unknown(name: &ServiceName) -> ApiError {
    crate::services::AskError::from(crate::services::ChangeError::Unknown(name.clone())).into()
}

fn parse_name(text: &str) -> Result<ServiceName, ApiError> {
    text.parse().map_err(|error: ids::NameError| ApiError::bad_request(error.to_string()))
}

fn duration(query: Option<&str>, name: &str, default: Duration) -> Result<Duration, ApiError> {
    match query.and_then(|query| frames::query::text(query, name)) {
        None => Ok(default),
        Some(text) => {
            frames::duration::parse(&text).filter(|found| *found <= LONGEST_WATCH).ok_or_else(|| {
                ApiError::bad_request(format!("{name} must be a duration such as 5s, not {text:?}"))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_the_port_are_taken_and_null_lists_are_empty() {
        for text in [
            r#"{"cmd":"a","http_port":80}"#,
            r#"{"cmd":"a","httpPort":80,"args":null,"needs":null,"env":null}"#,
        ] {
            let definition = serde_json::from_str::<Body>(text).unwrap().check().unwrap();
            assert_eq!(definition.http_port.map(Port::get), Some(80));
            assert!(definition.args.is_empty() && definition.needs.is_empty());
        }
        for text in [
            r#"{}"#,
            r#"{"cmd":"a","http_port":0}"#,
            r#"{"cmd":"a","http_port":65536}"#,
            r#"{"cmd":"a","needs":["a/b"]}"#,
        ] {
            assert!(serde_json::from_str::<Body>(text).is_err(), "{text}");
        }
        for text in [
            r#"{"cmd":""}"#,
            r#"{"cmd":"a","dir":"b"}"#,
            r#"{"cmd":"a","env":{"":"b"}}"#,
            "{\"cmd\":\"a\\u0000\"}",
        ] {
            assert!(serde_json::from_str::<Body>(text).unwrap().check().is_err(), "{text}");
        }
    }
}
