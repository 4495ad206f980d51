//! A look at a shared library before the loader maps it.
//!
//! The loader trusts a library's own figures: one that was cut short, as by a broken download,
//! kills the process with SIGBUS. So its segments are compared with its size first.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

const HEADER: usize = 64;
const SEGMENT: usize = 56;
const PT_LOAD: u32 = 1;
const X86_64: u16 = 62;
const AARCH64: u16 = 183;

/// Checks that `path` is a whole 64-bit little-endian library for this processor.
///
/// # Errors
/// The reason, for people.
pub(super) fn check(path: &Path) -> Result<(), String> {
    let mut file = File::open(path).map_err(|e| e.to_string())?;
    let size = file.metadata().map_err(|e| e.to_string())?.len();
    match loaded_end(&mut file)? {
        end if end <= size => Ok(()),
        end => Err(format!(
            "the file is cut short: it has {size} of at least {end} bytes"
        )),
    }
}

/// Where the last segment that the loader maps ends in the file.
fn loaded_end(file: &mut File) -> Result<u64, String> {
    let mut header = [0u8; HEADER];
    let short = |_| "the file is cut short".to_owned();
    file.read_exact(&mut header).map_err(short)?;
    if &header[..4] != b"\x7fELF" || header[4] != 2 || header[5] != 1 {
        return Err("not a 64-bit ELF library".to_owned());
    }
    let machine = u16_at(&header, 18);
    let expected = if cfg!(target_arch = "aarch64") {
        AARCH64
    } else {
        X86_64
    };
    if machine != expected {
        return Err(format!("for another processor (ELF machine {machine})"));
    }
    let (offset, n) = (u64_at(&header, 32), u16_at(&header, 56));
    if usize::from(u16_at(&header, 54)) != SEGMENT {
        return Err("not an ELF library with segments".to_owned());
    }
    file.seek(SeekFrom::Start(offset))
        .map_err(|e| e.to_string())?;
    let mut end = 0;
    for _ in 0..n {
        let mut segment = [0u8; SEGMENT];
        file.read_exact(&mut segment).map_err(short)?;
        if u32_at(&segment, 0) == PT_LOAD {
            end = end.max(u64_at(&segment, 8).saturating_add(u64_at(&segment, 32)));
        }
    }
    Ok(end)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_takes_this_program_and_refuses_every_cut_of_it() {
        let program = std::env::current_exe().expect("path");
        check(&program).expect("a program is an ELF file too");
        let bytes = std::fs::read(&program).expect("read");
        let dir = tempfile::tempdir().expect("temp dir");
        let cut = dir.path().join("cut.so");
        let mut file = File::open(&program).expect("open");
        let end = usize::try_from(loaded_end(&mut file).expect("segments")).expect("size");
        std::fs::write(&cut, &bytes[..end]).expect("write");
        check(&cut).expect("what the loader maps is all there");
        for n in [0, 3, 63, 64, 200, end / 2, end - 1] {
            std::fs::write(&cut, &bytes[..n]).expect("write");
            assert!(check(&cut).is_err(), "{n} bytes");
        }
        std::fs::write(&cut, vec![0x41; 4096]).expect("write");
        assert!(check(&cut).is_err());
        assert!(check(&dir.path().join("none")).is_err());
    }
}
