//! What a command acts on: which API, with which token, on which sprite. Flags come first, then the
//! environment, then `.sprite`, then what was stored.

use std::path::PathBuf;

use crate::{
    args::Global,
    config::{
        Secret, Store,
        project::{self, Project},
    },
    error::Error,
    net::Api,
    output::Output,
};

/// Where `make run` listens.
const DEFAULT_API: &str = "http://127.0.0.1:8080";

/// The environment, read once.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    pub(crate) home: Option<PathBuf>,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) api: Option<String>,
    /// A server that is one sprite's own: paths have no `/v1/sprites/NAME` in front.
    pub(crate) sprite_server: Option<String>,
    pub(crate) token: Option<Secret>,
    /// Taken if nothing else gives one.
    pub(crate) fallback_token: Option<Secret>,
    pub(crate) org: Option<String>,
    /// What a remote terminal should be told: `TERM` and the like.
    pub(crate) terminal: Vec<(&'static str, String)>,
}

impl Environment {
    pub(crate) fn read() -> Self {
        let text = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            home: std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from),
            directory: std::env::current_dir().ok(),
            api: text("SPRITES_API_URL"),
            sprite_server: text("SPRITE_URL"),
            token: text("SPRITES_TOKEN").map(Secret::new),
            fallback_token: text("SPRITE_TOKEN").map(Secret::new),
            org: text("SPRITE_ORG"),
            terminal: ["TERM", "COLORTERM", "LANG", "LC_ALL"]
                .into_iter()
                .filter_map(|name| Some((name, text(name)?)))
                .collect(),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) global: Global,
    pub(crate) environment: Environment,
    pub(crate) output: Output,
    project: Option<(PathBuf, Project)>,
}

/// A token, and whom it speaks for.
#[derive(Debug)]
struct Credential {
    url: String,
    token: Secret,
}

impl Context {
    pub(crate) fn new(global: Global, environment: Environment) -> Result<Self, Error> {
        let project = environment.directory.as_deref().map(project::find).transpose()?.flatten();
        let output = Output::new(global.json);
        Ok(Self { global, environment, output, project })
    }

    /// The stored state.
    pub(crate) fn store(&self) -> Result<Store, Error> {
        let home = self.environment.home.as_deref();
        Store::open(home.ok_or_else(|| Error::said("HOME is not set, so there is nowhere to keep tokens"))?)
    }

    /// The stored state, for reading: empty where there is no home.
    fn stored(&self) -> Result<Option<Store>, Error> {
        self.environment.home.as_deref().map(Store::open).transpose()
    }

    /// The API's URL as it is given from outside; `None` leaves it to what is stored.
    fn given_url(&self) -> Option<String> {
        let given = self.global.api.clone().or_else(|| self.environment.api.clone())?;
        Some(normal_url(&given))
    }

    /// The API's URL.
    pub(crate) fn url(&self) -> Result<String, Error> {
        if let Some(url) = self.given_url() {
            return Ok(url);
        }
        let stored = self.stored()?.and_then(|store| store.state.current_selection.map(|now| now.url));
        Ok(stored.filter(|url| !url.is_empty()).unwrap_or_else(|| DEFAULT_API.to_owned()))
    }

    /// The organization that was asked for, if one was: flag, environment, `.sprite`.
    fn wanted_org(&self) -> Option<&str> {
        // The official form may name an API in front: `alias:org`.
        let flag = self.global.org.as_deref().map(|org| org.rsplit_once(':').map_or(org, |(_, org)| org));
        let project = self.project.as_ref().and_then(|(_, project)| project.organization.as_deref());
        flag.or(self.environment.org.as_deref()).or(project)
    }

    /// A token given on the command line; `-` stands for stdin.
    pub(crate) fn given_token(&self) -> Result<Option<Secret>, Error> {
        match self.global.token.as_deref() {
            None => Ok(None),
            Some("-") => {
                let mut line = String::new();
                std::io::stdin().read_line(&mut line)?;
                Ok(Some(Secret::new(line.trim())))
            }
            Some(text) => Ok(Some(Secret::new(text.trim()))),
        }
    }

