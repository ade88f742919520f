//! Kernel modules of the initial file system.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use nix::{errno::Errno, kmod::ModuleInitFlags};

use super::{BootError, CommandLine, failed};

const MODULES: &str = "/modules";
/// The program that the kernel runs when it wants a module.
const LOADER: &str = "/proc/sys/kernel/modprobe";

/// Loads every module that `order` names, one on each line, with what the command line says to it: the kernel
/// does that itself only for what is built in.
pub(super) fn load(line: &CommandLine) -> Result<(), BootError> {
    let order = match fs::read_to_string(Path::new(MODULES).join("order")) {
        Ok(order) => order,
        // A kernel that has everything built in.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("read the list of kernel modules")(error)),
    };
    for file in order.lines().filter(|file| !file.is_empty()) {
        let name = file.split('.').next().unwrap_or(file);
        load_one(&Path::new(MODULES).join(file), &line.parameters_of(name))
            .map_err(failed(format!("load the kernel module {name}")))?;
    }
    Ok(())
}

/// Takes the kernel's way to load more by itself, unless the sprite's disk has modules for it: any program can make it look
/// for one, by asking for a kind of socket for example, and each search that ends with nothing costs two processes.
pub(super) fn settle() -> io::Result<()> {
    let kernel = nix::sys::utsname::uname()?;
    if Path::new("/lib/modules").join(kernel.release()).exists() {
        return Ok(());
    }
    match fs::write(LOADER, "\n") {
        // A kernel without modules.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn load_one(path: &Path, parameters: &str) -> io::Result<()> {
    let file = File::open(path)?;
    let parameters = std::ffi::CString::new(parameters)?;
    match nix::kmod::finit_module(&file, &parameters, ModuleInitFlags::empty()) {
        // Built in, loaded already, or for hardware that this machine has not.
        Ok(()) | Err(Errno::EEXIST | Errno::ENODEV) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
