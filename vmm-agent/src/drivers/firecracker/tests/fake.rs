//! A Firecracker without KVM: it has the API of the real one, its codes and the order that it insists on,
//! and a guest that is a nonce and a counter.
//!
//! It is this test program, executed again by a script called `firecracker`. What it keeps of the real one was observed of 1.17-dev and read in its documentation:
//!
//! - 204 for what is done, 400 with a `fault_message` for what is not;
//! - what configures is refused after the start, what pauses, resumes and saves before it;
//! - a memory is saved of a paused guest alone, and loaded only by a process that was told nothing else; a load
//!   that fails ends the process;
//! - sockets are bound where nothing is, and stay behind;
//! - its vsock closes a connection without an OK while the guest does not listen;
//! - a loaded memory's file is mapped privately: who changes it changes the guest. Here, writing to it is refused.

use std::{
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    time::{Instant, sleep},
};

use super::paged;

/// The argument that makes this test program a Firecracker; those of the real one follow.
pub(super) const ARGUMENT: &str = "--fake-firecracker";
pub(super) const VERSION: &str = "Firecracker v1.17.0";
/// How long the guest takes to boot.
const BOOT: Duration = Duration::from_millis(60);

const TOO_LATE: &str = "The requested operation is not supported after starting the microVM.";
const TOO_EARLY: &str = "The requested operation is not supported before starting the microVM.";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    NotStarted,
    Running,
    Paused,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::NotStarted => "Not started",
            Self::Running => "Running",
            Self::Paused => "Paused",
        }
    }
}

#[derive(Debug)]
struct Vm {
    state: State,
    configured: Vec<String>,
    vsock: Option<PathBuf>,
    listens_from: Instant,
    /// The guest's memory.
    nonce: u64,
    count: u64,
    /// The file that the memory is mapped from.
    mapped: Option<PathBuf>,
}

type Shared = Arc<Mutex<Vm>>;

/// Becomes a Firecracker, and never returns, if that is what this process was executed for.
pub(super) fn run_if_asked() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().is_none_or(|first| first != ARGUMENT) {
        return;
    }
    let socket = arguments.skip_while(|argument| argument != "--api-sock").nth(1);
    // What `main` would have done before us.
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { nix::sys::signal::signal(nix::sys::signal::SIGPIPE, nix::sys::signal::SigHandler::SigIgn) }
        .expect("it can be ignored");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(serve(Path::new(&socket.expect("an API socket"))));
    std::process::exit(0);
}

