//! Real sprites on this host. They need the runtime's static binary: `SPRITES_RUNTIME`, or
//! `target/x86_64-unknown-linux-gnu/{release,debug}/runtime`.

mod isolation;
mod life;
mod world;

/// A test binary is executed again as the launcher, like the agent; but its `main` is the harness's.
/// The loader calls this before it, with one thread.
#[used]
#[unsafe(link_section = ".init_array")]
static BE_THE_LAUNCHER: extern "C" fn() = {
    extern "C" fn call() {
        super::launcher::run_if_asked();
    }
    call
};

/// The driver of an agent that is not root, tested by all the other tests, executed again as `nobody`.
#[test]
fn all_this_holds_for_an_ordinary_user_too() {
    use std::{os::unix::fs::PermissionsExt as _, process::Command};

    if !nix::unistd::geteuid().is_root() {
        return; // we are that user already
    }
    // Copies that it may read: the originals may lie below somebody's home.
    let home = world::TempDir::new();
    let (program, runtime) = (home.path().join("tests"), home.path().join("runtime"));
    for (from, to) in [(std::env::current_exe().unwrap(), &program), (world::runtime(), &runtime)] {
        std::fs::copy(from, to).unwrap();
        std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let state = home.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::os::unix::fs::chown(&state, Some(65_534), Some(65_534)).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["drivers::process::tests::", "--test-threads=2"])
        .env("SPRITES_RUNTIME", &runtime)
        .env("TMPDIR", &state)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(" passed") && !text.contains(" 0 passed"), "{text}");
}
