//! The steps that make an image, in their order.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{
    ImageError, Name, Recipe,
    apt::Apt,
    debian, ext4, initramfs,
    kernel::{self, Kernel},
    manifest::{FileRecord, Image, Manifest, Root, hex},
    minimal,
    tool::Progress,
};
use crate::sparse;

/// Grows when the same ingredients make another root filesystem.
const FORMAT: u32 = 2;
/// How many digits of a checksum are in a file's name.
const NAME_DIGITS: usize = 16;

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) recipe: Recipe,
    /// The static binary that becomes PID 1 of guests.
    pub(crate) runtime: PathBuf,
    /// Make the root filesystem again though nothing that it is made from has changed, for newer
    /// packages, say.
    pub(crate) rebuild: bool,
}

/// Makes images in one directory; there is one at a time.
#[derive(Debug)]
pub(crate) struct Builder {
    images: PathBuf,
    /// Empty at first; what has become whole is moved out of it.
    building: PathBuf,
    progress: Progress,
    _lock: Flock<File>,
}

impl Builder {
    /// Takes charge of a directory, which is made if it is not there.
    ///
    /// # Errors
    /// [`ImageError::Busy`] while another one has it.
    pub(crate) fn new(images: &Path) -> Result<Self, ImageError> {
        let images =
            std::path::absolute(images).map_err(ImageError::io(format!("find {}", images.display())))?;
        let made = || format!("make {}", images.display());
        fs::create_dir_all(&images).map_err(ImageError::io(made()))?;
        let file = File::create(images.join(".lock")).map_err(ImageError::io(made()))?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(ImageError::Busy { dir: images }),
            Err((_, error)) => return Err(ImageError::io(made())(error.into())),
        };
        let building = images.join(".building");
        clear(&building)?;
        fs::create_dir(&building).map_err(ImageError::io(made()))?;
        Ok(Self { images, building, progress: Progress::new(), _lock: lock })
    }

    /// Makes an image, or of it what has changed.
    pub(crate) fn build(&self, request: &Request) -> Result<Image, ImageError> {
        self.assemble(&request.recipe.name(), &request.runtime, |apt| self.root(request, apt))
    }

    /// Makes an image of somebody else's ext4 filesystem, which is copied.
    pub(crate) fn import(&self, name: &Name, root: &Path, runtime: &Path) -> Result<Image, ImageError> {
        let refused = |reason| ImageError::Import { path: root.to_owned(), reason };
        if [Recipe::Minimal, Recipe::Default, Recipe::Full].iter().any(|recipe| recipe.name() == *name) {
            return Err(refused("that name is one that is built; choose another"));
        }
        let reading = || format!("read {}", root.display());
        let from = File::open(root).map_err(ImageError::io(reading()))?;
        if !ext4::is_one(&from).map_err(ImageError::io(reading()))? {
            return Err(refused("it is no ext4 filesystem (a disk with partitions is none, either)"));
        }
        self.assemble(name, runtime, |_| {
            self.progress.say("Copying the root filesystem");
            let unfinished = self.building.join("root.ext4");
            File::create_new(&unfinished)
                .and_then(|to| sparse::copy(&from, &to).and_then(|()| to.sync_all()))
                .map_err(ImageError::io(format!("write {}", unfinished.display())))?;
            let file = self.name_root(name, &unfinished)?;
            Ok(Root { inputs: String::new(), file, packages: BTreeMap::new() })
        })
    }

    /// Kernel, initramfs, and the root filesystem that `root` makes.
    fn assemble(
        &self,
        name: &Name,
        runtime: &Path,
        root: impl FnOnce(&Apt<'_>) -> Result<Root, ImageError>,
    ) -> Result<Image, ImageError> {
        let apt = Apt::new(self.building.join("apt"), &self.progress);
        let kernel = kernel::ensure(&self.images, &self.building, &apt, &self.progress)?;
        // First what may be refused at once.
        let archive = initramfs::make(&self.images, &kernel, runtime)?;
        let initramfs = self.initramfs(&archive)?;
        let dir = self.images.join(name.as_str());
        fs::create_dir_all(&dir).map_err(ImageError::io(format!("make {}", dir.display())))?;
        let root = root(&apt)?;
        Manifest::new(name.clone(), &self.images, &kernel, initramfs.clone(), root.clone())?
            .save(&self.images)?;
        self.link_newest(name, &kernel, &initramfs, &root)?;
        clear(&self.building)?;
        Image::open(&self.images, name)
    }

    fn initramfs(&self, archive: &[u8]) -> Result<FileRecord, ImageError> {
        let unfinished = self.building.join("initramfs.cpio");
        fs::write(&unfinished, archive)
            .and_then(|()| File::open(&unfinished)?.sync_all())
            .map_err(ImageError::io(format!("write {}", unfinished.display())))?;
        self.name_by_content(&unfinished, |name| format!("initramfs-{name}.cpio").into())
    }

    fn root(&self, request: &Request, apt: &Apt<'_>) -> Result<Root, ImageError> {
        match request.recipe {
            Recipe::Minimal => {
                let package = apt.find(minimal::PACKAGE)?;
                let inputs = hash(&("minimal", FORMAT, &package.name, &package.version));
                self.unless_there(request, &inputs, || {
                    let dir = self.scratch("busybox")?;
                    let tree = minimal::tree(&package, &apt.unpack(&package, &dir)?)?;
                    Ok((tree, [(package.name.clone(), package.version.clone())].into()))
                })
            }
            Recipe::Default | Recipe::Full => {
                let ingredients = debian::Ingredients::new(request.recipe, apt)?;
                let inputs = hash(&("debian", FORMAT, &ingredients));
                self.unless_there(request, &inputs, || {
                    let dir = self.scratch("debian")?;
                    ingredients.make(&dir, &self.progress)
                })
            }
        }
    }

    /// The root filesystem that was made from the same inputs, or a new one.
    fn unless_there(
        &self,
        request: &Request,
        inputs: &str,
        make: impl FnOnce() -> Result<debian::TreeAndPackages, ImageError>,
    ) -> Result<Root, ImageError> {
        let built = Image::open(&self.images, &request.recipe.name()).ok().filter(|image| {
            let is_whole = image.root().metadata().is_ok_and(|meta| meta.len() == image.manifest().root.size);
            !request.rebuild && image.manifest().inputs == inputs && is_whole
        });
        if let Some(image) = built {
            let Manifest { root, packages, .. } = image.manifest().clone();
            return Ok(Root { inputs: inputs.to_owned(), file: root, packages });
        }
        let (tree, packages) = make()?;
        self.progress.say("Writing the root filesystem");
        let unfinished = self.building.join("root.ext4");
        ext4::write(&tree, &unfinished, &self.building.join("ext4"))?;
        let file = self.name_root(&request.recipe.name(), &unfinished)?;
        Ok(Root { inputs: inputs.to_owned(), file, packages })
    }

    fn name_root(&self, image: &Name, unfinished: &Path) -> Result<FileRecord, ImageError> {
        self.name_by_content(unfinished, |name| Path::new(image.as_str()).join(name + ".ext4"))
    }

    /// Gives a file of `building` a name that says what is in it, so that no name ever stands for two
    /// contents.
    fn name_by_content(
        &self,
        unfinished: &Path,
        name: impl FnOnce(String) -> PathBuf,
    ) -> Result<FileRecord, ImageError> {
        let found = FileRecord::of(&self.images, unfinished)?;
        let path = name(found.sha256[..NAME_DIGITS].to_owned());
        let to = self.images.join(&path);
        fs::rename(unfinished, &to).map_err(ImageError::io(format!("name {}", to.display())))?;
        Ok(FileRecord { path, ..found })
    }

    /// Plain names for people and scripts.
    fn link_newest(
        &self,
        image: &Name,
        kernel: &Kernel,
        initramfs: &FileRecord,
        root: &Root,
    ) -> Result<(), ImageError> {
        let root = root.file.path.strip_prefix(image.as_str()).unwrap_or(&root.file.path);
        let version = Path::new(&kernel.record.version);
        for (name, target) in [
            (Path::new(image.as_str()).join("root.ext4"), root.to_owned()),
            ("initramfs.cpio".into(), initramfs.path.clone()),
            ("kernel/vmlinuz".into(), version.join("vmlinuz")),
            ("kernel/vmlinux".into(), version.join("vmlinux")),
        ] {
            let (new, name) = (self.building.join("link"), self.images.join(name));
            symlink(&target, &new)
                .and_then(|()| fs::rename(&new, &name))
                .map_err(ImageError::io(format!("link {}", name.display())))?;
        }
        Ok(())
    }

    fn scratch(&self, name: &str) -> Result<PathBuf, ImageError> {
        let dir = self.building.join(name);
        fs::create_dir(&dir).map_err(ImageError::io(format!("make {}", dir.display())))?;
        Ok(dir)
    }
}

/// The hash of what something is made from.
fn hash(inputs: &impl Serialize) -> String {
    let text = serde_json::to_vec(inputs).expect("texts and numbers are JSON");
    hex(&Sha256::digest(text))
}

fn clear(dir: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(ImageError::io(format!("remove {}", dir.display()))(error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
