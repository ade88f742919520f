//! Kernels and modules are compressed, in a way that differs from release to release.

use std::{
    io::{self, Write as _},
    process::Stdio,
    thread,
};

use super::{ImageError, tool::Tool};

/// What a compressed file begins with, and what expands it.
const FORMATS: [(&[u8], Tool); 4] = [
    (b"\xfd7zXZ\0", tool("xz", "xz-utils")),
    (b"\x28\xb5\x2f\xfd", tool("zstd", "zstd")),
    (b"\x02\x21\x4c\x18", tool("lz4", "lz4")),
    (b"\x1f\x8b", tool("gzip", "gzip")),
];

const fn tool(name: &'static str, package: &'static str) -> Tool {
    Tool {
        name,
        package,
        advice: "The package seems to be broken; remove it from the images and build again.",
    }
}

/// The content of what may be compressed.
pub(super) fn expand(bytes: Vec<u8>) -> Result<Vec<u8>, ImageError> {
    let Some((_, tool)) = FORMATS.iter().find(|(magic, _)| bytes.starts_with(magic)) else {
        return Ok(bytes);
    };
    let mut command = tool.command();
    command.arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = tool.started(&mut command)?;
    let input = child.stdin.take();
    let output = thread::scope(|scope| {
        // It writes before it has read everything; what it did not want to read, it complains about.
        scope.spawn(|| input.map_or(Ok(()), |mut input| input.write_all(&bytes)));
        child.wait_with_output()
    });
    let output =
        output.map_err(|error: io::Error| ImageError::io(format!("expand by {}", tool.name))(error))?;
    if !output.status.success() {
        return Err(tool.failed(&command, output.status, &String::from_utf8_lossy(&output.stderr)));
    }
    Ok(output.stdout)
}

/// The kernel in a bzImage (the kernel's Documentation/arch/x86/boot.rst), which Firecracker can't boot:
/// an ELF file.
pub(super) fn kernel(image: &[u8]) -> Result<Vec<u8>, ImageError> {
    let broken = |reason: &str| ImageError::Package { package: "the kernel".into(), reason: reason.into() };
    let payload = payload(image).ok_or_else(|| broken("it is no bzImage"))?;
    let kernel = expand(payload.to_vec())?;
    if !kernel.starts_with(b"\x7fELF") {
        return Err(broken("it is compressed in a way that is not known here"));
    }
    Ok(kernel)
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let u32_at = |at: usize| image.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize);
    // "HdrS", and a version of the header that tells where the payload is.
    if image.get(0x202..0x206)? != b"HdrS" || u32_at(0x206)? & 0xffff < 0x208 {
        return None;
    }
    let sectors = match *image.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * 512 + u32_at(0x248)?;
    let payload = image.get(start..start.checked_add(u32_at(0x24c)?)?)?;
    // But for gzip, which has it itself, the size of the content is appended.
    if payload.starts_with(b"\x1f\x8b") {
        Some(payload)
    } else {
        payload.get(..payload.len().checked_sub(4)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bz_image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * 512];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend([0x90; 16]);
        image.extend(payload);
        image.extend([0x90; 100]);
        image
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("content");
        std::fs::write(&path, content).unwrap();
        std::process::Command::new("gzip").arg("-c").arg(path).output().unwrap().stdout
    }

    #[test]
    fn the_kernel_in_a_compressed_image_is_found() {
        let kernel_in_it = [b"\x7fELF".as_slice(), &[1; 100_000]].concat();
        assert!(kernel(&bz_image(&gzip(&kernel_in_it))).unwrap() == kernel_in_it);
    }

    #[test]
    fn what_is_not_compressed_stays_as_it_is() {
        assert_eq!(expand(b"\x7fELF".to_vec()).unwrap(), b"\x7fELF");
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let mut bytes = gzip(&[1; 1000]);
        bytes.truncate(20);
        assert!(matches!(expand(bytes), Err(ImageError::Failed { .. })));
        assert!(kernel(b"MZ").is_err());
        assert!(kernel(&bz_image(b"LZMA?")).is_err());
    }
}
