//! A whole system on one machine.

use std::{
    future::Future,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{child::Child, client::Answer};

/// How long a program may take to be ready on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a program may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(40);

/// One of our programs.
#[derive(Clone, Copy, Debug)]
pub enum Program {
    /// The edge.
    Gateway,
    /// The host's agent.
    Agent,
    /// PID 1 of sprites.
    Runtime,
    /// The web server for sprites under test.
    Backend,
    /// The command line.
    Sprite,
}

/// Where an optimized program is. `make build` puts it there.
///
/// # Errors
/// It was not built.
pub fn program(which: Program) -> anyhow::Result<PathBuf> {
    // target/debug/deps/this-test -> target
    let here = std::env::current_exe()?;
    let target = here.ancestors().find(|path| path.file_name().is_some_and(|name| name == "target"));
    let target = target.context("tests run from below target/")?;
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let path = match which {
        Program::Gateway => target.join("release/gateway"),
        Program::Agent => target.join("release/vmm-agent"),
        Program::Runtime => target.join(triple).join("release/runtime"),
        Program::Backend => target.join(triple).join("release/backend"),
        Program::Sprite => target.join("release/sprite"),
    };
    ensure!(path.exists(), "{} is missing; `make build` makes it", path.display());
    Ok(path)
}

/// How the sprites of a world are run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Driver {
    /// Linux namespaces.
    Process,
    /// Virtual machines of the image `minimal`, which `make image` builds.
    Qemu,
    /// The same in Firecracker, which must be in PATH, on a host with KVM.
    Firecracker,
}

impl Driver {
    /// The driver that the variable `SPRITES_TEST_DRIVER` names; `process` if there is none. So the same tests run
    /// over each.
    ///
    /// # Panics
    /// There is no such driver.
    #[must_use]
    pub fn from_environment() -> Self {
        match std::env::var("SPRITES_TEST_DRIVER").as_deref() {
            Err(_) | Ok("process") => Self::Process,
            Ok("qemu") => Self::Qemu,
            Ok("firecracker") => Self::Firecracker,
            Ok(other) => {
                panic!("SPRITES_TEST_DRIVER is {other:?}; there are process, qemu and firecracker")
            }
        }
    }

    /// Its part of the agent's configuration.
    fn config(self) -> anyhow::Result<String> {
        Ok(match self {
            Self::Process => format!("[process]\nruntime = {:?}\n", program(Program::Runtime)?),
            Self::Qemu | Self::Firecracker => format!(
                "[{}]\nimages_dir = {:?}\nimage = \"minimal\"\ncpus = 1\nmemory_mib = 256\ndisk_gib = 2\n",
                self.name(),
                images()?
            ),
        })
    }

    /// What a cold start may take on a busy machine.
    #[must_use]
    pub const fn boot_limit(self) -> Duration {
        match self {
            Self::Process => Duration::ZERO,
            Self::Qemu | Self::Firecracker => Duration::from_secs(15),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Qemu => "qemu",
            Self::Firecracker => "firecracker",
        }
    }
}

/// Where `make image` puts images.
fn images() -> anyhow::Result<PathBuf> {
    let runtime = program(Program::Runtime)?;
    let target = runtime.ancestors().nth(3).context("the runtime is below target/")?;
    let images = target.join("images");
    ensure!(images.exists(), "{} is missing; `make image IMAGE=minimal` makes it", images.display());
    Ok(images)
}

/// What a test may choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// How its sprites are run.
    pub driver: Driver,
    /// From the last activity to warm.
    pub idle: Duration,
    /// From warm to cold.
    pub cold_after: Duration,
    /// How long leases outlive a dead gateway.
    pub holder_ttl: Duration,
    /// A second address of this machine that the gateway listens on.
    pub also_listen: Option<String>,
    /// More lines for the `[lifecycle]` of the agent's configuration.
    pub lifecycle: String,
    /// More lines for the gateway's listeners; `HTTP` in them is the plain port.
    pub listen: String,
    /// More lines for the agent's configuration.
    pub agent: String,
    /// More lines for the gateway's configuration.
    pub gateway: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            driver: Driver::from_environment(),
            idle: Duration::from_millis(500),
            cold_after: Duration::from_secs(3600),
            holder_ttl: Duration::from_secs(2),
            also_listen: None,
            lifecycle: String::new(),
            listen: String::new(),
            agent: String::new(),
            gateway: String::new(),
        }
    }
}

