//! Connections to the API that we own ourselves, for what a plain HTTP client can't do: WebSockets, and
//! answers whose chunk borders carry meaning.

use std::{io::BufReader, path::Path, sync::Arc, time::Duration};

use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;

use crate::error::{Error, root};

/// What a handshake over a bad network needs.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A peer that is gone without a word is noticed after [`KEEPALIVE_IDLE`] and [`KEEPALIVE_PROBES`] times
/// [`KEEPALIVE_PAUSE`], 45 s in all. There is no limit on bytes that aren't taken: a command may let its
/// stdin wait, and a database its clients.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_PAUSE: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// A connection, in the clear or not.
pub(crate) type Stream = Either<TcpStream, TlsStream<TcpStream>>;

/// Where the API is.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: bool,
}

impl Endpoint {
    /// Takes a base URL apart.
    pub(crate) fn of(base: &str) -> Result<Self, Error> {
        let wrong = |why: &str| Error::said(format!("{base:?} is no API URL: {why}"));
        let uri: http::Uri = base.parse().map_err(|_| wrong("it is no URL"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            Some(_) | None => return Err(wrong("it begins with neither http:// nor https://")),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("it has no host"))?;
        let after_host = uri.authority().map_or("", |authority| authority.as_str()).rsplit(host).next();
        let port = match uri.port_u16() {
            Some(port) => port,
            None if after_host.is_some_and(|rest| rest.len() > 1) => return Err(wrong("its port is none")),
            None if tls => 443,
            None => 80,
        };
        Ok(Self { host: host.trim_matches(['[', ']']).to_owned(), port, tls })
    }

    /// The `Host` header.
    pub(crate) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }

    /// Names below `localhost` are this machine (RFC 6761 §6.3), whatever the resolver says.
    pub(crate) fn is_this_machine(&self) -> bool {
        self.host == "localhost" || self.host.ends_with(".localhost")
    }
}

/// What we trust: the system's roots (or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`), and one more file.
pub(crate) fn trust(extra: Option<&Path>) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    match rustls_native_certs::load_native_certs() {
        Ok(certificates) => {
            // One that can't be used trusts nobody; the others do.
            let _ = roots.add_parsable_certificates(certificates);
        }
        Err(error) if extra.is_none() => {
            return Err(Error::said(format!(
                "could not read the certificates that this machine trusts: {error}"
            )));
        }
        Err(_) => {}
    }
    if let Some(path) = extra {
        let wrong = |why: String| Error::said(format!("--cacert {}: {why}", path.display()));
        let file = std::fs::File::open(path).map_err(|error| wrong(error.to_string()))?;
        let mut found = 0;
        for certificate in rustls_pemfile::certs(&mut BufReader::new(file)) {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            found += 1;
        }
        if found == 0 {
            return Err(wrong("there is no certificate in it".to_owned()));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::said(error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Connects, and proves the server's identity where there is TLS.
///
/// # Errors
/// What went wrong, as a phrase.
pub(crate) async fn connect(endpoint: &Endpoint, tls: Option<&Arc<ClientConfig>>) -> Result<Stream, String> {
    let work = async {
        let tcp = if endpoint.is_this_machine() {
            let both: [std::net::SocketAddr; 2] = [
                (std::net::Ipv4Addr::LOCALHOST, endpoint.port).into(),
                (std::net::Ipv6Addr::LOCALHOST, endpoint.port).into(),
            ];
            TcpStream::connect(both.as_slice()).await
        } else {
            TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await
        };
        let tcp = tcp.map_err(|error| root(&error))?;
        tune(&tcp);
        let Some(tls) = tls else { return Ok(Either::Left(tcp)) };
        let name = ServerName::try_from(endpoint.host.clone()).map_err(|error| error.to_string())?;
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await;
        stream.map(Either::Right).map_err(|error| root(&error))
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, work).await {
        Ok(connected) => connected,
        Err(_) => Err(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())),
    }
}

/// Sets what makes typing quick and a dead peer noticed.
fn tune(tcp: &TcpStream) {
    use rustix::net::sockopt;
    // A socket that can't be tuned still works.
    let _ = tcp.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(tcp, true);
    let _ = sockopt::set_tcp_keepidle(tcp, KEEPALIVE_IDLE);
    let _ = sockopt::set_tcp_keepintvl(tcp, KEEPALIVE_PAUSE);
    let _ = sockopt::set_tcp_keepcnt(tcp, KEEPALIVE_PROBES);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let of = |url: &str| Endpoint::of(url).map(|end| (end.authority(), end.tls, end.port));
        assert_eq!(of("http://127.0.0.1:8080").ok(), Some(("127.0.0.1:8080".into(), false, 8080)));
        assert_eq!(of("https://api.example/base").ok(), Some(("api.example".into(), true, 443)));
        assert_eq!(of("http://[::1]:80").ok(), Some(("[::1]".into(), false, 80)));
        for bad in ["", "example", "ftp://a", "http://", "http://a:b"] {
            assert!(Endpoint::of(bad).is_err(), "{bad:?}");
        }
        assert!(Endpoint::of("http://api.sprites.localhost").is_ok_and(|end| end.is_this_machine()));
    }
}
