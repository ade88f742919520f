//! Clients that leave: in any phase, in every way, again and again. Afterwards nothing of them may be left.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::Request;
use nix::sys::socket::{setsockopt, sockopt};
use rand::Rng;
use serde_json::json;
use test_support::{Options, Program, World, eventually, program};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::timeout,
};

use crate::report::Row;

const CLIENTS: usize = 48;
const SPRITE: &str = "left";
/// What a step of a client may take on a busy machine.
const STEP: Duration = Duration::from_secs(30);
/// From the last client's leave to the last counter's zero.
const SETTLE: Duration = Duration::from_secs(30);
const GAUGES: [&str; 4] =
    ["gateway_connections", "gateway_held_requests", "gateway_leases", "gateway_upstream_connections"];

/// What was measured.
#[derive(Debug)]
pub(crate) struct Aborted {
    pub(crate) per_second: f64,
    /// What is not zero afterwards.
    pub(crate) left: Vec<String>,
    /// User memory beyond that of a tenth of the clients.
    pub(crate) kept_mib: f64,
}

pub(crate) async fn measure(n: usize) -> anyhow::Result<Vec<Row>> {
    let aborted = run(n).await?;
    ensure!(aborted.left.is_empty(), "not zero afterwards: {}", aborted.left.join(", "));
    println!(
        "{n} clients left in any phase, {:.0} in a second; every counter is zero; {:.1} MiB more than after the first tenth",
        aborted.per_second, aborted.kept_mib
    );
    Ok(Vec::new())
}

/// Lets `n` clients leave.
pub(crate) async fn run(n: usize) -> anyhow::Result<Aborted> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let backend = program(Program::Backend)?;
    let dir = tempfile::tempdir()?;
    let pid = dir.path().join("pid");
    let agent = format!(
        "[[command]]\norganization = \"acme\"\nname = \"{SPRITE}\"\nweb = \"127.0.0.1:{port}\"\n\
         start = {}\nstop = {}\n",
        json!([
            "/bin/sh",
            "-c",
            format!(
                "setsid {} {port} >/dev/null 2>&1 </dev/null & echo $! >{}",
                backend.display(),
                pid.display()
            )
        ]),
        json!(["/bin/sh", "-c", format!("kill $(cat {0}) 2>/dev/null; rm -f {0}; true", pid.display())]),
    );
    let gateway = "[log]\nfilter = \"warn\"\n".to_owned();
    // Short, so that some of them meet a sprite that sleeps.
    let idle = Duration::from_millis(100);
    let mut world = World::start(Options { agent, gateway, idle, ..Options::default() }).await?;
    let public = json!({ "url_settings": { "auth": "public" } });
    let (status, sprite) = world.call("PUT", &format!("/v1/sprites/{SPRITE}"), Some(public)).await?;
    ensure!(status == 200, "{status} {sprite}");
    let url = sprite["url"].as_str().context("a sprite has a url")?;
    let host: Arc<str> =
        url.split(['/', ':']).find(|part| part.starts_with(SPRITE)).context("a host")?.into();
    let (gateway, address) = (world.gateway()?.id(), SocketAddr::from((Ipv4Addr::LOCALHOST, world.http)));
    crowd(n / 10, address, &host).await?;
    let before = memory_kib(gateway)?;
    let began = Instant::now();
    crowd(n - n / 10, address, &host).await?;
    let per_second = (n - n / 10) as f64 / began.elapsed().as_secs_f64();
    let mut left = Vec::new();
    for gauge in GAUGES {
        // The connection over which the API was called may be open still; it is no client's.
        let most = if gauge == "gateway_connections" { 1.0 } else { 0.0 };
        if eventually(SETTLE, || async { Ok(world.metric(gauge, "").await? <= most) }).await.is_err() {
            left.push(format!("{gauge} = {}", world.metric(gauge, "").await?));
        }
    }
    let kept_mib = (memory_kib(gateway)? - before) / 1024.0;
    world.stop().await?;
    Ok(Aborted { per_second, left, kept_mib })
}

fn memory_kib(pid: u32) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("smaps_rollup has Pss")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

