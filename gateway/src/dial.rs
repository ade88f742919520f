//! One connection into a sprite, whichever way leads there.

use std::{collections::BTreeMap, io, time::Duration};

use agent_api::lease::Endpoint;
use ids::Port;
use runtime_api::{DialError, DialRefusal, DialRequest, Dialed, RefusalCode, Target};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

/// What one try to connect may take: beyond it, something on the way drops our packets.
const TRY_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause after the first refusal. A program that has just started listens within a few of these.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// The longest pause between tries.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Why there is no connection. No byte of the request has reached the sprite.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialFailure {
    #[error(transparent)]
    Runtime(#[from] DialError),
    /// It was asked for something that only a runtime of ours does.
    #[error("the sprite has no runtime of ours")]
    NoRuntime,
}

/// Connects to what `request` asks for.
///
/// # Cancel safety
/// Dropping the future closes everything.
pub(crate) async fn connect(endpoint: &Endpoint, request: &DialRequest) -> Result<Dialed, DialFailure> {
    if let Some(runtime) = endpoint.runtime() {
        return Ok(runtime_api::dial(&runtime, request).await?);
    }
    match endpoint {
        Endpoint::Handoff { .. } | Endpoint::Vsock { .. } => Err(DialFailure::NoRuntime),
        Endpoint::Address { web, ports } => {
            let address = address(web, ports, request.target).ok_or(DialFailure::NoRuntime)?;
            let wait = Duration::from_millis(request.wait_ms);
            Ok(Dialed::Tcp(connect_waiting(&address, wait).await?))
        }
    }
}

/// The address behind a target; `None` for what only a runtime has.
fn address(web: &str, ports: &BTreeMap<Port, String>, target: Target) -> Option<String> {
    match target {
        Target::Web => Some(web.to_owned()),
        Target::Port(port) => Some(ports.get(&port).cloned().unwrap_or_else(|| {
            let host = web.rsplit_once(':').map_or(web, |(host, _)| host);
            format!("{host}:{port}")
        })),
        Target::Api => None,
    }
}

/// Connects, waiting until something listens. Only a refusal is tried again here: anything else may mean
/// that somebody is there (T19).
async fn connect_waiting(address: &str, wait: Duration) -> Result<TcpStream, DialError> {
    let deadline = Instant::now() + wait;
    let mut pause = FIRST_PAUSE;
    loop {
        let connected = timeout(TRY_TIMEOUT, TcpStream::connect(address)).await;
        match connected.map_err(|_| DialError::TimedOut(TRY_TIMEOUT))? {
            Ok(tcp) => {
                tcp.set_nodelay(true).map_err(DialError::Unreachable)?;
                return Ok(tcp);
            }
            Err(error) if error.kind() != io::ErrorKind::ConnectionRefused => {
                return Err(DialError::Unreachable(error));
            }
            Err(_) if Instant::now() >= deadline => return Err(not_listening(address).into()),
            Err(_) => {
                // An early end of the pause is the last try's beginning.
                let _slept = timeout_at(deadline, tokio::time::sleep(pause)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

fn not_listening(address: &str) -> DialRefusal {
    DialRefusal {
        code: RefusalCode::NotListening,
        message: format!("nothing listens on {address}"),
        port: address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()),
        listening: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn a_port_that_is_not_listed_is_on_the_host_of_the_web_address() {
        let port = |text: &str| text.parse::<Port>().expect("a port");
        let ports = BTreeMap::from([(port("5432"), "db.test:15432".to_owned())]);
        let of = |target| address("[::1]:8080", &ports, target);
        assert_eq!(of(Target::Web).as_deref(), Some("[::1]:8080"));
        assert_eq!(of(Target::Port(port("3000"))).as_deref(), Some("[::1]:3000"));
        assert_eq!(of(Target::Port(port("5432"))).as_deref(), Some("db.test:15432"));
        assert_eq!(of(Target::Api), None);
    }

    #[tokio::test]
    async fn a_port_that_opens_late_is_reached_and_one_that_never_does_is_named() {
        let reserved = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = reserved.local_addr().expect("its address");
        drop(reserved);
        let refused = connect_waiting(&address.to_string(), Duration::from_millis(20)).await;
        match refused {
            Err(DialError::Refused(refusal)) => assert_eq!(refusal.port.map(Port::get), Some(address.port())),
            other => panic!("{other:?}"),
        }
        let waiting = tokio::spawn(async move {
            connect_waiting(&address.to_string(), Duration::from_secs(5)).await.map(|_| ())
        });
        tokio::time::sleep(Duration::from_millis(30)).await;
        let _late = TcpListener::bind(address).await.expect("the same port");
        waiting.await.expect("no panic").expect("connected");
    }
}
