//! `/fs`: thin handlers over [`files`](crate::files).

use std::path::PathBuf;

use axum::{
    Json,
    body::{Body, Bytes},
    extract::Query,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::files::{
    self, Account, Contents, Entry, Fault, Listing, Part, Range, Upload, blocking, parse_mode, place,
    show_mode,
};

/// How much of a file is read at a time.
const READ_BLOCK_BYTES: usize = 512 * 1024;
/// How much of a body is gathered before it is written: each write is a hop to another thread.
const WRITE_BLOCK_BYTES: usize = 1024 * 1024;

type Answer = Result<Response, Fault>;

/// Where a client's arguments are: some send them in the query, some as a JSON body.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Arguments {
    path: Option<String>,
    working_dir: Option<String>,
    #[serde(alias = "src")]
    source: Option<String>,
    #[serde(alias = "destination")]
    dest: Option<String>,
    mode: Option<Word>,
    uid: Option<Word>,
    gid: Option<Word>,
    pattern: Option<String>,
    recursive: Flag,
    #[serde(alias = "mkdir")]
    mkdir_parents: Flag,
    preserve_attrs: Flag,
}

/// A text or a number.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Word {
    Text(String),
    Number(u64),
}

impl Word {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
        }
    }
}

/// `true`, `"true"`, `"1"` or an empty text.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(from = "Option<Value>")]
struct Flag(bool);

impl From<Option<Value>> for Flag {
    fn from(value: Option<Value>) -> Self {
        Self(match value {
            Some(Value::Bool(flag)) => flag,
            Some(Value::String(text)) => matches!(text.as_str(), "" | "true" | "1" | "yes"),
            Some(_) | None => false,
        })
    }
}

impl Arguments {
    /// The query's, or the body's where there is one.
    fn of(query: Query<Self>, body: &Bytes) -> Result<Self, Fault> {
        if body.trim_ascii().is_empty() {
            return Ok(query.0);
        }
        serde_json::from_slice(body)
            .map_err(|error| Fault::invalid(format!("the body is not usable: {error}"), None))
    }

    fn place_of(&self, name: &str, path: Option<&str>) -> Result<PathBuf, Fault> {
        let path =
            path.ok_or_else(|| Fault::invalid(format!("{name} is missing; say which file is meant"), None))?;
        place(self.working_dir.as_deref(), path)
    }

    fn path(&self) -> Result<PathBuf, Fault> {
        self.place_of("path", self.path.as_deref())
    }

    fn mode(&self) -> Result<Option<u32>, Fault> {
        self.mode
            .as_ref()
            .map(Word::text)
            .filter(|text| !text.is_empty())
            .map(|text| parse_mode(&text))
            .transpose()
    }
}

/// What axum finds wrong with a query or a body, in our form.
fn refused(reason: &impl std::fmt::Display) -> Fault {
    Fault::invalid(reason.to_string(), None)
}

type Asked = Result<Query<Arguments>, axum::extract::rejection::QueryRejection>;
type Content = Result<Bytes, axum::extract::rejection::BytesRejection>;

fn asked(query: Asked) -> Result<Query<Arguments>, Fault> {
    query.map_err(|rejection| refused(&rejection.body_text()))
}

fn arguments(query: Asked, body: Content) -> Result<Arguments, Fault> {
    let body = body.map_err(|rejection| refused(&rejection.body_text()))?;
    Arguments::of(asked(query)?, &body)
}

pub(super) async fn read(query: Asked, headers: HeaderMap) -> Answer {
    let path = asked(query)?.path()?;
    let Contents { file, size } = blocking(move || files::open(&path)).await?;
    let wanted = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let range = Range::parse(wanted, size);
    let mut response = Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::ACCEPT_RANGES, "bytes");
    let part = match range {
        Range::Whole => Part { first: 0, length: size },
        Range::Part(part) => {
            let last = part.first + part.length - 1;
            response = response
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, format!("bytes {}-{last}/{size}", part.first));
            part
        }
        Range::Unsatisfiable => {
            let refusal = Fault::invalid(format!("the file has only {size} bytes"), None).into_response();
            let range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, range, refusal.into_body()).into_response());
        }
    };
    let mut file = tokio::fs::File::from_std(file);
    if part.first > 0 {
        file.seek(std::io::SeekFrom::Start(part.first)).await.map_err(|error| refused(&error))?;
    }
    // Files of /proc have no size, and all of them is wanted; of a file that grows, what it had.
    let (body, length) = if size == 0 {
        (Body::from_stream(ReaderStream::with_capacity(file, READ_BLOCK_BYTES)), None)
    } else {
        let part_of = file.take(part.length);
        (Body::from_stream(ReaderStream::with_capacity(part_of, READ_BLOCK_BYTES)), Some(part.length))
    };
    if let Some(length) = length {
        response = response.header(header::CONTENT_LENGTH, length);
    }
    response.body(body).map_err(|error| Fault::internal(error.to_string()))
}

