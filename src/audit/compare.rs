//! Two models side by side: equal decoded roots, and errors per tensor.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::codec::convert_raw;
use crate::container::WHOLE_BYTES;
use crate::error::Result;
use crate::format::{Digest, Dtype, TreeHasher, tensor_leaf};
use crate::memory::DEFAULT_MAX_RAM;
use crate::par;
use crate::progress::{Progress, step};
use crate::source::Model;

/// The outcome of [`same`].
#[derive(Debug, Clone)]
pub struct SameReport {
    /// Whether both decode to the same tensors.
    pub same: bool,
    /// Decoded root of the first model, computed from its tensors.
    pub a: Digest,
    /// Decoded root of the second model.
    pub b: Digest,
    /// The first tensor, by name, that differs, and how.
    pub first_difference: Option<String>,
}

/// Whether two models decode to the same tensors. Every tensor is read and hashed.
///
/// # Errors
/// As [`Model::read`]; `Cancelled`.
pub fn same(a: &Model, b: &Model, progress: &dyn Progress) -> Result<SameReport> {
    let (da, db) = (digests(a, progress)?, digests(b, progress)?);
    let mut names: Vec<&str> = da.keys().chain(db.keys()).copied().collect();
    names.sort_unstable();
    names.dedup();
    let first_difference = names.into_iter().find_map(|name| match (da.get(name), db.get(name)) {
        (Some(x), Some(y)) if x == y => None,
        (Some(x), Some(y)) if (x.dtype, x.shape) != (y.dtype, y.shape) => {
            Some(format!("{name}: {} {:?} and {} {:?}", x.dtype, x.shape, y.dtype, y.shape))
        }
        (Some(_), Some(_)) => Some(format!("{name}: values differ")),
        (Some(_), None) => Some(format!("{name}: only in the first")),
        _ => Some(format!("{name}: only in the second")),
    });
    let (a, b) = (root_of(&da), root_of(&db));
    Ok(SameReport { same: a == b, a, b, first_difference })
}

fn root_of(digests: &BTreeMap<&str, Hashed<'_>>) -> Digest {
    let mut tree = TreeHasher::new();
    for (name, t) in digests {
        tree.push(tensor_leaf(name, t.dtype, t.shape, t.sha256));
    }
    tree.root()
}

/// The decoded root of a model (UC-ROOT-2), computed from its tensors.
///
/// # Errors
/// As [`Model::read`]; `Cancelled`.
pub fn decoded_root(model: &Model, progress: &dyn Progress) -> Result<Digest> {
    digests(model, progress).map(|digests| root_of(&digests))
}

#[derive(Debug, PartialEq, Eq)]
struct Hashed<'a> {
    dtype: Dtype,
    shape: &'a [u64],
    sha256: Digest,
}

fn digests<'a>(model: &'a Model, progress: &dyn Progress) -> Result<BTreeMap<&'a str, Hashed<'a>>> {
    let tensors = model.tensors();
    let bytes = |i: usize| tensors[i].1.tensor_bytes(tensors[i].2).unwrap_or(u64::MAX);
    let cost = |i: usize| bytes(i).min(2 * WHOLE_BYTES);
    let hashed = par::map_within(tensors.len(), DEFAULT_MAX_RAM, cost, |i| {
        let (name, dtype, shape) = tensors[i];
        let mut sha = Sha256::new();
        model.read(name, |bytes| {
            sha.update(bytes);
            step(progress, bytes.len() as u64)
        })?;
        Ok((name, Hashed { dtype, shape, sha256: Digest(sha.finalize().into()) }))
    })?;
    Ok(hashed.into_iter().collect())
}

/// The error of one tensor of the second model against the first.
#[derive(Debug, Clone)]
pub struct TensorDiff {
    /// Its name.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Frobenius norm of the difference over that of the first model's tensor.
    pub rel_frobenius: f64,
    /// Signal-to-noise ratio in decibels; infinite for equal tensors, minus infinity where the
    /// difference isn't finite.
    pub sqnr_db: f64,
}

/// The outcome of [`diff`].
#[derive(Debug, Clone)]
pub struct DiffReport {
    /// Tensors that both models have in one shape, by name. Tensors that aren't floats are equal
    /// or infinitely different.
    pub tensors: Vec<TensorDiff>,
    /// The one with the lowest signal-to-noise ratio.
    pub worst: Option<String>,
    /// Signal-to-noise ratio over all float tensors that differ, weighted by energy.
    pub total_sqnr_db: f64,
    /// Tensors that only one of the models has, or that have different shapes.
    pub unmatched: Vec<String>,
}

