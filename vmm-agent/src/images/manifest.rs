//! What belongs to an image, and whether it is still as it was built.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{ImageError, kernel};

/// The manifest's own version.
const FORMAT: u32 = 1;
const FILE: &str = "manifest.json";
const MAX_NAME_BYTES: usize = 40;

/// The root filesystems that can be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Recipe {
    /// busybox and nothing else
    Minimal,
    /// Debian with Python, Node.js, git and the usual tools
    Default,
    /// Also Go, Ruby, Rust, Java, Elixir, Bun, Deno, and assistants for the command line
    Full,
}

impl Recipe {
    pub(crate) fn name(self) -> Name {
        Name(match self {
            Self::Minimal => "minimal".into(),
            Self::Default => "default".into(),
            Self::Full => "full".into(),
        })
    }
}

/// An image's name, and its directory's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Name(String);

impl Name {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_name = text.len() <= MAX_NAME_BYTES
            && text.bytes().all(plain)
            && text.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
        // A directory of another kind is beside the images.
        if !is_name || text == "kernel" {
            return Err(format!(
                "{text:?} is no name of an image: up to {MAX_NAME_BYTES} small letters, digits and dashes, a letter first"
            ));
        }
        Ok(Self(text))
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::try_from(text.to_owned())
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

/// One file, its path beneath the directory of all images.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    pub(crate) path: PathBuf,
    /// In bytes. A root filesystem's file has holes and takes less on the disk.
    pub(crate) size: u64,
    pub(crate) sha256: String,
}

/// What is written beside an image.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    format: u32,
    pub(crate) image: Name,
    /// The hash of all that the root filesystem was made from: while it stays the same, so does that.
    pub(super) inputs: String,
    /// What `uname -r` says in a guest.
    pub(crate) kernel_release: String,
    /// As it comes from Debian: what QEMU and most others boot.
    pub(crate) kernel: FileRecord,
    /// The same, uncompressed.
    pub(crate) kernel_elf: FileRecord,
    pub(crate) initramfs: FileRecord,
    pub(crate) root: FileRecord,
    /// All packages and their versions.
    pub(crate) packages: BTreeMap<String, String>,
}

/// An image that is there: what a virtual machine boots.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    dir: PathBuf,
    manifest: Manifest,
}

impl Image {
    /// The newest build of an image.
    ///
    /// # Errors
    /// [`ImageError::Absent`] if it was never built, and what is wrong with it otherwise.
    pub(crate) fn open(images: &Path, name: &Name) -> Result<Self, ImageError> {
        let dir =
            std::path::absolute(images).map_err(ImageError::io(format!("find {}", images.display())))?;
        let path = manifest_path(&dir, name);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(ImageError::Absent { name: name.clone(), dir });
            }
            Err(error) => return Err(ImageError::io(format!("read {}", path.display()))(error)),
        };
        let unusable = |reason: String| ImageError::Manifest { path: path.clone(), reason };
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|error| unusable(error.to_string()))?;
        if manifest.format != FORMAT {
            return Err(unusable(format!("its format is {}, not {FORMAT}", manifest.format)));
        }
        Ok(Self { dir, manifest })
    }

    /// The images that are there.
    pub(crate) fn all(images: &Path) -> Result<Vec<Self>, ImageError> {
        let listed = match fs::read_dir(images) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            listed => listed.map_err(ImageError::io(format!("list {}", images.display())))?,
        };
        let mut names: Vec<Name> =
            listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        names.sort();
        let opened = names.iter().map(|name| Self::open(images, name));
        opened.filter(|image| !matches!(image, Err(ImageError::Absent { .. }))).collect()
    }

    pub(crate) const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Debian's kernel, a bzImage.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.dir.join(&self.manifest.kernel.path)
    }

    /// The same kernel as an ELF file.
    pub(crate) fn kernel_elf(&self) -> PathBuf {
        self.dir.join(&self.manifest.kernel_elf.path)
    }

    /// The archive with the runtime in it.
    pub(crate) fn initramfs(&self) -> PathBuf {
        self.dir.join(&self.manifest.initramfs.path)
    }

    /// The root filesystem. It never changes and stays when a newer one is built, so that a sprite's
    /// disk can be a difference to it.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join(&self.manifest.root.path)
    }

    /// Reads every file and compares.
    ///
    /// # Errors
    /// [`ImageError::Changed`] for the first one that is not as it was built.
    pub(crate) fn verify(&self) -> Result<(), ImageError> {
        for file in self.manifest.files() {
            if FileRecord::of(&self.dir, &file.path)? != *file {
                return Err(ImageError::Changed { path: self.dir.join(&file.path) });
            }
        }
        Ok(())
    }
}

impl Manifest {
    pub(super) fn files(&self) -> [&FileRecord; 4] {
        [&self.kernel, &self.kernel_elf, &self.initramfs, &self.root]
    }

