//! What a client connects to, and how.

use std::{net::SocketAddr, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
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
    h2: Arc<ClientConfig>,
}

impl Tls {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self { http1: client_config(b"http/1.1")?, h2: client_config(b"h2")? })
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
            Scheme::H2 => (self.https, Some(&self.tls.h2)),
        };
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let Some(config) = tls else { return Ok(Box::new(tcp)) };
        let name = ServerName::try_from(self.host.to_string())?;
        Ok(Box::new(TlsConnector::from(config.clone()).connect(name, tcp).await?))
    }
}

/// A client that resumes nothing and trusts everyone: its own work should weigh little, and every
/// handshake should be a full one.
fn client_config(protocol: &[u8]) -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
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
