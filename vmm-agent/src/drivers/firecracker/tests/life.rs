//! Sprites from their making to their end.

use std::{fs, path::Path, time::Duration};

use ids::Epoch;
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use tokio::time::timeout;

use super::{
    super::{Settings, api::ApiError, machine::Machine, memory::Memory, settings::MemoryBackend},
    world::{World, script, spec},
};
use crate::drivers::{Adopted, Driver as _, DriverError, Resumed};

const SOON: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(2);

fn is_alive(pid: nix::unistd::Pid) -> bool {
    kill(pid, None).is_ok()
}

fn memories(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("memory.")).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_sprite_is_started_once_its_runtime_listens_and_leaves_nothing_when_it_is_stopped() {
    let world = World::new();
    let id = world.sprite().await;
    let (_, count) = world.count(id).await.unwrap();
    assert_eq!(count, 1);
    let again = world.driver.start(&crate::drivers::SpriteSpec { id, ..spec() }, Epoch(2)).await;
    assert!(matches!(again, Err(DriverError::AlreadyRunning { .. })), "{again:?}");
    let pid = world.pid(id);
    world.driver.stop(id, SOON).await.unwrap();
    assert!(!is_alive(pid));
    let files = world.files(id);
    assert!(!files.vsock().exists() && !files.api().exists() && !files.process().exists());
    assert!(
        files.disk().metadata().unwrap().len() == 1 << 30,
        "its disk stays, as large as it may be filled"
    );
    world.driver.stop(id, SOON).await.unwrap();
}

#[tokio::test]
async fn a_paused_sprite_answers_nothing_and_goes_on_when_it_is_resumed() {
    let world = World::new();
    let id = world.sprite().await;
    let before = world.count(id).await.unwrap();
    world.driver.pause(id).await.unwrap();
    world.driver.pause(id).await.unwrap();
    let silent = timeout(Duration::from_millis(200), world.count(id)).await;
    assert!(silent.is_err(), "it answered {silent:?}");
    assert_eq!(world.driver.resume(id).await.unwrap(), Resumed::FromRam);
    let after = world.count(id).await.unwrap();
    assert_eq!(after.0, before.0);
    assert!(after.1 > before.1);
}

#[tokio::test]
async fn memory_survives_any_number_of_suspensions() {
    let world = World::new();
    let id = world.sprite().await;
    let (nonce, _) = world.count(id).await.unwrap();
    for turn in 1..=4 {
        let pid = world.pid(id);
        world.driver.pause(id).await.unwrap();
        world.driver.suspend(id).await.unwrap();
        assert!(!is_alive(pid), "its machine holds RAM");
        world.driver.suspend(id).await.unwrap();
        assert_eq!(memories(world.files(id).machine()).len(), 1, "only the newest takes room");
        assert_eq!(world.driver.resume(id).await.unwrap(), Resumed::FromDisk);
        assert_eq!(world.count(id).await.unwrap(), (nonce, 1 + turn));
    }
}

