//! The driver against a fake Firecracker, which is a process of its own: it can be stopped, killed and found
//! again like the real one. What the fake can't show is that a guest's memory survives inside a real one.

mod fake;
mod faults;
mod life;
pub(super) mod paged;
mod world;

/// This test program is executed again as a Firecracker, and as a pager; but its `main` is the harness's. The
/// loader calls this before it.
#[used]
#[unsafe(link_section = ".init_array")]
static BE_ANOTHER: extern "C" fn() = {
    extern "C" fn call() {
        super::pager::run_if_asked();
        fake::run_if_asked();
    }
    call
};
