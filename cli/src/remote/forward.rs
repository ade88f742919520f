//! Ports that a command opens, made reachable at the same numbers here.

use std::{collections::HashMap, net::Ipv4Addr};

use frames::{PortNotice, TunnelRequest};
use tokio::{net::TcpListener, task::AbortHandle};

use crate::{
    net::Api,
    output::{note, person_reads_stderr},
    tunnel::{self, Tunnels},
};

/// The most ports that are forwarded at once: a command that opens more is a scanner.
const MAX_PORTS: usize = 256;

/// See the module. Dropping it closes all listeners and connections.
#[derive(Debug)]
pub(super) struct Forwarder {
    tunnels: Tunnels,
    listening: HashMap<u16, AbortHandle>,
    /// Notes are for people; a script's stderr belongs to the command.
    tells: bool,
}

impl Forwarder {
    pub(super) fn new(api: &Api, sprite: &str) -> Self {
        Self {
            tunnels: Tunnels::new(api.clone(), sprite, tunnel::Voice::Silent),
            listening: HashMap::new(),
            tells: person_reads_stderr(),
        }
    }

    fn tell(&self, text: &str) {
        if self.tells {
            // The terminal may be raw.
            note(&format!("\r[sprite: {text}]\r"));
        }
    }

    /// Forwards a port that was opened.
    pub(super) fn open(&mut self, notice: PortNotice) {
        let PortNotice { port, address, .. } = notice;
        if self.listening.contains_key(&port) || self.listening.len() >= MAX_PORTS || port == 0 {
            return;
        }
        let listener = match listen(port) {
            Ok(listener) => listener,
            Err(error) => {
                self.tell(&format!(
                    "port {port} is not forwarded, as it can't be had here ({error}); `sprite proxy OTHER:{port}` can"
                ));
                return;
            }
        };
        let host = if address.is_empty() { "localhost".to_owned() } else { address };
        let tunnels = self.tunnels.clone();
        let serving = tokio::spawn(tunnels.serve(listener, TunnelRequest { host, port, half_close: true }));
        self.listening.insert(port, serving.abort_handle());
        self.tell(&format!("port {port} is forwarded: http://localhost:{port}"));
    }

    /// Stops forwarding a port that was closed.
    pub(super) fn close(&mut self, port: u16) {
        if let Some(serving) = self.listening.remove(&port) {
            serving.abort();
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        for serving in self.listening.values() {
            serving.abort();
        }
    }
}

fn listen(port: u16) -> std::io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}
