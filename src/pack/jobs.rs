//! The jobs that packing consists of: read a piece of the source, encode it, write it.

use super::calibrated::Calibrated;
use super::plan::{Decision, Plan, Recipe};
use super::reuse::Reused;
use crate::container::{
    CACHE_WEIGHTS, EncodeOptions, EncodedTensor, EncodedTile, TileEncoder, store_chunk,
};
use crate::error::{Error, Result};
use crate::format::{CHUNK_LEN, TensorEntry};
use crate::manifest::FileRole;
use crate::memory::to_usize;
use crate::source::{Scans, Source};
use crate::storage::ReadAt;

/// Weights of one job, unless a row has more.
const TILE_WEIGHTS: usize = 1 << 19;
/// Bytes of one job that are kept as they are: whole chunks.
const RAW_BYTES: u64 = 4 << 20;

/// What a job is part of: a tensor or a carried file, by its place in the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Item {
    Tensor(usize),
    File(usize),
}

/// Consecutive bytes of one item: whole rows, or whole chunks. An empty item has one empty job.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    pub item: Item,
    pub from: u64,
    pub len: u64,
    pub last: bool,
}

/// All jobs of a pack, in the order of the bytes in it.
#[derive(Debug)]
pub(crate) struct Jobs {
    jobs: Vec<Job>,
    /// Weights of a row of each `planes` tensor, 0 for others.
    row_weights: Vec<u64>,
    /// Memory of each tensor that is encoded by a calibration, as a whole.
    whole: Vec<Option<u64>>,
    zstd_bytes: u64,
}

/// What all jobs work with.
#[derive(Clone, Copy)]
pub(crate) struct Task<'a> {
    pub source: &'a Source,
    pub plan: &'a Plan,
    pub scans: &'a Scans,
    /// The shard of each tensor.
    pub shards: &'a [usize],
    pub recipe: &'a Recipe,
    pub calibrated: Option<&'a Calibrated<'a>>,
    pub reused: &'a Reused,
}

impl Jobs {
    /// Tensors by shard and name, then the carried files at the end of the first shard. `whole`
    /// says how much memory each tensor needs that is encoded by a calibration.
    pub(crate) fn new(
        source: &Source,
        plan: &Plan,
        recipe: &Recipe,
        shards: &[usize],
        whole: Vec<Option<u64>>,
    ) -> Result<Self> {
        let mut order: Vec<usize> = (0..plan.tensors.len()).collect();
        order.sort_by_key(|&i| shards[i]);
        let first = order.partition_point(|&i| shards[i] == 0);
        // Contexts for content of 1 MiB, as measured.
        let zstd_bytes = match recipe.zstd_level() {
            None => 0,
            Some(..=12) => 6 << 20,
            Some(_) => 20 << 20,
        };
        let row_weights = vec![0; plan.tensors.len()];
        let mut jobs = Self { jobs: vec![], row_weights, whole, zstd_bytes };
        order[..first].iter().try_for_each(|&i| jobs.push_tensor(source, plan, recipe, i))?;
        for (i, file) in source.files.iter().enumerate() {
            if file.role == FileRole::Carried {
                jobs.push(Item::File(i), file.bytes, RAW_BYTES);
            }
        }
        order[first..].iter().try_for_each(|&i| jobs.push_tensor(source, plan, recipe, i))?;
        Ok(jobs)
    }

    fn push_tensor(
        &mut self,
        source: &Source,
        plan: &Plan,
        recipe: &Recipe,
        i: usize,
    ) -> Result<()> {
        let t = &source.tensors()[i];
        let job = match &plan.tensors[i].decision {
            Decision::Alias(_) => return Ok(()),
            _ if self.whole[i].is_some() => t.len.max(1),
            Decision::Raw => RAW_BYTES,
            Decision::Planes { .. } => {
                let encoder = tile_encoder(source, plan, recipe, i)?;
                self.row_weights[i] = encoder.layout.cols;
                encoder.row_bytes()? as u64 * encoder.tile_rows(TILE_WEIGHTS)? as u64
            }
        };
        self.push(Item::Tensor(i), t.len, job);
        Ok(())
    }

    fn push(&mut self, item: Item, len: u64, step: u64) {
        let mut from = 0;
        loop {
            let to = len.min(from + step);
            self.jobs.push(Job { item, from, len: to - from, last: to == len });
            if to == len {
                return;
            }
            from = to;
        }
    }

    /// How many jobs from `j` on belong to the same item as job `j`.
    pub(crate) fn of_item(&self, j: usize) -> usize {
        let same = |job: &&Job| job.item == self.jobs[j].item;
        self.jobs[j..].iter().take_while(same).count()
    }

    pub(crate) fn len(&self) -> usize {
        self.jobs.len()
    }

    pub(crate) fn get(&self, j: usize) -> &Job {
        &self.jobs[j]
    }

