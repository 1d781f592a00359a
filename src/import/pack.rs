//! From a source to a pack.

use std::fs::File;
use std::io::{BufWriter, Read};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::output::NewFile;
use super::plan::{Decision, Plan, PlannedTensor, Recipe, Scan};
use super::source::{FoundFile, Source, SourceTensor};
use crate::codec::read_f32;
use crate::container::{
    Container, EncodeOptions, EncodedTensor, PackWriter, StoredFile, WriteSummary,
};
use crate::error::{Error, Result};
use crate::format::{Digest, Dtype, Encoding, Index, Role, elements};
use crate::manifest::{FileRole, Manifest, SourceFile, TensorSource};
use crate::par;
use crate::progress::{NoProgress, Progress, step};

/// Names the encoder. It changes whenever the bytes that it makes could change.
pub const ENCODER_ID: &str = "uc-rtn-1+zstd-1.5.7";

/// Source bytes that are encoded at a time.
const BATCH_BYTES: u64 = 256 << 20;

/// How to pack a source.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct PackOptions {
    /// What steers the encoder. Default: the default rule.
    pub recipe: Recipe,
    /// Replace an existing file. Default false.
    pub force: bool,
}

/// Sizes of a pack.
///
/// # Spec
/// container.md, "Roles".
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct PackStats {
    /// Tensors, aliases included.
    pub tensors: u64,
    /// Distinct weights: elements of all tensors but aliases.
    pub weights: u64,
    /// Weights of the body.
    pub body_weights: u64,
    /// Stored bits of the body over its weights; nothing without a body.
    pub body_bpw: Option<f64>,
    /// All bits of the file over its distinct weights; nothing without weights.
    pub file_bpw: Option<f64>,
}

impl PackStats {
    /// Counts a pack's sizes.
    pub fn of(index: &Index, file_len: u64) -> Self {
        let (mut weights, mut body_weights, mut body_bytes) = (0u64, 0u64, 0u64);
        let mut by_body = vec![false; index.levels.len() + 1];
        let mut by_others = by_body.clone();
        for t in &index.tensors {
            if matches!(t.encoding, Encoding::Alias { .. }) {
                continue;
            }
            let n = elements(&t.shape).unwrap_or(0);
            weights = weights.saturating_add(n);
            let users = if t.role == Role::Body { &mut by_body } else { &mut by_others };
            if let Encoding::Planes { level_ids, .. } = &t.encoding {
                level_ids.iter().for_each(|&id| users[usize::from(id)] = true);
            }
            if t.role == Role::Body {
                body_weights = body_weights.saturating_add(n);
                body_bytes +=
                    t.parts.iter().map(|p| p.stored_len.next_multiple_of(64)).sum::<u64>();
            }
        }
        // Tables that only the body uses are charged to it.
        for (id, table) in (1..).zip(&index.levels) {
            if by_body[id] && !by_others[id] {
                body_bytes += table.levels.len() as u64;
            }
        }
        #[allow(clippy::cast_precision_loss, reason = "rates for display")]
        let rate = |bytes: u64, n: u64| (n > 0).then(|| bytes as f64 * 8.0 / n as f64);
        Self {
            tensors: index.tensors.len() as u64,
            weights,
            body_weights,
            body_bpw: rate(body_bytes, body_weights),
            file_bpw: rate(file_len, weights),
        }
    }
}

/// What was packed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PackReport {
    /// Length and roots of the file.
    pub summary: WriteSummary,
    /// Counts and rates.
    pub stats: PackStats,
    /// What became of every tensor.
    pub plan: Plan,
    /// Files of the source folder that are not in the pack.
    pub left_out: Vec<String>,
    /// Tensors that were kept raw because they hold NaN, infinities or values beyond binary32.
    pub odd: Vec<String>,
}

impl PackOptions {
    /// The default rule; never overwrites.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`PackOptions::recipe`].
    #[must_use]
    pub fn with_recipe(mut self, recipe: Recipe) -> Self {
        self.recipe = recipe;
        self
    }

    /// Sets [`PackOptions::force`].
    #[must_use]
    pub fn with_force(mut self, force: bool) -> Self {
        self.force = force;
        self
    }

    /// What becomes of each tensor: reads the whole source, writes nothing.
    ///
    /// # Errors
    /// As [`PackOptions::pack`].
    pub fn plan(&self, source: &Source, progress: &dyn Progress) -> Result<Plan> {
        Ok(self.plan_and_scan(source, progress)?.0)
    }

    fn plan_and_scan(&self, source: &Source, progress: &dyn Progress) -> Result<(Plan, Vec<Scan>)> {
        let mut plan = Plan::new(source, &self.recipe)?;
        let scans =
            par::map(source.tensors().len(), |i| scan(source, &source.tensors()[i], progress));
        let scans = scans.into_iter().collect::<Result<Vec<_>>>()?;
        plan.refine(&scans);
        Ok((plan, scans))
    }

