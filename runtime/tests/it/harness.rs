//! The real runtime as an ordinary process, with a directory of its own.

use std::{
    fs,
    os::{
        fd::AsRawFd as _,
        unix::{net::UnixListener, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use ids::{Epoch, Port};
use runtime_api::{
    Address, Command as ControlCommand, Configuration, ControlStream, DialError, DialRequest, Dialed, Event,
    Target, dial, open_control,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::timeout,
};

/// Beyond this, something hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// Where the runtime finds its listening socket: beyond what this process may have open itself.
const LISTENER: i32 = 900;

pub(crate) struct Sprite {
    pub(crate) home: tempfile::TempDir,
    pub(crate) process: Child,
}

impl Sprite {
    pub(crate) fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    pub(crate) fn start_in(home: tempfile::TempDir) -> Self {
        let socket = home.path().join("runtime.sock");
        let _left_by_an_earlier_one = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let descriptor = listener.as_raw_fd();
        let mut command = Command::new(env!("CARGO_BIN_EXE_runtime"));
        command.args(["--listen-fd", &LISTENER.to_string(), "--home"]).arg(home.path());
        command.stdin(Stdio::null()).stderr(Stdio::null());
        // SAFETY: dup2 is async-signal-safe.
        unsafe {
            command.pre_exec(move || match libc::dup2(descriptor, LISTENER) {
                LISTENER => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let process = command.spawn().unwrap();
        Self { home, process }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.home.path().join("runtime.sock")
    }

    pub(crate) fn address(&self) -> Address {
        Address::Socket(self.socket())
    }

    pub(crate) async fn dial(&self, target: Target, wait_ms: u64) -> Result<Dialed, DialError> {
        let request = DialRequest { target, wait_ms, handoff: true, request_id: None };
        dial(&self.address(), &request).await
    }

    pub(crate) async fn configure(&self) -> ControlStream {
        let mut control = open_control(&self.address()).await.unwrap();
        assert!(matches!(next(&mut control).await, Some(Event::Hello { configured: None, .. })));
        let configuration = Configuration {
            name: "demo".parse().unwrap(),
            url: String::new(),
            epoch: Epoch(7),
            environment: [("EXTRA".into(), "yes".into())].into(),
            session_activity: runtime_api::SessionActivity::Running,
            session_limits: runtime_api::SessionLimits::default(),
            woken: None,
        };
        control.send(&ControlCommand::Configure(configuration)).await.unwrap();
        while next(&mut control).await != Some(Event::Ready) {}
        control
    }

    /// An HTTP exchange with the API: status, and the body without its chunks' sizes.
    pub(crate) async fn api(&self, head: &str, body: &str) -> (u16, String) {
        let Dialed::Unix(mut stream) = self.dial(Target::Api, 0).await.unwrap() else {
            panic!("not the runtime")
        };
        let request = format!(
            "{head} HTTP/1.1\r\nhost: sprite\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let status = answer[9..12].parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let lines: Vec<&str> = body.lines().filter(|line| line.starts_with(['{', '['])).collect();
        (status, lines.join("\n"))
    }

    /// Defines a service that runs a script here.
    pub(crate) async fn service(&self, name: &str, script: &str, more: &str) -> (u16, String) {
        let script = serde_json::to_string(script).unwrap();
        let body =
            format!(r#"{{"cmd":"/bin/sh","args":["-c",{script}],"dir":{:?}{more}}}"#, self.home.path());
        self.api(&format!("PUT /services/{name}?duration=300ms"), &body).await
    }
}

impl Drop for Sprite {
    fn drop(&mut self) {
        if self.process.try_wait().unwrap().is_some() {
            return;
        }
        let pid = nix::unistd::Pid::from_raw(self.process.id() as i32);
        let _ended_already = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        self.process.wait().unwrap();
    }
}

pub(crate) async fn next(control: &mut ControlStream) -> Option<Event> {
    timeout(LIMIT, control.next()).await.unwrap().unwrap()
}

pub(crate) fn free_port() -> Port {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    Port::try_from(listener.local_addr().unwrap().port()).unwrap()
}

pub(crate) async fn raw(path: &Path, text: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(text).await.unwrap();
    let mut answer = String::new();
    timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

/// An exchange with the API without a body, as it is on the wire.
pub(crate) async fn raw_api(sprite: &Sprite, head: &str) -> String {
    let Dialed::Unix(mut stream) = sprite.dial(Target::Api, 0).await.unwrap() else {
        panic!("not the runtime")
    };
    let request = format!("{head} HTTP/1.1\r\nhost: sprite\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}
