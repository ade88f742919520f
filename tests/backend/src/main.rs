//! A web server to run in a sprite under test. It tells exactly what reached it.
//!
//! | path | what it does |
//! |---|---|
//! | `/` | `ok` |
//! | `/echo` | the request as JSON: method, path, headers |
//! | `/nonce` | a number that lives only in memory, and a counter of these calls: a reboot changes the one and resets the other |
//! | `/once?id=N` | counts how often it has seen this id, answers the count |
//! | `/seen` | how many ids `/once` has seen, and how many of them more than once |
//! | `/insert?id=N` | writes a row into an SQLite database in the working directory, durably |
//! | `/rows` | SQLite's own check of that database, how many rows it has and the largest id |
//! | `/upload` | length and SHA-256 of the body |
//! | `/download?bytes=N` | N bytes |
//! | `/slow?ms=N` | answers after N milliseconds |
//! | `/keep?mib=N` | has N MiB more of memory from now on |
//! | `/drip?ms=N&count=M` | M chunks, one each N milliseconds |
//! | `/sse?ms=N` | server-sent events for ever |
//! | `/trailers` | a body, then the trailer `x-checksum` |
//! | `/set-cookie` | cookies for this host and for its parent |
//! | `/ws` | a WebSocket echo |
//! | `/reset` | closes the connection without an answer |

mod database;

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{handshake::derive_accept_key, protocol::Role},
};

type Body = BoxBody<Bytes, Infallible>;

#[derive(Debug, Default)]
struct State {
    nonce: u64,
    calls: AtomicU64,
    seen: Mutex<HashMap<u64, u64>>,
    kept: Mutex<Vec<Vec<u8>>>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let port = std::env::args().nth(1).unwrap_or_else(|| "8080".into()).parse()?;
    // Thousands of clients at once are what some tests are about.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await?;
    let state = Arc::new(State { nonce: rand::random(), ..State::default() });
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: some will come back.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        stream.set_nodelay(true)?;
        let state = state.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| serve(state.clone(), request));
            let server = auto::Builder::new(TokioExecutor::new());
            // A peer that goes away is what is being tested.
            let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        });
    }
}

fn text(body: impl Into<Bytes>) -> Response<Body> {
    Response::new(Full::new(body.into()).boxed())
}