    /// An upper estimate of the pack's length in bytes, for a look at the free disk.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn estimate(&self, source: &Source) -> Result<u64> {
        let plan = Plan::new(source, &self.recipe)?;
        let carried = source.files.iter().filter(|f| f.role == FileRole::Carried).map(|f| f.bytes);
        let tensors = plan.tensors.iter().zip(source.tensors()).map(|(p, t)| match p.decision {
            // Codes and scales; padding and records are in the flat 4 KiB.
            Decision::Planes { planes, .. } => {
                t.len * 8 / t.dtype.bits() * (u64::from(planes) + 1) / 8 + 4096
            }
            _ => t.len + 4096,
        });
        Ok(carried.chain(tensors).sum())
    }

    /// Packs a source into the file `output`, which appears only when it is complete.
    ///
    /// ```no_run
    /// use std::path::Path;
    /// use ultracompress::import::{PackOptions, Source};
    ///
    /// let source = Source::open(Path::new("SmolLM-135M"))?;
    /// let report = PackOptions::new().pack(&source, Path::new("model.uc"))?;
    /// println!("{}", report.summary.decoded_root);
    /// # Ok::<(), ultracompress::Error>(())
    /// ```
    ///
    /// # Errors
    /// `Source` for a damaged or already quantized checkpoint, `InvalidArgument` for an impossible
    /// recipe, `Io`.
    pub fn pack(&self, source: &Source, output: &Path) -> Result<PackReport> {
        self.pack_with(source, output, &NoProgress)
    }

    /// As [`PackOptions::pack`], with progress: every source byte is reported twice, once hashed and
    /// once encoded.
    ///
    /// # Errors
    /// As [`PackOptions::pack`]; `Cancelled`.
    pub fn pack_with(
        &self,
        source: &Source,
        output: &Path,
        progress: &dyn Progress,
    ) -> Result<PackReport> {
        source.refuse_as_output(output)?;
        let out = NewFile::create(output, self.force)?;
        let in_output = |e: Error| e.in_file(output.display().to_string());
        let (scanned, digests) = par::join(
            || self.plan_and_scan(source, progress),
            || hash_files(&source.files, progress),
        );
        let ((plan, scans), digests) = (scanned?, digests?);

        let mut writer = PackWriter::new(BufWriter::new(out)).map_err(in_output)?;
        for batch in batches(source.tensors()) {
            let encoded = par::map(batch.len(), |i| {
                let i = batch.start + i;
                let tensor = self.encode(source, &source.tensors()[i], &plan.tensors[i], &scans[i]);
                step(progress, source.tensors()[i].len)?;
                tensor
            });
            for tensor in encoded {
                if let Some(tensor) = tensor? {
                    writer.add_tensor(tensor).map_err(in_output)?;
                }
            }
        }
        for t in &plan.tensors {
            if let Decision::Alias(target) = &t.decision {
                writer.add_alias_as(&t.name, target, Some(t.role)).map_err(in_output)?;
            }
        }
        let mut manifest = Manifest::new(ENCODER_ID);
        manifest.recipe = self.recipe.to_json()?;
        for (file, sha256) in source.files.iter().zip(digests) {
            if file.role == FileRole::Carried {
                let bytes = std::fs::read(&file.on_disk)
                    .map_err(|e| Error::io("can't read", e).in_file(&file.path))?;
                if file.path == "README.md" {
                    manifest.licence = declared_licence(&bytes);
                }
                writer
                    .add_file(StoredFile::new(&file.path, &bytes, self.zstd())?)
                    .map_err(in_output)?;
            }
            // What stays behind must not change the bytes of the pack; the report lists it.
            if file.role == FileRole::LeftOut {
                continue;
            }
            manifest.files.push(SourceFile {
                path: file.path.clone(),
                bytes: file.bytes,
                role: file.role,
                sha256: sha256.map(|d| d.to_string()),
                metadata: source.metadata.get(&file.path).cloned(),
            });
        }
        for ((t, planned), scan) in source.tensors().iter().zip(&plan.tensors).zip(&scans) {
            manifest.tensors.insert(
                t.name.clone(),
                TensorSource {
                    sha256: scan.sha256.to_string(),
                    file: Some(t.file.clone()),
                    reason: planned.reason.clone(),
                },
            );
        }
        let (summary, out) = writer.finish(&manifest.to_bytes()?).map_err(in_output)?;
        let out =
            out.into_inner().map_err(|e| in_output(Error::io("can't write", e.into_error())))?;
        let pack = Container::open(out.file())?;
        // Raw tensors and carried files that changed since they were hashed show here.
        Manifest::read(&pack).map_err(changed)?;
        let stats = PackStats::of(pack.index(), summary.file_len);
        out.commit()?;
        Ok(PackReport {
            summary,
            stats,
            odd: plan
                .tensors
                .iter()
                .zip(&scans)
                .filter(|(_, s)| s.odd.is_some())
                .map(|(t, _)| t.name.clone())
                .collect(),
            plan,
            left_out: source.left_out().into_iter().map(str::to_owned).collect(),
        })
    }

    fn zstd(&self) -> Option<i32> {
        (self.recipe.zstd_level > 0).then_some(i32::from(self.recipe.zstd_level))
    }

    fn encode(
        &self,
        source: &Source,
        t: &SourceTensor,
        planned: &PlannedTensor,
        scan: &Scan,
    ) -> Result<Option<EncodedTensor>> {
        let options = EncodeOptions::new()
            .with_role(planned.role)
            .with_group(self.recipe.group)
            .with_zstd_level(self.zstd());
        let bytes = || {
            let bytes = source.read(t, 0, t.len)?;
            if crc32fast::hash(&bytes) != scan.crc32 {
                return Err(Error::source_file("changed while it was packed").in_tensor(&t.name));
            }
            Ok(bytes)
        };
        Ok(match planned.decision {
            Decision::Alias(_) => None,
            Decision::Raw => {
                Some(EncodedTensor::raw(&t.name, t.dtype, &t.shape, &bytes()?, &options)?)
            }
            Decision::Planes { planes, row_dims } => {
                let options = options.with_planes(planes).with_row_dims(row_dims);
                Some(EncodedTensor::planes(&t.name, t.dtype, &t.shape, &bytes()?, &options)?)
            }
        })
    }
}

