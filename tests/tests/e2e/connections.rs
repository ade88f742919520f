//! Which open connections keep a sprite awake: all of them, and only while somebody is at the other end.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use futures_util::{SinkExt, StreamExt};
use test_support::{Options, Raw, SpriteUrl, World};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest},
};

const SOON: Duration = Duration::from_secs(10);
/// Four idle timeouts.
const LONG: Duration = Duration::from_secs(2);

async fn websocket(
    world: &World,
    sprite: &SpriteUrl,
) -> anyhow::Result<WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>> {
    let mut request = format!("ws://127.0.0.1:{}/ws", world.http).into_client_request()?;
    request.headers_mut().insert("Host", sprite.host.parse()?);
    Ok(tokio_tungstenite::connect_async(request).await?.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_open_connection_keeps_its_sprite_awake_until_it_closes() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("kinds", "public").await?;
    let awake = async |kind: &str| -> anyhow::Result<()> {
        tokio::time::sleep(LONG).await;
        ensure!(world.status("kinds").await? == "running", "{kind}: it fell asleep");
        Ok(())
    };

    let socket = websocket(&world, &sprite).await?;
    awake("a silent WebSocket").await?;
    drop(socket);
    world.until("kinds", "warm", SOON).await?;

    let mut socket = websocket(&world, &sprite).await?;
    for _ in 0..4 {
        tokio::time::sleep(LONG / 4).await;
        socket.send(Message::Ping("x".into())).await?;
        ensure!(matches!(socket.next().await.context("a pong")??, Message::Pong(_)));
    }
    awake("a WebSocket with pings only").await?;
    socket.close(None).await?;
    world.until("kinds", "warm", SOON).await?;

    let mut events = world.request("GET", &sprite, "/sse?ms=400").send().await?;
    ensure!(events.chunk().await?.is_some());
    awake("a stream of events").await?;
    drop(events);
    world.until("kinds", "warm", SOON).await?;

    let mut idle = Raw::connect(world.http).await?;
    idle.send(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", sprite.host)).await?;
    idle.answer(SOON).await?;
    awake("an idle keep-alive connection").await?;
    drop(idle);
    world.until("kinds", "warm", SOON).await?;

    let mut paused = Raw::connect(world.http).await?;
    paused.send(format!("GET /download?bytes=100000000 HTTP/1.1\r\nHost: {}\r\n\r\n", sprite.host)).await?;
    paused.until("\r\n\r\n", SOON).await?;
    awake("a reader that does not read").await?;
    drop(paused);
    world.until("kinds", "warm", SOON).await?;

    let ca = reqwest::Certificate::from_pem(&std::fs::read(world.ca())?)?;
    let address = ([127, 0, 0, 1], world.https).into();
    let client =
        reqwest::Client::builder().add_root_certificate(ca).resolve(&sprite.host, address).build()?;
    let url = format!("https://{}:{}/", sprite.host, world.https);
    assert_eq!(client.get(url).send().await?.version(), reqwest::Version::HTTP_2);
    awake("an idle HTTP/2 connection").await?;
    drop(client);
    world.until("kinds", "warm", SOON).await?;
    world.stop().await
}

/// A network of two hosts, one of them in a namespace, and the cable between them.
struct Cable {
    name: String,
    address: String,
}

impl Cable {
    fn lay() -> anyhow::Result<Self> {
        let number = std::process::id() % 250 + 1;
        let cable = Self { name: format!("spr{number}"), address: format!("10.213.{number}.1") };
        let (name, far) = (&cable.name, format!("10.213.{number}.2/24"));
        cable.ip(&["netns", "add", name])?;
        cable.ip(&["link", "add", name, "type", "veth", "peer", "name", "far", "netns", name])?;
        cable.ip(&["addr", "add", &format!("{}/24", cable.address), "dev", name])?;
        cable.ip(&["link", "set", name, "up"])?;
        cable.ip(&["-n", name, "addr", "add", &far, "dev", "far"])?;
        cable.ip(&["-n", name, "link", "set", "far", "up"])?;
        Ok(cable)
    }

    fn ip(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output = Command::new("ip").args(arguments).output().context("ip (iproute2) is missing")?;
        ensure!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Nothing goes through any more, and nobody is told.
    fn pull(&self) -> anyhow::Result<()> {
        self.ip(&["-n", &self.name, "link", "set", "far", "down"])
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // With the namespace goes its end of the cable, and with that the other.
        if let Err(error) = self.ip(&["netns", "del", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_vanishes_without_a_word_is_let_go_within_the_configured_time() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can make a network to cut");
        return Ok(());
    }
    let cable = Cable::lay()?;
    let options = Options {
        also_listen: Some(cable.address.clone()),
        gateway: "[timing]\ntcp_keepalive_ms = 1000\ntcp_user_timeout_ms = 3000\n".into(),
        ..Options::default()
    };
    let world = World::start(options).await?;
    let sprite = world.create_with_backend("cut", "public").await?;
    for (kind, path) in
        [("a silent WebSocket", "/ws"), ("a stream", "/sse?ms=100"), ("an idle connection", "/")]
    {
        // bash's own sockets, so that nothing need be installed on the far host.
        let upgrade = "Connection: Upgrade\\r\\nUpgrade: websocket\\r\\nSec-WebSocket-Version: 13\\r\\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n";
        let extra = if path == "/ws" { upgrade } else { "" };
        let line = format!(
            "exec 3<>/dev/tcp/{}/{}; printf 'GET {path} HTTP/1.1\\r\\nHost: {}\\r\\n{extra}\\r\\n' >&3; sleep 60",
            cable.address, world.http, sprite.host
        );
        let mut far = Command::new("ip")
            .args(["netns", "exec", &cable.name, "bash", "-c", &line])
            .stdout(Stdio::null())
            .spawn()?;
        world.until("cut", "running", SOON).await?;
        tokio::time::sleep(LONG).await;
        ensure!(world.status("cut").await? == "running", "{kind}: it is open and does not count");
        cable.pull()?;
        // Keep-alive notices within its period and the user timeout, then the sprite idles.
        world.until("cut", "warm", Duration::from_secs(9)).await.context(kind)?;
        far.kill()?;
        far.wait()?;
        cable.ip(&["-n", &cable.name, "link", "set", "far", "up"])?;
    }
    world.stop().await
}
