//! What virtual machines boot: a kernel, an initramfs with the runtime, and a root filesystem.
//!
//! ```text
//! {images}/
//!   kernel/{package version}/
//!     vmlinuz           as Debian built it
//!     vmlinux           the same, uncompressed: what Firecracker boots, and QEMU boots faster
//!     modules/          what a sprite needs of its modules, and the order in which they are loaded
//!     kernel.json       what was asked for, so that another list of modules is noticed
//!   initramfs-{inputs}.cpio
//!   {image}/
//!     {inputs}.ext4     the root filesystem; sprites' disks refer to it, so it never changes
//!     manifest.json     which files belong together, their sizes and checksums
//!     root.ext4         a link to the newest, for people; so are {images}/initramfs.cpio and
//!                       kernel/vmlinuz and kernel/vmlinux
//! ```
//!
//! Every file is made in `.building` and given its name when it is whole. What has a name is never
//! written again: a sprite's disk is a difference to its root filesystem and would be garbage over
//! another one. Nothing here needs root, or anything installed but what `scripts/deps.sh vm` names.
//!
//! - [`tree`]: files to be, and [`cpio`] and [`ext4`], which write them, the same bytes each time.
//! - [`apt`], [`kernel`], [`modules`], [`elf`], [`compressed`]: from a Debian package to what boots.
//! - [`initramfs`], [`minimal`], [`debian`]: what the trees hold.
//! - [`build`]: the steps in their order; [`manifest`]: what came of them.

mod apt;
mod build;
mod compressed;
mod cpio;
mod debian;
mod elf;
mod error;
mod ext4;
mod initramfs;
mod kernel;
mod manifest;
mod minimal;
mod modules;
mod tool;
mod tree;

pub(crate) use build::{Builder, Request};
pub(crate) use error::ImageError;
pub(crate) use manifest::{Image, Manifest, Name, Recipe};
