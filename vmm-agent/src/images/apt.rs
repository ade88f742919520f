//! Packages from Debian's archive: found, fetched and unpacked, never installed. `apt` checks their
//! signatures and checksums.

use std::{
    cell::OnceCell,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::Serialize;

use super::{
    ImageError,
    tool::{Progress, Tool},
};

const MIRROR: &str = "Is Debian's mirror reachable (`apt-get update` as root shows it)?";
const APT_CACHE: Tool = Tool { name: "apt-cache", package: "apt", advice: MIRROR };
const APT_GET: Tool = Tool { name: "apt-get", package: "apt", advice: MIRROR };
const DPKG_DEB: Tool =
    Tool { name: "dpkg-deb", package: "dpkg", advice: "The package is broken, or the disk is full." };

/// The archive that this host's apt is set up for.
#[derive(Debug)]
pub(super) struct Apt<'a> {
    progress: &'a Progress,
    /// Where lists of packages are kept if the host's are missing or too old.
    own: PathBuf,
    /// Set when `own` is in use.
    updated: OnceCell<()>,
}

/// Where Debian's packages come from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(super) struct Sources {
    /// The release's code name.
    pub(super) release: String,
    /// As in sources.list.
    pub(super) lines: Vec<String>,
}

/// A package that can be had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    depends: String,
}

impl<'a> Apt<'a> {
    /// Keeps lists in `own`, a directory, if it must.
    pub(super) fn new(own: PathBuf, progress: &'a Progress) -> Self {
        Self { progress, own, updated: OnceCell::new() }
    }

    /// The newest version of a package.
    pub(super) fn find(&self, name: &str) -> Result<Package, ImageError> {
        if let Some(package) = self.look_up(name)? {
            return Ok(package);
        }
        self.update()?;
        self.look_up(name)?.ok_or_else(|| ImageError::UnknownPackage { package: name.into() })
    }

    /// Fetches a package into `dir`, which must be empty, and unpacks it there.
    pub(super) fn unpack(&self, package: &Package, dir: &Path) -> Result<PathBuf, ImageError> {
        self.progress.say(format_args!("Fetching {} {}", package.name, package.version));
        let wanted = format!("{}={}", package.name, package.version);
        let download = || {
            APT_GET.run(self.command(APT_GET).args(["-q", "download", &wanted]).current_dir(dir)).map(drop)
        };
        if let Err(error) = download() {
            // The archive keeps only the newest of each package: lists of last month name what is gone.
            if self.updated.get().is_some() {
                return Err(error);
            }
            self.update()?;
            download()?;
        }
        let files = fs::read_dir(dir).map_err(ImageError::io(format!("list {}", dir.display())))?;
        let archive = files
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .ok_or_else(|| ImageError::Package {
                package: package.name.clone(),
                reason: "apt-get fetched no .deb".into(),
            })?;
        let root = dir.join("root");
        DPKG_DEB.run(DPKG_DEB.command().arg("-x").arg(&archive).arg(&root))?;
        Ok(root)
    }

    /// Debian's own sources, among those that this host's apt has.
    pub(super) fn sources(&self) -> Result<Sources, ImageError> {
        if let Some(sources) = self.listed_sources()? {
            return Ok(sources);
        }
        self.update()?;
        self.listed_sources()?.ok_or_else(|| ImageError::UnknownPackage { package: "of Debian's".into() })
    }

    fn listed_sources(&self) -> Result<Option<Sources>, ImageError> {
        let mut command = self.command(APT_GET);
        command.args(["indextargets", "--format", "$(CODENAME) deb $(REPO_URI) $(RELEASE) $(COMPONENT)"]);
        Ok(parse_sources(&APT_GET.run(command.args(["Created-By: Packages", "Origin: Debian"]))?))
    }

