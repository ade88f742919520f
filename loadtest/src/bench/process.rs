//! What a process and its children have used.

use std::{collections::HashMap, fs, time::Duration};

use anyhow::Context;

/// The kernel's unit for programs (`USER_HZ`), on every architecture that we run on.
const TICK: Duration = Duration::from_millis(10);

struct Stat {
    parent: u32,
    ticks: u32,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything; after it come the fields from the third on.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u32>().ok();
    Some(Stat { parent: number(4)?, ticks: number(14)? + number(15)? })
}

/// A process and its descendants.
pub(crate) fn tree(root: u32) -> anyhow::Result<Vec<u32>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(stat) = stat(pid) {
            children.entry(stat.parent).or_default().push(pid);
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    Ok(found)
}

/// User and system time of all threads of these processes.
pub(crate) fn cpu(pids: &[u32]) -> anyhow::Result<Duration> {
    let ticks = pids.iter().map(|pid| stat(*pid).map(|stat| stat.ticks)).sum::<Option<u32>>();
    Ok(TICK * ticks.context("a process has ended")?)
}

/// The proportional set size of these processes, in KiB: user memory, shared pages counted in part.
pub(crate) fn memory_kib(pids: &[u32]) -> anyhow::Result<f64> {
    let mut total = 0.0;
    for pid in pids {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("smaps_rollup has Pss")?;
        total += line.trim().trim_end_matches(" kB").parse::<f64>()?;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn work_shows_as_cpu_time_of_its_process() -> anyhow::Result<()> {
        let us = [std::process::id()];
        let (before, began) = (cpu(&us)?, Instant::now());
        while cpu(&us)? < before + 3 * TICK {
            assert!(began.elapsed() < Duration::from_secs(20), "the time stands still");
        }
        Ok(())
    }

    #[test]
    fn a_tree_has_its_root_and_its_children() -> anyhow::Result<()> {
        let mut child = std::process::Command::new("sleep").arg("60").spawn()?;
        let tree = tree(std::process::id());
        child.kill()?;
        child.wait()?;
        let tree = tree?;
        assert!(tree.contains(&std::process::id()) && tree.contains(&child.id()));
        Ok(())
    }
}
