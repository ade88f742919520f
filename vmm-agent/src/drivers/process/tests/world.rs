//! A driver with a state directory of its own, and ways to act inside a sprite.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use ids::{Epoch, Port, SpriteId};
use runtime_api::{
    Address, Command, Configuration, ControlStream, DialError, DialRequest, Dialed, Event, Target, dial,
    open_control,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, sleep, timeout},
};

use crate::drivers::{
    Driver as _, Resources, SpriteSpec,
    process::{ProcessDriver, Settings, removal},
};

/// Beyond this, something hangs.
const LIMIT: Duration = Duration::from_secs(20);

/// A directory that goes with the test, whatever sprites left in it.
#[derive(Debug)]
pub(super) struct TempDir(PathBuf);

impl TempDir {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("drv{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        // The launcher's copy of it is opened by root inside, too.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, open).unwrap();
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        removal::remove_tree(&self.0).unwrap();
    }
}

/// The runtime's binary; building it is not this crate's business.
pub(super) fn runtime() -> PathBuf {
    let built = |profile: &str| {
        let target = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/x86_64-unknown-linux-gnu");
        Path::new(target).join(profile).join("runtime")
    };
    let given = std::env::var_os("SPRITES_RUNTIME").map(PathBuf::from);
    // The one that was built last, lest an old one is tested.
    let newest = [built("release"), built("debug")]
        .into_iter()
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()
        .map(|(_, path)| path);
    given.or(newest).expect(
        "build the runtime first: RUSTFLAGS='-C target-feature=+crt-static' cargo build -p runtime --target x86_64-unknown-linux-gnu",
    )
}

