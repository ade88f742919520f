//! QEMU's command line.
//!
//! A machine whose memory was on disk must be made of the same devices in the same order as the one that was saved,
//! so what makes the machine is kept with its state and used again, word by word. What differs between two runs
//! (descriptors, whether a state comes in) is not part of it.

use std::{
    os::fd::RawFd,
    path::{Path, PathBuf},
};

use super::{
    layout::Files,
    settings::{Egress, MachineKind},
};
use crate::drivers::size::Size;

/// The most translated code that QEMU keeps beside a machine's RAM; QEMU's own limit is a gibibyte. It is dropped when
/// there is more, and translated again as it is needed.
const MOST_TRANSLATED_MIB: u32 = 128;

/// How instructions are run, once that is decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Runs {
    Kvm,
    Tcg,
}

impl Runs {
    fn accelerator(self) -> String {
        match self {
            Self::Kvm => "kvm".into(),
            Self::Tcg => format!("tcg,tb-size={MOST_TRANSLATED_MIB}"),
        }
    }

    const fn cpu(self) -> &'static str {
        match self {
            // The state is only ever loaded on this host, so nothing need be hidden.
            Self::Kvm => "host",
            Self::Tcg => "max",
        }
    }
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub(super) struct Machine<'a> {
    pub(super) kind: MachineKind,
    pub(super) runs: Runs,
    pub(super) size: Size,
    pub(super) egress: Egress,
    pub(super) name: &'a str,
    /// The files of its disk, the one that is written first, the image last.
    pub(super) disk: &'a [PathBuf],
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    /// The speed of the host's time stamp counter, which a small machine has nothing to measure with.
    pub(super) tsc_khz: Option<u64>,
}

impl Machine<'_> {
    /// Everything that makes the machine what it is.
    pub(super) fn arguments(&self, files: &Files) -> Vec<String> {
        let Size { cpus, memory_mib, .. } = self.size;
        let (machine, bus) = match self.kind {
            MachineKind::Microvm => ("microvm", "device"),
            MachineKind::Q35 => ("q35", "pci"),
        };
        let mut words = Words(Vec::new());
        words.add("-machine", format!("{machine},memory-backend=mem"));
        words.add("-accel", self.runs.accelerator());
        words.add("-cpu", self.runs.cpu().to_owned());
        words.add("-smp", cpus.to_string());
        words.add("-m", format!("{memory_mib}M"));
        words.add(
            "-object",
            format!(
                "memory-backend-file,id=mem,size={memory_mib}M,mem-path={},share=on",
                text(files.inside(&files.ram()))
            ),
        );
        // These two are names and nothing else.
        words.add("-kernel", self.kernel.to_string_lossy().into_owned());
        words.add("-initrd", self.initramfs.to_string_lossy().into_owned());
        words.add("-append", self.command_line());
        // A state that was saved of a paused machine is loaded into one that waits, too.
        words.add("-global", "migration.store-global-state=off".into());
        words.add("-serial", format!("file:{}", text(files.inside(&files.console()))));
        words.add("-device", format!("virtio-serial-{bus}"));
        words.add(
            "-device",
            format!("virtserialport,chardev=mux,name={},nr=1", runtime_api::SERIAL_PORT_NAME),
        );
        words.add("-blockdev", block_device(self.disk));
        words.add("-device", format!("virtio-blk-{bus},drive=disk"));
        words.add("-object", "rng-random,id=rng,filename=/dev/urandom".into());
        words.add("-device", format!("virtio-rng-{bus},rng=rng"));
        match self.egress {
            Egress::None => words.add("-nic", "none".into()),
            Egress::User => {
                words.add("-netdev", "user,id=net,ipv6=off".into());
                words.add("-device", format!("virtio-net-{bus},netdev=net"));
            }
        }
        words.0
    }

    fn command_line(&self) -> String {
        let mut line = format!("console=ttyS0 quiet reboot=t panic=-1 sprite.name={}", self.name);
        if self.runs == Runs::Tcg {
            // What is translated does not speculate along the guest's branches, so what guards them only costs time.
            line.push_str(" mitigations=off");
        }
        if let Some(khz) = self.tsc_khz {
            // Without a timer to compare with, a busy host makes the kernel's own measurement fail, and the boot hang.
            line.push_str(&format!(" tsc_early_khz={khz} tsc=reliable no_timer_check"));
        }
        match self.egress {
            Egress::None => {}
            Egress::User => line.push_str(" sprite.net=10.0.2.15/24,10.0.2.2,10.0.2.3"),
        }
        line
    }
}

