//! Verifying a whole pack: every stored byte, both roots, every decoded tensor.

use sha2::{Digest as _, Sha256};

use super::Manifest;
use crate::container::{Container, DecodeOptions, ReadAt};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    ALIGN_BYTES, CHUNK_BYTES, Digest, Encoding, PREAMBLE_BYTES, Rule, TreeHasher, decoded_root,
    to_usize,
};
use crate::par;
use crate::progress::{NoProgress, Progress, step};

/// The outcome of one comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Compared and equal.
    Ok,
    /// Compared and different.
    Mismatch,
    /// Not compared.
    NotChecked,
}

impl Check {
    /// The word used in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Mismatch => "mismatch",
            Self::NotChecked => "not_checked",
        }
    }

    fn of(failures: &[Failure]) -> Self {
        if failures.is_empty() { Self::Ok } else { Self::Mismatch }
    }
}

/// One thing that is wrong with a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind of error it is.
    pub kind: ErrorKind,
    /// The tensor or file concerned.
    pub tensor: Option<String>,
    /// The part or section concerned.
    pub part: Option<String>,
    /// Where in the file.
    pub offset_bytes: Option<u64>,
    /// What was found and expected.
    pub reason: String,
}

impl From<&Error> for Failure {
    fn from(e: &Error) -> Self {
        let reason = match e.kind() {
            ErrorKind::Malformed(rule) => format!("{} ({rule})", e.message()),
            _ => e.message().to_owned(),
        };
        Self {
            kind: e.kind().clone(),
            tensor: e.tensor().map(str::to_owned),
            part: e.part().map(str::to_owned),
            offset_bytes: e.offset_bytes(),
            reason,
        }
    }
}

/// How much to verify.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct VerifyOptions {
    /// Decode every tensor and compare it with its digest. Default true.
    pub decode: bool,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self { decode: true }
    }
}

/// What [`VerifyOptions::verify`] found.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Checksums of every part, padding, manifest and attachments.
    pub structure: Check,
    /// The stored root, computed again from the file's bytes.
    pub stored: Check,
    /// Every tensor's decoded digest, and the decoded root over them.
    pub decoded: Check,
    /// Tensors that were decoded and compared.
    pub tensors_checked: usize,
    /// The stored root as computed from the bytes.
    pub stored_root: Digest,
    /// The decoded root as computed from decoded tensors; from the recorded digests when decoding
    /// was not asked for.
    pub decoded_root: Digest,
    /// Everything that is wrong.
    pub failures: Vec<Failure>,
}

impl VerifyReport {
    /// Whether everything that was compared is equal.
    pub fn is_ok(&self) -> bool {
        self.failures.is_empty()
    }
}

impl VerifyOptions {
    /// Verifies everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`VerifyOptions::decode`].
    #[must_use]
    pub fn with_decode(mut self, decode: bool) -> Self {
        self.decode = decode;
        self
    }

    /// Verifies an open pack. What is wrong is listed in the report; an error means that the pack
    /// could not be examined.
    ///
    /// # Errors
    /// `Io`, `Cancelled`, `LimitExceeded`.
    pub fn verify<R: ReadAt + Sync>(&self, pack: &Container<R>) -> Result<VerifyReport> {
        self.verify_with(pack, &NoProgress)
    }

    /// As [`VerifyOptions::verify`], with progress in bytes of the file (stored part) and of decoded
    /// tensors.
    ///
    /// # Errors
    /// As [`VerifyOptions::verify`].
    pub fn verify_with<R: ReadAt + Sync>(
        &self,
        pack: &Container<R>,
        progress: &dyn Progress,
    ) -> Result<VerifyReport> {
        let mut failures = check_structure(pack, progress)?;
        let structure = Check::of(&failures);

        let p = pack.preamble();
        let stored_root = compute_stored_root(pack, progress)?;
        let mut stored = Check::Ok;
        if stored_root != p.stored_root {
            stored = Check::Mismatch;
            let e = Error::integrity(format!(
                "stored root is {stored_root}, the preamble says {} ({})",
                p.stored_root,
                Rule::ROOT_3
            ));
            failures.push(Failure::from(&e.in_part("preamble").at(128)));
        }

        let mut root = decoded_root(&pack.index().tensors);
        let mut tensors_checked = 0;
        let mut decoded_failures = Vec::new();
        if self.decode {
            let digests = decode_all(pack, progress)?;
            tensors_checked = digests.iter().filter(|d| d.is_ok()).count();
            let mut entries = pack.index().tensors.clone();
            for (entry, digest) in entries.iter_mut().zip(digests) {
                let found = match digest {
                    Ok(found) if found == entry.decoded_sha256 => continue,
                    Ok(found) => {
                        let e = Error::integrity(format!(
                            "decoded SHA-256 is {found}, the index says {} ({})",
                            entry.decoded_sha256,
                            Rule::TEN_5
                        ));
                        decoded_failures.push(Failure::from(&e.in_tensor(&entry.name)));
                        found
                    }
                    Err(failure) => {
                        decoded_failures.push(failure);
                        continue;
                    }
                };
                entry.decoded_sha256 = found;
            }
            root = decoded_root(&entries);
        }
        if decoded_root(&pack.index().tensors) != p.decoded_root {
            let e = Error::integrity(format!(
                "decoded root over the index is {}, the preamble says {} ({})",
                decoded_root(&pack.index().tensors),
                p.decoded_root,
                Rule::ROOT_2
            ));
            decoded_failures.push(Failure::from(&e.in_part("preamble").at(96)));
        }
        let decoded = match (self.decode, Check::of(&decoded_failures)) {
            (false, Check::Ok) => Check::NotChecked,
            (_, check) => check,
        };
        failures.extend(decoded_failures);
        Ok(VerifyReport {
            structure,
            stored,
            decoded,
            tensors_checked,
            stored_root,
            decoded_root: root,
            failures,
        })
    }
}

