//! What a guest's kernel unpacks into its memory: the runtime as `/init`, and the modules without
//! which it finds neither its disk nor its host.
//!
//! ```text
//! /init            the runtime, which is called by this name
//! /modules/*.ko    kernel modules
//! /modules/order   their file names, one a line, in the order in which they are loaded
//! /newroot         where the disk is mounted
//! /dev /proc /sys  empty but for /dev/console, the first process's stdin, stdout and stderr
//! ```

use std::{fs, path::Path};

use super::{
    ImageError, cpio,
    elf::Elf,
    kernel::Kernel,
    tree::{Content, Entry, Kind, Tree},
};

/// The archive. It is not compressed: unpacking costs an emulated guest more than loading does.
pub(super) fn make(images: &Path, kernel: &Kernel, runtime: &Path) -> Result<Vec<u8>, ImageError> {
    let mut archive = Vec::new();
    cpio::write(&tree(&images.join(&kernel.dir), &kernel.record.modules, program(runtime)?)?, &mut archive)?;
    Ok(archive)
}

fn tree(kernel: &Path, modules: &[String], runtime: Vec<u8>) -> Result<Tree, ImageError> {
    let mut tree = Tree::default();
    for (path, mode) in
        [("dev", 0o755), ("proc", 0o555), ("sys", 0o555), ("newroot", 0o755), ("modules", 0o755)]
    {
        tree.directory(path, mode)?;
    }
    tree.add("dev/console", Entry::new(Kind::CharDevice { major: 5, minor: 1 }, 0o600))?;
    tree.file("init", 0o755, runtime)?;
    let mut order = String::new();
    for name in modules {
        let file = format!("{name}.ko");
        order.push_str(&file);
        order.push('\n');
        let content = Kind::File(Content::At(kernel.join("modules").join(&file)));
        tree.add(format!("modules/{file}"), Entry::new(content, 0o644))?;
    }
    tree.file("modules/order", 0o644, order)?;
    Ok(tree)
}

/// The runtime without what is only for debuggers, which would be most of the archive.
fn program(path: &Path) -> Result<Vec<u8>, ImageError> {
    let bytes = fs::read(path).map_err(ImageError::io(format!(
        "read the runtime {} (`make build` makes it; --runtime names another)",
        path.display()
    )))?;
    Elf::parse(&bytes).and_then(|elf| elf.bare_program()).ok_or_else(|| ImageError::Runtime {
        path: path.to_owned(),
        reason: "it is no static program for x86-64 (build it with -C target-feature=+crt-static)",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_listed_in_the_order_in_which_they_are_loaded() {
        let kernel = tempfile::tempdir().unwrap();
        let modules = ["virtio".to_owned(), "ext4".to_owned()];
        let tree = tree(kernel.path(), &modules, b"runtime".to_vec()).unwrap();
        let order = tree.get("modules/order").unwrap();
        assert_eq!(order.kind, Kind::File(Content::Bytes(b"virtio.ko\next4.ko\n".to_vec())));
        assert!(tree.get("modules/virtio.ko").is_some());
    }

    #[test]
    fn a_script_can_not_be_init() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runtime");
        fs::write(&path, "#!/bin/sh\n").unwrap();
        let error = program(&path).unwrap_err().to_string();
        assert!(error.contains("crt-static"), "{error}");
    }
}
