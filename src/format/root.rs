//! The hash tree behind both roots (spec/container.md, "Roots").

use sha2::{Digest as _, Sha256};

use super::digest::Digest;
use super::{Dtype, TensorEntry};
use crate::kernels::sha256;

/// The Merkle tree hash of RFC 6962, section 2.1, fed leaf by leaf.
///
/// # Spec
/// UC-ROOT-1.
#[derive(Debug, Clone, Default)]
pub struct TreeHasher {
    // One finished subtree per set bit of the number of leaves, largest first.
    stack: Vec<(u32, [u8; 32])>,
}

impl TreeHasher {
    /// A tree without leaves.
    pub fn new() -> Self {
        Self::default()
    }

    /// The digest of one leaf: SHA-256 of a zero byte and the leaf's bytes.
    pub fn leaf(bytes: &[u8]) -> Digest {
        let mut h = Sha256::new();
        h.update([0u8]);
        h.update(bytes);
        Digest(h.finalize().into())
    }

    /// The digests of several leaves, as [`TreeHasher::leaf`] gives them. Faster for two and more
    /// that are of one length.
    pub fn leaves(leaves: &[&[u8]]) -> Vec<Digest> {
        sha256::leaf_digests(leaves).into_iter().map(Digest).collect()
    }

    /// Appends the digest of the next leaf.
    pub fn push(&mut self, leaf: Digest) {
        let mut node = (0, leaf.0);
        while let Some(&(height, left)) = self.stack.last() {
            if height != node.0 {
                break;
            }
            self.stack.pop();
            node = (height + 1, join(&left, &node.1));
        }
        self.stack.push(node);
    }

    /// The root: SHA-256 of nothing for an empty tree.
    pub fn root(&self) -> Digest {
        let mut nodes = self.stack.iter().rev();
        let Some(&(_, mut root)) = nodes.next() else {
            return Digest::of(b"");
        };
        for (_, left) in nodes {
            root = join(left, &root);
        }
        Digest(root)
    }
}

fn join(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    let mut h = Sha256::new();
    h.update([1u8]);
    h.update(left);
    h.update(right);
    h.finalize().into()
}

/// The leaf digest of one tensor in the decoded root: name, source dtype, shape and the SHA-256 of
/// its little-endian bytes at the source dtype.
///
/// # Spec
/// UC-ROOT-2.
pub fn tensor_leaf(name: &str, dtype: Dtype, shape: &[u64], sha256: Digest) -> Digest {
    let mut leaf = Vec::with_capacity(48 + name.len() + 8 * shape.len());
    leaf.extend_from_slice(&(name.len() as u64).to_le_bytes());
    leaf.extend_from_slice(name.as_bytes());
    leaf.push(dtype.code());
    leaf.extend_from_slice(&(shape.len() as u64).to_le_bytes());
    for d in shape {
        leaf.extend_from_slice(&d.to_le_bytes());
    }
    leaf.extend_from_slice(&sha256.0);
    TreeHasher::leaf(&leaf)
}

/// The root over tensors that are sorted by name.
///
/// # Spec
/// UC-ROOT-2.
pub(crate) fn decoded_root<'a>(tensors: impl IntoIterator<Item = &'a TensorEntry>) -> Digest {
    let mut tree = TreeHasher::new();
    for t in tensors {
        tree.push(tensor_leaf(&t.name, t.dtype, &t.shape, t.decoded_sha256));
    }
    tree.root()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition of RFC 6962, word for word.
    fn literal(leaves: &[Digest]) -> Digest {
        match leaves {
            [] => Digest::of(b""),
            [one] => *one,
            _ => {
                let mut k = 1;
                while k * 2 < leaves.len() {
                    k *= 2;
                }
                Digest(join(&literal(&leaves[..k]).0, &literal(&leaves[k..]).0))
            }
        }
    }

    #[test]
    fn tree_equals_the_recursive_definition() {
        let leaves: Vec<_> = (0u8..70).map(|i| TreeHasher::leaf(&[i])).collect();
        for n in 0..leaves.len() {
            let mut tree = TreeHasher::new();
            leaves[..n].iter().for_each(|&l| tree.push(l));
            assert_eq!(tree.root(), literal(&leaves[..n]), "{n} leaves");
        }
    }

    #[test]
    fn tree_matches_the_published_test_vector() {
        // RFC 6962 trees of certificate-transparency-go: leaves "", 00, 10.
        let mut tree = TreeHasher::new();
        for leaf in [&b""[..], &[0x00], &[0x10]] {
            tree.push(TreeHasher::leaf(leaf));
        }
        assert_eq!(
            tree.root().to_string(),
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"
        );
    }
}
