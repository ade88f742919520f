//! The published SDKs, unmodified, against a real system.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, ensure};
use test_support::{Options, World};

fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("sdk")
}

/// Runs one of the scripts in `tests/sdk` with a program of `target/sdk`. What lies beside it comes along.
async fn drive(program: &str, script: &str, arguments: Vec<String>) -> anyhow::Result<()> {
    let (program, script) = (program.to_owned(), script.to_owned());
    let output = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        // Two tests that install at once would trip over each other.
        static INSTALLING: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let installing = INSTALLING.lock();
        let setup = Command::new(here().join("setup.sh")).output()?;
        ensure!(setup.status.success(), "setup.sh: {}", String::from_utf8_lossy(&setup.stderr));
        let sdk = here().join("../../target/sdk").canonicalize().context("setup.sh makes target/sdk")?;
        // Node looks for packages from the script's own place on.
        let copy = sdk.join(&script);
        let folder = copy.parent().context("a script is in a folder")?;
        std::fs::create_dir_all(folder)?;
        for file in std::fs::read_dir(here().join(&script).parent().context("a script is in a folder")?)? {
            let file = file?;
            if file.file_type()?.is_file() {
                std::fs::copy(file.path(), folder.join(file.file_name()))?;
            }
        }
        drop(installing);
        Ok(Command::new(sdk.join(program)).arg(copy).args(arguments).output()?)
    })
    .await??;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() && stdout.contains("passed"), "{stdout}\n{stderr}");
    Ok(())
}

/// The whole public surface of a package, and the table that lists it.
async fn drive_sdk(program: &str, script: &str) -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let table = here().join("../../docs/compatibility.md").to_string_lossy().into_owned();
    drive(program, script, vec![world.api(), world.token.clone(), table]).await?;
    world.stop().await
}

/// The same client finds the sprite awake, paused and cold.
async fn drive_url(program: &str, script: &str) -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("page", "public").await?;
    let ca = world.ca().to_string_lossy().into_owned();
    let arguments = vec![world.http.to_string(), world.https.to_string(), ca, sprite.host.clone()];
    drive(program, script, arguments.clone()).await?;
    for depth in ["warm", "cold"] {
        world.sleep("page", depth).await?;
        drive(program, script, arguments.clone()).await.with_context(|| format!("from {depth}"))?;
    }
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_npm_package_works_unmodified() -> anyhow::Result<()> {
    drive_sdk("node", "js/main.mjs").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pypi_package_works_unmodified() -> anyhow::Result<()> {
    drive_sdk("venv/bin/python", "py/main.py").await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_own_clients_wake_a_sprite() -> anyhow::Result<()> {
    drive_url("node", "url/url.mjs").await
}

#[tokio::test(flavor = "multi_thread")]
async fn pythons_clients_wake_a_sprite() -> anyhow::Result<()> {
    drive_url("venv/bin/python", "url/url.py").await
}