    pub(super) fn new(
        image: Name,
        images: &Path,
        kernel: &kernel::Kernel,
        initramfs: FileRecord,
        root: Root,
    ) -> Result<Self, ImageError> {
        let mut packages = root.packages;
        packages.insert(kernel.record.package.clone(), kernel.record.version.clone());
        Ok(Self {
            format: FORMAT,
            image,
            inputs: root.inputs,
            kernel_release: kernel.record.release.clone(),
            kernel: FileRecord::of(images, &kernel.dir.join("vmlinuz"))?,
            kernel_elf: FileRecord::of(images, &kernel.dir.join("vmlinux"))?,
            initramfs,
            root: root.file,
            packages,
        })
    }

    /// Writes it, so that whoever reads finds this one or the one before it.
    pub(super) fn save(&self, images: &Path) -> Result<(), ImageError> {
        let path = manifest_path(images, &self.image);
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| ImageError::Manifest { path: path.clone(), reason: error.to_string() })?;
        let new = path.with_extension("new");
        let write = || {
            fs::write(&new, text + "\n")?;
            fs::File::open(&new)?.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(ImageError::io(format!("write {}", path.display())))
    }
}

/// A root filesystem that is there.
#[derive(Clone, Debug)]
pub(super) struct Root {
    pub(super) inputs: String,
    pub(super) file: FileRecord,
    pub(super) packages: BTreeMap<String, String>,
}

impl FileRecord {
    /// Reads the file at `path` beneath `images`.
    pub(super) fn of(images: &Path, path: &Path) -> Result<Self, ImageError> {
        let full = images.join(path);
        let (size, sha256) = checksum(&full).map_err(ImageError::io(format!("read {}", full.display())))?;
        Ok(Self { path: path.to_owned(), size, sha256 })
    }
}

fn manifest_path(images: &Path, name: &Name) -> PathBuf {
    images.join(name.as_str()).join(FILE)
}

/// A file's size and SHA-256.
pub(super) fn checksum(path: &Path) -> io::Result<(u64, String)> {
    let mut hash = Sha256::new();
    let size = io::copy(&mut fs::File::open(path)?, &mut hash)?;
    Ok((size, hex(&hash.finalize())))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(images: &Path) -> Manifest {
        let file = |name: &str| {
            fs::write(images.join(name), name).unwrap();
            FileRecord::of(images, Path::new(name)).unwrap()
        };
        Manifest {
            format: FORMAT,
            image: Recipe::Minimal.name(),
            inputs: "0".into(),
            kernel_release: "6.1".into(),
            kernel: file("vmlinuz"),
            kernel_elf: file("vmlinux"),
            initramfs: file("initramfs.cpio"),
            root: file("root.ext4"),
            packages: BTreeMap::new(),
        }
    }

    fn saved(images: &Path) -> Manifest {
        fs::create_dir(images.join("minimal")).unwrap();
        let manifest = sample(images);
        manifest.save(images).unwrap();
        manifest
    }

    #[test]
    fn what_was_saved_is_opened() {
        let images = tempfile::tempdir().unwrap();
        let manifest = saved(images.path());
        let image = Image::open(images.path(), &Recipe::Minimal.name()).unwrap();
        assert_eq!(*image.manifest(), manifest);
        assert_eq!(image.root(), images.path().join("root.ext4"));
        image.verify().unwrap();
        assert_eq!(Image::all(images.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_file_that_has_changed_is_named() {
        let images = tempfile::tempdir().unwrap();
        saved(images.path());
        fs::write(images.path().join("vmlinux"), "vmlinuz").unwrap();
        let image = Image::open(images.path(), &Recipe::Minimal.name()).unwrap();
        let error = image.verify().unwrap_err().to_string();
        assert!(error.contains("vmlinux"), "{error}");
    }

    #[test]
    fn an_image_that_was_not_built_is_said_to_be_absent() {
        let images = tempfile::tempdir().unwrap();
        let error = Image::open(images.path(), &Recipe::Full.name()).unwrap_err();
        assert!(matches!(error, ImageError::Absent { .. }));
        assert!(error.to_string().contains("image build --image full"), "{error}");
    }

    #[test]
    fn a_name_can_be_a_directorys() {
        for bad in ["", "..", "a/b", ".building", "kernel", "Minimal", "1", &"a".repeat(41)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?} was taken");
        }
        assert_eq!("python-3".parse::<Name>().unwrap().as_str(), "python-3");
    }

    #[test]
    fn a_manifest_of_another_format_is_refused() {
        let images = tempfile::tempdir().unwrap();
        let manifest = saved(images.path());
        Manifest { format: 2, ..manifest }.save(images.path()).unwrap();
        let error = Image::open(images.path(), &Recipe::Minimal.name()).unwrap_err().to_string();
        assert!(error.contains("format is 2"), "{error}");
    }
}