/// A sprite's URL, taken apart.
#[derive(Clone, Debug)]
pub struct SpriteUrl {
    /// Its host name, without a port.
    pub host: String,
    /// The sprite's name.
    pub name: String,
}

/// A running system. See the crate's documentation.
#[derive(Debug)]
pub struct World {
    /// `None` while killed.
    agent: Option<Child>,
    gateway: Option<Child>,
    /// A token of the organization `acme`.
    pub token: String,
    /// The gateway's plain port.
    pub http: u16,
    /// The gateway's TLS port.
    pub https: u16,
    /// The gateway's metrics port.
    pub admin: u16,
    client: reqwest::Client,
    driver: Driver,
    dir: TempDir,
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl World {
    /// Starts an agent and a gateway.
    ///
    /// # Errors
    /// A program was not built, or does not become ready.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("spr").tempdir()?;
        let path = dir.path();
        let (http, https, admin) = (free_port()?, free_port()?, free_port()?);
        let minted = Command::new(repository().join("certs/mint.sh")).arg(path.join("certs")).output()?;
        ensure!(minted.status.success(), "certs/mint.sh: {}", String::from_utf8_lossy(&minted.stderr));
        std::fs::write(path.join("agent.toml"), agent_config(path, &options)?)?;
        std::fs::write(path.join("gateway.toml"), gateway_config(path, &options, http, https, admin))?;
        let ca = reqwest::Certificate::from_pem(&std::fs::read(path.join("certs/ca.pem"))?)?;
        let client = reqwest::Client::builder()
            .add_root_certificate(ca)
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(120))
            .build()?;
        let mut world = Self {
            agent: None,
            gateway: None,
            token: String::new(),
            http,
            https,
            admin,
            client,
            driver: options.driver,
            dir,
        };
        world.start_agent().await?;
        world.token = world.mint("acme").await?;
        world.start_gateway().await?;
        Ok(world)
    }

    /// How its sprites are run.
    #[must_use]
    pub const fn driver(&self) -> Driver {
        self.driver
    }

    /// The directory of this world.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The agent's state directory.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The CA that clients should trust.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("certs/ca.pem")
    }

    /// The API's base URL.
    #[must_use]
    pub fn api(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }

    /// The client that trusts this world's CA.
    #[must_use]
    pub const fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// Starts (or starts again) the agent and waits until it is ready.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn start_agent(&mut self) -> anyhow::Result<()> {
        self.start_agent_with(&[]).await
    }

    /// The same, with variables in its environment.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn start_agent_with(&mut self, variables: &[(&str, &str)]) -> anyhow::Result<()> {
        let log = self.dir.path().join("agent.log");
        let mut command = Command::new(program(Program::Agent)?);
        command.arg("serve").arg("--config").arg(self.dir.path().join("agent.toml"));
        command.envs(variables.iter().copied());
        let mut agent = Child::start("the agent", &mut command, &log)?;
        let socket = self.state_dir().join("agent.sock");
        let deadline = Instant::now() + START_LIMIT;
        while tokio::net::UnixStream::connect(&socket).await.is_err() {
            if let Some(status) = agent.ended()? {
                bail!("the agent ended: {status}\n{}", tail(&log));
            }
            ensure!(Instant::now() < deadline, "the agent is not ready\n{}", tail(&log));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.agent = Some(agent);
        Ok(())
    }

    /// Starts (or starts again) the gateway and waits until it is ready.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn start_gateway(&mut self) -> anyhow::Result<()> {
        let log = self.dir.path().join("gateway.log");
        let mut command = Command::new(program(Program::Gateway)?);
        command.arg("--config").arg(self.dir.path().join("gateway.toml"));
        let mut gateway = Child::start("the gateway", &mut command, &log)?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let ready = self.client.get(format!("http://127.0.0.1:{}/readyz", self.admin)).send().await;
            if ready.is_ok_and(|answer| answer.status().is_success()) {
                break;
            }
            if let Some(status) = gateway.ended()? {
                bail!("the gateway ended: {status}\n{}", tail(&log));
            }
            ensure!(Instant::now() < deadline, "the gateway is not ready\n{}", tail(&log));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.gateway = Some(gateway);
        Ok(())
    }

    /// The running agent.
    ///
    /// # Errors
    /// It was killed.
    pub fn agent(&mut self) -> anyhow::Result<&mut Child> {
        self.agent.as_mut().context("the agent was killed")
    }

    /// The running gateway.
    ///
    /// # Errors
    /// It was killed.
    pub fn gateway(&mut self) -> anyhow::Result<&mut Child> {
        self.gateway.as_mut().context("the gateway was killed")
    }

    /// `kill -9` of the agent.
    ///
    /// # Errors
    /// It was not running.
    pub fn kill_agent(&mut self) -> anyhow::Result<()> {
        self.agent.take().context("the agent was killed")?.kill()
    }

    /// `kill -9` of the gateway.
    ///
    /// # Errors
    /// It was not running.
    pub fn kill_gateway(&mut self) -> anyhow::Result<()> {
        self.gateway.take().context("the gateway was killed")?.kill()
    }

    /// Mints a token with the agent's command line, and waits until the gateway has heard of it.
    ///
    /// # Errors
    /// The command fails, or the gateway does not hear.
    pub async fn mint(&self, organization: &str) -> anyhow::Result<String> {
        let output = tokio::process::Command::new(program(Program::Agent)?)
            .args(["token", "mint", "--org", organization, "--state-dir"])
            .arg(self.state_dir())
            .output()
            .await?;
        ensure!(output.status.success(), "token mint: {}", String::from_utf8_lossy(&output.stderr));
        let token = String::from_utf8(output.stdout)?.trim().to_owned();
        if self.gateway.is_some() {
            let known = || async {
                let list = self.client.get(format!("{}/v1/sprites", self.api())).bearer_auth(&token);
                Ok(list.send().await?.status() != 401)
            };
            eventually(START_LIMIT, known).await.context("the gateway does not know a new token")?;
        }
        Ok(token)
    }

    /// Calls the API with this world's token.
    ///
    /// # Errors
    /// No answer, or one that is not JSON.
    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> anyhow::Result<(u16, Value)> {
        let method = method.parse()?;
        let mut request =
            self.client.request(method, format!("{}{path}", self.api())).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        let last = text.lines().last().unwrap_or_default();
        let value =
            serde_json::from_str(&text).or_else(|_| serde_json::from_str(last)).unwrap_or(Value::Null);
        Ok((status, value))
    }

    /// Makes a sprite.
    ///
    /// # Errors
    /// The API refuses.
    pub async fn create(&self, name: &str, auth: &str) -> anyhow::Result<SpriteUrl> {
        let body = json!({ "name": name, "url_settings": { "auth": auth } });
        let (status, sprite) = self.call("POST", "/v1/sprites", Some(body)).await?;
        ensure!(status == 201, "create answered {status}: {sprite}");
        let url = sprite["url"].as_str().context("a sprite has a url")?;
        let authority = url.split("://").nth(1).context("a url has a scheme")?;
        let host = authority.split(['/', ':']).next().context("a url has a host")?;
        Ok(SpriteUrl { host: host.to_owned(), name: name.to_owned() })
    }

    /// Makes a public sprite whose web server is the test backend, as a service on port 8080.
    ///
    /// # Errors
    /// The API refuses.
    pub async fn create_with_backend(&self, name: &str, auth: &str) -> anyhow::Result<SpriteUrl> {
        let sprite = self.create(name, auth).await?;
        self.install_backend(name).await?;
        self.service(name, "web", json!({ "cmd": "/opt/backend", "args": ["8080"], "http_port": 8080 }))
            .await?;
        Ok(sprite)
    }

    /// Puts the backend into a sprite's disk, at `/opt/backend`.
    ///
    /// # Errors
    /// There is no such sprite.
    pub async fn install_backend(&self, name: &str) -> anyhow::Result<()> {
        let from = program(Program::Backend)?;
        if self.driver != Driver::Process {
            return self.upload(name, "/opt/backend", "0755", std::fs::read(&from)?).await;
        }
        let id = self.id(name).await?;
        let to = self.state_dir().join("sprites").join(id).join("disk/opt/backend");
        // A hard link costs nothing, where the two are on one filesystem.
        if std::fs::hard_link(&from, &to).is_err() {
            std::fs::copy(&from, &to).with_context(|| format!("could not write {}", to.display()))?;
        }
        Ok(())
    }

    /// Writes a file into a sprite, over the API; that wakes it.
    ///
    /// # Errors
    /// The API refuses.
    pub async fn upload(&self, name: &str, path: &str, mode: &str, content: Vec<u8>) -> anyhow::Result<()> {
        let path = format!("/v1/sprites/{name}/fs/write?path={path}&mode={mode}&mkdirParents=true");
        let request = self.client.put(format!("{}{path}", self.api())).bearer_auth(&self.token);
        let answer = request.body(content).send().await?;
        ensure!(answer.status() == 200, "{}: {}", answer.status(), answer.text().await?);
        Ok(())
    }

    /// A sprite's id, by which its files on the host are found.
    ///
    /// # Errors
    /// There is no such sprite.
    pub async fn id(&self, name: &str) -> anyhow::Result<String> {
        let (_, sprite) = self.call("GET", &format!("/v1/sprites/{name}"), None).await?;
        Ok(sprite["id"].as_str().context("a sprite has an id")?.to_owned())
    }

    /// Defines and starts a service.
    ///
    /// # Errors
    /// The API refuses.
    pub async fn service(&self, sprite: &str, service: &str, definition: Value) -> anyhow::Result<()> {
        let path = format!("/v1/sprites/{sprite}/services/{service}?duration=0s");
        let (status, answer) = self.call("PUT", &path, Some(definition)).await?;
        ensure!(status == 200, "the service was refused: {status} {answer}");
        Ok(())
    }

    /// A request to a sprite's URL over plain HTTP/1.1, on a connection of its own.
    pub fn request(&self, method: &str, sprite: &SpriteUrl, path: &str) -> reqwest::RequestBuilder {
        let method = method.parse().unwrap_or_default();
        self.client
            .request(method, format!("http://127.0.0.1:{}{path}", self.http))
            .header("Host", &sprite.host)
            .header("Connection", "close")
    }

    /// `GET` of a path of a sprite's URL.
    ///
    /// # Errors
    /// No answer.
    pub async fn get(&self, sprite: &SpriteUrl, path: &str) -> anyhow::Result<Answer> {
        Answer::read(self.request("GET", sprite, path).send().await?).await
    }

    /// The sprite's public state.
    ///
    /// # Errors
    /// There is no such sprite.
    pub async fn status(&self, name: &str) -> anyhow::Result<String> {
        let (status, sprite) = self.call("GET", &format!("/v1/sprites/{name}"), None).await?;
        ensure!(status == 200, "reading {name} answered {status}: {sprite}");
        Ok(sprite["status"].as_str().context("a sprite has a status")?.to_owned())
    }

    /// Why the sprite is awake.
    ///
    /// # Errors
    /// There is no such sprite.
    pub async fn why(&self, name: &str) -> anyhow::Result<Value> {
        let (status, why) = self.call("GET", &format!("/v1/sprites/{name}/why"), None).await?;
        ensure!(status == 200, "why answered {status}: {why}");
        Ok(why)
    }

    /// Waits until the sprite is in a state.
    ///
    /// # Errors
    /// It is not within the limit.
    pub async fn until(&self, name: &str, state: &str, limit: Duration) -> anyhow::Result<()> {
        let reached = eventually(limit, || async { Ok(self.status(name).await? == state) }).await;
        if reached.is_err() {
            bail!("{name} is not {state} after {limit:?}: {}", self.why(name).await?);
        }
        Ok(())
    }

    /// Puts the sprite to sleep now.
    ///
    /// # Errors
    /// The API refuses.
    pub async fn sleep(&self, name: &str, depth: &str) -> anyhow::Result<()> {
        let path = format!("/v1/sprites/{name}/sleep");
        let (status, answer) = self.call("POST", &path, Some(json!({ "depth": depth }))).await?;
        ensure!(status == 200, "sleep answered {status}: {answer}");
        let limit = Duration::from_secs(20);
        if depth == "suspended" {
            // To the world it is warm, whichever place its memory is in.
            return eventually(limit, || async { Ok(self.why(name).await?["phase"] == depth) }).await;
        }
        self.until(name, depth, limit).await
    }

    /// The value of a metric of the gateway, summed over its labels that contain `filter`.
    ///
    /// # Errors
    /// The metrics can't be read.
    pub async fn metric(&self, name: &str, filter: &str) -> anyhow::Result<f64> {
        let url = format!("http://127.0.0.1:{}/metrics", self.admin);
        Ok(sum(&self.client.get(url).send().await?.text().await?, name, filter))
    }

    /// The same, of the agent.
    ///
    /// # Errors
    /// The metrics can't be read.
    pub async fn agent_metric(&self, name: &str, filter: &str) -> anyhow::Result<f64> {
        let client = reqwest::Client::builder().unix_socket(self.state_dir().join("agent.sock")).build()?;
        Ok(sum(&client.get("http://agent/metrics").send().await?.text().await?, name, filter))
    }

    /// Stops everything, in the order of `make run`, and checks that nothing is left.
    ///
    /// # Errors
    /// A program ends badly, or a process or mount is left.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(mut gateway) = self.gateway.take() {
            gateway.stop(STOP_LIMIT).with_context(|| tail(&self.dir.path().join("gateway.log")))?;
        }
        if let Some(mut agent) = self.agent.take() {
            agent.stop(STOP_LIMIT).with_context(|| tail(&self.dir.path().join("agent.log")))?;
        }
        let dir = self.dir.path().to_string_lossy().into_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(!mounts.contains(&dir), "a mount was left behind");
        for process in std::fs::read_dir("/proc")? {
            let process = process?.path();
            let words = std::fs::read_to_string(process.join("cmdline")).unwrap_or_default();
            // Machines run in their sprites' directories, and name nothing above.
            let at = std::fs::read_link(process.join("cwd")).unwrap_or_default();
            let is_ours = words.contains(&dir) || at.starts_with(&dir);
            ensure!(!is_ours, "a process was left behind: {words}");
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Whoever succeeded has called `stop`.
        let failed = self.agent.is_some() || self.gateway.is_some();
        // End what runs, in order, so that the agent can stop its sprites.
        for mut child in [self.gateway.take(), self.agent.take()].into_iter().flatten() {
            if let Err(error) = child.stop(STOP_LIMIT) {
                eprintln!("{error:#}");
            }
        }
        if failed {
            for log in ["agent.log", "gateway.log"] {
                eprintln!("--- {log}\n{}", notable(&self.dir.path().join(log)));
            }
        }
    }
}

