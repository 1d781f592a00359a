//! The stored root, hashed while a file is written.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::format::{CHUNK_BYTES, Digest, Preamble, TreeHasher};

/// Hashes the leaves of the stored root while their bytes arrive.
///
/// Bytes may arrive in any order, each once. What arrives in order is hashed at once; what arrives
/// early waits in memory: at most one leaf for each run of bytes that is written at the same time.
#[derive(Debug, Default)]
pub(crate) struct RootHasher {
    leaves: Vec<Leaf>,
}

#[derive(Debug)]
enum Leaf {
    Open(Box<OpenLeaf>),
    Done(Digest),
}

#[derive(Debug)]
struct OpenLeaf {
    sha: Sha256,
    hashed: usize,
    /// Bytes that arrived early, by their place in the leaf.
    early: BTreeMap<usize, Vec<u8>>,
}

impl OpenLeaf {
    fn new() -> Self {
        // A leaf hashes with a zero byte in front (UC-ROOT-1).
        Self { sha: Sha256::new_with_prefix([0u8]), hashed: 0, early: BTreeMap::new() }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if at != self.hashed {
            match self.early.range_mut(..=at).next_back() {
                Some((&from, run)) if from + run.len() == at => run.extend_from_slice(bytes),
                _ => drop(self.early.insert(at, bytes.to_vec())),
            }
            return;
        }
        self.sha.update(bytes);
        self.hashed += bytes.len();
        while let Some(run) = self.early.remove(&self.hashed) {
            self.sha.update(&run);
            self.hashed += run.len();
        }
    }

    fn digest(&mut self) -> Digest {
        Digest(std::mem::take(&mut self.sha).finalize().into())
    }
}

impl RootHasher {
    /// Takes the bytes of the core that start at `offset`.
    pub(crate) fn update(&mut self, offset: u64, mut bytes: &[u8]) {
        let leaf_bytes = usize::try_from(CHUNK_BYTES).expect("1 MiB");
        let mut i = usize::try_from(offset / CHUNK_BYTES).expect("leaves are listed in memory");
        let mut at = usize::try_from(offset % CHUNK_BYTES).expect("below 1 MiB");
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(leaf_bytes - at));
            while self.leaves.len() <= i {
                self.leaves.push(Leaf::Open(Box::new(OpenLeaf::new())));
            }
            if let Leaf::Open(leaf) = &mut self.leaves[i] {
                leaf.put(at, now);
                if leaf.hashed == leaf_bytes {
                    self.leaves[i] = Leaf::Done(leaf.digest());
                }
            }
            (bytes, at) = (later, 0);
            i += 1;
        }
    }

    /// Takes the preamble, whose place has been left open, and gives the root.
    ///
    /// # Errors
    /// `InvalidArgument` when bytes are missing.
    pub(crate) fn finish(mut self, preamble: &Preamble) -> Result<Digest> {
        self.update(0, &preamble.rooted_bytes());
        let mut tree = TreeHasher::new();
        let mut end = 0;
        for leaf in self.leaves {
            match leaf {
                Leaf::Done(digest) => {
                    tree.push(digest);
                    end += CHUNK_BYTES;
                }
                Leaf::Open(mut leaf) => {
                    end += leaf.hashed as u64;
                    tree.push(leaf.digest());
                }
            }
        }
        if end != preamble.core_len {
            return Err(Error::argument(format!(
                "{end} of {} bytes were written in order",
                preamble.core_len
            )));
        }
        Ok(tree.root())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_arrival_does_not_matter() {
        let n = 2_300_000usize;
        let mut preamble = Preamble::new();
        preamble.core_len = n as u64;
        let bytes: Vec<u8> = (0u8..=250).cycle().step_by(31).take(n).collect();
        let mut whole = bytes.clone();
        whole[..256].copy_from_slice(&preamble.rooted_bytes());
        let mut tree = TreeHasher::new();
        whole.chunks(1 << 20).for_each(|c| tree.push(TreeHasher::leaf(c)));

        for seed in 0..2usize {
            // Three streams that take turns with pieces of odd sizes.
            let mut streams = [(256, 900_001), (900_001, 2_097_152), (2_097_152, n)];
            let mut hasher = RootHasher::default();
            let mut turn = seed;
            while streams.iter().any(|s| s.0 < s.1) {
                let (from, end) = streams[turn % 3];
                let to = end.min(from + 77_777 + 1000 * (turn % 7));
                hasher.update(from as u64, &bytes[from..to]);
                streams[turn % 3].0 = to;
                turn += 1 + seed % 2;
            }
            assert_eq!(hasher.finish(&preamble).expect("complete"), tree.root(), "{seed}");
        }
        assert!(RootHasher::default().finish(&preamble).is_err());
    }
}
