//! What a sprite can't see and can't do.

use super::world::World;
use crate::drivers::{Driver as _, process::Settings};

#[tokio::test]
async fn a_sprite_sees_nothing_of_the_host_but_its_programs() {
    let world = World::new();
    let (id, _control) = world.sprite(101).await;
    let see = async |script: &str| world.run(id, script).await;
    // Its own processes only; the first one is the runtime.
    assert_eq!(see("cat /proc/1/comm").await, "runtime\n");
    assert!(see("ls /proc | grep -c '^[0-9]'").await.trim().parse::<u32>().unwrap() < 10);
    let state = world.state().display();
    assert_eq!(see(&format!("ls -d {state} 2>/dev/null; echo done")).await, "done\n");
    assert_eq!(see("ls /.sprite/run /run/runtime.sock 2>/dev/null; echo done").await, "done\n");
    assert_eq!(
        see("ls /etc/shadow /etc/ssh /root/.ssh /proc/1/root/boot 2>/dev/null; echo done").await,
        "done\n"
    );
    assert_eq!(see("ls /sys/class/net 2>/dev/null || echo lo; hostname").await, "lo\ndemo\n");
    assert_eq!(see("cat /proc/self/cgroup | cut -d: -f3 | sort -u").await, "/\n");
    // No descriptor of the agent or the runtime.
    assert_eq!(see("exec 3>&-; ls /proc/self/fd | tr '\\n' ' '").await.trim(), "0 1 2 3");
    assert_eq!(
        see("echo $HOME $USER $SPRITE_NAME $SPRITE_URL $EXTRA; pwd").await,
        "/home/sprite root demo http://demo-abc.sprites.localhost yes\n/home/sprite\n"
    );
    assert_eq!(see("awk '/^Uid/ {print $2}' /proc/1/status; whoami").await, "0\nroot\n");
    world.driver.destroy(id).await.unwrap();
}

#[tokio::test]
async fn root_inside_is_nobody_outside() {
    let world = World::new();
    let (id, _control) = world.sprite(102).await;
    world.run(id, "touch /home/sprite/mine").await;
    let meta = std::fs::metadata(world.files(id).join("disk/home/sprite/mine")).unwrap();
    let owner = std::os::unix::fs::MetadataExt::uid(&meta);
    let map = world.run(id, "cat /proc/self/uid_map").await;
    let map: Vec<u32> = map.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let me = nix::unistd::geteuid();
    if me.is_root() {
        assert_eq!(map, [0, owner, 65_536]);
        assert!(owner >= 100_000, "{owner}");
        // Another sprite has none of its ids.
        let (other, _control) = world.sprite(103).await;
        let other_map = world.run(other, "cat /proc/self/uid_map").await;
        let base: u32 = other_map.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(base.abs_diff(owner) >= 65_536, "{base} {owner}");
        world.driver.destroy(other).await.unwrap();
    } else {
        assert_eq!(map, [0, me.as_raw(), 1]);
        assert_eq!(owner, me.as_raw());
    }
    world.driver.destroy(id).await.unwrap();
}

#[tokio::test]
async fn a_sprite_can_not_change_its_walls() {
    let world = World::new();
    let (id, _control) = world.sprite(104).await;
    for attempt in [
        "touch /usr/mine",
        "touch /bin/mine",
        "echo x > /.sprite/bin/runtime",
        "mount -t tmpfs none /mnt",
        "mount -o remount,rw /usr",
        "umount /usr",
        "unshare --user true",
        "unshare --mount true",
        "unshare --net true",
        "nsenter --target 1 --net true",
        "chroot /proc/1/root /usr/bin/mount -t proc none /mnt",
        "mknod /tmp/sda b 8 0 && cat /tmp/sda",
        "dmesg",
        "hostname other",
        "date -s 2000-01-01",
        "echo b > /proc/sysrq-trigger",
        "echo 1 > /proc/sys/kernel/panic",
        "echo 1 > /proc/sys/vm/drop_caches",
        "kill -KILL 1 && sleep 0.1 && ! kill -0 1",
        "ip link add dummy0 type dummy",
        "python3 -c 'import ctypes; raise SystemExit(ctypes.CDLL(None).syscall(425, 1, 0) < 0)'",
        "python3 -c 'import ctypes; raise SystemExit(ctypes.CDLL(None).syscall(321, 0, 0, 0) < 0)'",
        "python3 -c 'import ctypes; raise SystemExit(ctypes.CDLL(None).syscall(0x40000000 + 39) < 0)'",
    ] {
        let said = world.run(id, &format!("if {attempt}; then echo IT WORKED; else echo no; fi")).await;
        assert!(said.ends_with("no\n"), "{attempt}: {said}");
    }
    let status = world.run(id, "grep -E 'NoNewPrivs|^Seccomp:|CapBnd|CapEff' /proc/self/status").await;
    for line in ["CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{status}");
    }
    // What a sandbox does need.
    let needed = "python3 -c 'import threading, subprocess, multiprocessing; threading.Thread(target=print, args=(1,)).start(); \
                  subprocess.run([\"true\"], check=True)' && touch /etc/mine /var/mine /opt/mine /tmp/mine /srv/mine && mkdir /data && \
                  ls -la /dev/pts /dev/shm > /dev/null && script -qc 'tty' /dev/null && : > /dev/shm/x && head -c 4 /dev/urandom > /dev/null";
    let said = world.run(id, &format!("{needed}; echo $?")).await;
    assert!(said.ends_with("\n0\n") && said.contains("/dev/pts/0"), "{said}");
    if nix::unistd::geteuid().is_root() {
        assert_eq!(
            world.run(id, "su sprite -c 'id -un; cat /etc/hosts /etc/os-release /etc/pam.d/other > /dev/null; touch /usr/x /etc/x 2>/dev/null; echo $?'").await,
            "sprite\n1\n"
        );
    }
    world.driver.destroy(id).await.unwrap();
}