/// What a metric's lines with `filter` in them add up to.
fn sum(metrics: &str, name: &str, filter: &str) -> f64 {
    let lines = metrics.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])) && line.contains(filter)
    });
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// The lines of a log that tell of trouble, and its end.
fn notable(log: &Path) -> String {
    const MOST: usize = 40;
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let troubled = |line: &&str| [" WARN ", " ERROR ", " status=5"].iter().any(|mark| line.contains(mark));
    let lines: Vec<&str> = text.lines().filter(troubled).take(MOST).collect();
    format!("{}\n...\n{}", lines.join("\n"), tail(log))
}

/// Waits until a condition holds, looking often.
///
/// # Errors
/// It does not hold within the limit, or the look itself fails.
pub async fn eventually<F, C>(limit: Duration, mut condition: C) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<bool>>,
    C: FnMut() -> F,
{
    let deadline = Instant::now() + limit;
    while !condition().await? {
        ensure!(Instant::now() < deadline, "it did not become true within {limit:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

fn agent_config(dir: &Path, options: &Options) -> anyhow::Result<String> {
    Ok(format!(
        "state_dir = {:?}\ndriver = {:?}\n\
         [lifecycle]\nidle_timeout_ms = {}\ncold_after_ms = {}\nstop_grace_ms = 1000\n{}\n\
         [leases]\nholder_ttl_ms = {}\n\
         {}{}\n",
        dir.join("state"),
        options.driver.name(),
        options.idle.as_millis(),
        options.cold_after.as_millis(),
        options.lifecycle,
        options.holder_ttl.as_millis(),
        options.driver.config()?,
        options.agent,
    ))
}

fn gateway_config(dir: &Path, options: &Options, http: u16, https: u16, admin: u16) -> String {
    let certs = dir.join("certs");
    let also =
        options.also_listen.as_ref().map(|address| format!(", \"{address}:{http}\"")).unwrap_or_default();
    format!(
        "domain = \"sprites.localhost\"\n\
         [listen]\nhttp = [\"127.0.0.1:{http}\"{also}]\nhttps = [\"127.0.0.1:{https}\"]\nadmin = \"127.0.0.1:{admin}\"\n{}\n\
         [public]\nscheme = \"http\"\nport = {http}\n\
         [tls]\ncertificate = {:?}\nkey = {:?}\n\
         [agent]\nsocket = {:?}\n{}\n",
        options.listen.replace("HTTP", &http.to_string()),
        certs.join("leaf.pem"),
        certs.join("leaf.key"),
        dir.join("state/agent.sock"),
        options.gateway,
    )
}