    /// About how many bytes of memory a job needs.
    pub(crate) fn cost(&self, source: &Source, j: usize) -> u64 {
        let job = &self.jobs[j];
        let Item::Tensor(i) = job.item else { return self.raw_cost(job) };
        if let Some(bytes) = self.whole[i] {
            return bytes;
        }
        if self.row_weights[i] == 0 {
            return self.raw_cost(job);
        }
        let bits = source.tensors()[i].dtype.bits();
        let weights = job.len * 8 / bits;
        // Rows are encoded some at a time, in binary32, with codes, planes and what they decode to.
        let at_once = weights.min(self.row_weights[i].max(CACHE_WEIGHTS as u64));
        4096 + 2 * job.len + 2 * weights + at_once * (8 + bits / 8)
    }

    /// Bytes as they are and as they are stored, and what the compressor works with.
    fn raw_cost(&self, job: &Job) -> u64 {
        4096 + 2 * job.len + self.zstd_bytes
    }

    /// Memory of the job that needs most, and its tensor.
    pub(crate) fn largest(&self, source: &Source) -> (u64, Option<String>) {
        let most = (0..self.len()).map(|j| (self.cost(source, j), j)).max();
        most.map_or((0, None), |(cost, j)| match self.jobs[j].item {
            Item::Tensor(i) => (cost, Some(source.tensors()[i].name.clone())),
            Item::File(_) => (cost, None),
        })
    }
}

fn tile_encoder(source: &Source, plan: &Plan, recipe: &Recipe, i: usize) -> Result<TileEncoder> {
    let (t, planned) = (&source.tensors()[i], &plan.tensors[i]);
    let Decision::Planes { planes, row_dims } = planned.decision else {
        return Err(Error::argument("is not stored as planes").in_tensor(&t.name));
    };
    let options = EncodeOptions::new()
        .with_planes(planes)
        .with_row_dims(row_dims)
        .with_group(recipe.group_of(planned.role));
    TileEncoder::new(t.dtype, &t.shape, &options).map_err(|e| e.in_tensor(&t.name))
}

/// Reads the source bytes of a job; none for what is taken over.
pub(crate) fn read(task: Task<'_>, job: &Job) -> Result<Vec<u8>> {
    let source = task.source;
    match job.item {
        Item::Tensor(i) if task.reused.has(i) => Ok(vec![]),
        Item::Tensor(i) => source.read(&source.tensors()[i], job.from, job.len),
        Item::File(i) => {
            let file = &source.files[i];
            let mut bytes = vec![0; to_usize(job.len)?];
            let read = file.open("can't read")?.read_exact_at(job.from, &mut bytes);
            read.map_err(|e| e.in_file(&file.path))?;
            Ok(bytes)
        }
    }
}

/// What a job comes to.
pub(crate) struct Done {
    /// Checksum of the source bytes.
    pub crc: crc32fast::Hasher,
    pub what: Encoded,
}

pub(crate) enum Encoded {
    /// Rows, with the tensor's record if they are the first.
    Tile(EncodedTile, Option<TensorEntry>),
    /// A tensor, encoded by a calibration.
    Whole(Box<EncodedTensor>),
    /// A tensor of an older pack.
    Reused(Box<EncodedTensor>),
    /// Content length and stored bytes of each chunk.
    Chunks(Vec<(usize, Vec<u8>)>),
}

/// Encodes the source bytes of a job.
pub(crate) fn encode(task: Task<'_>, job: &Job, bytes: Vec<u8>) -> Result<Done> {
    let Task { source, plan, recipe, calibrated, reused, .. } = task;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes);
    let planes = match job.item {
        Item::Tensor(i) if matches!(plan.tensors[i].decision, Decision::Planes { .. }) => Some(i),
        _ => None,
    };
    if let Item::Tensor(i) = job.item
        && reused.has(i)
    {
        return Ok(Done { crc, what: Encoded::Reused(Box::new(reused.tensor(source, plan, i)?)) });
    }
    let what = match (planes, calibrated) {
        (Some(i), Some(calibrated)) if calibrated.has(i) => {
            Encoded::Whole(Box::new(calibrated.encode(source, plan, i, &bytes)?))
        }
        (Some(i), _) => {
            let encoder = tile_encoder(source, plan, recipe, i)?;
            let first_row = to_usize(job.from)? / encoder.row_bytes()?;
            let tile = encoder.encode(first_row, &bytes).map_err(|e| {
                // The scan found nothing odd in it.
                let t = &source.tensors()[i];
                changed(e.message()).in_tensor(&t.name).in_file(&t.file)
            })?;
            let (t, planned) = (&source.tensors()[i], &plan.tensors[i]);
            let entry = || encoder.entry(&t.name, &t.shape, planned.role);
            Encoded::Tile(tile, (job.from == 0).then(entry).transpose()?)
        }
        (None, _) => {
            let level = recipe.zstd_level();
            let chunk = |c: &[u8]| Ok((c.len(), store_chunk(c, level)?.into_owned()));
            Encoded::Chunks(bytes.chunks(CHUNK_LEN).map(chunk).collect::<Result<_>>()?)
        }
    };
    Ok(Done { crc, what })
}

/// Says that the source isn't what it was when it was scanned.
pub(super) fn changed(what: &str) -> Error {
    Error::source_file(format!("changed while it was packed: {what}"))
}
