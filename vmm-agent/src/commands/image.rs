//! `vmm-agent image`: what virtual machines boot.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::{
    api::chain,
    config::images_in,
    images::{Builder, Image, ImageError, Manifest, Name, Recipe, Request},
};

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Build an image, or of it what has changed: kernel, initramfs and root filesystem
    Build {
        #[command(flatten)]
        place: Place,
        /// Which root filesystem
        #[arg(long, value_enum, default_value_t = Recipe::Minimal)]
        image: Recipe,
        #[command(flatten)]
        init: Init,
        /// Make the root filesystem again though its recipe is the same, to have newer packages
        #[arg(long)]
        rebuild: bool,
        /// Print the image's manifest
        #[arg(long)]
        json: bool,
    },
    /// Make an image of an ext4 filesystem of your own
    Import {
        #[command(flatten)]
        place: Place,
        /// What it is called from now on
        name: Name,
        /// The filesystem, which is copied
        #[arg(value_name = "FILE")]
        root: PathBuf,
        #[command(flatten)]
        init: Init,
        /// Print the image's manifest
        #[arg(long)]
        json: bool,
    },
    /// List the images that are there
    List {
        #[command(flatten)]
        place: Place,
        /// Print their manifests
        #[arg(long)]
        json: bool,
    },
    /// Read every file of the images and compare its checksum
    Verify {
        #[command(flatten)]
        place: Place,
        /// Of this one only
        #[arg(long, value_name = "NAME")]
        image: Option<Name>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Init {
    /// The static runtime that becomes PID 1 of guests [default: the file `runtime` beside this program]
    #[arg(long, value_name = "FILE")]
    runtime: Option<PathBuf>,
}

impl Init {
    fn path(self) -> PathBuf {
        // A program that can't find itself can't find its neighbour: the name alone is then not found either.
        let beside_us = || std::env::current_exe().unwrap_or_default().with_file_name("runtime");
        self.runtime.unwrap_or_else(beside_us)
    }
}

#[derive(Debug, Args)]
pub(super) struct Place {
    /// Where images are kept
    #[arg(long, value_name = "DIR", env = "SPRITES_IMAGES_DIR", required_unless_present = "state_dir")]
    images_dir: Option<PathBuf>,
    /// The agent's state directory; images are in it unless --images-dir says otherwise
    #[arg(long, value_name = "DIR", env = "SPRITES_STATE_DIR")]
    state_dir: Option<PathBuf>,
}

impl Place {
    fn dir(self) -> PathBuf {
        let in_state = || self.state_dir.as_deref().map(images_in);
        // One of the two is given; clap sees to it.
        self.images_dir.clone().or_else(in_state).unwrap_or_default()
    }
}

/// An image as `--json` shows it.
#[derive(Serialize)]
struct View<'a> {
    root_path: PathBuf,
    kernel_path: PathBuf,
    kernel_elf_path: PathBuf,
    initramfs_path: PathBuf,
    #[serde(flatten)]
    manifest: &'a Manifest,
}

impl<'a> View<'a> {
    fn of(image: &'a Image) -> Self {
        Self {
            root_path: image.root(),
            kernel_path: image.kernel(),
            kernel_elf_path: image.kernel_elf(),
            initramfs_path: image.initramfs(),
            manifest: image.manifest(),
        }
    }
}

pub(super) fn run(command: ImageCommand) -> ExitCode {
    let done = match command {
        ImageCommand::Build { place, image, init, rebuild, json } => {
            let request = Request { recipe: image, runtime: init.path(), rebuild };
            Builder::new(&place.dir())
                .and_then(|builder| builder.build(&request))
                .map(|made| show(made, json))
        }
        ImageCommand::Import { place, name, root, init, json } => Builder::new(&place.dir())
            .and_then(|builder| builder.import(&name, &root, &init.path()))
            .map(|made| show(made, json)),
        ImageCommand::List { place, json } => list(&place.dir(), json),
        ImageCommand::Verify { place, image } => verify(&place.dir(), image.as_ref()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmm-agent: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn show(image: Image, json: bool) {
    if json {
        print_json(&View::of(&image));
    } else {
        table(&[image]);
    }
}

fn list(dir: &Path, json: bool) -> Result<(), ImageError> {
    let images = Image::all(dir)?;
    if json {
        print_json(&images.iter().map(View::of).collect::<Vec<_>>());
    } else {
        table(&images);
    }
    Ok(())
}

fn verify(dir: &Path, only: Option<&Name>) -> Result<(), ImageError> {
    let images = match only {
        Some(name) => vec![Image::open(dir, name)?],
        None => Image::all(dir)?,
    };
    for image in images {
        image.verify()?;
        println!("{}: as it was built", image.manifest().image);
    }
    Ok(())
}

fn table(images: &[Image]) {
    println!("{:<10}{:>10}{:>10}  {:<26}ROOT", "IMAGE", "SIZE", "ON DISK", "KERNEL");
    for image in images {
        let (manifest, root) = (image.manifest(), image.root());
        // In units of 512 bytes, whatever the filesystem's block is.
        let on_disk = root.metadata().map_or(0, |meta| meta.blocks() * 512);
        let (size, on_disk) = (mib(manifest.root.size), mib(on_disk));
        let (name, release) = (manifest.image.as_str(), &manifest.kernel_release);
        println!("{name:<10}{size:>10}{on_disk:>10}  {release:<26}{}", root.display());
    }
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

fn print_json(value: &impl Serialize) {
    println!("{}", serde_json::to_string_pretty(value).expect("texts and numbers are JSON"));
}