    fn credential(&self) -> Result<Credential, Error> {
        let url = self.url()?;
        if let Some(token) = self.given_token()? {
            return Ok(Credential { url, token });
        }
        let wanted = self.wanted_org();
        let fits =
            |token: &Secret| wanted.is_none_or(|org| token.organization().is_none_or(|own| own == org));
        if let Some(token) = self.environment.token.clone().filter(fits) {
            return Ok(Credential { url, token });
        }
        let store = self.stored()?;
        let stored = store.map(|store| self.stored_credential(&store, &url, wanted)).transpose()?.flatten();
        if let Some(found) = stored {
            return Ok(found);
        }
        if let Some(token) = self.environment.fallback_token.clone().filter(fits) {
            return Ok(Credential { url, token });
        }
        Err(Error::said(match wanted {
            Some(org) => format!(
                "there is no token for the organization {org} at {url}\n`sprite login` stores one; `sprite org list` shows which there are."
            ),
            None => format!(
                "there is no token for {url}\n`sprite login` stores one, or set SPRITES_TOKEN. On the server, `vmm-agent token mint` makes one."
            ),
        }))
    }

    fn stored_credential(
        &self,
        store: &Store,
        url: &str,
        wanted: Option<&str>,
    ) -> Result<Option<Credential>, Error> {
        let selected = store.state.current_selection.as_ref();
        let org = wanted.map(str::to_owned).or_else(|| {
            let selected = selected.filter(|now| now.url == url).map(|now| now.org.clone());
            // Where only one can be meant, it is.
            selected.or_else(|| store.state.urls.get(url)?.orgs.keys().next().cloned())
        });
        let Some(org) = org else { return Ok(None) };
        if let Some(token) = store.token(url, &org)? {
            return Ok(Some(Credential { url: url.to_owned(), token }));
        }
        // An organization may be known at another API only; which one was not said.
        if self.given_url().is_none() && wanted.is_some() {
            for url in store.state.urls.keys() {
                if let Some(token) = store.token(url, &org)? {
                    return Ok(Some(Credential { url: url.clone(), token }));
                }
            }
        }
        Ok(None)
    }

    /// The API, with the token that speaks to it.
    pub(crate) fn api(&self) -> Result<Api, Error> {
        let Credential { url, token } = self.credential()?;
        self.api_with(&url, token)
    }

    /// The API at a URL, with a given token.
    pub(crate) fn api_with(&self, url: &str, token: Secret) -> Result<Api, Error> {
        let own = self.environment.sprite_server.as_deref().map(normal_url);
        Api::new(url, own, token, self.global.cacert.clone(), self.global.debug)
    }

    /// The sprite that is meant.
    pub(crate) fn sprite(&self, named: Option<&str>) -> Result<String, Error> {
        if let Some(name) = self.chosen_sprite(named) {
            return Ok(name);
        }
        if self.environment.sprite_server.is_some() {
            return Ok("this".to_owned());
        }
        let selected = self.stored()?.and_then(|store| store.state.current_selection?.sprite);
        selected.ok_or_else(|| {
            Error::said(
                "which sprite? Name it with -s NAME, or choose one for this directory: `sprite use NAME`",
            )
        })
    }

    /// The sprite that is named by argument, flag or `.sprite`; nothing that was only remembered.
    pub(crate) fn chosen_sprite(&self, named: Option<&str>) -> Option<String> {
        let project = self.project.as_ref().and_then(|(_, project)| project.sprite.as_deref());
        named.or(self.global.sprite.as_deref()).or(project).map(str::to_owned)
    }

    /// The `.sprite` file in force, if there is one.
    pub(crate) fn project_file(&self) -> Option<&PathBuf> {
        self.project.as_ref().map(|(path, _)| path)
    }

