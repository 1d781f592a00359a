//! Checksums computed again, so that mutations get past them.

/// Bytes `offset..offset + len` where the preamble says so, if they exist.
fn section(file: &[u8], at: usize) -> Option<&[u8]> {
    let word = |at: usize| Some(u64::from_le_bytes(file.get(at..at + 8)?.try_into().ok()?));
    let (offset, len) = (usize::try_from(word(at)?).ok()?, usize::try_from(word(at + 8)?).ok()?);
    file.get(offset..offset.checked_add(len)?)
}

/// Those of the preamble and of its sections; the length too.
pub fn fix_checksums(file: &mut [u8]) {
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

/// Puts `new` where `old` stands in the index section; nothing where it doesn't.
#[allow(dead_code, reason = "not every target has parts")]
pub fn replace_in_index(file: &mut [u8], old: u32, new: u32) {
    let Some(len) = section(file, 40).map(<[u8]>::len) else { return };
    let Ok(start) = usize::try_from(u64::from_le_bytes(file[40..48].try_into().expect("8"))) else {
        return;
    };
    let index = &mut file[start..start + len];
    if let Some(at) = index.windows(4).position(|w| w == old.to_le_bytes()) {
        index[at..at + 4].copy_from_slice(&new.to_le_bytes());
    }
}