fn changed(e: Error) -> Error {
    Error::source_file(format!("a file changed while it was packed: {e}")).with_source(e)
}

/// Consecutive tensors that are encoded together: [`BATCH_BYTES`] of source, at least one tensor.
fn batches(tensors: &[SourceTensor]) -> Vec<std::ops::Range<usize>> {
    let mut batches = Vec::new();
    let (mut start, mut bytes) = (0, 0u64);
    for (i, t) in tensors.iter().enumerate() {
        if i > start && bytes.saturating_add(t.len) > BATCH_BYTES {
            batches.push(start..i);
            (start, bytes) = (i, 0);
        }
        bytes = bytes.saturating_add(t.len);
    }
    batches.push(start..tensors.len());
    batches
}

/// Digest of a tensor's bytes, and whether its values are all finite binary32 numbers.
fn scan(source: &Source, t: &SourceTensor, progress: &dyn Progress) -> Result<Scan> {
    let mut sha = Sha256::new();
    let mut crc = crc32fast::Hasher::new();
    let mut odd = None;
    let mut at = 0;
    source.tiles(t, |bytes| {
        sha.update(bytes);
        crc.update(bytes);
        if odd.is_none() && t.dtype.has_planes() {
            odd = first_odd(bytes, t.dtype).map(|i| at * 8 / t.dtype.bits() + i);
        }
        at += bytes.len() as u64;
        step(progress, bytes.len() as u64)
    })?;
    Ok(Scan { sha256: Digest(sha.finalize().into()), crc32: crc.finalize(), odd })
}

/// Index of the first element that isn't a finite binary32 number.
fn first_odd(bytes: &[u8], dtype: Dtype) -> Option<u64> {
    let found = match dtype {
        Dtype::F16 => bytes.chunks_exact(2).position(|b| b[1] & 0x7c == 0x7c),
        Dtype::Bf16 => bytes.chunks_exact(2).position(|b| b[1] & 0x7f == 0x7f && b[0] & 0x80 != 0),
        Dtype::F32 => bytes.chunks_exact(4).position(|b| b[3] & 0x7f == 0x7f && b[2] & 0x80 != 0),
        _ => {
            let mut values = Vec::with_capacity(bytes.len() / 8);
            read_f32(bytes, dtype, &mut values);
            values.iter().position(|v| !v.is_finite())
        }
    };
    found.map(|i| i as u64)
}

/// SHA-256 of every file that is in the pack, as weights or carried.
pub(super) fn hash_files(
    files: &[FoundFile],
    progress: &dyn Progress,
) -> Result<Vec<Option<Digest>>> {
    let digests = par::map(files.len(), |i| {
        let file = &files[i];
        if file.role == FileRole::LeftOut {
            return Ok(None);
        }
        let io = |e| Error::io("can't read", e).in_file(&file.path);
        let mut sha = Sha256::new();
        let mut input = File::open(&file.on_disk).map_err(io)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            step(progress, 0)?;
            match input.read(&mut buffer).map_err(io)? {
                0 => return Ok(Some(Digest(sha.finalize().into()))),
                n => sha.update(&buffer[..n]),
            }
        }
    });
    digests.into_iter().collect()
}

/// The `license` of a model card's front matter.
fn declared_licence(readme: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(readme).ok()?.strip_prefix("---")?;
    let front = text.split("\n---").next()?;
    let value = front.lines().find_map(|l| l.strip_prefix("license:"))?.trim();
    let value = value.trim_matches(['"', '\'']);
    (!value.is_empty()).then(|| value.to_owned())
}
