//! The guests' kernel, out of Debian's package.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    ImageError,
    apt::{Apt, Package},
    compressed,
    modules::{self, WANTED},
    tool::Progress,
};

/// The package that depends on the newest kernel for virtual machines.
pub(super) const PACKAGE: &str = "linux-image-cloud-amd64";
/// Grows when what is kept of a kernel changes.
const FORMAT: u32 = 1;
const RECORD: &str = "kernel.json";

/// A kernel that is there.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    /// Beneath the directory of all images.
    pub(super) dir: PathBuf,
    pub(super) record: Record,
}

/// What is written down of a kernel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    format: u32,
    /// The Debian package that it is from, and its version.
    pub(super) package: String,
    pub(super) version: String,
    /// What `uname -r` says.
    pub(super) release: String,
    wanted: Vec<String>,
    /// Its modules, in the order in which they are loaded.
    pub(super) modules: Vec<String>,
}

/// The newest kernel: what is in `images` already, or fetched with the help of `building`, an empty
/// directory.
pub(super) fn ensure(
    images: &Path,
    building: &Path,
    apt: &Apt<'_>,
    progress: &Progress,
) -> Result<Kernel, ImageError> {
    let meta = apt.find(PACKAGE)?;
    let name = meta.first_dependency().ok_or_else(|| ImageError::Package {
        package: PACKAGE.into(),
        reason: "it depends on no kernel".into(),
    })?;
    let package = apt.find(name)?;
    let dir = Path::new("kernel").join(&package.version);
    let path = images.join(&dir);
    if let Some(record) = read(&path).filter(|record| record.is_of(&package)) {
        return Ok(Kernel { dir, record });
    }
    let unpacked = building.join("package");
    fs::create_dir(&unpacked).map_err(ImageError::io(format!("make {}", unpacked.display())))?;
    let root = apt.unpack(&package, &unpacked)?;
    progress.say("Unpacking the kernel");
    let finished = building.join("kernel");
    let record = extract(&package, &root, &finished)?;
    // One that an older agent made has other modules, but the same kernel.
    if path.exists() {
        fs::rename(&path, building.join("replaced"))
            .map_err(ImageError::io(format!("put {} aside", path.display())))?;
    }
    fs::create_dir_all(images.join("kernel"))
        .and_then(|()| fs::rename(&finished, &path))
        .map_err(ImageError::io(format!("make {}", path.display())))?;
    Ok(Kernel { dir, record })
}

fn read(dir: &Path) -> Option<Record> {
    // Anything else is as good as absent: it is made again.
    serde_json::from_slice(&fs::read(dir.join(RECORD)).ok()?).ok()
}

fn wanted() -> Vec<String> {
    WANTED.iter().map(|(name, _)| (*name).to_owned()).collect()
}

impl Record {
    fn is_of(&self, package: &Package) -> bool {
        self.format == FORMAT
            && self.package == package.name
            && self.version == package.version
            && self.wanted == wanted()
    }
}

/// Takes what guests need out of an unpacked package.
fn extract(package: &Package, root: &Path, to: &Path) -> Result<Record, ImageError> {
    let broken = |reason: &str| ImageError::Package { package: package.name.clone(), reason: reason.into() };
    // Newer releases of Debian have everything below /usr.
    let modules = [root.join("usr/lib/modules"), root.join("lib/modules")]
        .into_iter()
        .find_map(|dir| fs::read_dir(dir).ok()?.flatten().next())
        .ok_or_else(|| broken("it has no lib/modules/{release}"))?;
    let release = modules.file_name().into_string().map_err(|_| broken("its release is no text"))?;
    let image = root.join("boot").join(format!("vmlinuz-{release}"));
    let image = fs::read(&image).map_err(ImageError::io(format!("read {}", image.display())))?;
    let save = |name: &str, content: &[u8]| {
        let path = to.join(name);
        fs::write(&path, content).map_err(ImageError::io(format!("write {}", path.display())))
    };
    let directory = to.join("modules");
    fs::create_dir_all(&directory).map_err(ImageError::io(format!("make {}", directory.display())))?;
    save("vmlinuz", &image)?;
    save("vmlinux", &compressed::kernel(&image)?)?;
    let modules = modules::collect(&modules.path(), WANTED)?;
    for module in &modules {
        save(&format!("modules/{}.ko", module.name), &module.content)?;
    }
    let record = Record {
        format: FORMAT,
        package: package.name.clone(),
        version: package.version.clone(),
        release,
        wanted: wanted(),
        modules: modules.into_iter().map(|module| module.name).collect(),
    };
    save(RECORD, &serde_json::to_vec_pretty(&record).map_err(|error| broken(&error.to_string()))?)?;
    Ok(record)
}
