//! The management socket: what programs in the sprite may ask of the runtime, `sprite-env` among them.
//!
//! It speaks HTTP and lies in the sprite's own file system, for root alone, as everything in a sprite runs as
//! root that was not made to run otherwise.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::{net::UnixListener, sync::Semaphore, task::JoinSet, time::sleep};
use tracing::{debug, warn};

use crate::{api, env, state::Runtime};

/// The socket's name in the runtime's directory.
pub(crate) const SOCKET: &str = "api.sock";
/// Connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
/// The pause after a failed accept, which usually means that descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Makes the socket and the commands that use it. Whatever an earlier boot or the sprite's programs left in
/// its place is replaced.
pub(crate) fn bind(home: &Path) -> io::Result<UnixListener> {
    let path = home.join(SOCKET);
    remove(&path)?;
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    if let Ok(runtime) = std::env::current_exe() {
        let command = home.join("bin").join(env::NAME);
        remove(&command)?;
        symlink(runtime, command)?;
    }
    Ok(listener)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Serves for ever.
pub(crate) async fn run(listener: UnixListener, runtime: Arc<Runtime>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = async {
                // Never closed.
                let place = room.clone().acquire_owned().await.map_err(io::Error::other)?;
                Ok::<_, io::Error>((listener.accept().await?.0, place))
            } => accepted,
            Some(_ended) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, place)) => {
                let runtime = runtime.clone();
                connections.spawn(async move {
                    if let Err(error) = api::serve_local(&runtime, stream).await {
                        debug!(%error, "A connection to the management socket broke");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "Could not accept a connection to the management socket");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