async fn crowd(n: usize, gateway: SocketAddr, host: &Arc<str>) -> anyhow::Result<()> {
    let left = Arc::new(AtomicUsize::new(n));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let (left, host) = (left.clone(), host.clone());
        clients.spawn(async move {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                timeout(STEP, client(gateway, &host)).await.context("a client was kept waiting")??;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(())
}

async fn connect(gateway: SocketAddr) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    // One address has too few ports for so many connections that were closed just before.
    let random: u32 = rand::rng().random_range(2..0xff_ffff);
    socket.bind(SocketAddr::from((Ipv4Addr::from(0x7f00_0000 | random), 0)))?;
    let tcp = socket.connect(gateway).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// One client, to its untimely end. What it meets on the way is nothing to it.
async fn client(gateway: SocketAddr, host: &str) -> anyhow::Result<()> {
    let tcp = connect(gateway).await?;
    let by_reset = rand::rng().random_bool(0.7);
    if by_reset {
        setsockopt(&tcp, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
    }
    let kind = rand::rng().random_range(0..10);
    // The edge may refuse or close at any time: then it was not the client who left.
    let _done = match kind {
        0..5 => http1(tcp, host).await,
        5..7 => tunnel(tcp, host).await,
        _ => http2(tcp, host).await,
    };
    Ok(())
}

/// Waits for an answer's first bytes, or for less than that.
async fn wait_a_little(tcp: &mut TcpStream) -> anyhow::Result<()> {
    let limit = Duration::from_micros(rand::rng().random_range(0..3_000));
    if let Ok(read) = timeout(limit, tcp.read(&mut [0; 512])).await {
        ensure!(read? > 0, "closed");
    }
    Ok(())
}

async fn http1(mut tcp: TcpStream, host: &str) -> anyhow::Result<()> {
    let requests = rand::rng().random_range(1..4);
    for _ in 0..requests {
        let request = match rand::rng().random_range(0..5) {
            0 => format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            1 => format!("POST /upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: 20\r\n\r\n0123456789"),
            2 => {
                format!("POST /upload HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc")
            }
            3 => format!("GET /download?bytes=300000 HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            _ => format!("GET /slow?ms=20 HTTP/1.1\r\nHost: {host}\r\n\r\nGET / HTTP/1.1\r\n"),
        };
        let most = match rand::rng().random_bool(0.3) {
            true => rand::rng().random_range(0..request.len()),
            false => request.len(),
        };
        tcp.write_all(&request.as_bytes()[..most]).await?;
        if rand::rng().random_bool(0.7) {
            wait_a_little(&mut tcp).await?;
        }
    }
    Ok(())
}

/// A WebSocket or a tunnel of another protocol, or half of one.
async fn tunnel(mut tcp: TcpStream, host: &str) -> anyhow::Result<()> {
    /// A final frame of four bytes, masked with zeros, and a beginning of the next.
    const FRAMES: &[u8] = b"\x82\x84\0\0\0\0abcd\x82\x84\0\0";
    let asked = match rand::rng().random_bool(0.5) {
        true => {
            "/ws HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        }
        false => "/tunnel HTTP/1.1\r\nUpgrade: echo",
    };
    let request = format!("GET {asked}\r\nHost: {host}\r\nConnection: Upgrade\r\n\r\n");
    tcp.write_all(request.as_bytes()).await?;
    wait_a_little(&mut tcp).await?;
    if rand::rng().random_bool(0.7) {
        let most = rand::rng().random_range(0..=FRAMES.len());
        tcp.write_all(&FRAMES[..most]).await?;
        wait_a_little(&mut tcp).await?;
    }
    if rand::rng().random_bool(0.3) {
        tcp.shutdown().await?;
        wait_a_little(&mut tcp).await?;
    }
    Ok(())
}

async fn http2(tcp: TcpStream, host: &str) -> anyhow::Result<()> {
    let (sender, connection) = h2::client::handshake(tcp).await?;
    // Dropped in the middle of whatever goes on, and its socket with it.
    let connection = tokio::spawn(connection);
    let streams = async {
        let mut answers = Vec::new();
        let requests = rand::rng().random_range(1..4);
        for _ in 0..requests {
            let path =
                ["/", "/slow?ms=20", "/download?bytes=300000", "/upload"][rand::rng().random_range(0..4)];
            let request = Request::post(format!("http://{host}{path}")).body(())?;
            let (answer, mut stream) = sender.clone().ready().await?.send_request(request, false)?;
            match rand::rng().random_range(0..3) {
                0 => stream.send_reset(h2::Reason::CANCEL),
                1 => stream.send_data(Bytes::from_static(b"whole"), true)?,
                _ => stream.send_data(Bytes::from_static(b"half"), false)?,
            }
            answers.push((answer, stream));
        }
        if let Some((answer, _)) = answers.pop() {
            let limit = Duration::from_micros(rand::rng().random_range(0..3_000));
            if let Ok(answer) = timeout(limit, answer).await {
                answer?;
            }
        }
        anyhow::Ok(())
    };
    let done = streams.await;
    connection.abort();
    done
}
