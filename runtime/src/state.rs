//! What all parts of the runtime share.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ids::Epoch;
use runtime_api::Configuration;
use tokio::sync::watch;
use tracing::warn;

use crate::{
    activities::Activities,
    boot,
    host::Host,
    ports::Ports,
    services::{Ask, HOME, Services},
    sessions::{Sessions, Settings},
};

/// See [`base_environment`].
const BASE_ENVIRONMENT: &[(&str, &str)] = &[
    ("HOME", HOME),
    ("USER", "root"),
    ("LOGNAME", "root"),
    ("SHELL", "/bin/bash"),
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/.sprite/bin"),
    ("LANG", "C.UTF-8"),
];

/// The runtime of one sprite.
#[derive(Debug)]
pub(crate) struct Runtime {
    /// Who listens on which port.
    pub(crate) ports: Ports,
    /// The sprite's services.
    pub(crate) services: Services,
    /// What clients run.
    pub(crate) sessions: Sessions,
    /// What keeps the sprite awake from inside.
    pub(crate) activities: Activities,
    /// Whom programs inside ask.
    pub(crate) host: Host,
    configuration: Mutex<Option<Configuration>>,
    ending: AtomicBool,
    /// A virtual machine, with a clock and a kernel of its own.
    is_machine: bool,
    began: Instant,
    /// Grows with every control stream; one that sees a newer number leaves.
    control: watch::Sender<u64>,
}

impl Runtime {
    pub(crate) fn new(
        services: Services,
        sessions: Sessions,
        activities: Activities,
        is_machine: bool,
    ) -> Self {
        Self {
            ports: Ports::default(),
            services,
            sessions,
            activities,
            host: Host::default(),
            configuration: Mutex::new(None),
            ending: AtomicBool::new(false),
            is_machine,
            began: Instant::now(),
            control: watch::Sender::new(0),
        }
    }

    /// The epoch of the configuration, if one has arrived.
    pub(crate) fn configured(&self) -> Option<Epoch> {
        self.lock().as_ref().map(|configuration| configuration.epoch)
    }

    /// Whether this is a virtual machine, whose clock and kernel are its own.
    pub(crate) const fn is_a_machine(&self) -> bool {
        self.is_machine
    }

    /// For how long the runtime has been up, of its own time: a sprite's pauses may count or not.
    pub(crate) fn up_for(&self) -> Duration {
        self.began.elapsed()
    }

    /// The sprite's name, URL and epoch, once they are known.
    pub(crate) fn identity(&self) -> Option<(String, String, u64)> {
        let configuration = self.lock();
        let known = configuration.as_ref()?;
        Some((known.name.to_string(), known.url.clone(), known.epoch.0))
    }

    /// Takes a configuration; the first one boots the services.
    pub(crate) async fn configure(&self, configuration: Configuration) {
        if let Some(woken) = &configuration.woken
            && self.is_machine
            && let Err(error) = boot::woken(woken)
        {
            warn!(%error, "Could not set the clock");
        }
        let before = self.lock().replace(configuration.clone());
        if before.as_ref().is_some_and(|before| means_the_same(before, &configuration)) {
            // As after most sleeps.
            return;
        }
        if let Some(before) = &before
            && before.name != configuration.name
            && self.is_machine
            && let Err(error) = boot::rename(configuration.name.as_str())
        {
            warn!(%error, "Could not take the name of the sprite that this is now");
        }
        let environment = environment(&configuration);
        self.sessions.configure(Settings {
            environment: environment.clone(),
            session_activity: configuration.session_activity,
            limits: configuration.session_limits,
        });
        let ask = match before {
            None => Ask::Boot { environment },
            Some(_) => Ask::Environment { environment },
        };
        self.services.tell(ask).await;
    }

    /// From now on nothing new is begun. `true` for the first who says so.
    pub(crate) fn begin_to_end(&self) -> bool {
        !self.ending.swap(true, Ordering::Relaxed)
    }

    /// Whether the sprite is shutting down.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// Makes the caller the control stream; the receiver changes when another one takes over.
    pub(crate) fn take_control(&self) -> watch::Receiver<u64> {
        self.control.send_modify(|number| *number += 1);
        self.control.subscribe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Configuration>> {
        self.configuration.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What every process finds in its environment, whoever the sprite is.
pub(crate) fn base_environment() -> BTreeMap<String, String> {
    BASE_ENVIRONMENT.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Whether nothing has changed for what runs inside: the epoch is the host's business, and so is when the sprite woke.
fn means_the_same(one: &Configuration, other: &Configuration) -> bool {
    let Configuration { name, url, epoch: _, environment, session_activity, session_limits, woken: _ } = one;
    (name, url, environment, session_activity, session_limits)
        == (&other.name, &other.url, &other.environment, &other.session_activity, &other.session_limits)
}

fn environment(configuration: &Configuration) -> BTreeMap<String, String> {
    let own = [("SPRITE_NAME", configuration.name.to_string()), ("SPRITE_URL", configuration.url.clone())];
    let own = own.map(|(name, value)| (name.to_owned(), value));
    base_environment().into_iter().chain(own).chain(configuration.environment.clone()).collect()
}
