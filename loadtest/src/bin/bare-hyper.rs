//! A proxy of hyper that does nothing else.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header, uri::Authority};
use http_body_util::{BodyExt, Empty, combinators::BoxBody};
use hyper::{
    body::{Bytes, Incoming},
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket},
};
use tokio_rustls::TlsAcceptor;

/// The gateway's, so that the two differ in their code only.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const BACKLOG: u32 = 4096;
/// What concerns one connection only (RFC 9110 §7.6.1).
const HOP_BY_HOP: [header::HeaderName; 4] =
    [header::CONNECTION, header::TE, header::TRANSFER_ENCODING, header::UPGRADE];

type Body = BoxBody<Bytes, hyper::Error>;

#[derive(Debug)]
struct Proxy {
    backend: Authority,
    client: Client<HttpConnector, Incoming>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [backend, http, https, certificate, key] = arguments.as_slice() else {
        anyhow::bail!("usage: bare-hyper BACKEND HTTP HTTPS CERTIFICATE KEY");
    };
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let proxy = Arc::new(Proxy { backend: backend.parse().context("BACKEND")?, client });
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let tls = TlsAcceptor::from(Arc::new(config));
    let (http, https) = (listen(http)?, listen(https)?);
    loop {
        tokio::select! {
            accepted = http.accept() => {
                let stream = accepted?.0;
                stream.set_nodelay(true)?;
                tokio::spawn(serve(stream, proxy.clone()));
            }
            accepted = https.accept() => {
                let stream = accepted?.0;
                stream.set_nodelay(true)?;
                let (tls, proxy) = (tls.clone(), proxy.clone());
                tokio::spawn(async move {
                    // A failed handshake shows as the client's error.
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, proxy).await;
                    }
                });
            }
        }
    }
}

fn listen(address: &str) -> anyhow::Result<TcpListener> {
    let address: SocketAddr = address.parse().context("HTTP or HTTPS")?;
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket.listen(BACKLOG)?)
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, proxy: Arc<Proxy>) {
    let service = service_fn(move |request| forward(proxy.clone(), request));
    let server = auto::Builder::new(TokioExecutor::new());
    // A client that leaves is no error here.
    let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

async fn forward(
    proxy: Arc<Proxy>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, hyper_util::client::legacy::Error> {
    let upgrade = request.headers().get(header::UPGRADE).cloned();
    let mut client_side = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
    let target = request.uri().path_and_query().cloned();
    let mut uri = Uri::builder().scheme("http").authority(proxy.backend.clone());
    if let Some(target) = target {
        uri = uri.path_and_query(target);
    }
    let Ok(uri) = uri.build() else { return Ok(plain(StatusCode::BAD_REQUEST)) };
    if let Some(host) = request.uri().authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
        request.headers_mut().insert(header::HOST, host);
    }
    *request.uri_mut() = uri;
    *request.version_mut() = http::Version::HTTP_11;
    for name in HOP_BY_HOP {
        request.headers_mut().remove(name);
    }
    if let Some(protocol) = upgrade {
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(header::UPGRADE, protocol);
    }
    let mut response = proxy.client.request(request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        if let Some(client_side) = client_side.take() {
            let server_side = hyper::upgrade::on(&mut response);
            tokio::spawn(relay(client_side, server_side));
        }
    } else {
        for name in HOP_BY_HOP {
            response.headers_mut().remove(name);
        }
    }
    Ok(response.map(BodyExt::boxed))
}

async fn relay(client: OnUpgrade, server: OnUpgrade) {
    if let (Ok(client), Ok(server)) = (client.await, server.await) {
        // Either side may leave.
        let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(server)).await;
    }
}

fn plain(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response
}
