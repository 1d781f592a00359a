//! Attacks opening and verifying a file. Checksums of preamble and sections are computed again, so that
//! mutations get past them; a second look must give the same verdict.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ultracompress::{Container, VerifyOptions};

/// Bytes `offset..offset + len` where the preamble says so, if they exist.
fn section(file: &[u8], at: usize) -> Option<&[u8]> {
    let word = |at: usize| Some(u64::from_le_bytes(file.get(at..at + 8)?.try_into().ok()?));
    let (offset, len) = (usize::try_from(word(at)?).ok()?, usize::try_from(word(at + 8)?).ok()?);
    file.get(offset..offset.checked_add(len)?)
}

fn fix_checksums(file: &mut [u8]) {
    if file.len() < 256 {
        return;
    }
    for (at, crc_at) in [(40, 76), (56, 80)] {
        if let Some(crc) = section(file, at).map(crc32fast::hash) {
            file[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let len = file.len() as u64;
    file[160..168].copy_from_slice(&len.to_le_bytes());
    let crc = crc32fast::hash(&file[..252]);
    file[252..256].copy_from_slice(&crc.to_le_bytes());
}

fn verdict(file: &[u8]) -> String {
    match Container::open(file) {
        Err(e) => e.to_string(),
        Ok(pack) => format!("{:?}", VerifyOptions::new().verify(&pack).map(|r| r.failures)),
    }
}

fuzz_target!(|data: &[u8]| {
    let mut file = data.to_vec();
    fix_checksums(&mut file);
    assert_eq!(verdict(&file), verdict(&file));
    let _ = verdict(data);
});
