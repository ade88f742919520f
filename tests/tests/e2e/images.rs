//! What virtual machines boot is built from Debian's packages: the mirror must be reachable.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use test_support::{Program, program};

fn image(dir: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(program(Program::Agent)?);
    command.arg("image").args(arguments).arg("--images-dir").arg(dir);
    if arguments.first() == Some(&"build") {
        command.arg("--runtime").arg(program(Program::Runtime)?).arg("--json");
    }
    Ok(command.output()?)
}

fn built(dir: &Path, arguments: &[&str]) -> anyhow::Result<Value> {
    let output = image(dir, &[&["build"], arguments].concat())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn text<'a>(manifest: &'a Value, pointer: &str) -> anyhow::Result<&'a str> {
    manifest.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no {pointer} in {manifest}"))
}

#[test]
fn an_image_is_the_same_wherever_it_is_built_and_is_built_once() -> anyhow::Result<()> {
    let (one, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let first = built(one.path(), &[])?;
    let second = built(other.path(), &["--rebuild"])?;
    for file in ["kernel", "kernel_elf", "initramfs", "root"] {
        let checksum = format!("/{file}/sha256");
        assert_eq!(text(&first, &checksum)?, text(&second, &checksum)?, "{file} differs");
    }

    let began = Instant::now();
    assert_eq!(built(one.path(), &[])?, first);
    assert!(began.elapsed() < Duration::from_secs(10), "it was built again: {:?}", began.elapsed());
    assert!(!one.path().join(".building").exists());

    let elf = fs::read(text(&first, "/kernel_elf_path")?)?;
    assert!(elf.starts_with(b"\x7fELF"));
    let newest = one.path().join("minimal/root.ext4").canonicalize()?;
    assert_eq!(newest, Path::new(text(&first, "/root_path")?).canonicalize()?);

    let own = text(&first, "/root_path")?;
    let runtime = program(Program::Runtime)?.display().to_string();
    let imported = image(one.path(), &["import", "mine", own, "--runtime", &runtime, "--json"])?;
    let imported: Value = serde_json::from_slice(&imported.stdout)
        .with_context(|| String::from_utf8_lossy(&imported.stderr).into_owned())?;
    assert_eq!(text(&imported, "/root/sha256")?, text(&first, "/root/sha256")?);
    assert!(text(&imported, "/root_path")?.contains("/mine/"));
    assert!(!image(one.path(), &["import", "minimal", own, "--runtime", &runtime])?.status.success());
    assert!(!image(one.path(), &["import", "other", &runtime, "--runtime", &runtime])?.status.success());

    assert!(image(one.path(), &["verify"])?.status.success());
    fs::write(text(&first, "/initramfs_path")?, "changed")?;
    let changed = image(one.path(), &["verify"])?;
    assert!(!changed.status.success());
    let complaint = String::from_utf8_lossy(&changed.stderr).into_owned();
    assert!(complaint.contains("initramfs"), "{complaint}");
    Ok(())
}

#[test]
fn two_builds_in_one_place_do_not_meet() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let lock = fs::File::create(dir.path().join(".lock"))?;
    lock.lock()?;
    let refused = image(dir.path(), &["build"])?;
    assert!(!refused.status.success());
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(complaint.contains("at work"), "{complaint}");
    Ok(())
}

#[test]
fn a_runtime_that_can_not_be_init_is_refused_with_a_reason() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut command = Command::new(program(Program::Agent)?);
    command.args(["image", "build", "--runtime", "/bin/sh", "--images-dir"]).arg(dir.path());
    let refused = command.output()?;
    assert!(!refused.status.success());
    let complaint = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(complaint.contains("crt-static"), "{complaint}");
    Ok(())
}
