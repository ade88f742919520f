//! An HTTP/2 client over TLS.

use anyhow::ensure;
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, header};

use super::target::{Scheme, Target};

/// One connection. It ends when the last clone of its sender is dropped.
pub(crate) async fn open(target: &Target) -> anyhow::Result<SendRequest<Bytes>> {
    let wire = target.connect(Scheme::H2).await?;
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