#[tokio::test]
async fn memory_survives_that_a_pager_brings() {
    let mut world = World::with(|_, settings| Settings { memory_backend: MemoryBackend::Uffd, ..settings });
    let id = world.sprite().await;
    let (nonce, _) = world.count(id).await.unwrap();
    for turn in 1..=3 {
        world.driver.pause(id).await.unwrap();
        world.driver.suspend(id).await.unwrap();
        world.driver.resume(id).await.unwrap();
        assert_eq!(world.count(id).await.unwrap(), (nonce, 1 + turn));
    }
    // The pager outlives its agent, and the machine does not outlive its pager.
    world.next_agent();
    assert_eq!(world.driver.adopt(id).await.unwrap(), Some(Adopted::Running));
    kill(world.pager(id), Signal::SIGKILL).unwrap();
    timeout(SOON, world.driver.exited(id)).await.unwrap();
    world.driver.stop(id, Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn no_memory_is_loaded_twice() {
    let mut world = World::new();
    let id = world.sprite().await;
    world.driver.pause(id).await.unwrap();
    world.driver.suspend(id).await.unwrap();
    world.driver.resume(id).await.unwrap();
    let machine = world.pid(id);
    kill(machine, Signal::SIGKILL).unwrap();
    timeout(SOON, world.driver.exited(id)).await.unwrap();
    world.next_agent();
    assert_eq!(world.driver.adopt(id).await.unwrap(), None, "it has gone on since it was saved");
    let refused = world.driver.resume(id).await;
    assert!(matches!(refused, Err(DriverError::NotRunning { .. })), "{refused:?}");
}

#[tokio::test]
async fn the_next_agent_finds_a_sprite_as_the_last_one_left_it() {
    let mut world = World::new();
    let id = world.sprite().await;
    let (nonce, _) = world.count(id).await.unwrap();
    world.next_agent();
    assert_eq!(world.driver.adopt(id).await.unwrap(), Some(Adopted::Running));
    world.driver.pause(id).await.unwrap();
    world.next_agent();
    assert_eq!(world.driver.adopt(id).await.unwrap(), Some(Adopted::Paused));
    world.driver.suspend(id).await.unwrap();
    world.next_agent();
    assert_eq!(world.driver.adopt(id).await.unwrap(), Some(Adopted::Suspended));
    world.driver.resume(id).await.unwrap();
    assert_eq!(world.count(id).await.unwrap().0, nonce);
    world.next_agent();
    world.driver.stop(id, Duration::ZERO).await.unwrap();
    assert_eq!(world.driver.adopt(id).await.unwrap(), None);
}

#[tokio::test]
async fn an_agent_that_was_killed_between_a_memory_and_its_machines_end_has_suspended_it() {
    let mut world = World::new();
    let id = world.sprite().await;
    let (nonce, count) = world.count(id).await.unwrap();
    world.driver.pause(id).await.unwrap();
    let files = world.files(id);
    let machine = world.driver.host.machine(id).unwrap();
    world.driver.host.save(&machine, &files).await.unwrap();
    let pid = world.pid(id);
    world.next_agent();
    assert_eq!(world.driver.adopt(id).await.unwrap(), Some(Adopted::Suspended));
    assert!(!is_alive(pid));
    world.driver.resume(id).await.unwrap();
    assert_eq!(world.count(id).await.unwrap(), (nonce, count + 1));
}

#[tokio::test]
async fn an_agent_that_was_killed_while_it_loaded_a_memory_has_not_used_it() {
    let mut world = World::new();
    let id = world.sprite().await;
    let (nonce, count) = world.count(id).await.unwrap();
    world.driver.pause(id).await.unwrap();
    world.driver.suspend(id).await.unwrap();
    let files = world.files(id);
    let machine = world.driver.host.spawn(id, &files, None).await.unwrap();
    let memory = Memory::ready(&files).unwrap().unwrap();
    let load = json!({ "snapshot_path": memory.state_name(), "resume_vm": false,
        "mem_backend": { "backend_type": "File", "backend_path": memory.memory_name() } });
    machine.api.put("/snapshot/load", &load, LIMIT).await.unwrap();
    let pid = world.pid(id);
    world.next_agent();
    assert_eq!(world.driver.adopt(id).await.unwrap(), Some(Adopted::Suspended));
    assert!(!is_alive(pid));
    world.driver.resume(id).await.unwrap();
    assert_eq!(world.count(id).await.unwrap(), (nonce, count + 1));
}

#[tokio::test]
async fn a_suspension_without_room_leaves_a_paused_sprite_that_goes_on() {
    let mut world = World::new();
    let id = world.sprite().await;
    let (nonce, _) = world.count(id).await.unwrap();
    let full = world.files(id).machine().join("no-space");
    fs::write(&full, "").unwrap();
    world.driver.pause(id).await.unwrap();
    let error = world.driver.suspend(id).await.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("No space left"), "{cause}");
    assert!(memories(world.files(id).machine()).is_empty(), "half a memory takes room");
    // Whoever resumes it, this agent or the next.
    world.next_agent();
    assert_eq!(world.driver.adopt(id).await.unwrap(), Some(Adopted::Paused));
    assert_eq!(world.driver.resume(id).await.unwrap(), Resumed::FromRam);
    assert_eq!(world.count(id).await.unwrap().0, nonce);
    fs::remove_file(full).unwrap();
    world.driver.pause(id).await.unwrap();
    world.driver.suspend(id).await.unwrap();
    world.driver.resume(id).await.unwrap();
    assert_eq!(world.count(id).await.unwrap().0, nonce);
}

#[tokio::test]
async fn memory_of_another_release_is_refused_and_the_sprite_starts_cold() {
    let mut world = World::new();
    let sprite = spec();
    world.driver.prepare(&sprite).await.unwrap();
    world.driver.start(&sprite, Epoch(1)).await.unwrap();
    let id = sprite.id;
    let (nonce, _) = world.count(id).await.unwrap();
    world.driver.pause(id).await.unwrap();
    world.driver.suspend(id).await.unwrap();
    world.upgraded();
    let error = world.driver.resume(id).await.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("v9.0.0"), "{cause}");
    world.driver.stop(id, Duration::ZERO).await.unwrap();
    world.driver.start(&sprite, Epoch(2)).await.unwrap();
    assert_ne!(world.count(id).await.unwrap().0, nonce);
    assert!(memories(world.files(id).machine()).is_empty(), "nothing refers to it any more");
}

#[tokio::test]
async fn memory_that_can_not_be_read_ends_in_an_error_and_nothing_that_runs() {
    let world = World::new();
    let id = world.sprite().await;
    world.driver.pause(id).await.unwrap();
    world.driver.suspend(id).await.unwrap();
    let machine = world.files(id).machine().to_owned();
    fs::write(machine.join(&memories(&machine)[0]), "garbage").unwrap();
    assert!(world.driver.resume(id).await.is_err());
    assert!(!world.files(id).process().exists());
    timeout(SOON, world.driver.exited(id)).await.unwrap();
}