    fn look_up(&self, name: &str) -> Result<Option<Package>, ImageError> {
        let mut command = self.command(APT_CACHE);
        let output = APT_CACHE.output(command.args(["show", "--no-all-versions", name]))?;
        Ok(parse(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Fetches lists of packages into a directory of our own, which needs no root.
    fn update(&self) -> Result<(), ImageError> {
        if self.updated.get().is_some() {
            return Ok(());
        }
        self.progress.say("Fetching Debian's lists of packages");
        for part in ["state/lists/partial", "cache/archives/partial"] {
            let path = self.own.join(part);
            fs::create_dir_all(&path).map_err(ImageError::io(format!("make {}", path.display())))?;
        }
        self.updated.get_or_init(|| ());
        APT_GET.run(self.command(APT_GET).args(["-q", "update"])).map(drop)
    }

    fn command(&self, tool: Tool) -> Command {
        let mut command = tool.command();
        if self.updated.get().is_some() {
            let option = |key: &str, value: &Path| format!("{key}={}", value.display());
            command.args(["-o", &option("Dir::State::Lists", &self.own.join("state/lists"))]);
            command.args(["-o", &option("Dir::State", &self.own.join("state"))]);
            command.args(["-o", &option("Dir::Cache", &self.own.join("cache"))]);
            // Nothing is installed, so what is does not matter.
            command.args(["-o", "Dir::State::status=/dev/null"]);
        }
        // As root, apt would fetch as a user who can't write here.
        command.args(["-o", "APT::Sandbox::User=root"]);
        command
    }
}

impl Package {
    /// The first package that this one depends on.
    pub(super) fn first_dependency(&self) -> Option<&str> {
        self.depends.split([',', '|', ' ']).find(|word| !word.is_empty())
    }
}

/// Lines of a code name and a source. Updates have a code name with a dash.
fn parse_sources(text: &str) -> Option<Sources> {
    let pairs: Vec<_> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let (release, _) = pairs.iter().find(|(name, _)| !name.contains('-'))?;
    let mut lines: Vec<_> = pairs.iter().map(|(_, line)| (*line).to_owned()).collect();
    lines.sort();
    lines.dedup();
    Some(Sources { release: (*release).to_owned(), lines })
}

/// The first package that `apt-cache show` tells of.
fn parse(text: &str) -> Option<Package> {
    let paragraph = text.split("\n\n").next()?;
    let field = |name: &str| {
        let value = |line: &'_ str| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned());
        paragraph.lines().find_map(value)
    };
    Some(Package {
        name: field("Package")?,
        version: field("Version")?,
        depends: field("Depends").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_paragraph_is_read() {
        let text = "Package: linux-image-cloud-amd64\nSource: linux-signed-amd64 (6.1.2+1)\n\
                    Version: 6.1.2-1\nDepends: linux-image-6.1.0-7-cloud-amd64 (= 6.1.2-1), other\n\
                    Description: Linux\n\nPackage: linux-image-cloud-amd64\nVersion: 5\n";
        let package = parse(text).unwrap();
        assert_eq!((&*package.name, &*package.version), ("linux-image-cloud-amd64", "6.1.2-1"));
        assert_eq!(package.first_dependency(), Some("linux-image-6.1.0-7-cloud-amd64"));
    }

    #[test]
    fn sources_are_those_of_the_release_and_its_updates() {
        let text = "bookworm-updates deb http://deb.debian.org/debian/ bookworm-updates main\n\
                    bookworm deb http://deb.debian.org/debian/ bookworm main\n\
                    bookworm deb http://deb.debian.org/debian/ bookworm main\n";
        let sources = parse_sources(text).unwrap();
        assert_eq!(sources.release, "bookworm");
        assert_eq!(sources.lines.len(), 2);
    }

    #[test]
    fn nothing_found_is_none() {
        assert_eq!(parse_sources(""), None);
        assert_eq!(parse(""), None);
        assert_eq!(parse("N: Unable to locate package\n"), None);
    }
}