async fn serve(socket: &Path) {
    let Ok(listener) = UnixListener::bind(socket) else {
        eprintln!(
            "Failed to open the API socket at: {}. Check that it is not already used.",
            socket.display()
        );
        std::process::exit(1);
    };
    let vm: Shared = Arc::new(Mutex::new(Vm {
        state: State::NotStarted,
        configured: Vec::new(),
        vsock: None,
        listens_from: Instant::now(),
        nonce: 0,
        count: 0,
        mapped: None,
    }));
    loop {
        let (stream, _) = listener.accept().await.expect("the API socket accepts");
        let vm = Arc::clone(&vm);
        let answer = service_fn(move |request| {
            let vm = Arc::clone(&vm);
            async move { Ok::<_, Infallible>(answer(vm, request).await) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    }
}

async fn answer(vm: Shared, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let body =
        request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let body: Value =
        if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap_or_default() };
    let done = command(&vm, &method, &path, &body);
    let (status, body) = match done {
        Ok(Value::Null) => (StatusCode::NO_CONTENT, Bytes::new()),
        Ok(value) => (StatusCode::OK, value.to_string().into()),
        Err(fault) => (StatusCode::BAD_REQUEST, json!({ "fault_message": fault }).to_string().into()),
    };
    if status == StatusCode::BAD_REQUEST && path == "/snapshot/load" {
        // As the real one: it answers and ends.
        tokio::spawn(async {
            sleep(Duration::from_millis(5)).await;
            std::process::exit(1);
        });
    }
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
}

fn command(shared: &Shared, method: &Method, path: &str, body: &Value) -> Result<Value, String> {
    let mut vm = shared.lock();
    let name = |key: &str| body[key].as_str().map(PathBuf::from).ok_or(format!("missing field `{key}`"));
    let not_started = |vm: &Vm| if vm.state == State::NotStarted { Ok(()) } else { Err(TOO_LATE.to_owned()) };
    let started = |vm: &Vm| if vm.state == State::NotStarted { Err(TOO_EARLY.to_owned()) } else { Ok(()) };
    match (method.as_str(), path) {
        ("GET", "/") => return Ok(json!({ "id": "fake", "state": vm.state.name(), "vmm_version": VERSION })),
        ("PUT", "/machine-config" | "/boot-source" | "/drives/disk" | "/vsock" | "/entropy") => {
            not_started(&vm)?;
            match path {
                "/vsock" => vm.vsock = Some(name("uds_path")?),
                "/drives/disk" => open(&name("path_on_host")?)?,
                "/boot-source" => {
                    open(&name("kernel_image_path")?)?;
                    open(&name("initrd_path")?)?;
                }
                _ => {}
            }
            vm.configured.push(path.to_owned());
        }
        ("PUT", "/actions") => {
            not_started(&vm)?;
            if !vm.configured.iter().any(|path| path == "/boot-source") {
                return Err("Start microvm error: Cannot start microvm without kernel configuration.".into());
            }
            vm.nonce = rand::random();
            vm.listens_from = Instant::now() + BOOT;
            go(shared, &mut vm)?;
        }
        ("PATCH", "/vm") => {
            started(&vm)?;
            vm.state = if body["state"] == "Paused" { State::Paused } else { State::Running };
        }
        ("PUT", "/snapshot/create") => {
            started(&vm)?;
            let (state, memory) = (name("snapshot_path")?, name("mem_file_path")?);
            if vm.state != State::Paused {
                return Err("Create snapshot error: save/restore unavailable while running".into());
            }
            if vm.mapped.as_ref() == Some(&memory) {
                return Err("Create snapshot error: the memory would be written over itself".into());
            }
            if fs::exists("no-space").is_ok_and(|is_there| is_there) {
                let _half = fs::write(&memory, "half");
                return Err("Create snapshot error: No space left on device (os error 28)".into());
            }
            // Far from the beginning, so that a pager must find it.
            let mut pages = vec![0; paged::BYTES];
            let text = format!("{} {}", vm.nonce, vm.count);
            pages[paged::AT..][..text.len()].copy_from_slice(text.as_bytes());
            fs::write(memory, pages).map_err(|error| error.to_string())?;
            fs::write(state, vm.vsock.as_ref().map_or("", |path| path.to_str().unwrap_or("")))
                .map_err(|error| error.to_string())?;
        }
        ("PUT", "/snapshot/load") => {
            not_started(&vm)?;
            if !vm.configured.is_empty() {
                return Err("Load snapshot error: Loading a microVM snapshot not allowed after configuring \
                            boot-specific resources."
                    .into());
            }
            let memory = body["mem_backend"]["backend_path"].as_str().ok_or("missing field `mem_backend`")?;
            let failed = |error: std::io::Error| format!("Load snapshot error: {error}");
            let text = match body["mem_backend"]["backend_type"].as_str() {
                Some("File") => {
                    let text = fs::read_to_string(memory).map_err(failed)?;
                    text.get(paged::AT..).unwrap_or_default().to_owned()
                }
                Some("Uffd") => paged::read(Path::new(memory)).map_err(failed)?,
                other => return Err(format!("unknown variant `{other:?}`")),
            };
            let (nonce, count) =
                text.trim_end_matches('\0').split_once(' ').ok_or("Load snapshot error: garbage")?;
            (vm.nonce, vm.count) = (nonce.parse().unwrap_or_default(), count.parse().unwrap_or_default());
            vm.vsock = Some(fs::read_to_string(name("snapshot_path")?).map_err(failed)?.into());
            vm.mapped = Some(memory.into());
            go(shared, &mut vm)?;
            if body["resume_vm"] != true {
                vm.state = State::Paused;
            }
        }
        _ => return Err(format!("Invalid request method and/or path: {method} {path}.")),
    }
    Ok(Value::Null)
}

fn open(path: &Path) -> Result<(), String> {
    fs::File::open(path).map(drop).map_err(|error| format!("{}: {error}", path.display()))
}

/// From now on there is a guest.
fn go(shared: &Shared, vm: &mut Vm) -> Result<(), String> {
    vm.state = State::Running;
    let path = vm.vsock.clone().ok_or("there is no vsock")?;
    let listener = UnixListener::bind(&path).map_err(|error| format!("Cannot bind vsock: {error}"))?;
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(guest(Arc::clone(&shared), stream));
        }
    });
    Ok(())
}

/// A connection to the guest's runtime, of which it has three words: that it slept, that it ends, and what it
/// has counted.
async fn guest(vm: Shared, stream: UnixStream) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    if stream.read_line(&mut line).await.is_err() || line != "CONNECT 1024\n" {
        return;
    }
    // A paused guest takes nothing.
    while vm.lock().state == State::Paused {
        sleep(Duration::from_millis(1)).await;
    }
    if vm.lock().listens_from > Instant::now() || stream.write_all(b"OK 1073741824\n").await.is_err() {
        return;
    }
    let mut line = String::new();
    while stream.read_line(&mut line).await.is_ok_and(|length| length > 0) {
        while vm.lock().state == State::Paused {
            sleep(Duration::from_millis(1)).await;
        }
        let answer = match line.trim() {
            "count" => {
                let mut vm = vm.lock();
                vm.count += 1;
                format!("{} {}\n", vm.nonce, vm.count)
            }
            line if line.contains("shutdown") => std::process::exit(0),
            line if line.contains("woken") => "{\"answer\":\"ok\"}\n".to_owned(),
            _ => "{\"event\":\"pong\"}\n".to_owned(),
        };
        line.clear();
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}
