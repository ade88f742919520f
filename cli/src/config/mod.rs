//! What `sprite` remembers between runs: `~/.sprites/sprites.json`.
//!
//! ```json
//! {"version": "1",
//!  "current_selection": {"url": "https://api.example", "org": "acme", "sprite": "web"},
//!  "urls": {"https://api.example": {"url": "https://api.example", "orgs": {
//!    "acme": {"name": "acme", "keyring_key": "…", "use_keyring": true, "sprites": {}}}}}}
//! ```
//!
//! Members that we don't know are kept. A token is in the keyring, or else in its organization's `token`.

pub(crate) mod keyring;
pub(crate) mod project;
mod secret;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) use secret::Secret;

use crate::error::Error;

/// The directory in the user's home.
const DIRECTORY: &str = ".sprites";
const FILE: &str = "sprites.json";
const VERSION: &str = "1";

/// The file's content.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    /// Some releases wrote a number.
    #[serde(default)]
    version: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current_selection: Option<Selection>,
    #[serde(default)]
    pub(crate) urls: BTreeMap<String, Server>,
    /// `false` after `sprite org keyring disable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) keyring: Option<bool>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// What commands act on if nothing else says so.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Selection {
    #[serde(default)]
    pub(crate) url: String,
    #[serde(default)]
    pub(crate) org: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sprite: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// One API.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Server {
    #[serde(default)]
    pub(crate) url: String,
    #[serde(default)]
    pub(crate) orgs: BTreeMap<String, Organization>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// One organization of an API, with what speaks for it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Organization {
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) keyring_key: String,
    #[serde(default)]
    pub(crate) use_keyring: bool,
    #[serde(default)]
    sprites: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<Secret>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Selection {
    pub(crate) fn new(url: &str, org: &str) -> Self {
        Self { url: url.to_owned(), org: org.to_owned(), ..Self::default() }
    }
}

/// The state, and where it is kept.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    pub(crate) state: State,
}

