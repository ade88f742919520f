//! The peers' configurations: each proxies everything to one backend with one worker thread, keeps
//! connections on both sides, speaks HTTP/2 over TLS and passes WebSockets on; no access log.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use super::peers::Kind;

/// What a configuration is about.
#[derive(Debug)]
pub(crate) struct Site<'a> {
    pub(crate) backend: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// Its own, for everything that it writes.
    pub(crate) dir: &'a Path,
    /// The backend comes later, so a refused connection is to be tried again for as long as it takes.
    pub(crate) patient: bool,
}

/// Writes the configuration, and the arguments that lead to it.
pub(crate) fn prepare(kind: Kind, site: &Site<'_>, command: &mut Command) -> anyhow::Result<()> {
    let path = |name: &str| site.dir.join(name);
    match kind {
        Kind::Nginx => {
            fs::write(path("nginx.conf"), nginx(site))?;
            command.arg("-p").arg(site.dir).arg("-c").arg(path("nginx.conf"));
            command.arg("-e").arg(path("error.log"));
        }
        Kind::Haproxy => {
            let both = [fs::read(&site.certificate)?, fs::read(&site.key)?].concat();
            fs::write(path("both.pem"), both)?;
            fs::write(path("haproxy.cfg"), haproxy(site))?;
            command.arg("-db").arg("-f").arg(path("haproxy.cfg"));
        }
        Kind::Caddy => {
            fs::write(path("Caddyfile"), caddy(site))?;
            command.args(["run", "--adapter", "caddyfile", "--config"]).arg(path("Caddyfile"));
            // Its own threads for Go's garbage collector and network are not limited by this; its code is.
            command.env("GOMAXPROCS", "1").env("HOME", site.dir).env("XDG_DATA_HOME", site.dir);
        }
        Kind::Traefik => {
            fs::write(path("traefik.toml"), traefik(site))?;
            fs::write(path("routes.toml"), traefik_routes(site))?;
            command.arg("--configFile").arg(path("traefik.toml"));
            command.env("GOMAXPROCS", "1").env("HOME", site.dir);
        }
        Kind::Hyper | Kind::Pingora => {
            for address in [site.backend, site.http, site.https] {
                command.arg(address.to_string());
            }
            command.arg(&site.certificate).arg(&site.key);
        }
        Kind::Direct | Kind::Gateway => {}
    }
    Ok(())
}

fn nginx(site: &Site<'_>) -> String {
    let Site { backend, http, https, .. } = site;
    let (certificate, key, dir) = (site.certificate.display(), site.key.display(), site.dir.display());
    format!(
        "daemon off;
worker_processes 1;
user root;
pid {dir}/pid;
error_log {dir}/error.log crit;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    client_max_body_size 0;
    keepalive_timeout 300s;
    keepalive_requests 1000000000;
    map $http_upgrade $connection_header {{ default upgrade; '' ''; }}
    upstream backend {{ server {backend}; keepalive 256; keepalive_requests 1000000000; }}
    # Of its own: kept connections of HTTP/1 are of no use to it.
    upstream grpc {{ server {backend}; keepalive 256; keepalive_requests 1000000000; }}
    server {{
        listen {http} backlog=4096;
        listen {https} ssl http2 backlog=4096;
        http2_max_concurrent_streams 256;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.2 TLSv1.3;
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_request_buffering off;
            proxy_set_header Host $host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_header;
            proxy_read_timeout 300s;
        }}
        location /trailers {{
            grpc_pass grpc://grpc;
        }}
    }}
}}
"
    )
}

fn haproxy(site: &Site<'_>) -> String {
    let Site { backend, http, https, dir, .. } = site;
    // It pauses for a second between two tries.
    let retries = if site.patient { 60 } else { 3 };
    let dir = dir.display();
    format!(
        "global
    nbthread 1
    maxconn 9000
defaults
    mode http
    timeout connect 30s
    timeout client 300s
    timeout server 300s
    timeout tunnel 300s
    timeout http-keep-alive 300s
    http-reuse always
    retries {retries}
frontend edge
    bind {http} backlog 4096
    bind {https} backlog 4096 ssl crt {dir}/both.pem alpn h2,http/1.1
    use_backend grpc if {{ path /trailers }}
    default_backend backend
backend backend
    server backend {backend}
backend grpc
    server backend {backend} proto h2
"
    )
}

fn caddy(site: &Site<'_>) -> String {
    let Site { backend, http, https, .. } = site;
    let (certificate, key) = (site.certificate.display(), site.key.display());
    let patience = if site.patient { "lb_try_duration 60s" } else { "" };
    format!(
        "{{
    admin off
    auto_https off
    persist_config off
    log {{
        level ERROR
    }}
    servers {{
        protocols h1 h2
    }}
}}
http://:{} {{
    bind 127.0.0.1
    reverse_proxy {backend} {{
        {patience}
        transport http {{
            keepalive_idle_conns_per_host 256
        }}
    }}
}}
https://:{} {{
    bind 127.0.0.1
    tls {certificate} {key}
    reverse_proxy {backend} {{
        {patience}
        transport http {{
            keepalive_idle_conns_per_host 256
        }}
    }}
}}
",
        http.port(),
        https.port()
    )
}

fn traefik(site: &Site<'_>) -> String {
    let Site { http, https, dir, .. } = site;
    let dir = dir.display();
    format!(
        "[global]
checkNewVersion = false
sendAnonymousUsage = false
[log]
level = \"ERROR\"
[entryPoints.http]
address = \"{http}\"
[entryPoints.http.transport.respondingTimeouts]
readTimeout = \"0s\"
[entryPoints.https]
address = \"{https}\"
[entryPoints.https.transport.respondingTimeouts]
readTimeout = \"0s\"
[providers.file]
filename = \"{dir}/routes.toml\"
watch = false
"
    )
}

fn traefik_routes(site: &Site<'_>) -> String {
    let (backend, certificate, key) = (site.backend, site.certificate.display(), site.key.display());
    let patience = if site.patient {
        "[http.middlewares.patience.retry]\nattempts = 200\ninitialInterval = \"100ms\"\n"
    } else {
        ""
    };
    let middlewares = if site.patient { "middlewares = [\"patience\"]\n" } else { "" };
    format!(
        "[http.routers.plain]
entryPoints = [\"http\"]
rule = \"PathPrefix(`/`)\"
service = \"backend\"
{middlewares}
[http.routers.tls]
entryPoints = [\"https\"]
rule = \"PathPrefix(`/`)\"
service = \"backend\"
{middlewares}
[http.routers.tls.tls]
[http.services.backend.loadBalancer]
serversTransport = \"backend\"
[[http.services.backend.loadBalancer.servers]]
url = \"http://{backend}\"
[http.serversTransports.backend]
maxIdleConnsPerHost = 256
{patience}
[tls.stores.default.defaultCertificate]
certFile = \"{certificate}\"
keyFile = \"{key}\"
"
    )
}
