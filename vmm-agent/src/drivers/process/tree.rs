//! Processes as `/proc` shows them.

use std::{collections::BTreeMap, fs, io};

use nix::unistd::Pid;

use super::super::pid::{gone, read_stat, stat};

/// Whether every thread of a process is stopped, asleep for good in the kernel, or dead.
///
/// A thread in an uninterruptible sleep counts: it has our signal pending, and stops before it could
/// run its next instruction outside the kernel. (The parent of a vfork sleeps so until its child, which
/// is stopped, goes on.)
pub(super) fn is_stopped(pid: Pid) -> io::Result<bool> {
    let threads = match fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(threads) => threads,
        Err(error) if gone(&error) => return Ok(true),
        Err(error) => return Err(error),
    };
    for thread in threads {
        let thread = match thread {
            Err(error) if gone(&error) => continue,
            other => other?,
        };
        let stat = read_stat(&thread.path().join("stat").to_string_lossy())?;
        if stat.is_some_and(|stat| !matches!(stat.state, b'T' | b't' | b'Z' | b'X' | b'D')) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A process and all its descendants, parents before children. Within a pid namespace the
/// descendants of PID 1 are everyone, for orphans become its children.
pub(super) fn descendants(root: Pid) -> io::Result<Vec<Pid>> {
    let mut found = vec![root];
    let mut next = 0;
    let mut everyone = None;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        let children = match children(parent)? {
            Some(children) => children,
            // A kernel without such files: look at every process once and invert.
            None => match &mut everyone {
                Some(by_parent) => by_parent,
                none => none.insert(by_parent()?),
            }
            .remove(&parent.as_raw())
            .unwrap_or_default(),
        };
        found.extend(children);
    }
    Ok(found)
}

/// The children that any thread of a process started; `None` if this kernel does not tell.
fn children(parent: Pid) -> io::Result<Option<Vec<Pid>>> {
    let mut found = Vec::new();
    let Ok(threads) = fs::read_dir(format!("/proc/{parent}/task")) else { return Ok(Some(found)) };
    for thread in threads.flatten() {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(text) => {
                found.extend(text.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && thread.path().exists() => {
                return Ok(None);
            }
            Err(error) if gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(found))
}

fn by_parent() -> io::Result<BTreeMap<i32, Vec<Pid>>> {
    let mut found: BTreeMap<i32, Vec<Pid>> = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid::from_raw)
        else {
            continue;
        };
        if let Some(stat) = stat(pid)? {
            found.entry(stat.parent).or_default().push(pid);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_find_the_same_children() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        assert!(by_parent().unwrap()[&(std::process::id() as i32)].contains(&pid));
        assert!(descendants(Pid::this()).unwrap().contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
