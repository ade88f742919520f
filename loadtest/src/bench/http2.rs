//! An HTTP/2 client.

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, header};

use tokio::net::TcpStream;

use super::target::{Scheme, Target, Wire};

/// One connection. It ends when the last clone of its sender is dropped.
pub(crate) async fn open(target: &Target) -> anyhow::Result<SendRequest<Bytes>> {
    over(target.connect(Scheme::H2).await?).await
}

/// One connection without TLS, by prior knowledge.
pub(crate) async fn open_plain(address: SocketAddr) -> anyhow::Result<SendRequest<Bytes>> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    over(Box::new(tcp)).await
}

async fn over(wire: Box<dyn Wire>) -> anyhow::Result<SendRequest<Bytes>> {
    let (sender, connection) = h2::client::handshake(wire).await?;
    // Not awaited: that it broke is seen by its streams.
    tokio::spawn(connection);
    Ok(sender)
}

/// Sends a request on a stream of its own and reads the whole answer: the length of its body.
///
/// `unsent` is dropped when the request is sent, or can't be.
pub(crate) async fn exchange<G>(
    sender: &SendRequest<Bytes>,
    target: &Target,
    method: Method,
    path: &str,
    body: Bytes,
    unsent: G,
) -> anyhow::Result<u64> {
    let request = Request::builder()
        .method(method)
        .uri(format!("https://{}{path}", target.host))
        .header(header::AUTHORIZATION, format!("Bearer {}", target.token))
        .body(())?;
    let mut sender = sender.clone().ready().await?;
    let (answer, mut stream) = sender.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        stream.send_data(body, true)?;
    }
    drop(unsent);
    let answer = answer.await?;
    ensure!(answer.status() == 200, "answered {}", answer.status());
    let mut body = answer.into_body();
    let mut total = 0;
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
        total += length as u64;
    }
    Ok(total)
}

/// A gRPC call without a stream: a message, an answer and its trailers.
pub(crate) async fn call(sender: &SendRequest<Bytes>, target: &Target) -> anyhow::Result<()> {
    /// Not compressed, of no length.
    const EMPTY: &[u8] = &[0; 5];
    let request = Request::post(format!("https://{}/trailers", target.host))
        .header(header::AUTHORIZATION, format!("Bearer {}", target.token))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(())?;
    let mut sender = sender.clone().ready().await?;
    let (answer, mut stream) = sender.send_request(request, false)?;
    stream.send_data(Bytes::from_static(EMPTY), true)?;
    let mut body = answer.await?.into_body();
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data?.len())?;
    }
    let trailers = body.trailers().await?.context("a gRPC answer has trailers")?;
    ensure!(trailers.get("grpc-status").is_some_and(|status| status == "0"), "{trailers:?}");
    Ok(())
}
