//! What services there are, kept on the sprite's disk.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use ids::{Port, ServiceName};
use serde::{Deserialize, Serialize};

use super::order;

/// The most services of a sprite: more than anybody needs, fewer than would trouble the runtime.
const MAX_SERVICES: usize = 200;

/// What a service is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Definition {
    /// The program, looked for in `PATH`.
    pub(crate) cmd: String,
    /// Its arguments.
    #[serde(default)]
    pub(crate) args: Vec<String>,
    /// Its environment, beside what every process of the sprite has.
    #[serde(default)]
    pub(crate) env: BTreeMap<String, String>,
    /// Its working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dir: Option<String>,
    /// Services that are started before it.
    #[serde(default)]
    pub(crate) needs: Vec<ServiceName>,
    /// The port of its web server, which becomes the sprite's URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) http_port: Option<Port>,
    /// Whether a person stopped it. It then stays so, over boots too, until it is started.
    #[serde(default)]
    pub(crate) stopped_by_hand: bool,
}

/// All services of the sprite.
#[derive(Debug, Default)]
pub(crate) struct Definitions {
    path: PathBuf,
    services: BTreeMap<ServiceName, Definition>,
}

/// Why a change was refused. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error("there is no service {0:?}")]
    Unknown(ServiceName),
    #[error("service {0:?} needs {1:?}, which does not exist: create that first")]
    UnknownNeed(ServiceName, ServiceName),
    #[error("services can't need each other in a circle: {}", circle(.0))]
    Circle(Vec<ServiceName>),
    // The wording is the protocol's.
    #[error("another service already has an HTTP port configured")]
    SecondHttpPort(ServiceName),
    #[error("service {0:?} can't be deleted: {1:?} needs it")]
    Needed(ServiceName, ServiceName),
    #[error("a sprite has at most {MAX_SERVICES} services: delete one that is not needed")]
    TooMany,
    #[error("could not write the services to disk")]
    Disk(#[from] io::Error),
}

fn circle(names: &[ServiceName]) -> String {
    names.iter().map(ServiceName::as_str).collect::<Vec<_>>().join(" → ")
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    services: BTreeMap<ServiceName, Definition>,
}

impl Definitions {
    /// Reads what is at `path`; nothing there means no services.
    ///
    /// # Errors
    /// It can't be read, or understood.
    pub(crate) fn load(path: PathBuf) -> io::Result<Self> {
        let services = match fs::read(&path) {
            Ok(text) => serde_json::from_slice::<OnDisk>(&text)?.services,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { path, services })
    }

    /// No services yet, and where they will be written.
    pub(crate) fn empty(path: PathBuf) -> Self {
        Self { path, services: BTreeMap::new() }
    }

    pub(crate) fn get(&self, name: &ServiceName) -> Result<&Definition, ChangeError> {
        self.services.get(name).ok_or_else(|| ChangeError::Unknown(name.clone()))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ServiceName, &Definition)> {
        self.services.iter()
    }

    /// Every service, those first that others need.
    pub(crate) fn in_order(&self) -> Vec<ServiceName> {
        // A circle can't get in; if a person wrote one into the file, any order is as good.
        order::start_order(&self.needs()).unwrap_or_else(|_| self.services.keys().cloned().collect())
    }

    /// The services that must run before `name` does, those first that others need; and itself, last.
    pub(crate) fn chain(&self, name: &ServiceName) -> Vec<ServiceName> {
        let wanted = order::closure(&self.needs(), name);
        self.in_order().into_iter().filter(|one| wanted.contains(one)).collect()
    }

    fn needs(&self) -> BTreeMap<ServiceName, Vec<ServiceName>> {
        self.services.iter().map(|(name, one)| (name.clone(), one.needs.clone())).collect()
    }

