//! From a target to a connection, waiting until something listens.
//!
//! A dial tries at once, and again whenever a port has been opened or a service has changed: a server
//! that starts is reached within milliseconds of its listen, and a thousand dials that wait for it
//! cost hardly more than one.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use ids::{Port, ServiceName};
use runtime_api::{DialRefusal, RefusalCode, Target};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use crate::{
    services::{Ask, Failure, State, View, sentence, web},
    state::Runtime,
};

/// How often a dial tries although nothing has changed that we know of.
const RETRY: Duration = Duration::from_millis(250);
/// An attempt may take so long even if the caller would not wait at all: a connection within a
/// machine takes microseconds, but the machine may be busy.
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(200);

/// How long a program may leave one attempt unanswered. Its queue is full then, and the kernel would repeat
/// the attempt only after 1, 3, 7 and more seconds; giving it up and trying anew is much sooner.
const FULL_QUEUE: Duration = Duration::from_millis(100);

/// What a dial led to.
#[derive(Debug)]
pub(crate) enum Reached {
    /// A program.
    Program(TcpStream, Port),
    /// The runtime itself.
    Api,
}

/// Connects, or says why not. Cancel safe: a caller that hangs up drops this.
pub(crate) async fn reach(runtime: &Runtime, target: Target, wait: Duration) -> Result<Reached, DialRefusal> {
    let deadline = Instant::now() + wait;
    let attempts_end = deadline.max(Instant::now() + SHORTEST_ATTEMPT);
    let (mut ports, mut services) = (None, None);
    let mut wanted = false;
    let mut knowledge = Knowledge::None;
    loop {
        if runtime.is_ending() {
            return Err(refusal(RefusalCode::ShuttingDown, "the sprite is shutting down".into(), None));
        }
        let goal = match target {
            Target::Api => return Ok(Reached::Api),
            Target::Port(port) => Goal::Port(port),
            Target::Web => web_goal(runtime)?,
        };
        if knowledge == Knowledge::None && matches!(goal, Goal::Any) {
            runtime.ports.refresh();
        }
        for port in goal.ports(runtime) {
            match timeout_at(attempts_end, connect(runtime, port, knowledge)).await {
                Ok(Ok(stream)) => return Ok(Reached::Program(stream, port)),
                Ok(Err(error)) if out_of_descriptors(&error) => {
                    let message = "the sprite has too many connections open".into();
                    return Err(refusal(RefusalCode::Exhausted, message, Some(port)));
                }
                // Nobody listens there; or somebody does whose queue was full all the time.
                Ok(Err(_)) | Err(_) => {}
            }
        }
        if let Goal::Service { name, start: true, .. } = &goal
            && !std::mem::replace(&mut wanted, true)
        {
            runtime.services.tell(Ask::Want { name: name.clone() }).await;
        }
        let now = Instant::now();
        if now >= deadline {
            return Err(goal.given_up(runtime, wait));
        }
        // Most dials succeed at once and never get here. Those that do try once more now that they
        // listen for changes, lest one slips between the first attempt and that.
        let (Some(ports), Some(services)) = (&mut ports, &mut services) else {
            ports = Some(runtime.ports.wait());
            services = Some(runtime.services.watch());
            knowledge = Knowledge::Table;
            continue;
        };
        tokio::select! {
            () = ports.changed() => {}
            // Its sender lives as long as the sprite.
            _ = services.changed() => {}
            () = sleep_until(deadline.min(now + RETRY)) => {}
        }
    }
}

/// What is tried, and what it means if that fails.
enum Goal {
    /// This port.
    Port(Port),
    /// The port of a service.
    Service {
        name: ServiceName,
        port: Port,
        /// It does not run and nobody has said that it should not.
        start: bool,
        /// It is on its way out: what still listens is not what the request should meet.
        stopping: bool,
        /// It has ended by itself and waits for its next start.
        failure: Option<String>,
    },
    /// Port 8080, or the first one that may be HTTP.
    Any,
}

/// The web server of the sprite, as its services define it.
fn web_goal(runtime: &Runtime) -> Result<Goal, DialRefusal> {
    let views = runtime.services.views();
    let Some((name, port, view)) = web(&views) else { return Ok(Goal::Any) };
    match &view.state {
        State::Stopped { .. } if view.definition.stopped_by_hand => {
            let message = format!(
                "service \"{name}\", which serves this sprite's URL, was stopped by hand; start it with \
                 POST /v1/sprites/{{name}}/services/{name}/start"
            );
            Err(refusal(RefusalCode::ServiceDown, message, Some(port)))
        }
        State::Failed { failure: failure @ Failure::NotSpawned(_), .. } => {
            Err(refusal(RefusalCode::ServiceDown, sentence(name, failure), Some(port)))
        }
        State::Stopped { .. }
        | State::Starting
        | State::Running { .. }
        | State::Stopping { .. }
        | State::Failed { failure: Failure::Ended(_), .. } => Ok(Goal::service(name, port, view)),
    }
}