/// Measures how far the tensors of `b` are from those of `a`.
///
/// # Errors
/// As [`Model::read`]; `Cancelled`.
pub fn diff(a: &Model, b: &Model, progress: &dyn Progress) -> Result<DiffReport> {
    let first: BTreeMap<_, _> = a.tensors().into_iter().map(|t| (t.0, t)).collect();
    let second: BTreeMap<_, _> = b.tensors().into_iter().map(|t| (t.0, t)).collect();
    let mut unmatched: Vec<String> = first
        .keys()
        .filter(|n| !second.contains_key(*n))
        .chain(second.keys().filter(|n| !first.contains_key(*n)))
        .map(|n| (*n).to_owned())
        .collect();
    let pairs: Vec<_> = first.values().filter_map(|x| Some((*x, *second.get(x.0)?))).collect();
    let (pairs, shapes): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|(x, y)| x.2 == y.2);
    unmatched.extend(shapes.iter().map(|(x, y)| format!("{} {:?} and {:?}", x.0, x.2, y.2)));
    // Both as they are and as binary64.
    let cost = |i: usize| {
        let (x, y) = pairs[i];
        let bytes = |d: Dtype| d.tensor_bytes(x.2).unwrap_or(u64::MAX / 4);
        (bytes(x.1) + bytes(y.1)).saturating_add(2 * bytes(Dtype::F64))
    };
    let results = par::map_within(pairs.len(), DEFAULT_MAX_RAM, cost, |i| {
        let (x, y) = pairs[i];
        let (bytes_a, bytes_b) = (a.read_all(x.0, x.1, x.2)?, b.read_all(y.0, y.1, y.2)?);
        step(progress, bytes_a.len() as u64)?;
        Ok(measure(x, y.1, bytes_a, bytes_b))
    })?;
    let mut report =
        DiffReport { tensors: vec![], worst: None, total_sqnr_db: f64::INFINITY, unmatched };
    let (mut signal, mut noise, mut lowest) = (0.0, 0.0, f64::INFINITY);
    for (tensor, s, n) in results {
        if n > 0.0 && n.is_finite() {
            signal += s;
            noise += n;
        }
        if tensor.sqnr_db < lowest {
            lowest = tensor.sqnr_db;
            report.worst = Some(tensor.name.clone());
        }
        report.tensors.push(tensor);
    }
    report.total_sqnr_db = decibels(signal, noise);
    Ok(report)
}

fn decibels(signal: f64, noise: f64) -> f64 {
    if noise == 0.0 { f64::INFINITY } else { 10.0 * (signal / noise).log10() }
}

fn measure(
    (name, dtype, shape): (&str, Dtype, &[u64]),
    other: Dtype,
    a: Vec<u8>,
    b: Vec<u8>,
) -> (TensorDiff, f64, f64) {
    let (mut max_abs, mut signal, mut noise) = (0f64, 0f64, 0f64);
    if dtype.has_planes() && other.has_planes() {
        let wide = |bytes, from| convert_raw(bytes, from, Dtype::F64).0;
        for (x, y) in wide(a, dtype).chunks_exact(8).zip(wide(b, other).chunks_exact(8)) {
            let value = |v: &[u8]| f64::from_le_bytes(v.try_into().expect("chunks of 8"));
            let (x, y) = (value(x), value(y));
            // Equal bits are no error, NaN and infinity included.
            let e = if x.to_bits() == y.to_bits() { 0.0 } else { (x - y).abs() };
            // A NaN or infinity against anything else is as far as can be.
            let e = if e.is_finite() { e } else { f64::INFINITY };
            max_abs = max_abs.max(e);
            signal += if x.is_finite() { x * x } else { 0.0 };
            noise += e * e;
        }
    } else if dtype != other || a != b {
        (max_abs, noise) = (f64::INFINITY, f64::INFINITY);
    }
    let rel_frobenius = if noise == 0.0 { 0.0 } else { (noise / signal).sqrt() };
    let sqnr_db = if noise.is_infinite() { f64::NEG_INFINITY } else { decibels(signal, noise) };
    let diff = TensorDiff {
        name: name.to_owned(),
        shape: shape.to_vec(),
        max_abs,
        rel_frobenius,
        sqnr_db,
    };
    (diff, signal, noise)
}