    /// Adds a service, or puts another in its place.
    pub(crate) fn put(&mut self, name: ServiceName, definition: Definition) -> Result<(), ChangeError> {
        if self.services.len() >= MAX_SERVICES && !self.services.contains_key(&name) {
            return Err(ChangeError::TooMany);
        }
        if definition.http_port.is_some()
            && let Some((other, _)) =
                self.services.iter().find(|(other, one)| **other != name && one.http_port.is_some())
        {
            return Err(ChangeError::SecondHttpPort(other.clone()));
        }
        let missing =
            definition.needs.iter().find(|need| **need != name && !self.services.contains_key(*need));
        if let Some(missing) = missing {
            return Err(ChangeError::UnknownNeed(name, missing.clone()));
        }
        let mut needs = self.needs();
        needs.insert(name.clone(), definition.needs.clone());
        order::start_order(&needs).map_err(ChangeError::Circle)?;
        self.change(|services| {
            services.insert(name, definition);
        })
    }

    /// Removes a service that no other needs.
    pub(crate) fn delete(&mut self, name: &ServiceName) -> Result<(), ChangeError> {
        self.get(name)?;
        if let Some((other, _)) = self.services.iter().find(|(_, one)| one.needs.contains(name)) {
            return Err(ChangeError::Needed(name.clone(), other.clone()));
        }
        self.change(|services| {
            services.remove(name);
        })
    }

    /// Remembers whether a person stopped it.
    pub(crate) fn set_stopped_by_hand(
        &mut self,
        name: &ServiceName,
        stopped: bool,
    ) -> Result<(), ChangeError> {
        if self.get(name)?.stopped_by_hand == stopped {
            return Ok(());
        }
        self.change(|services| {
            if let Some(one) = services.get_mut(name) {
                one.stopped_by_hand = stopped;
            }
        })
    }

    /// Writes first, then changes what is in memory: a full disk changes nothing.
    fn change(
        &mut self,
        change: impl FnOnce(&mut BTreeMap<ServiceName, Definition>),
    ) -> Result<(), ChangeError> {
        let mut services = self.services.clone();
        change(&mut services);
        write_whole(
            &self.path,
            &serde_json::to_vec_pretty(&OnDisk { services: services.clone() }).map_err(io::Error::from)?,
        )?;
        self.services = services;
        Ok(())
    }
}

/// After a crash of the host at any point, the file is the old one or the new one.
fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("json.new");
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(needs: &[&str], http_port: Option<u16>) -> Definition {
        Definition {
            cmd: "true".into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            dir: None,
            needs: needs.iter().map(|name| name.parse().unwrap()).collect(),
            http_port: http_port.map(|port| port.try_into().unwrap()),
            stopped_by_hand: false,
        }
    }

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    #[test]
    fn services_survive_on_disk_and_bad_changes_change_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("services.json");
        let mut services = Definitions::load(path.clone()).unwrap();
        services.put(name("db"), service(&[], None)).unwrap();
        services.put(name("web"), service(&["db"], Some(8000))).unwrap();
        services.set_stopped_by_hand(&name("db"), true).unwrap();

        assert!(matches!(
            services.put(name("x"), service(&[], Some(1))),
            Err(ChangeError::SecondHttpPort(_))
        ));
        assert!(matches!(services.put(name("x"), service(&["y"], None)), Err(ChangeError::UnknownNeed(..))));
        assert!(matches!(services.put(name("db"), service(&["web"], None)), Err(ChangeError::Circle(_))));
        assert!(matches!(services.put(name("db"), service(&["db"], None)), Err(ChangeError::Circle(_))));
        assert!(matches!(services.delete(&name("db")), Err(ChangeError::Needed(..))));
        assert!(matches!(services.delete(&name("no")), Err(ChangeError::Unknown(_))));
        services.put(name("web"), service(&["db"], Some(9000))).unwrap();

        let again = Definitions::load(path).unwrap();
        assert_eq!(again.services, services.services);
        assert!(again.get(&name("db")).unwrap().stopped_by_hand);
        assert_eq!(again.chain(&name("web")), [name("db"), name("web")]);
    }
}