/// A host with an agent's driver on it.
pub(super) struct World {
    pub(super) driver: ProcessDriver,
    state: TempDir,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(Settings::default())
    }

    pub(super) fn with(settings: Settings) -> Self {
        // As careful operators have it; the sprite's files must not inherit it.
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
        let state = TempDir::new();
        Self { driver: driver(state.path(), settings), state }
    }

    /// The agent dies without a word, and another one comes.
    pub(super) fn replace_agent(&mut self) {
        self.driver = driver(self.state.path(), Settings::default());
    }

    pub(super) fn state(&self) -> &Path {
        self.state.path()
    }

    /// The last part of the state directory's path, which no other world has.
    pub(super) fn name(&self) -> String {
        self.state.path().file_name().unwrap().to_string_lossy().into_owned()
    }

    pub(super) fn files(&self, id: SpriteId) -> PathBuf {
        self.state.path().join("sprites").join(id.to_string())
    }

    /// A sprite that runs and is configured.
    pub(super) async fn sprite(&self, number: u128) -> (SpriteId, ControlStream) {
        let spec = spec(number);
        self.driver.prepare(&spec).await.unwrap();
        self.driver.start(&spec, Epoch(1)).await.unwrap();
        (spec.id, self.configure(spec.id).await)
    }

    pub(super) async fn configure(&self, id: SpriteId) -> ControlStream {
        let mut control = open_control(&Address::Socket(self.socket(id))).await.unwrap();
        let hello = timeout(LIMIT, control.next()).await.unwrap().unwrap();
        assert!(matches!(hello, Some(Event::Hello { configured: None, .. })), "{hello:?}");
        let configuration = Configuration {
            name: "demo".parse().unwrap(),
            url: "http://demo-abc.sprites.localhost".into(),
            epoch: Epoch(1),
            environment: [("EXTRA".into(), "yes".into())].into(),
            session_activity: runtime_api::SessionActivity::Running,
            session_limits: runtime_api::SessionLimits::default(),
            woken: None,
        };
        control.send(&Command::Configure(configuration)).await.unwrap();
        loop {
            match timeout(LIMIT, control.next()).await.unwrap().unwrap() {
                Some(Event::Ready) => return control,
                Some(_) => {}
                None => panic!("the runtime ended"),
            }
        }
    }

    pub(super) fn socket(&self, id: SpriteId) -> PathBuf {
        let agent_api::lease::Endpoint::Handoff { path } = self.driver.endpoint(id) else {
            unreachable!("this driver hands sockets over")
        };
        path
    }

    pub(super) async fn dial(&self, id: SpriteId, target: Target, wait_ms: u64) -> Result<Dialed, DialError> {
        let request = DialRequest { target, wait_ms, handoff: true, request_id: None };
        dial(&Address::Socket(self.socket(id)), &request).await
    }

    /// An HTTP request to the sprite; the whole answer, head included.
    pub(super) async fn request(&self, id: SpriteId, target: Target, head: &str, body: &str) -> String {
        let dialed = self.dial(id, target, 10_000).await.unwrap();
        let request = format!(
            "{head} HTTP/1.1\r\nhost: sprite\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut answer = Vec::new();
        let exchange = async {
            match dialed {
                Dialed::Tcp(mut stream) => {
                    stream.write_all(request.as_bytes()).await?;
                    stream.read_to_end(&mut answer).await
                }
                Dialed::Unix(mut stream) => {
                    stream.write_all(request.as_bytes()).await?;
                    stream.read_to_end(&mut answer).await
                }
            }
        };
        timeout(LIMIT, exchange).await.unwrap().unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// Defines and starts a service that runs a shell script.
    pub(super) async fn service(&self, id: SpriteId, name: &str, script: &str, http_port: Option<u16>) {
        let body = serde_json::json!({ "cmd": "/bin/sh", "args": ["-c", script], "http_port": http_port });
        let put = format!("PUT /services/{name}?duration=0");
        let answer = self.request(id, Target::Api, &put, &body.to_string()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// What a script prints inside, until it has ended.
    pub(super) async fn run(&self, id: SpriteId, script: &str) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // The log holds what earlier scripts printed, too.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (begin, end) = (format!("BEGIN {number}\n"), format!("END {number}\n"));
        let marked = format!("echo BEGIN {number}; {{ {script}\n}} 2>&1; echo END {number}; sleep 60");
        let body = serde_json::json!({ "cmd": "/bin/sh", "args": ["-c", marked] });
        self.request(id, Target::Api, "PUT /services/script?duration=10ms", &body.to_string()).await;
        let deadline = Instant::now() + LIMIT;
        loop {
            let answer = self.request(id, Target::Api, "GET /services/script/logs", "").await;
            let lines = answer.lines().filter(|line| line.starts_with('{'));
            let lines = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
            let output: String = lines.filter_map(|line| line["data"].as_str().map(str::to_owned)).collect();
            if let Some(printed) = output.strip_suffix(&end) {
                self.request(id, Target::Api, "DELETE /services/script", "").await;
                return printed.rsplit_once(&begin).expect("it has begun").1.to_owned();
            }
            assert!(Instant::now() < deadline, "{output}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for World {
    /// A test that failed half way leaves its sprites behind.
    fn drop(&mut self) {
        let id = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<SpriteId>().ok();
        let left: Vec<SpriteId> =
            std::fs::read_dir(self.state.path().join("sprites")).unwrap().flatten().filter_map(id).collect();
        for id in left {
            self.driver.kill_for_test(id);
        }
    }
}

pub(super) fn spec(number: u128) -> SpriteSpec {
    SpriteSpec {
        id: SpriteId::from_u128(number + (u128::from(std::process::id()) << 64)),
        name: "demo".parse().unwrap(),
        resources: Resources::default(),
    }
}

pub(super) fn port(number: u16) -> Target {
    Target::Port(Port::try_from(number).unwrap())
}

pub(super) fn driver(state: &Path, settings: Settings) -> ProcessDriver {
    ProcessDriver::new(state, Settings { runtime: Some(runtime()), ..settings }).unwrap()
}

/// Waits for a state, and fails if it does not come.
pub(super) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}
