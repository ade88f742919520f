//! The listeners: accept, set the socket up, shake hands, hand over to the [`Gate`].

use std::{
    io,
    net::SocketAddr,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::{
    Edge,
    gate::Gate,
    proxied::{self, Behalf},
    proxy::EdgeProxy,
    tracked::Tracked,
    transport::Transport,
};
use crate::{
    config::{Network, Settings, Timing, Tls},
    ledger::Accepted,
};
use pingora::{proxy::HttpProxy, server::configuration::ServerConf};

/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that the kernel keeps until we accept them: a storm of a few thousand must not be dropped
/// and come back a second later. The kernel caps it at its own limit.
const BACKLOG: u32 = 4096;
/// The pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Idle connections to sprites kept by each worker; each is closed after `upstream_idle_ms` anyway.
const POOL_PER_THREAD: usize = 4096;
/// Probes before a silent client is given up.
const KEEPALIVE_PROBES: u32 = 3;

/// Why we can't listen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    #[error("could not listen on {address}: {source}")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("could not read {path}: {source}")]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{path} has no {what} in PEM form")]
    Nothing { path: PathBuf, what: &'static str },
    #[error("the certificate and the key can't be used: {0}")]
    Tls(#[from] rustls::Error),
}

/// A bound port, not yet served.
pub(crate) struct Listener {
    tcp: TcpListener,
    tls: Option<TlsAcceptor>,
    /// Who may connect, if all connections come from load balancers that say for whom.
    proxies: Option<Arc<[Network]>>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("tcp", &self.tcp).field("tls", &self.tls.is_some()).finish()
    }
}

impl Listener {
    /// Binds a port for plain connections, or for TLS.
    pub(crate) fn bind(
        address: SocketAddr,
        settings: &Settings,
        tls: Option<TlsAcceptor>,
    ) -> Result<Self, ListenError> {
        let listen = &settings.listen;
        let proxies = listen.proxied.contains(&address).then(|| listen.proxies.clone());
        Ok(Self { tcp: bind(address, &settings.timing)?, tls, proxies })
    }

    /// Where it listens: the port, if the system chose it.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

fn bind(address: SocketAddr, timing: &Timing) -> Result<TcpListener, ListenError> {
    let listen = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.set_reuseaddr(true)?;
        set_up(&socket, timing)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| ListenError::Bind { address, source })
}

/// What holds for every accepted socket: Linux hands the options of the listening one down (tcp(7)), which
/// saves a handful of system calls for each connection.
///
/// A client that vanished without a word is found by the kernel: idle, by probes; busy, because it
/// acknowledges nothing.
fn set_up(socket: &TcpSocket, timing: &Timing) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let seconds = |duration: Duration| u32::try_from(duration.as_secs().max(1)).unwrap_or(u32::MAX);
    let user_timeout = u32::try_from(timing.tcp_user_timeout.as_millis()).unwrap_or(u32::MAX);
    setsockopt(socket, sockopt::TcpUserTimeout, &user_timeout)?;
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &seconds(timing.tcp_keepalive))?;
    setsockopt(socket, sockopt::TcpKeepInterval, &seconds(timing.tcp_keepalive / KEEPALIVE_PROBES))?;
    setsockopt(socket, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?;
    Ok(())
}

/// Reads certificate and key.
pub(crate) fn acceptor(tls: &Tls) -> Result<TlsAcceptor, ListenError> {
    let chain = certificates(&tls.certificate)?;
    let key = private_key(&tls.key)?;
    let mut config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    // Resumption without memory of ours, and across connections to any of our listeners.
    config.ticketer = rustls::crypto::ring::Ticketer::new()?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ListenError> {
    let unreadable = |source| ListenError::Unreadable { path: path.into(), source };
    let pem = std::fs::read(path).map_err(unreadable)?;
    let chain: Vec<_> =
        rustls_pemfile::certs(&mut pem.as_slice()).collect::<Result<_, _>>().map_err(unreadable)?;
    match chain.is_empty() {
        true => Err(ListenError::Nothing { path: path.into(), what: "certificate" }),
        false => Ok(chain),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, ListenError> {
    let unreadable = |source| ListenError::Unreadable { path: path.into(), source };
    let pem = std::fs::read(path).map_err(unreadable)?;
    let key = rustls_pemfile::private_key(&mut pem.as_slice()).map_err(unreadable)?;
    key.ok_or_else(|| ListenError::Nothing { path: path.into(), what: "private key" })
}

/// Serves `listeners` until we are told to drain. Connections go on; see [`drain`](crate::drain).
pub(crate) async fn serve(edge: Arc<Edge>, listeners: Vec<Listener>, draining: watch::Receiver<bool>) {
    let gate = Gate { proxy: Arc::new(pingora_proxy(&edge)), edge, draining: draining.clone() };
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(listener, gate.clone(), draining.clone()));
    }
    while accepting.join_next().await.is_some() {}
}

fn pingora_proxy(edge: &Arc<Edge>) -> HttpProxy<EdgeProxy> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let conf = ServerConf {
        threads,
        upstream_keepalive_pool_size: POOL_PER_THREAD,
        max_retries: 16,
        ..ServerConf::default()
    };
    let mut proxy = HttpProxy::new(EdgeProxy { edge: edge.clone() }, Arc::new(conf));
    proxy.handle_init_modules();
    proxy
}