    /// The directory we are in.
    pub(crate) fn directory(&self) -> Result<&PathBuf, Error> {
        let here = self.environment.directory.as_ref();
        here.ok_or_else(|| Error::said("the current directory is gone"))
    }
}

/// One spelling for one API.
pub(crate) fn normal_url(text: &str) -> String {
    let text = text.trim().trim_end_matches('/');
    if text.contains("://") { text.to_owned() } else { format!("https://{text}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Store;

    struct Home(tempfile::TempDir);

    impl Home {
        fn new(orgs: &[(&str, &str)]) -> Self {
            let home = tempfile::tempdir().expect("a directory");
            let mut store = Store::open(home.path()).expect("opens");
            store.state.keyring = Some(false);
            for (url, org) in orgs {
                store.remember(url, org, &Secret::new(format!("{org}/x/stored/v"))).expect("remembers");
            }
            Self(home)
        }

        fn context(&self, change: impl FnOnce(&mut Global, &mut Environment)) -> Context {
            let mut global = Global::default();
            let mut environment = Environment {
                home: Some(self.0.path().to_owned()),
                directory: Some(self.0.path().to_owned()),
                ..Environment::default()
            };
            change(&mut global, &mut environment);
            Context::new(global, environment).expect("a context")
        }
    }

    fn token(context: &Context) -> (String, String) {
        let found = context.credential().expect("a credential");
        (found.url, found.token.expose().to_owned())
    }

    #[test]
    fn flags_beat_the_environment_which_beats_what_is_stored() {
        let home = Home::new(&[("http://a", "acme"), ("http://b", "beta")]);
        let stored = home.context(|_, _| ());
        assert_eq!(token(&stored), ("http://b".into(), "beta/x/stored/v".into()));
        let environment = home.context(|_, environment| {
            environment.token = Some(Secret::new("env/x/1/v"));
            environment.api = Some("http://c/".into());
        });
        assert_eq!(token(&environment), ("http://c".into(), "env/x/1/v".into()));
        let flags = home.context(|global, environment| {
            environment.token = Some(Secret::new("env/x/1/v"));
            global.token = Some("flag".into());
            global.api = Some("http://d".into());
        });
        assert_eq!(token(&flags), ("http://d".into(), "flag".into()));
        let fallback = home.context(|_, environment| {
            environment.fallback_token = Some(Secret::new("last/x/1/v"));
        });
        assert_eq!(token(&fallback).1, "beta/x/stored/v", "a stored token comes before the fallback");
    }

    #[test]
    fn an_organization_finds_its_own_token_and_api() {
        let home = Home::new(&[("http://a", "acme"), ("http://b", "beta")]);
        let other = home.context(|global, environment| {
            global.org = Some("acme".into());
            environment.token = Some(Secret::new("beta/x/1/v"));
        });
        assert_eq!(token(&other), ("http://a".into(), "acme/x/stored/v".into()));
        let none = home.context(|global, _| global.org = Some("nobody".into()));
        assert!(
            none.credential().expect_err("none").to_string().contains("no token for the organization nobody")
        );
    }

    #[test]
    fn a_sprite_comes_from_argument_flag_project_and_selection_in_this_order() {
        let home = Home::new(&[("http://a", "acme")]);
        assert!(home.context(|_, _| ()).sprite(None).is_err());
        let mut store = Store::open(home.0.path()).expect("opens");
        store.state.current_selection.as_mut().expect("selected").sprite = Some("remembered".into());
        store.save().expect("saves");
        let name = |context: &Context, named| context.sprite(named).expect("a sprite");
        assert_eq!(name(&home.context(|_, _| ()), None), "remembered");
        let project = Project { organization: None, sprite: Some("project".into()) };
        project::write(home.0.path(), &project).expect("writes");
        assert_eq!(name(&home.context(|_, _| ()), None), "project");
        let flag = home.context(|global, _| global.sprite = Some("flag".into()));
        assert_eq!(name(&flag, None), "flag");
        assert_eq!(name(&flag, Some("named")), "named");
    }
}
