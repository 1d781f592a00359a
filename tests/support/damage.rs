//! Packs that were changed, with the checksums that should tell made right again.

use ultracompress::format::TreeHasher;

use super::random::size;

/// The word of 8 bytes at `at`.
pub fn word(file: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(file[at..at + 8].try_into().expect("8 bytes"))
}

/// Makes the checksum of the preamble right.
pub fn seal_preamble(file: &mut [u8]) {
    let crc = crc32fast::hash(&file[..252]);
    file[252..256].copy_from_slice(&crc.to_le_bytes());
}

/// Makes the checksums of the index, where there is one, and of the preamble right.
pub fn seal_index(file: &mut [u8]) {
    let (start, len) = (word(file, 40), word(file, 48));
    let index = usize::try_from(start).ok().zip(usize::try_from(len).ok());
    let index = index.and_then(|(start, len)| file.get(start..start.checked_add(len)?));
    if let Some(crc) = index.map(crc32fast::hash) {
        file[76..80].copy_from_slice(&crc.to_le_bytes());
    }
    seal_preamble(file);
}

/// The file with other bytes in the preamble, whose checksum is right.
pub fn patched(file: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    seal_preamble(&mut file);
    file
}

/// The file with other bytes anywhere, and the checksums of preamble and index right.
pub fn patched_anywhere(file: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    seal_index(&mut file);
    file
}

/// The file with other bytes at a place counted from the beginning of the index, and both checksums
/// right.
pub fn patched_index(file: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    patched_anywhere(file, size(word(file, 40)) + at, bytes)
}

/// Makes every digest and checksum of a changed file right again, as a hostile author would: only
/// what the bytes mean can give it away.
pub fn resealed(file: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    seal_index(&mut file);
    let mut core = file[..size(word(&file, 32))].to_vec();
    core[128..256].fill(0);
    let mut tree = TreeHasher::new();
    core.chunks(1 << 20).for_each(|leaf| tree.push(TreeHasher::leaf(leaf)));
    file[128..160].copy_from_slice(&tree.root().0);
    seal_preamble(&mut file);
    file
}