impl Goal {
    fn service(name: &ServiceName, port: Port, view: &View) -> Self {
        let failure = match &view.state {
            State::Failed { failure, .. } => Some(sentence(name, failure)),
            State::Stopped { .. } | State::Starting | State::Running { .. } | State::Stopping { .. } => None,
        };
        Self::Service {
            name: name.clone(),
            port,
            start: matches!(view.state, State::Stopped { .. }),
            stopping: matches!(view.state, State::Stopping { .. }),
            failure,
        }
    }

    fn ports(&self, runtime: &Runtime) -> Vec<Port> {
        match self {
            Self::Port(port) | Self::Service { port, stopping: false, .. } => vec![*port],
            Self::Service { stopping: true, .. } => Vec::new(),
            Self::Any => {
                let first = runtime.ports.first_http().filter(|port| *port != Port::DEFAULT_HTTP);
                [Some(Port::DEFAULT_HTTP), first].into_iter().flatten().collect()
            }
        }
    }

    /// The refusal when the time is up.
    fn given_up(&self, runtime: &Runtime, wait: Duration) -> DialRefusal {
        let waited = format!("after {:.1} s", wait.as_secs_f32());
        let listening = runtime.ports.listening();
        let (code, what, port) = match self {
            Self::Service { failure: Some(failure), port, .. } => {
                (RefusalCode::ServiceDown, format!("{failure} and is started again after a pause"), *port)
            }
            Self::Service { name, port, .. } => (
                RefusalCode::NotListening,
                format!("service \"{name}\" does not listen on its http_port {port} {waited}"),
                *port,
            ),
            Self::Port(port) if listening.contains(port) => (
                RefusalCode::NotListening,
                format!("the program on port {port} takes no connections {waited}"),
                *port,
            ),
            Self::Port(port) => {
                (RefusalCode::NotListening, format!("nothing listens on port {port} {waited}"), *port)
            }
            Self::Any => (
                RefusalCode::NotListening,
                format!(
                    "nothing listens on port {} or on any other port that may speak HTTP {waited}",
                    Port::DEFAULT_HTTP
                ),
                Port::DEFAULT_HTTP,
            ),
        };
        let others: Vec<String> = listening.iter().filter(|one| **one != port).map(Port::to_string).collect();
        let instead = match others.as_slice() {
            [] => "nothing else listens in this sprite".to_owned(),
            some => format!("listening instead: {}", some.join(", ")),
        };
        DialRefusal { code, message: format!("{what}; {instead}"), port: Some(port), listening }
    }
}

fn refusal(code: RefusalCode, message: String, port: Option<Port>) -> DialRefusal {
    DialRefusal { code, message, port, listening: Vec::new() }
}

/// What an attempt to connect can rely on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Knowledge {
    /// Nothing: it finds out by connecting, which is the fastest way if somebody listens.
    None,
    /// The table of ports, which is kept fresh while somebody waits: thousands that wait need not
    /// knock where nobody is.
    Table,
}

/// Connects to whoever listens on `port`.
async fn connect(runtime: &Runtime, port: Port, knowledge: Knowledge) -> io::Result<TcpStream> {
    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let addresses = match knowledge {
        Knowledge::None => vec![V4, V6],
        Knowledge::Table => {
            let listed = runtime.ports.addresses(port);
            let any = listed.iter().any(|address| address.is_unspecified());
            let loopback = [V4, V6].into_iter().filter(|address| any || listed.contains(address));
            let usual = |address: &IpAddr| address.is_unspecified() || *address == V4 || *address == V6;
            loopback.chain(listed.iter().copied().filter(|address| !usual(address))).collect()
        }
    };
    let mut last = io::Error::from(io::ErrorKind::ConnectionRefused);
    for address in addresses {
        match connect_to(address, port).await {
            Ok(stream) => return Ok(stream),
            Err(error) if out_of_descriptors(&error) => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn connect_to(address: IpAddr, port: Port) -> io::Result<TcpStream> {
    let attempt = timeout(FULL_QUEUE, TcpStream::connect(SocketAddr::new(address, port.get())));
    let stream = attempt.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    // A port that is free can be given to our own side of the connection, which then connects to
    // itself, and echoes.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