#[tokio::test]
async fn a_planted_link_leads_nowhere_but_into_the_sprite() {
    let world = World::new();
    let (id, _control) = world.sprite(105).await;
    let target = world.state().join("target");
    std::fs::create_dir(&target).unwrap();
    let script = format!(
        "mv /etc /was && rmdir /srv && ln -s {0} /etc && ln -s {0} /srv && ln -sfn {0}/socket /home/sprite/link",
        target.display()
    );
    world.run(id, &script).await;
    world.driver.stop(id, std::time::Duration::from_secs(5)).await.unwrap();
    let spec = super::world::spec(105);
    world.driver.prepare(&spec).await.unwrap();
    world.driver.start(&spec, ids::Epoch(2)).await.unwrap();
    world.configure(id).await;
    assert_eq!(world.run(id, "ls /etc/ 2>/dev/null; echo done").await, "done\n");
    world.driver.destroy(id).await.unwrap();
    assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
}

#[tokio::test]
async fn a_fork_bomb_stays_in_its_sprite() {
    if !nix::unistd::geteuid().is_root() {
        return; // no cgroup can be written, which the probe says
    }
    let world = World::with(Settings { max_processes: 40, ..Settings::default() });
    let (id, _control) = world.sprite(106).await;
    let said = world.run(id, "sh -c 'for i in $(seq 100); do sleep 5 & done; wait'; true").await;
    assert!(said.to_lowercase().contains("fork"), "{said}");
    world.driver.destroy(id).await.unwrap();
}

#[tokio::test]
async fn a_sprite_gets_no_more_than_its_limits() {
    if !nix::unistd::geteuid().is_root() {
        return; // as above
    }
    let settings = Settings { max_memory_mib: Some(100), max_cpu_percent: Some(20), ..Settings::default() };
    let world = World::with(settings);
    let (id, _control) = world.sprite(107).await;
    let said = world.run(id, "python3 -c 'x = bytearray(300 << 20)'; echo $?; cat /proc/1/comm").await;
    assert!(said.ends_with("137\nruntime\n"), "{said}");
    // A loop on one core for a second gets a fifth of it, and what it had saved up.
    let spin =
        "import time; e = time.monotonic() + 1\nwhile time.monotonic() < e: pass\nprint(time.process_time())";
    let spent: f64 = world.run(id, &format!("python3 -c '{spin}'")).await.trim().parse().unwrap();
    assert!(spent < 0.5, "{spent}");
    world.driver.destroy(id).await.unwrap();
}

#[tokio::test]
async fn many_threads_take_nothing_from_another_sprite() {
    if !nix::unistd::geteuid().is_root() {
        return; // as above
    }
    let world = World::new();
    let (many, _many) = world.sprite(108).await;
    let (few, _few) = world.sprite(109).await;
    // So many processes each use the CPU for two seconds, and say how much of it they got.
    let spin = |processes: usize| {
        format!(
            "for i in $(seq {processes}); do python3 -c 'import time
e = time.monotonic() + 2
while time.monotonic() < e: pass
print(time.process_time())' & done; wait"
        )
    };
    let sum = |said: String| said.lines().map(|line| line.parse::<f64>().unwrap()).sum::<f64>();
    let cpus = std::thread::available_parallelism().unwrap().get();
    // Others on this machine may disturb one try; who gets a sixth gets it in each.
    let mut tries = Vec::new();
    for _ in 0..3 {
        let (many, few) = tokio::join!(async { sum(world.run(many, &spin(6 * cpus)).await) }, async {
            sum(world.run(few, &spin(cpus)).await)
        });
        if few > many / 3.0 {
            return;
        }
        tries.push((few, many));
    }
    panic!("seconds of CPU for a few, and for many: {tries:?}");
}
