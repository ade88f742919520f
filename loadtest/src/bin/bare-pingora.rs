//! A proxy of stock Pingora that does nothing else: what the gateway adds to it is the gateway's own.

use anyhow::Context;
use async_trait::async_trait;
use pingora::{
    Result,
    listeners::tls::TlsSettings,
    proxy::{ProxyHttp, Session, http_proxy_service},
    server::{Server, configuration::ServerConf},
    upstreams::peer::HttpPeer,
};

/// The gateway's, so that the two differ in their code only.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

struct Proxy {
    backend: std::net::SocketAddr,
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.backend, false, String::new())))
    }
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [backend, http, https, certificate, key] = arguments.as_slice() else {
        anyhow::bail!("usage: bare-pingora BACKEND HTTP HTTPS CERTIFICATE KEY");
    };
    let conf = ServerConf {
        threads: 1,
        upstream_keepalive_pool_size: 4096,
        max_retries: 1,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let proxy = Proxy { backend: backend.parse().context("BACKEND")? };
    let mut service = http_proxy_service(&server.configuration, proxy);
    service.add_tcp(http);
    let mut tls = TlsSettings::intermediate(certificate, key)?;
    tls.enable_h2();
    service.add_tls_with_settings(https, None, tls);
    server.add_service(service);
    server.run_forever()
}
