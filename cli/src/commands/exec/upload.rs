//! `--file SRC:DEST`

use std::os::unix::fs::PermissionsExt;

use reqwest::Method;
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use super::source_and_destination;
use crate::{
    error::Error,
    net::{Api, Body, segment},
    term::progress,
};

/// What is read from the disk at once.
const PART_BYTES: usize = 128 << 10;

/// Puts one file into a sprite, with its mode; directories on the way are made.
pub(super) async fn run(api: &Api, sprite: &str, file: &str, dir: Option<&str>) -> Result<(), Error> {
    let (source, destination) = source_and_destination(file)?;
    let wrong = |error: std::io::Error| Error::said(format!("--file {}: {error}", source.display()));
    let content = File::open(&source).await.map_err(wrong)?;
    let about = content.metadata().await.map_err(wrong)?;
    if !about.is_file() {
        return Err(Error::said(format!("--file {}: only files can be put into a sprite", source.display())));
    }
    let mode = about.permissions().mode() & 0o7777;
    let mut path = format!("/fs/write?path={}&mode={mode:04o}&mkdirParents=true", segment(destination));
    if let Some(dir) = dir {
        path.push_str(&format!("&workingDir={}", segment(dir)));
    }
    let body = reqwest::Body::wrap_stream(ReaderStream::with_capacity(content, PART_BYTES));
    let body = Body::Stream(body, Some(about.len()));
    // As long as it takes: the file may be large and the network slow.
    let call = api.send(Method::PUT, api.inside(sprite, &path), None, body, None);
    progress::for_a_person(&format!("copying {} to {sprite}", source.display()), call).await.map(drop)
}
