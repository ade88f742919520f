//! Every stream from the host: one request line, one answer line, and what follows from them.

use std::{io, sync::Arc, time::Duration};

use runtime_api::{Answer, DialRefusal, DialRequest, MAX_LINE_BYTES, RefusalCode, Request, Woken};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use crate::{
    api, boot, control,
    dial::{Reached, reach},
    shutdown::Shutdown,
    state::Runtime,
    transport::{Listener, hand_over, hung_up},
};

/// How long the request line may take. The host sends it with the connection.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How long the host may leave an answer unread.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Streams at once: dials that wait, relays, and connections to the API. More wait to be accepted.
const MAX_STREAMS: usize = 4096;
/// The pause after a failed accept, which usually means that descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts streams for ever.
pub(crate) async fn run(mut listener: Listener, runtime: Arc<Runtime>, shutdown: Arc<Shutdown>) {
    let room = Arc::new(Semaphore::new(MAX_STREAMS));
    let mut streams = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&mut listener, &room) => accepted,
            Some(_ended) = streams.join_next() => continue,
        };
        match accepted {
            Ok((stream, place)) => {
                let (runtime, shutdown) = (Arc::clone(&runtime), Arc::clone(&shutdown));
                streams.spawn(async move {
                    if let Err(error) = serve(&runtime, &shutdown, stream).await {
                        debug!(%error, "A stream from the host broke");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "Could not accept a stream from the host");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn accept(
    listener: &mut Listener,
    room: &Arc<Semaphore>,
) -> io::Result<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
    Ok((listener.accept().await?, place))
}

async fn serve(runtime: &Arc<Runtime>, shutdown: &Arc<Shutdown>, mut stream: UnixStream) -> io::Result<()> {
    let problem = match timeout(REQUEST_LIMIT, read_request(&mut stream)).await? {
        Ok((Request::Control, early)) => return control::serve(runtime, shutdown, stream, early).await,
        Ok((Request::Dial(request), early)) if early.is_empty() => {
            return dial(runtime, &request, stream).await;
        }
        // Whom they are for is only known when the answer has been given.
        Ok((Request::Sync, _)) => return sync(runtime, stream).await,
        Ok((Request::Woken(woken), _)) => return wake(runtime, &woken, stream).await,
        Ok((Request::Dial(_), _)) => "bytes followed it before it was answered".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => error.to_string(),
        Err(error) => return Err(error),
    };
    let refusal = bad_request(format!("the runtime did not understand the request: {problem}"));
    answer(&mut stream, &refusal).await
}

/// The machine went on after a sleep.
async fn wake(runtime: &Runtime, woken: &Woken, mut stream: UnixStream) -> io::Result<()> {
    let reply = match runtime.is_a_machine() {
        true => match boot::woken(woken) {
            Ok(()) => Answer::Ok { port: None },
            Err(error) => bad_request(format!("the clock could not be set: {error}")),
        },
        false => bad_request("the clock is the host's own".to_owned()),
    };
    answer(&mut stream, &reply).await
}

/// Somebody is about to look at the machine's disk.
async fn sync(runtime: &Runtime, mut stream: UnixStream) -> io::Result<()> {
    let reply = match runtime.is_a_machine() {
        true => {
            tokio::task::spawn_blocking(nix::unistd::sync).await.map_err(io::Error::other)?;
            Answer::Ok { port: None }
        }
        false => bad_request("the disk is the host's own".to_owned()),
    };
    answer(&mut stream, &reply).await
}

fn bad_request(message: String) -> Answer {
    Answer::Refused(DialRefusal { code: RefusalCode::BadRequest, message, port: None, listening: Vec::new() })
}

async fn dial(runtime: &Arc<Runtime>, request: &DialRequest, mut stream: UnixStream) -> io::Result<()> {
    let wait = Duration::from_millis(request.wait_ms);
    let reached = tokio::select! {
        reached = reach(runtime, request.target, wait) => reached,
        () = hung_up(&stream) => {
            debug!(request_id = request.request_id, "The host gave a dial up");
            return Ok(());
        }
    };
    match reached {
        Ok(Reached::Program(mut program, port)) => {
            let line = to_line(&Answer::Ok { port: Some(port) })?;
            if request.handoff {
                return limited(hand_over(&stream, &line, &program)).await;
            }
            limited(stream.write_all(&line)).await?;
            tokio::io::copy_bidirectional(&mut stream, &mut program).await.map(drop)
        }
        Ok(Reached::Api) => {
            let line = to_line(&Answer::Ok { port: None })?;
            if !request.handoff {
                limited(stream.write_all(&line)).await?;
                return api::serve(runtime, stream).await;
            }
            let (ours, theirs) = UnixStream::pair()?;
            limited(hand_over(&stream, &line, &theirs)).await?;
            drop((stream, theirs));
            api::serve(runtime, ours).await
        }
        Err(refusal) => {
            debug!(request_id = request.request_id, %refusal, "Refused a dial");
            answer(&mut stream, &Answer::Refused(refusal)).await
        }
    }
}

/// Reads the request line, and returns what was read beyond it.
async fn read_request(stream: &mut UnixStream) -> io::Result<(Request, Vec<u8>)> {
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut line = Vec::with_capacity(256);
    loop {
        if stream.read_buf(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match line.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let early = line.split_off(end + 1);
                let request = serde_json::from_slice(&line).map_err(|error| bad(&error.to_string()))?;
                return Ok((request, early));
            }
            None if line.len() >= MAX_LINE_BYTES => return Err(bad("the request line is too long")),
            None => {}
        }
    }
}

async fn answer(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    limited(stream.write_all(&to_line(answer)?)).await
}

async fn limited<T>(write: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(ANSWER_LIMIT, write).await.map_err(|_| io::ErrorKind::TimedOut)?
}

fn to_line(answer: &Answer) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    Ok(line)
}
