//! The published SDKs, unmodified, against a real system.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, ensure};
use test_support::{Options, World};

fn here() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("sdk")
}

/// Runs one of the scripts in `tests/sdk` with a program of `target/sdk`.
async fn drive(program: &str, script: &str) -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let (api, token) = (world.api(), world.token.clone());
    let (program, script) = (program.to_owned(), script.to_owned());
    let output = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        let setup = Command::new(here().join("setup.sh")).output()?;
        ensure!(setup.status.success(), "setup.sh: {}", String::from_utf8_lossy(&setup.stderr));
        let sdk = here().join("../../target/sdk").canonicalize().context("setup.sh makes target/sdk")?;
        // Node looks for packages from the script's own place on.
        let copy = sdk.join(&script);
        std::fs::copy(here().join(&script), &copy)?;
        Ok(Command::new(sdk.join(program)).arg(copy).args([api, token]).output()?)
    })
    .await??;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() && stdout.contains("passed"), "{stdout}\n{stderr}");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_npm_package_works_unmodified() -> anyhow::Result<()> {
    drive("node", "client.mjs").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pypi_package_works_unmodified() -> anyhow::Result<()> {
    drive("venv/bin/python", "client.py").await
}