#[tokio::test]
async fn a_machine_that_ends_is_noticed() {
    let world = World::new();
    let id = world.sprite().await;
    kill(world.pid(id), Signal::SIGKILL).unwrap();
    timeout(SOON, world.driver.exited(id)).await.unwrap();
    world.driver.stop(id, Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn a_destroyed_sprite_leaves_no_file() {
    let world = World::new();
    let id = world.sprite().await;
    let pid = world.pid(id);
    world.driver.destroy(id).await.unwrap();
    assert!(!is_alive(pid));
    let left: Vec<_> = fs::read_dir(world.driver.host.layout.sprites()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    world.driver.destroy(id).await.unwrap();
}

#[tokio::test]
async fn a_program_that_ends_at_once_is_quoted() {
    let world = World::with(|dir, settings| {
        let program = script(&dir.join("broken"), "echo 'cannot open KVM'; exit 1");
        Settings { program, ..settings }
    });
    let sprite = spec();
    world.driver.prepare(&sprite).await.unwrap();
    let error = world.driver.start(&sprite, Epoch(1)).await.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("cannot open KVM"), "{cause}");
}

#[tokio::test]
async fn a_jailed_machine_has_a_user_of_its_own_and_finds_its_files_in_its_root() {
    if !nix::unistd::geteuid().is_root() {
        // The jailer itself needs root.
        return;
    }
    let world = World::with(|dir, settings| {
        // What the jailer does with its arguments, without the jail.
        let jailer = script(
            &dir.join("jailer"),
            "[ \"$1 $3 $5 $7 $9\" = '--id --exec-file --uid --gid --chroot-base-dir' ] || exit 64\n\
             id=$2 program=$4 uid=$6 base=${10}\n[ \"${11} ${13}\" = '--resource-limit --' ] || exit 64\nshift 13\n\
             cd \"$base/firecracker/$id/root\" && echo \"$uid\" >by-user && mkdir dev && exec \"$program\" \"$@\"",
        );
        Settings { jailer: Some(jailer), first_id: 700_000, ..settings }
    });
    let (one, other) = (world.sprite().await, world.sprite().await);
    for (id, uid) in [(one, "700000"), (other, "700001")] {
        let root = world.files(id).machine().to_owned();
        assert!(root.ends_with(format!("jails/firecracker/{id}/root")), "{root:?}");
        assert_eq!(fs::read_to_string(root.join("by-user")).unwrap().trim(), uid);
        assert_eq!(fs::read_to_string(root.join("vmlinux")).unwrap(), "vmlinux");
        assert!(!root.join("vmlinux").is_symlink(), "there is no way out of a jail");
        world.driver.pause(id).await.unwrap();
        world.driver.suspend(id).await.unwrap();
        world.driver.resume(id).await.unwrap();
        world.count(id).await.unwrap();
        world.driver.destroy(id).await.unwrap();
        assert!(!root.exists());
    }
}

/// The fake is as strict as the real one, or the tests above would show nothing.
#[tokio::test]
async fn the_wrong_order_is_refused() {
    let world = World::new();
    let sprite = spec();
    world.driver.prepare(&sprite).await.unwrap();
    let files = world.files(sprite.id);
    let machine: Machine = world.driver.host.spawn(sprite.id, &files, None).await.unwrap();
    let api = &machine.api;
    let refused = |outcome: Result<(), ApiError>| match outcome {
        Err(ApiError::Refused { status, fault, .. }) => {
            assert_eq!(status, 400);
            fault
        }
        other => panic!("it was not refused: {other:?}"),
    };
    let paused = json!({ "state": "Paused" });
    assert!(refused(api.patch("/vm", &paused, LIMIT).await).contains("before starting"));
    let save = json!({ "snapshot_path": "s", "mem_file_path": "m" });
    assert!(refused(api.put("/snapshot/create", &save, LIMIT).await).contains("before starting"));
    let start = json!({ "action_type": "InstanceStart" });
    assert!(refused(api.put("/actions", &start, LIMIT).await).contains("kernel"));
    let vsock = json!({ "guest_cid": 3, "uds_path": "v.sock" });
    let kernel = json!({ "kernel_image_path": "vmlinux", "initrd_path": "initramfs", "boot_args": "" });
    api.put("/vsock", &vsock, LIMIT).await.unwrap();
    api.put("/boot-source", &kernel, LIMIT).await.unwrap();
    api.put("/actions", &start, LIMIT).await.unwrap();
    assert!(refused(api.put("/vsock", &vsock, LIMIT).await).contains("after starting"));
    assert!(refused(api.put("/snapshot/create", &save, LIMIT).await).contains("while running"));
    assert!(refused(api.put("/nothing", &save, LIMIT).await).contains("Invalid request"));
    machine.kill().unwrap();
    machine.exited().await;

    let machine = world.driver.host.spawn(sprite.id, &files, None).await.unwrap();
    machine.api.put("/boot-source", &kernel, LIMIT).await.unwrap();
    let load =
        json!({ "snapshot_path": "s", "mem_backend": { "backend_type": "File", "backend_path": "m" } });
    assert!(refused(machine.api.put("/snapshot/load", &load, LIMIT).await).contains("not allowed after"));
    timeout(SOON, machine.exited()).await.expect("a load that fails ends the process");
}