/// What a run of a machine needs besides: never seen by the machine itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run<'a> {
    /// The listening socket of its monitor.
    pub(super) monitor: RawFd,
    /// The listening socket of its serial port.
    pub(super) multiplexed: RawFd,
    /// The directory of images.
    pub(super) images: (&'a Path, RawFd),
    /// Whether its state comes in.
    pub(super) incoming: bool,
}

impl Run<'_> {
    /// The whole command line of a machine that is made of `machine`.
    pub(super) fn arguments(&self, machine: &[String]) -> Vec<String> {
        let mut words = Words(Vec::new());
        words.confine();
        words.0.push("-no-reboot".to_owned());
        words.add("-chardev", format!("socket,id=qmp,fd={},server=on,wait=off", self.monitor));
        words.add("-mon", "chardev=qmp,mode=control".into());
        words.add("-chardev", format!("socket,id=mux,fd={},server=on,wait=off", self.multiplexed));
        words.0.extend(machine.iter().map(|word| reached(word, self.images)));
        if self.incoming {
            words.add("-incoming", "defer".into());
            words.0.push("-S".to_owned());
        }
        words.0
    }
}

/// A word with the directory of images in it, which may not be looked into by its name, as one with a descriptor.
fn reached(word: &str, (images, descriptor): (&Path, RawFd)) -> String {
    let images = format!("{}/", images.to_string_lossy());
    // Twice where commas are: as the names of disks have them, and as those of kernels do.
    let names = [images.replace(',', ",,"), images];
    match names.iter().find(|name| word.contains(name.as_str())) {
        Some(name) => word.replace(name.as_str(), &format!("/proc/self/fd/{descriptor}/")),
        None => word.to_owned(),
    }
}

/// The whole command line of a QEMU that has no machine, to merge layers: `disk` is the new one, the two that it is made
/// of, and all below; `monitor` is a connected socket.
pub(super) fn merge(disk: &[PathBuf], monitor: RawFd, images: (&Path, RawFd)) -> Vec<String> {
    let mut words = Words(Vec::new());
    words.confine();
    words.add("-machine", "none".into());
    words.add("-chardev", format!("socket,id=qmp,fd={monitor}"));
    words.add("-mon", "chardev=qmp,mode=control".into());
    let disk = format!("{},backing.backing.backing.node-name={BASE_NODE}", block_device(disk));
    words.add("-blockdev", reached(&disk, images));
    words.0
}

/// What QEMU calls the layer that a machine was started with as its topmost.
pub(super) const TOP_NODE: &str = "disk";
/// What it calls that which a merge leaves as it is.
pub(super) const BASE_NODE: &str = "base";
/// How the words for the disk begin.
const DISK_NODE: &str = "driver=qcow2,node-name=disk,";

/// The whole chain: QEMU would look for the image by the name that the lowest layer has for it, and may not be let there.
fn block_device(disk: &[PathBuf]) -> String {
    let mut word = format!("{DISK_NODE}discard=unmap,detect-zeroes=unmap");
    let mut at = String::new();
    for (depth, file) in disk.iter().enumerate() {
        if depth > 0 {
            let driver = if depth + 1 == disk.len() { "raw" } else { "qcow2" };
            at.push_str("backing.");
            word.push_str(&format!(",{at}driver={driver}"));
        }
        word.push_str(&format!(",{at}file.driver=file,{at}file.filename={}", text(file)));
    }
    word
}

/// The words of the same machine with other files for its disk: a checkpoint was taken while it slept.
pub(super) fn with_disk(machine: &[String], disk: &[PathBuf]) -> Vec<String> {
    let word = |word: &String| match word.starts_with(DISK_NODE) {
        true => block_device(disk),
        false => word.clone(),
    };
    machine.iter().map(word).collect()
}

/// The files that a machine which is made of `machine` boots from. One that goes on needs them, too.
pub(super) fn boots_from(machine: &[String]) -> impl Iterator<Item = &Path> {
    let named = machine.windows(2).filter_map(|words| match words {
        [option, file] if matches!(option.as_str(), "-kernel" | "-initrd") => Some(file.as_str()),
        _ => None,
    });
    named.map(Path::new)
}

struct Words(Vec<String>);

impl Words {
    fn add(&mut self, option: &str, value: String) {
        self.0.extend([option.to_owned(), value]);
    }

