//! What a client connects to, and how.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustls::{
    ClientConfig, DigitallySignedStruct, HandshakeKind, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// A connection, plain or not.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// How a client speaks to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scheme {
    Http,
    Https,
    /// HTTPS with the session of an earlier connection.
    Resuming,
    /// HTTP/2 by ALPN.
    H2,
}

/// One peer, as its clients see it. All peers get the very same bytes.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    /// A sprite's host name: only our gateway looks at it.
    pub(crate) host: Arc<str>,
    /// A token: only our gateway looks at it.
    pub(crate) token: Arc<str>,
    pub(crate) tls: Tls,
}

/// What TLS clients need, made once.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    http1: Arc<ClientConfig>,
    resuming: Arc<ClientConfig>,
    h2: Arc<ClientConfig>,
    handshakes: Arc<Handshakes>,
}

/// Of connections that ask for resumption.
#[derive(Debug, Default)]
struct Handshakes {
    all: AtomicU64,
    resumed: AtomicU64,
}

impl Tls {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            http1: client_config(b"http/1.1", Resumption::disabled())?,
            resuming: client_config(b"http/1.1", Resumption::in_memory_sessions(SESSIONS))?,
            h2: client_config(b"h2", Resumption::disabled())?,
            handshakes: Arc::default(),
        })
    }

    /// How many of the handshakes that could be resumed were.
    pub(crate) fn resumed_share(&self) -> f64 {
        let Handshakes { all, resumed } = &*self.handshakes;
        resumed.load(Ordering::Relaxed) as f64 / all.load(Ordering::Relaxed).max(1) as f64
    }
}

impl Target {
    /// The head of a request; `more` are further header lines.
    pub(crate) fn head(&self, method: &str, path: &str, more: &str) -> Vec<u8> {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n{more}\r\n",
            self.host, self.token
        )
        .into_bytes()
    }

    pub(crate) async fn connect(&self, scheme: Scheme) -> anyhow::Result<Box<dyn Wire>> {
        let (address, tls) = match scheme {
            Scheme::Http => (self.http, None),
            Scheme::Https => (self.https, Some(&self.tls.http1)),
            Scheme::Resuming => (self.https, Some(&self.tls.resuming)),
            Scheme::H2 => (self.https, Some(&self.tls.h2)),
        };
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let Some(config) = tls else { return Ok(Box::new(tcp)) };
        let name = ServerName::try_from(self.host.to_string())?;
        let stream = TlsConnector::from(config.clone()).connect(name, tcp).await?;
        if scheme == Scheme::Resuming {
            let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
            self.tls.handshakes.all.fetch_add(1, Ordering::Relaxed);
            self.tls.handshakes.resumed.fetch_add(u64::from(resumed), Ordering::Relaxed);
        }
        Ok(Box::new(stream))
    }
}

/// More than are ever kept for one name.
const SESSIONS: usize = 256;

/// A client that trusts everyone: its own work should weigh little.
fn client_config(protocol: &[u8], resumption: Resumption) -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    config.resumption = resumption;
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256]
    }
}
