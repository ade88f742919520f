//! A host with a driver, an image, and sprites on it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use ids::{Epoch, SpriteId};
use nix::unistd::Pid;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time::timeout,
};

use super::{
    super::{FirecrackerDriver, Settings, layout::Files},
    fake,
};
use crate::{
    drivers::{Driver as _, SpriteSpec},
    images,
};

fn pid_of(number: &serde_json::Value) -> Pid {
    Pid::from_raw(i32::try_from(number.as_i64().unwrap()).unwrap())
}

/// How long a guest that runs may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

pub(super) struct World {
    dir: tempfile::TempDir,
    pub(super) settings: Settings,
    pub(super) driver: FirecrackerDriver,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(|_, settings| settings)
    }

    /// One whose settings are changed by `adapt`, which gets the directory of all.
    pub(super) fn with(adapt: impl FnOnce(&Path, Settings) -> Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("images");
        fs::create_dir_all(image.join("minimal")).unwrap();
        let file = |name: &str| {
            fs::write(image.join(name), name).unwrap();
            json!({ "path": name, "size": name.len(), "sha256": "" })
        };
        let manifest = json!({
            "format": 1, "image": "minimal", "inputs": "", "kernel_release": "6.1", "packages": {},
            "kernel": file("vmlinuz"), "kernel_elf": file("vmlinux"), "initramfs": file("initramfs.cpio"),
            "root": file("root.ext4"),
        });
        fs::write(image.join("minimal/manifest.json"), manifest.to_string()).unwrap();
        let own = std::env::current_exe().unwrap();
        let program = script(
            &dir.path().join("firecracker"),
            &format!(
                "[ \"$1\" != --version ] || {{ echo '{}'; exit 0; }}\nexec {} {} \"$@\"",
                fake::VERSION,
                own.display(),
                fake::ARGUMENT
            ),
        );
        let settings = Settings {
            program,
            images_dir: Some(image),
            image: images::Recipe::Minimal.name(),
            disk_gib: Some(1),
            ..Settings::default()
        };
        let settings = adapt(dir.path(), settings);
        let driver = driver(dir.path(), &settings, fake::VERSION);
        Self { dir, settings, driver }
    }

    /// A driver beside the world's own.
    pub(super) fn another_driver(&self) -> FirecrackerDriver {
        driver(self.dir.path(), &self.settings, fake::VERSION)
    }

    /// Another agent's driver, after the first one's was killed.
    pub(super) fn next_agent(&mut self) {
        self.driver = self.another_driver();
    }

    /// The same, after Firecracker was replaced by another release.
    pub(super) fn upgraded(&mut self) {
        self.driver = driver(self.dir.path(), &self.settings, "Firecracker v9.0.0");
    }

    pub(super) fn files(&self, id: SpriteId) -> Files {
        self.driver.host.layout.sprite(id)
    }

    /// A sprite that runs.
    pub(super) async fn sprite(&self) -> SpriteId {
        let sprite = spec();
        self.driver.prepare(&sprite).await.unwrap();
        self.driver.start(&sprite, Epoch(1)).await.unwrap();
        sprite.id
    }

    /// What the guest's memory says, which is one more each time; an error if it can't be reached or is paused.
    pub(super) async fn count(&self, id: SpriteId) -> Result<(u64, u64), String> {
        let asked = async {
            let stream = UnixStream::connect(self.files(id).vsock()).await?;
            let mut stream = BufReader::new(stream);
            stream.write_all(b"CONNECT 1024\ncount\n").await?;
            let mut text = String::new();
            stream.read_line(&mut text).await?;
            text.clear();
            stream.read_line(&mut text).await?;
            std::io::Result::Ok(text)
        };
        let text =
            timeout(ANSWER, asked).await.map_err(|_| "silent".to_owned())?.map_err(|e| e.to_string())?;
        let (nonce, count) = text.trim().split_once(' ').ok_or(format!("answered {text:?}"))?;
        Ok((nonce.parse().unwrap(), count.parse().unwrap()))
    }

    /// The process of the sprite's machine.
    pub(super) fn pid(&self, id: SpriteId) -> Pid {
        pid_of(&self.record(id)["pid"])
    }

    /// The process that brings its memory.
    pub(super) fn pager(&self, id: SpriteId) -> Pid {
        pid_of(&self.record(id)["pager"]["pid"])
    }

    fn record(&self, id: SpriteId) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.files(id).process()).unwrap()).unwrap()
    }
}

impl Drop for World {
    /// A machine outlives its agent, but not its test.
    fn drop(&mut self) {
        for entry in fs::read_dir(self.driver.host.layout.sprites()).into_iter().flatten().flatten() {
            let Ok(record) = fs::read(entry.path().join("process.json")) else { continue };
            let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
            if let Some(pid) = record["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()) {
                let _gone = nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
    }
}

pub(super) fn spec() -> SpriteSpec {
    SpriteSpec {
        id: SpriteId::from_u128(rand::random()),
        name: "test".parse().unwrap(),
        resources: Default::default(),
    }
}

fn driver(state: &Path, settings: &Settings, version: &str) -> FirecrackerDriver {
    FirecrackerDriver::assemble(state, settings.clone(), version.into()).unwrap()
}

pub(super) fn script(path: &Path, text: &str) -> PathBuf {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_owned()
}