    /// Nothing but what is asked for; and a machine that breaks out of QEMU's devices, or a disk out of its formats,
    /// finds a process that may start nothing and become nobody.
    fn confine(&mut self) {
        self.0.extend(["-nodefaults", "-no-user-config"].map(str::to_owned));
        self.add("-display", "none".into());
        self.add(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into(),
        );
    }
}

/// A path in an option's value, where a comma is written twice.
fn text(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use ids::SpriteId;

    use super::*;
    use crate::drivers::qemu::layout::Layout;

    fn machine(kind: MachineKind, egress: Egress) -> Vec<String> {
        let state = tempfile::tempdir().unwrap();
        let files = Layout::create(state.path()).unwrap().sprite(SpriteId::from_u128(1));
        let size = Size { cpus: 2, memory_mib: 256, disk_gib: 1 };
        let machine = Machine {
            kind,
            runs: Runs::Tcg,
            size,
            egress,
            name: "web",
            disk: &["layers/2.qcow2".into(), "layers/1.qcow2".into(), "/images/a,b/root.ext4".into()],
            kernel: Path::new("/images/a,b/vmlinux"),
            initramfs: Path::new("/images/initramfs"),
            tsc_khz: Some(2_000_000),
        };
        machine.arguments(&files)
    }

    #[test]
    fn both_kinds_of_machine_have_the_same_devices_on_their_buses() {
        let of = |kind| machine(kind, Egress::None).join(" ");
        let (micro, pc) = (of(MachineKind::Microvm), of(MachineKind::Q35));
        for device in ["virtio-serial", "virtio-blk", "virtio-rng"] {
            assert!(micro.contains(&format!("{device}-device")), "{micro}");
            assert!(pc.contains(&format!("{device}-pci")), "{pc}");
        }
        assert!(micro.contains("tsc_early_khz=2000000") && micro.contains("-nic none"), "{micro}");
    }

    #[test]
    fn a_merge_has_no_machine_and_leaves_what_is_below_the_two_alone() {
        let disk = ["layers/4.qcow2", "layers/3.qcow2", "layers/2.qcow2", "/images/root"].map(PathBuf::from);
        let words = merge(&disk, 7, (Path::new("/images"), 9)).join(" ");
        assert!(words.contains("-machine none") && words.contains("-sandbox on,"), "{words}");
        assert!(
            words.ends_with(
                "backing.backing.backing.file.filename=/proc/self/fd/9/root,backing.backing.backing.node-name=base"
            ),
            "{words}"
        );
    }

    #[test]
    fn a_network_card_comes_only_when_it_is_wanted() {
        let with = machine(MachineKind::Microvm, Egress::User).join(" ");
        assert!(with.contains("virtio-net-device") && with.contains("sprite.net="), "{with}");
        assert!(!machine(MachineKind::Microvm, Egress::None).join(" ").contains("virtio-net"));
    }

    #[test]
    fn what_makes_a_machine_says_nothing_of_its_run() {
        let made = machine(MachineKind::Microvm, Egress::None);
        let run = Run { monitor: 7, multiplexed: 8, images: (Path::new("/images"), 9), incoming: true };
        let run = run.arguments(&made);
        assert!(run.ends_with(&["-incoming".into(), "defer".into(), "-S".into()]));
        // Names are those in the sprite's directory, and in that of images.
        assert!(!run.iter().any(|word| word.contains("/images/")), "{run:?}");
        assert!(run.contains(&"/proc/self/fd/9/a,b/vmlinux".to_owned()));
        let disk = run.iter().find(|word| word.starts_with(DISK_NODE)).unwrap();
        assert!(disk.contains(",file.filename=layers/2.qcow2,backing.driver=qcow2,"), "{disk}");
        assert!(
            disk.ends_with(
                ",backing.backing.driver=raw,backing.backing.file.driver=file,\
                 backing.backing.file.filename=/proc/self/fd/9/a,,b/root.ext4"
            ),
            "{disk}"
        );
        assert!(made.iter().any(|word| word.contains("mem-path=memory/ram,")));
        let boots_from: Vec<_> = boots_from(&made).collect();
        assert_eq!(boots_from, [Path::new("/images/a,b/vmlinux"), Path::new("/images/initramfs")]);
        let moved = with_disk(&made, &["layers/3.qcow2".into(), "/images/root".into()]);
        assert_eq!(moved.iter().zip(&made).filter(|(one, other)| one != other).count(), 1);
        assert!(moved.join(" ").contains("filename=layers/3.qcow2"));
    }
}