pub(super) async fn write(query: Asked, body: Body) -> Answer {
    let arguments = asked(query)?.0;
    let (path, mode, parents) = (arguments.path()?, arguments.mode()?, arguments.mkdir_parents.0);
    let shown = path.display().to_string();
    let mut upload = blocking(move || Upload::begin(&path, mode, parents)).await?;
    let mut body = body.into_data_stream();
    let mut block = Vec::new();
    let mut bytes = 0;
    loop {
        let part = body.next().await;
        if let Some(part) = &part {
            let part = part.as_ref().map_err(|error| {
                Fault::invalid(
                    format!("the body broke off, and the file is as it was: {error}"),
                    Some(&shown),
                )
            })?;
            bytes += part.len();
            block.push(part.clone());
        }
        if bytes >= WRITE_BLOCK_BYTES || (part.is_none() && bytes > 0) {
            let parts = std::mem::take(&mut block);
            bytes = 0;
            upload = blocking(move || {
                parts.iter().try_for_each(|part| upload.write(part))?;
                Ok(upload)
            })
            .await?;
        }
        if part.is_none() {
            break;
        }
    }
    let (size, mode) = blocking(move || upload.finish()).await?;
    Ok(Json(json!({ "path": shown, "size": size, "mode": show_mode(mode) })).into_response())
}

pub(super) async fn list(query: Asked) -> Answer {
    let arguments = asked(query)?.0;
    let path = arguments.path()?;
    let shown = path.display().to_string();
    let listing = Listing { recursive: arguments.recursive.0, pattern: arguments.pattern };
    let entries: Vec<Entry> = blocking(move || files::list(&path, &listing)).await?;
    let count = entries.len();
    Ok(Json(json!({ "path": shown, "entries": entries, "count": count })).into_response())
}

pub(super) async fn delete(query: Asked, body: Content) -> Answer {
    let arguments = arguments(query, body)?;
    let (path, recursive) = (arguments.path()?, arguments.recursive.0);
    let touched = blocking(move || files::delete(&path, recursive)).await?;
    Ok(Json(json!({ "deleted": touched.paths, "count": touched.count })).into_response())
}

pub(super) async fn rename(query: Asked, body: Content) -> Answer {
    let (source, dest) = ends(&arguments(query, body)?)?;
    let answer = json!({ "source": source.display().to_string(), "dest": dest.display().to_string() });
    blocking(move || files::rename(&source, &dest)).await?;
    Ok(Json(answer).into_response())
}

pub(super) async fn copy(query: Asked, body: Content) -> Answer {
    let arguments = arguments(query, body)?;
    let (source, dest) = ends(&arguments)?;
    let (recursive, preserve) = (arguments.recursive.0, arguments.preserve_attrs.0);
    let copied = blocking(move || files::copy(&source, &dest, recursive, preserve)).await?;
    let answer = json!({ "copied": copied.files, "count": copied.count, "totalBytes": copied.bytes });
    Ok(Json(answer).into_response())
}

fn ends(arguments: &Arguments) -> Result<(PathBuf, PathBuf), Fault> {
    let source = arguments.place_of("source", arguments.source.as_deref())?;
    Ok((source, arguments.place_of("dest", arguments.dest.as_deref())?))
}

pub(super) async fn chmod(query: Asked, body: Content) -> Answer {
    let arguments = arguments(query, body)?;
    let (path, recursive) = (arguments.path()?, arguments.recursive.0);
    let mode = arguments.mode()?.ok_or_else(|| Fault::invalid("mode is missing", None))?;
    let touched = blocking(move || files::change_mode(&path, mode, recursive)).await?;
    Ok(Json(json!({ "affected": touched.paths, "count": touched.count })).into_response())
}

pub(super) async fn chown(query: Asked, body: Content) -> Answer {
    let arguments = arguments(query, body)?;
    let (path, recursive) = (arguments.path()?, arguments.recursive.0);
    let account = |word: &Option<Word>| {
        word.as_ref().map(Word::text).filter(|text| !text.is_empty()).map(|text| Account::parse(&text))
    };
    let (user, group) = (account(&arguments.uid), account(&arguments.gid));
    if user.is_none() && group.is_none() {
        return Err(Fault::invalid("say whose it is to be: uid, gid or both", None));
    }
    let touched =
        blocking(move || files::change_owner(&path, user.as_ref(), group.as_ref(), recursive)).await?;
    Ok(Json(json!({ "affected": touched.paths, "count": touched.count })).into_response())
}