/// Errors that speak of the pack become failures, the others end the run.
fn sort_out(result: Result<()>, failures: &mut Vec<Failure>) -> Result<()> {
    match result {
        Ok(()) => Ok(()),
        Err(e) => match e.kind() {
            ErrorKind::Malformed(_)
            | ErrorKind::Integrity
            | ErrorKind::Truncated { .. }
            | ErrorKind::UnsupportedFeature => {
                failures.push(Failure::from(&e));
                Ok(())
            }
            _ => Err(e),
        },
    }
}

fn check_structure<R: ReadAt + Sync>(
    pack: &Container<R>,
    progress: &dyn Progress,
) -> Result<Vec<Failure>> {
    let mut failures = Vec::new();
    // Chunks of all parts, so that large parts spread over the threads.
    let jobs: Vec<_> = pack
        .index()
        .parts()
        .flat_map(|(name, part)| (0..part.chunks.len()).map(move |i| (name, part, i)))
        .collect();
    let results = par::map(jobs.len(), |j| {
        let (name, part, i) = jobs[j];
        step(progress, 0)?;
        let from = i as u64 * CHUNK_BYTES;
        pack.read_part(part, from..from + part.chunk_len(i))
            .map(drop)
            .map_err(|e| e.in_tensor(name))
    });
    for result in results {
        sort_out(result, &mut failures)?;
    }
    for file in &pack.index().files {
        sort_out(pack.read_file(file).map(drop), &mut failures)?;
    }
    sort_out(check_padding(pack), &mut failures)?;
    sort_out(Manifest::read(pack).map(drop), &mut failures)?;
    sort_out(pack.attachments().map(drop), &mut failures)?;
    failures.dedup();
    Ok(failures)
}

/// UC-PRT-3, UC-HDR-7: what lies between parts and sections is zero.
fn check_padding<R: ReadAt>(pack: &Container<R>) -> Result<()> {
    let p = pack.preamble();
    let sections = [
        (p.index_offset + p.index_len, p.manifest_offset, Rule::HDR_7),
        (p.manifest_offset + p.manifest_len, p.core_len, Rule::HDR_7),
    ];
    let parts = pack.index().parts().map(|(_, part)| {
        let end = part.offset + part.stored_len;
        (end, end.next_multiple_of(ALIGN_BYTES), Rule::PRT_3)
    });
    for (from, to, rule) in parts.chain(sections) {
        let mut gap = vec![0u8; to_usize(to - from)?];
        pack.reader().read_exact_at(from, &mut gap)?;
        if let Some(i) = gap.iter().position(|&b| b != 0) {
            return Err(Error::malformed(rule, "padding is not zero")
                .in_part("padding")
                .at(from + i as u64));
        }
    }
    Ok(())
}

/// UC-ROOT-3: the root over 1 MiB chunks of the core, preamble bytes from 128 on read as zero.
fn compute_stored_root<R: ReadAt + Sync>(
    pack: &Container<R>,
    progress: &dyn Progress,
) -> Result<Digest> {
    let p = pack.preamble();
    let n = to_usize(p.core_len.div_ceil(CHUNK_BYTES))?;
    let leaves = par::map(n, |i| {
        let from = i as u64 * CHUNK_BYTES;
        let len = CHUNK_BYTES.min(p.core_len - from);
        step(progress, 0)?;
        let mut bytes = vec![0; to_usize(len)?];
        pack.reader().read_exact_at(from, &mut bytes)?;
        if i == 0 {
            bytes[..PREAMBLE_BYTES].copy_from_slice(&p.rooted_bytes());
        }
        step(progress, len)?;
        Ok(TreeHasher::leaf(&bytes))
    });
    let mut tree = TreeHasher::new();
    for leaf in leaves {
        tree.push(leaf?);
    }
    Ok(tree.root())
}

/// The SHA-256 of every tensor's decoded bytes, in the order of the index.
fn decode_all<R: ReadAt + Sync>(
    pack: &Container<R>,
    progress: &dyn Progress,
) -> Result<Vec<Result<Digest, Failure>>> {
    let views: Vec<_> = pack.tensors().collect();
    let digests = par::map(views.len(), |i| {
        let mut sha = Sha256::new();
        // An alias was found to have its target's digest when the pack was opened.
        if matches!(views[i].entry().encoding, Encoding::Alias { .. }) {
            return (Ok(()), views[i].entry().decoded_sha256);
        }
        let result = DecodeOptions::new().decode_tiles(&views[i], |bytes| {
            sha.update(bytes);
            step(progress, bytes.len() as u64)
        });
        (result, Digest(sha.finalize().into()))
    });
    digests
        .into_iter()
        .map(|(result, digest)| {
            let mut failures = Vec::new();
            sort_out(result, &mut failures)?;
            Ok(failures.pop().map_or(Ok(digest), Err))
        })
        .collect()
}