fn told(answer: rusqlite::Result<String>) -> Response<Body> {
    let failed = answer.is_err();
    let mut response = text(answer.unwrap_or_else(|error| error.to_string()));
    if failed {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    response
}

fn number(query: &str, key: &str) -> Option<u64> {
    query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
}

fn streamed(chunks: impl stream::Stream<Item = Frame<Bytes>> + Send + Sync + 'static) -> Response<Body> {
    Response::new(BodyExt::boxed(StreamBody::new(chunks.map(Ok::<_, Infallible>))))
}

async fn serve(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let ms = Duration::from_millis(number(&query, "ms").unwrap_or(100));
    Ok(match request.uri().path() {
        "/" => text("ok\n"),
        "/echo" => text(describe(&request)),
        "/nonce" => {
            let calls = state.calls.fetch_add(1, Ordering::Relaxed) + 1;
            text(serde_json::json!({ "nonce": state.nonce.to_string(), "calls": calls }).to_string())
        }
        "/once" => {
            // The whole body must have come, or the request has not.
            let complete = request.into_body().collect().await.is_ok();
            let id = number(&query, "id").unwrap_or_default();
            let mut seen = state.seen.lock();
            let count = seen.entry(id).or_default();
            *count += u64::from(complete);
            text(count.to_string())
        }
        "/seen" => {
            let seen = state.seen.lock();
            let repeated = seen.values().filter(|count| **count > 1).count();
            text(serde_json::json!({ "ids": seen.len(), "repeated": repeated }).to_string())
        }
        "/insert" => {
            let id = number(&query, "id").unwrap_or_default();
            told(tokio::task::spawn_blocking(move || database::insert(id)).await?)
        }
        "/rows" => told(tokio::task::spawn_blocking(database::check).await?),
        "/upload" => upload(request.into_body()).await,
        "/download" => {
            let total = number(&query, "bytes").unwrap_or(1 << 20);
            let block = Bytes::from(vec![b'x'; 64 << 10]);
            let blocks = stream::unfold(total, move |left| {
                let length = left.min(block.len() as u64);
                let next = block.slice(..usize::try_from(length).unwrap_or(0));
                async move { (length > 0).then(|| (Frame::data(next), left - length)) }
            });
            streamed(blocks)
        }
        "/slow" => {
            tokio::time::sleep(ms).await;
            text("slow\n")
        }
        "/keep" => {
            let bytes = usize::try_from(number(&query, "mib").unwrap_or(1) << 20).unwrap_or(0);
            // Written, or it would not be there.
            state.kept.lock().push(vec![1; bytes]);
            text("kept\n")
        }
        "/drip" => {
            let count = number(&query, "count").unwrap_or(10);
            streamed(stream::iter(0..count).then(move |n| async move {
                tokio::time::sleep(ms).await;
                Frame::data(Bytes::from(format!("{n}\n")))
            }))
        }
        "/sse" => {
            let mut response = streamed(stream::iter(0u64..).then(move |n| async move {
                tokio::time::sleep(ms).await;
                Frame::data(Bytes::from(format!("id: {n}\ndata: tick\n\n")))
            }));
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            response
        }
        "/trailers" => {
            // A server that leaves a body unread resets the stream, and clients may then miss the trailers.
            let _ = request.into_body().collect().await;
            let mut trailers = HeaderMap::new();
            trailers.insert("x-checksum", HeaderValue::from_static("abc"));
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let frames = [Frame::data(Bytes::from_static(b"body")), Frame::trailers(trailers)];
            let mut response = streamed(stream::iter(frames));
            response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-checksum"));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response
        }
        "/set-cookie" => {
            let mut response = text("cookies\n");
            for cookie in
                ["own=1; Path=/", "parent=1; Domain=.sprites.localhost; Path=/", "top=1; domain=localhost"]
            {
                response.headers_mut().append(header::SET_COOKIE, HeaderValue::from_static(cookie));
            }
            response
        }
        "/ws" => websocket(request),
        "/tunnel" => tunnel(request),
        "/reset" => return Err(std::io::Error::other("asked to reset")),
        _ => {
            let mut response = text("not found\n");
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        }
    })
}

fn describe(request: &Request<Incoming>) -> String {
    let headers: Vec<_> = request
        .headers()
        .iter()
        .map(|(name, value)| serde_json::json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
        .collect();
    serde_json::json!({
        "method": request.method().as_str(),
        "path": request.uri().path_and_query().map(ToString::to_string),
        "version": format!("{:?}", request.version()),
        "headers": headers,
    })
    .to_string()
}

async fn upload(mut body: Incoming) -> Response<Body> {
    let mut digest = Sha256::new();
    let mut length = 0u64;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            let mut response = text("the body broke off\n");
            *response.status_mut() = StatusCode::BAD_REQUEST;
            return response;
        };
        if let Some(data) = frame.data_ref() {
            digest.update(data);
            length += data.len() as u64;
        }
    }
    let sha256: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    text(serde_json::json!({ "length": length, "sha256": sha256 }).to_string())
}

/// Echoes bytes as they come, by whatever name the other protocol has.
fn tunnel(mut request: Request<Incoming>) -> Response<Body> {
    let Some(protocol) = request.headers().get(header::UPGRADE).cloned() else {
        let mut response = text("an upgrade is expected here\n");
        *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
        return response;
    };
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(&mut request).await else { return };
        let (mut reader, mut writer) = tokio::io::split(TokioIo::new(upgraded));
        // It ends as the client does.
        let _ended = tokio::io::copy(&mut reader, &mut writer).await;
    });
    let mut response = text("");
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
    response
}

fn websocket(mut request: Request<Incoming>) -> Response<Body> {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY).cloned() else {
        let mut response = text("a WebSocket is expected here\n");
        *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
        return response;
    };
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(&mut request).await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        // A close is answered by reading on.
        while let Some(Ok(message)) = socket.next().await {
            if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                return;
            }
        }
    });
    let mut response = text("");
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = derive_accept_key(key.as_bytes());
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}
