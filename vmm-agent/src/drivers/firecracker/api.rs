//! Firecracker's API: HTTP over a Unix socket, one request at a time.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};

/// The longest answer that is read: its own are a few hundred bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// Between looks at a socket that is not there yet.
const LOOK_PAUSE: Duration = Duration::from_millis(1);

/// Why a request had no success.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    #[error("firecracker refused {method} {path} ({status}): {fault}")]
    Refused { method: Method, path: String, status: StatusCode, fault: String },
    #[error("firecracker could not be reached")]
    Unreachable(#[source] io::Error),
    #[error("firecracker broke off {method} {path}")]
    Broken {
        method: Method,
        path: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("firecracker did not answer {method} {path} within {limit:?}")]
    TimedOut { method: Method, path: String, limit: Duration },
}

impl From<ApiError> for io::Error {
    fn from(error: ApiError) -> Self {
        Self::other(error)
    }
}

#[derive(Deserialize)]
struct Fault {
    fault_message: String,
}

/// One Firecracker's API.
#[derive(Clone, Debug)]
pub(super) struct Api {
    socket: PathBuf,
}

impl Api {
    pub(super) fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Waits until it can be asked.
    pub(super) async fn wait(&self) {
        while UnixStream::connect(&self.socket).await.is_err() {
            sleep(LOOK_PAUSE).await;
        }
    }

    pub(super) async fn put(
        &self,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<(), ApiError> {
        self.call(Method::PUT, path, Some(body), limit).await.map(drop)
    }

    pub(super) async fn patch(
        &self,
        path: &str,
        body: &impl Serialize,
        limit: Duration,
    ) -> Result<(), ApiError> {
        self.call(Method::PATCH, path, Some(body), limit).await.map(drop)
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str, limit: Duration) -> Result<T, ApiError> {
        let answer = self.call(Method::GET, path, None::<&()>, limit).await?;
        let broken = |source| ApiError::Broken { method: Method::GET, path: path.to_owned(), source };
        serde_json::from_slice(&answer).map_err(|error| broken(error.into()))
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        limit: Duration,
    ) -> Result<Bytes, ApiError> {
        let asked = self.ask(method.clone(), path, body);
        let late = |_| ApiError::TimedOut { method, path: path.to_owned(), limit };
        timeout(limit, asked).await.map_err(late)?
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Bytes, ApiError> {
        let broken = |source: Box<dyn std::error::Error + Send + Sync>| ApiError::Broken {
            method: method.clone(),
            path: path.to_owned(),
            source,
        };
        let stream = UnixStream::connect(&self.socket).await.map_err(ApiError::Unreachable)?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(error.into()))?;
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| broken(error.into()))?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| broken(error.into()))?;
        // The connection is driven only as long as its answer is awaited, and closed with it.
        let exchange = async {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await?.to_bytes();
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((status, body))
        };
        tokio::pin!(connection);
        let (status, body) = tokio::select! {
            answer = exchange => answer.map_err(broken)?,
            ended = &mut connection => {
                let ended = ended.err().map_or_else(|| io::ErrorKind::UnexpectedEof.into(), io::Error::other);
                return Err(broken(ended.into()));
            }
        };
        if status.is_success() {
            return Ok(body);
        }
        let fault = serde_json::from_slice::<Fault>(&body)
            .map_or_else(|_| String::from_utf8_lossy(&body).into_owned(), |fault| fault.fault_message);
        Err(ApiError::Refused { method, path: path.to_owned(), status, fault })
    }
}