async fn accept(listener: Listener, gate: Gate, mut draining: watch::Receiver<bool>) {
    // Of an accepted connection only the port matters, and that is ours.
    let Ok(local) = listener.address() else { return };
    loop {
        let accepted = tokio::select! {
            accepted = listener.tcp.accept() => accepted,
            _ = draining.wait_for(|draining| *draining) => break,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let accepted = Accepted { peer, local, fd: tcp.as_raw_fd(), tls: false, tls_name: None };
                // The ledger owns these: every open connection is entered there, and a drain waits for all.
                match (&listener.proxies, &listener.tls) {
                    (None, None) => serve_plain(tcp, accepted, gate.clone()),
                    (None, Some(tls)) => {
                        tokio::spawn(shake_hands(tcp, accepted, tls.clone(), gate.clone()));
                    }
                    (Some(proxies), tls) if proxies.iter().any(|network| network.contains(peer.ip())) => {
                        tokio::spawn(hear_for_whom(tcp, accepted, tls.clone(), gate.clone()));
                    }
                    (Some(_), _) => debug!(%peer, "It may not connect here: see listen.proxies"),
                }
            }
            Err(error) => {
                warn!(%error, "A connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    info!(address = %local, "No longer listening");
}

fn serve_plain(tcp: TcpStream, accepted: Accepted, gate: Gate) {
    let conn = gate.edge.ledger.enter(accepted);
    tokio::spawn(gate.serve(Box::new(Tracked::new(Transport::Plain(tcp), conn))));
}

/// Hears from a load balancer for whom it has connected, and serves that client.
async fn hear_for_whom(mut tcp: TcpStream, accepted: Accepted, tls: Option<TlsAcceptor>, gate: Gate) {
    let proxy = accepted.peer;
    let accepted = match timeout(gate.edge.settings.timing.header_timeout, proxied::read(&mut tcp)).await {
        Ok(Ok(Behalf::Client { peer, local })) => Accepted { peer, local, ..accepted },
        Ok(Ok(Behalf::Itself)) => accepted,
        Ok(Err(error)) => return debug!(%proxy, %error, "A load balancer was not understood"),
        Err(_) => return debug!(%proxy, "A load balancer did not say for whom it connects"),
    };
    match tls {
        Some(tls) => shake_hands(tcp, accepted, tls, gate).await,
        None => serve_plain(tcp, accepted, gate),
    }
}

/// Shakes hands, and has the connection served by a task of its own, which has not the size of a handshake.
async fn shake_hands(tcp: TcpStream, accepted: Accepted, acceptor: TlsAcceptor, gate: Gate) {
    let peer = accepted.peer;
    let tls = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => {
            debug!(%peer, %error, "A TLS handshake failed");
            return;
        }
        Err(_) => {
            debug!(%peer, "A TLS handshake took too long");
            return;
        }
    };
    let session = tls.get_ref().1;
    let tls_name = session.server_name().map(Box::from);
    let h2 = session.alpn_protocol() == Some(b"h2");
    let conn = gate.edge.ledger.enter(Accepted { tls: true, tls_name, ..accepted });
    let client = Box::new(Tracked::new(Transport::Tls(Box::new(tls)), conn));
    if h2 {
        tokio::spawn(gate.serve_h2(client));
    } else {
        tokio::spawn(gate.serve(client));
    }
}