impl Store {
    /// Reads the state; an absent file is an empty state.
    ///
    /// A file that others can read is made private, and said so: tokens are in it.
    pub(crate) fn open(home: &Path) -> Result<Self, Error> {
        let path = home.join(DIRECTORY).join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { path, state: State::default() });
            }
            Err(error) => return Err(Error::said(format!("could not read {}: {error}", path.display()))),
        };
        if fs::metadata(&path).is_ok_and(|file| file.mode() & 0o077 != 0) {
            let tightened = fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).is_ok();
            let now = if tightened { "it is private now" } else { "make it private: chmod 600" };
            eprintln!("sprite: others could read {}, which holds tokens; {now}", path.display());
        }
        let state = serde_json::from_str(&text).map_err(|error| {
            let path = path.display();
            Error::said(format!("{path} is damaged ({error}). Move it away, then `sprite login` again."))
        })?;
        Ok(Self { path, state })
    }

    /// Replaces the file in one step: whoever reads it meanwhile sees the old or the new one.
    pub(crate) fn save(&mut self) -> Result<(), Error> {
        if self.state.version.is_null() {
            self.state.version = VERSION.into();
        }
        self.write().map_err(|error| Error::said(format!("could not write {}: {error}", self.path.display())))
    }

    fn write(&self) -> std::io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        if fs::metadata(directory)?.mode() & 0o077 != 0 {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        }
        // Made with mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        serde_json::to_writer_pretty(&mut file, &self.state)?;
        file.write_all(b"\n")?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        Ok(())
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What is known of an organization of an API.
    pub(crate) fn organization(&self, url: &str, org: &str) -> Option<&Organization> {
        self.state.urls.get(url)?.orgs.get(org)
    }

    /// Remembers a token, in the keyring if there is one and it isn't turned off, and selects its
    /// organization. Returns whether the keyring has it.
    pub(crate) fn remember(&mut self, url: &str, org: &str, token: &Secret) -> Result<bool, Error> {
        let key = keyring::key(url, org);
        let in_keyring = self.state.keyring != Some(false) && keyring::put(&key, token).is_ok();
        let server = self.state.urls.entry(url.to_owned()).or_default();
        server.url = url.to_owned();
        let entry = server.orgs.entry(org.to_owned()).or_default();
        entry.name = org.to_owned();
        entry.keyring_key = key;
        entry.use_keyring = in_keyring;
        entry.token = (!in_keyring).then(|| token.clone());
        if self.state.current_selection.as_ref().is_none_or(|now| now.url != url || now.org != org) {
            self.state.current_selection = Some(Selection::new(url, org));
        }
        self.save()?;
        Ok(in_keyring)
    }

    /// The stored token, if there is one that can be had.
    pub(crate) fn token(&self, url: &str, org: &str) -> Result<Option<Secret>, Error> {
        let Some(entry) = self.organization(url, org) else { return Ok(None) };
        if entry.use_keyring {
            return keyring::get(&entry.keyring_key).map_err(|error| {
                Error::said(format!(
                    "the keyring does not give out the token of {org}: {error}\nUnlock it, set SPRITES_TOKEN, or `sprite org keyring disable` and `sprite login` again."
                ))
            });
        }
        Ok(entry.token.clone())
    }

    /// Forgets organizations; of one API if one is named. Returns their names.
    pub(crate) fn forget(&mut self, url: Option<&str>, org: Option<&str>) -> Result<Vec<String>, Error> {
        let mut forgotten = Vec::new();
        let chosen = |wanted: Option<&str>, name: &str| wanted.is_none_or(|wanted| wanted == name);
        for (at, server) in &mut self.state.urls {
            if !chosen(url, at) {
                continue;
            }
            server.orgs.retain(|name, entry| {
                let goes = chosen(org, name);
                if goes {
                    if entry.use_keyring {
                        // What is not in the keyring any more is gone as well.
                        let _ = keyring::delete(&entry.keyring_key);
                    }
                    forgotten.push(format!("{name} at {at}"));
                }
                !goes
            });
        }
        self.state.urls.retain(|_, server| !server.orgs.is_empty());
        let known = self
            .state
            .current_selection
            .as_ref()
            .is_some_and(|now| self.organization(&now.url, &now.org).is_some());
        if !known {
            self.state.current_selection = self
                .state
                .urls
                .iter()
                .next()
                .and_then(|(url, server)| server.orgs.keys().next().map(|org| Selection::new(url, org)));
        }
        self.save()?;
        Ok(forgotten)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(home: &Path) -> Store {
        let mut store = Store::open(home).expect("opens");
        // Tests don't touch the keyring of whoever runs them.
        store.state.keyring = Some(false);
        store
    }

    #[test]
    fn tokens_are_kept_where_only_their_owner_reads() {
        let home = tempfile::tempdir().expect("a directory");
        let token = Secret::new("acme/x/1/spr_value");
        store(home.path()).remember("http://a", "acme", &token).expect("remembers");
        let path = home.path().join(".sprites/sprites.json");
        let mode = |path: &Path| fs::metadata(path).expect("exists").mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().expect("a parent"))), (0o600, 0o700));
        let store = Store::open(home.path()).expect("opens");
        assert_eq!(store.token("http://a", "acme").expect("reads"), Some(token));
        assert_eq!(store.token("http://a", "other").expect("reads"), None);
    }

    #[test]
    fn a_file_that_others_read_is_made_private() {
        let home = tempfile::tempdir().expect("a directory");
        store(home.path()).save().expect("saves");
        let path = home.path().join(".sprites/sprites.json");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("changes");
        Store::open(home.path()).expect("opens");
        assert_eq!(fs::metadata(&path).expect("exists").mode() & 0o777, 0o600);
    }

    #[test]
    fn what_other_programs_wrote_is_kept() {
        let home = tempfile::tempdir().expect("a directory");
        fs::create_dir(home.path().join(".sprites")).expect("makes");
        let path = home.path().join(".sprites/sprites.json");
        let text = r#"{"version":1,"new":{"a":1},"urls":{"http://a":{"url":"http://a","x":2,"orgs":
            {"acme":{"name":"acme","keyring_key":"k","use_keyring":false,"sprites":{"web":{}},"y":3}}}}}"#;
        fs::write(&path, text).expect("writes");
        store(home.path()).remember("http://a", "acme", &Secret::new("t")).expect("remembers");
        let now: Value = serde_json::from_str(&fs::read_to_string(&path).expect("reads")).expect("JSON");
        assert_eq!((&now["version"], &now["new"]["a"]), (&1.into(), &1.into()));
        let org = &now["urls"]["http://a"]["orgs"]["acme"];
        assert_eq!((&org["y"], &now["urls"]["http://a"]["x"]), (&3.into(), &2.into()));
        assert!(org["sprites"]["web"].is_object());
    }

    #[test]
    fn a_selection_that_is_forgotten_gives_way_to_another() {
        let home = tempfile::tempdir().expect("a directory");
        let mut store = store(home.path());
        for org in ["acme", "beta"] {
            store.remember("http://a", org, &Secret::new(org)).expect("remembers");
        }
        assert_eq!(store.forget(None, Some("beta")).expect("forgets"), ["beta at http://a"]);
        assert_eq!(store.state.current_selection.as_ref().map(|now| now.org.as_str()), Some("acme"));
        store.forget(Some("http://a"), None).expect("forgets");
        assert!(store.state.current_selection.is_none() && store.state.urls.is_empty());
    }

    #[test]
    fn a_damaged_file_is_named() {
        let home = tempfile::tempdir().expect("a directory");
        fs::create_dir(home.path().join(".sprites")).expect("makes");
        fs::write(home.path().join(".sprites/sprites.json"), "{").expect("writes");
        assert!(
            Store::open(home.path()).expect_err("damaged").to_string().contains("sprites.json is damaged")
        );
    }
}
