//! Which kernel modules a guest needs, and the order in which they can be loaded.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::{ImageError, compressed, elf::Elf};

/// What a driver of ours, or the runtime, asks of a kernel. The first ones are probed first.
pub(super) const WANTED: &[(&str, Need)] = &[
    // The machine.
    ("virtio_pci", Need::Must),
    ("virtio_mmio", Need::Must),
    // The disk. ext4 asks for its checksum by an alias, which no dependency tells.
    ("virtio_blk", Need::Must),
    ("crc32c_generic", Need::May),
    ("crc32c_intel", Need::May),
    ("ext4", Need::Must),
    // The ways to the host.
    ("virtio_console", Need::Must),
    ("vsock", Need::Must),
    ("vmw_vsock_virtio_transport", Need::Must),
    ("virtio_net", Need::Must),
    // Memory that is given back, random bytes, the notice that this is a copy of another guest.
    ("virtio_balloon", Need::May),
    ("virtio_rng", Need::May),
    ("vmgenid", Need::May),
    // For what runs inside. The runtime asks for the listening sockets twice a second or so; a kernel that knows no way to
    // say them looks for a module each time, which costs it two processes.
    ("overlay", Need::May),
    ("tcp_diag", Need::May),
];

/// Whether there is no guest without it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Need {
    Must,
    May,
}

/// A module that is loaded at boot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// The wanted modules of the kernel whose `lib/modules/{release}` is `dir`, and what they depend on,
/// each after what it depends on. What is built into the kernel is left out.
pub(super) fn collect(dir: &Path, wanted: &[(&str, Need)]) -> Result<Vec<Module>, ImageError> {
    let broken = |reason: String| ImageError::Package { package: "the kernel's package".into(), reason };
    let builtin = fs::read_to_string(dir.join("modules.builtin"))
        .map_err(ImageError::io(format!("read {}", dir.join("modules.builtin").display())))?;
    let builtin = builtin.lines().filter_map(|line| module_name(Path::new(line))).collect();
    let mut search = Search { files: BTreeMap::new(), builtin, done: BTreeSet::new(), order: Vec::new() };
    files_in(dir, &mut search.files)?;
    for (name, need) in wanted {
        let there = search.files.contains_key(*name) || search.builtin.contains(*name);
        match need {
            Need::May if !there => {}
            Need::May | Need::Must => search.visit(name).map_err(broken)?,
        }
    }
    Ok(search.order)
}

struct Search {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    done: BTreeSet<String>,
    order: Vec<Module>,
}

impl Search {
    fn visit(&mut self, name: &str) -> Result<(), String> {
        if self.builtin.contains(name) || !self.done.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self.files.get(name).ok_or_else(|| format!("it has no module {name}"))?;
        let content = read(path).map_err(|error| error.to_string())?;
        let elf = Elf::parse(&content).ok_or_else(|| format!("module {name} is no ELF file"))?;
        let info = elf.module_info().ok_or_else(|| format!("module {name} has no information"))?;
        let depends: Vec<String> = info
            .filter(|(key, _)| *key == "depends")
            .flat_map(|(_, names)| names.split(','))
            .filter(|name| !name.is_empty())
            .map(|name| name.replace('-', "_"))
            .collect();
        for other in depends {
            self.visit(&other)?;
        }
        self.order.push(Module { name: name.to_owned(), content });
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    let bytes = fs::read(path).map_err(ImageError::io(format!("read {}", path.display())))?;
    compressed::expand(bytes)
}

fn files_in(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), ImageError> {
    let failed = || format!("list {}", dir.display());
    for entry in fs::read_dir(dir).map_err(ImageError::io(failed()))? {
        let entry = entry.map_err(ImageError::io(failed()))?;
        // A link leads out of the package: to sources.
        if entry.file_type().map_err(ImageError::io(failed()))?.is_dir() {
            files_in(&entry.path(), files)?;
        } else if let Some(name) = module_name(&entry.path()) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// A module's name by its file's: `kernel/drivers/block/virtio-blk.ko.xz` is `virtio_blk`.
fn module_name(path: &Path) -> Option<String> {
    let (name, rest) = path.file_name()?.to_str()?.split_once('.')?;
    (rest == "ko" || rest.starts_with("ko.")).then(|| name.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object file with a `.modinfo` as the kernel's build makes it.
    fn module(depends: &str) -> Vec<u8> {
        let info = format!("license=GPL\0depends={depends}\0");
        let names = b"\0.modinfo\0.names\0";
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(0x40, 0);
        let info_at = file.len();
        file.extend(info.as_bytes());
        let names_at = file.len();
        file.extend(names);
        let table = file.len() as u64;
        for (name, start, size) in [(0, 0, 0), (1, info_at, info.len()), (10, names_at, names.len())] {
            let at = file.len();
            file.resize(at + 0x40, 0);
            file[at..at + 4].copy_from_slice(&u32::to_le_bytes(name));
            file[at + 0x18..at + 0x20].copy_from_slice(&(start as u64).to_le_bytes());
            file[at + 0x20..at + 0x28].copy_from_slice(&(size as u64).to_le_bytes());
        }
        file[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        file[0x3a..0x40].copy_from_slice(&[0x40, 0, 3, 0, 2, 0]);
        file
    }

    fn kernel(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("kernel/drivers")).unwrap();
        fs::write(dir.path().join("modules.builtin"), "kernel/fs/built-in.ko\n").unwrap();
        for (name, depends) in modules {
            let path = dir.path().join(format!("kernel/drivers/{name}.ko"));
            fs::write(path, module(depends)).unwrap();
        }
        dir
    }

    fn order(modules: &[(&str, &str)], wanted: &[(&str, Need)]) -> Result<Vec<String>, ImageError> {
        let dir = kernel(modules);
        Ok(collect(dir.path(), wanted)?.into_iter().map(|module| module.name).collect())
    }

    #[test]
    fn a_module_comes_after_what_it_depends_on_and_once() {
        let modules = [
            ("virtio_net", "net-failover,virtio"),
            ("net-failover", "failover"),
            ("failover", ""),
            ("virtio", ""),
        ];
        let wanted = [("virtio", Need::Must), ("virtio_net", Need::Must), ("failover", Need::Must)];
        assert_eq!(order(&modules, &wanted).unwrap(), ["virtio", "failover", "net_failover", "virtio_net"]);
    }

    #[test]
    fn what_is_built_in_needs_no_file() {
        let wanted = [("built_in", Need::Must), ("user", Need::Must)];
        assert_eq!(order(&[("user", "built-in")], &wanted).unwrap(), ["user"]);
    }

    #[test]
    fn what_is_not_there_is_missed_only_if_it_must_be_there() {
        assert!(order(&[], &[("vmgenid", Need::May)]).unwrap().is_empty());
        let error = order(&[], &[("virtio_blk", Need::Must)]).unwrap_err().to_string();
        assert!(error.contains("virtio_blk"), "{error}");
    }
}
