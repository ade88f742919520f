//! A command over a plain POST, for networks that break WebSockets. Without a terminal, signals or ports.

use bytes::Bytes;
use frames::{ExecQuery, FromServer};
use tokio::io::AsyncWriteExt;

use super::{
    input::Input,
    signals::{self, Event, Signals},
};
use crate::{
    error::{Error, SIGNALLED},
    net::{Api, chunks},
    term::progress,
};

/// Runs a command and returns the code to end with.
pub(crate) async fn run(api: &Api, sprite: &str, query: &ExecQuery) -> Result<u8, Error> {
    let mut signals = Signals::listen()?;
    let url = format!("{}?{}", api.inside(sprite, "/exec"), query.encode());
    let (mut upload, mut download) = chunks::post(api, &url).await?;
    let mut input = Input::start(false);
    let sending = async {
        if query.stdin == Some(true) {
            while let Some(part) = input.next().await {
                // A command that has ended takes no more; its answer says how.
                if upload.send(&part).await.is_err() {
                    return std::future::pending::<Error>().await;
                }
            }
        }
        let _ = upload.end().await;
        std::future::pending::<Error>().await
    };
    let receiving = async {
        progress::for_a_person(&format!("waiting for {sprite}"), download.head()).await?;
        let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
        while let Some(chunk) = download.chunk().await? {
            match decode(&chunk) {
                Ok(FromServer::Stdout(bytes)) => {
                    stdout.write_all(bytes).await?;
                    stdout.flush().await?;
                }
                Ok(FromServer::Stderr(bytes)) => {
                    stderr.write_all(bytes).await?;
                    stderr.flush().await?;
                }
                Ok(FromServer::Exit(code)) => return Ok(code),
                Err(error) => return Err(error),
            }
        }
        Err(Error::said("the answer ended without the command's exit code"))
    };
    tokio::select! {
        error = sending => Err(error),
        ended = receiving => ended,
        code = ends_us(&mut signals) => Ok(code),
    }
}

fn decode(chunk: &Bytes) -> Result<FromServer<'_>, Error> {
    FromServer::decode(chunk).map_err(|error| {
        Error::said(format!("the answer is damaged ({error}); something on the way may join its chunks"))
    })
}

/// There is no way to pass a signal on; to leave ends the command.
async fn ends_us(signals: &mut Signals) -> u8 {
    loop {
        if let Event::Signal(signal) = signals.next().await
            && matches!(signal.number(), signals::INT | signals::TERM | signals::HUP | signals::QUIT)
        {
            return SIGNALLED + u8::try_from(signal.number()).unwrap_or(0);
        }
    }
}
