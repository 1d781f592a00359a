//! The jobs that packing consists of: read a piece of the source, encode it, write it.

use std::fs::File;

use sha2::{Digest as _, Sha256};

use super::calibrated::Calibrated;
use super::output::partial_set_len;
use super::plan::{Decision, Plan, Recipe};
use super::resume::{PackState, Written};
use super::reuse::Reused;
use super::scan::{Scan, Scans};
use super::shards::{NewPack, ShardWriter};
use super::source::Source;
use crate::container::{
    CACHE_WEIGHTS, EncodeOptions, EncodedTensor, EncodedTile, OpenData, OpenPlanes, ReadAt,
    TileEncoder, store_chunk,
};
use crate::error::{Error, Result};
use crate::format::{Digest, Encoding, FileEntry, TensorEntry, to_usize};
use crate::manifest::FileRole;

/// Weights of one job, unless a row has more.
const TILE_WEIGHTS: usize = 1 << 19;
/// Bytes of one job that are kept as they are: whole chunks.
const RAW_BYTES: u64 = 4 << 20;
const CHUNK_LEN: usize = 1 << 20;

/// What a job is part of: a tensor or a carried file, by its place in the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Item {
    Tensor(usize),
    File(usize),
}

/// Consecutive bytes of one item: whole rows, or whole chunks. An empty item has one empty job.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    pub item: Item,
    pub from: u64,
    pub len: u64,
    pub last: bool,
}

/// All jobs of a pack, in the order of the bytes in it.
#[derive(Debug)]
pub(super) struct Jobs {
    jobs: Vec<Job>,
    /// Weights of a row of each `planes` tensor, 0 for others.
    row_weights: Vec<u64>,
    /// Memory of each tensor that is encoded by a calibration, as a whole.
    whole: Vec<Option<u64>>,
    zstd_bytes: u64,
}

/// What all jobs work with.
#[derive(Clone, Copy)]
pub(super) struct Task<'a> {
    pub source: &'a Source,
    pub plan: &'a Plan,
    pub recipe: &'a Recipe,
    pub calibrated: Option<&'a Calibrated<'a>>,
    pub reused: &'a Reused,
}

impl Jobs {
    /// Tensors by shard and name, then the carried files at the end of the first shard. `whole` says how much memory
    /// each tensor needs that is encoded by a calibration.
    pub(super) fn new(
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

    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    pub(super) fn get(&self, j: usize) -> &Job {
        &self.jobs[j]
    }

    /// About how many bytes of memory a job needs.
    pub(super) fn cost(&self, source: &Source, j: usize) -> u64 {
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
    pub(super) fn largest(&self, source: &Source) -> (u64, Option<String>) {
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
pub(super) fn read(task: Task<'_>, job: &Job) -> Result<Vec<u8>> {
    let source = task.source;
    match job.item {
        Item::Tensor(i) if task.reused.has(i) => Ok(vec![]),
        Item::Tensor(i) => source.read(&source.tensors()[i], job.from, job.len),
        Item::File(i) => {
            let file = &source.files[i];
            let mut bytes = vec![0; to_usize(job.len)?];
            let io = |e| Error::io("can't read", e).in_file(&file.path);
            let input = File::open(&file.on_disk).map_err(io)?;
            input.read_exact_at(job.from, &mut bytes).map_err(|e| e.in_file(&file.path))?;
            Ok(bytes)
        }
    }
}

/// What a job comes to.
pub(super) struct Done {
    /// Checksum of the source bytes.
    crc: crc32fast::Hasher,
    what: Encoded,
}

enum Encoded {
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
pub(super) fn encode(task: Task<'_>, job: &Job, bytes: Vec<u8>) -> Result<Done> {
    let Task { source, plan, recipe, calibrated, reused } = task;
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

fn changed(what: &str) -> Error {
    Error::source_file(format!("changed while it was packed: {what}"))
}

/// Starts the next file, and opens what is there of it.
fn start(pack: &NewPack, again: bool) -> Result<(ShardWriter, Option<File>)> {
    let there = if again { pack.open_partial()? } else { None };
    Ok((pack.start_from(there.is_some())?, there))
}

/// An item that is being written.
enum Open {
    Planes(Box<OpenPlanes>, Sha256),
    Whole(Box<EncodedTensor>),
    Reused(Box<EncodedTensor>),
    Data(OpenData),
}

/// Takes what the jobs come to, in their order, and writes it to the files of the pack.
pub(super) struct Output<'a> {
    source: &'a Source,
    plan: &'a Plan,
    scans: &'a Scans,
    shards: &'a [usize],
    pack: &'a mut NewPack,
    manifest: &'a [u8],
    calibrated: Option<&'a Calibrated<'a>>,
    shard: usize,
    writer: ShardWriter,
    /// Numbers of the fitted level tables that the open shard has, by native planes less 3.
    tables: [Option<u16>; 6],
    open: Option<(Open, crc32fast::Hasher)>,
    state: &'a mut PackState,
    /// The open file, as an earlier run left it.
    there: Option<File>,
    restored: usize,
}

impl<'a> Output<'a> {
    /// `again` when the first file is there already.
    #[allow(clippy::too_many_arguments, reason = "what packing works with")]
    pub(super) fn new(
        task: Task<'a>,
        scans: &'a Scans,
        shards: &'a [usize],
        pack: &'a mut NewPack,
        manifest: &'a [u8],
        state: &'a mut PackState,
        again: bool,
    ) -> Result<Self> {
        let Task { source, plan, calibrated, .. } = task;
        let (writer, there) = start(pack, again)?;
        Ok(Self {
            source,
            plan,
            scans,
            shards,
            pack,
            manifest,
            calibrated,
            shard: 0,
            writer,
            tables: [None; 6],
            open: None,
            state,
            there,
            restored: 0,
        })
    }

    /// Writes what a job came to.
    ///
    /// # Errors
    /// `Source` when the source isn't what it was when it was scanned; `Io`.
    pub(super) fn take(self, job: &Job, done: Done) -> Result<Self> {
        let (name, shard) = match job.item {
            Item::Tensor(i) => (&self.source.tensors()[i].name, self.shards[i]),
            Item::File(i) => (&self.source.files[i].path, 0),
        };
        let mut output = if shard == self.shard { self } else { self.next_shard(shard, false)? };
        output.write(job, name, done).map_err(|e| e.in_tensor(name))?;
        Ok(output)
    }

    fn write(&mut self, job: &Job, name: &str, done: Done) -> Result<()> {
        let (open, mut crc) = match (self.open.take(), done.what) {
            (Some((open, crc)), what) => ((open, Some(what)), crc),
            (None, Encoded::Tile(tile, Some(entry))) => {
                let planes = self.writer.begin_planes(entry)?;
                let open = Open::Planes(Box::new(planes), Sha256::new());
                ((open, Some(Encoded::Tile(tile, None))), crc32fast::Hasher::new())
            }
            (None, Encoded::Whole(tensor)) => {
                ((Open::Whole(tensor), None), crc32fast::Hasher::new())
            }
            (None, Encoded::Reused(tensor)) => {
                ((Open::Reused(tensor), None), crc32fast::Hasher::new())
            }
            (None, what) => {
                ((Open::Data(self.writer.begin_data()?), Some(what)), crc32fast::Hasher::new())
            }
        };
        crc.combine(&done.crc);
        let (mut open, what) = open;
        match (&mut open, what) {
            (Open::Planes(planes, sha), Some(Encoded::Tile(tile, _))) => {
                self.writer.put_rows(planes, &tile.pieces)?;
                sha.update(&tile.decoded);
            }
            (Open::Data(data), Some(Encoded::Chunks(chunks))) => {
                for (len, stored) in chunks {
                    self.writer.put_chunk(data, len, &stored)?;
                }
            }
            (Open::Whole(_) | Open::Reused(_), None) => {}
            _ => return Err(Error::argument("jobs came in the wrong order")),
        }
        if !job.last {
            self.open = Some((open, crc));
            return Ok(());
        }
        let scan = match job.item {
            Item::Tensor(i) => Some(self.scans.tensors[i]),
            Item::File(i) => self.scans.files[i],
        };
        // The scan found the digest that the old pack's manifest has.
        let taken_over = matches!(open, Open::Reused(_));
        let same = |scan: &Scan| taken_over || scan.crc32 == crc.finalize();
        let file = match job.item {
            Item::Tensor(i) => &self.source.tensors()[i].file,
            Item::File(i) => &self.source.files[i].path,
        };
        let scan =
            scan.filter(same).ok_or_else(|| changed("its checksum differs").in_file(file))?;
        match (open, job.item) {
            (Open::Planes(planes, sha), _) => {
                self.writer.end_planes(*planes, Digest(sha.finalize().into()))?;
            }
            (Open::Whole(mut tensor), Item::Tensor(i)) => {
                tensor.set_level_ids(self.tables_of(i)?);
                self.writer.add_tensor(*tensor)?;
            }
            (Open::Reused(tensor), Item::Tensor(_)) => self.writer.add_tensor(*tensor)?,
            (Open::Whole(_) | Open::Reused(_), Item::File(_)) => {
                return Err(Error::argument("a file is no tensor"));
            }
            (Open::Data(data), Item::Tensor(i)) => {
                let t = &self.source.tensors()[i];
                let entry = TensorEntry {
                    name: t.name.clone(),
                    dtype: t.dtype,
                    role: self.plan.tensors[i].role,
                    shape: t.shape.clone(),
                    decoded_sha256: scan.sha256,
                    encoding: Encoding::Raw,
                    parts: vec![],
                };
                self.writer.end_raw(entry, data);
            }
            (Open::Data(data), Item::File(_)) => {
                let (path, len) = (name.to_owned(), job.from + job.len);
                let entry = FileEntry { path, len, sha256: scan.sha256, parts: vec![] };
                self.writer.end_file(entry, data);
            }
        }
        self.writer.flush()?;
        let (tensor, file) = self.writer.last_listed();
        let written = match job.item {
            Item::Tensor(_) => tensor.cloned().map(Written::Tensor),
            Item::File(_) => file.cloned().map(Written::File),
        };
        written.map_or(Ok(()), |written| self.state.add(written))
    }

    /// Takes over what an earlier run wrote, as far as it is whole and in the order of `jobs`. Gives the first job that is left to do.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn restore(mut self, jobs: &Jobs, done: Vec<Written>) -> Result<(Self, usize)> {
        let (mut job, mut items) = (0, 0);
        for written in done {
            let Some(item) = jobs.jobs.get(job).map(|j| j.item) else { break };
            let shard = match item {
                Item::Tensor(i) => self.shards[i],
                Item::File(_) => 0,
            };
            if shard != self.shard {
                self = self.next_shard(shard, true)?;
            }
            if !self.take_over(item, written)? {
                break;
            }
            items += 1;
            job += jobs.jobs[job..].iter().take_while(|j| j.item == item).count();
        }
        self.state.keep_first(items)?;
        self.end_restored()?;
        self.restored = items;
        Ok((self, job))
    }

    /// Takes over one item; says no when it isn't what it should be.
    fn take_over(&mut self, item: Item, written: Written) -> Result<bool> {
        let Some(there) = self.there.as_ref() else { return Ok(false) };
        match (item, written) {
            (Item::Tensor(i), Written::Tensor(entry)) => {
                if !self.is_planned(i, &entry) || !self.writer.restore(&entry.parts, there)? {
                    return Ok(false);
                }
                if self.calibrated.is_some_and(|c| c.has(i)) {
                    self.tables_of(i)?;
                }
                self.writer.list(entry);
            }
            (Item::File(i), Written::File(entry)) => {
                let file = &self.source.files[i];
                let digest = self.scans.files[i].as_ref().map(|scan| scan.sha256);
                let same = (&entry.path, entry.len) == (&file.path, file.bytes);
                if !same
                    || Some(entry.sha256) != digest
                    || !self.writer.restore(&entry.parts, there)?
                {
                    return Ok(false);
                }
                self.writer.list_file(entry);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether a record is one of this tensor, stored as it would be stored now.
    fn is_planned(&self, i: usize, entry: &TensorEntry) -> bool {
        let (t, planned) = (&self.source.tensors()[i], &self.plan.tensors[i]);
        let same = (&entry.name, entry.dtype, &entry.shape, entry.role)
            == (&t.name, t.dtype, &t.shape, planned.role);
        let stored = match (&entry.encoding, &planned.decision) {
            (Encoding::Raw, Decision::Raw) => entry.decoded_sha256 == self.scans.tensors[i].sha256,
            (Encoding::Planes { row_dims, .. }, Decision::Planes { row_dims: own, .. }) => {
                row_dims == own
            }
            _ => false,
        };
        same && stored
    }

    /// Cuts off what the earlier run wrote behind what is taken over.
    fn end_restored(&mut self) -> Result<()> {
        match self.there.take() {
            Some(there) => {
                self.writer.flush()?;
                partial_set_len(&there, self.writer.end())
            }
            None => Ok(()),
        }
    }

    /// How many tensors and carried files were taken over.
    pub(super) fn restored(&self) -> usize {
        self.restored
    }

    /// The numbers of the level tables of a tensor. A table is added to the shard with the first tensor that uses it.
    fn tables_of(&mut self, i: usize) -> Result<[u16; 6]> {
        let mut ids = [0; 6];
        let Some(calibrated) = self.calibrated else { return Ok(ids) };
        let used = calibrated.counts(i);
        for (at, native) in (0..6).zip(3u8..) {
            let Some(table) = calibrated.fitted()[at].as_ref().filter(|_| used[at]) else {
                continue;
            };
            if self.tables[at].is_none() {
                self.tables[at] = Some(self.writer.add_levels(native, table.clone())?);
            }
            ids[at] = self.tables[at].unwrap_or(0);
        }
        Ok(ids)
    }

    /// Ends the open shard and starts another.
    fn next_shard(mut self, shard: usize, again: bool) -> Result<Self> {
        self.end_restored()?;
        self.add_aliases()?;
        self.pack.end(self.writer, self.manifest)?;
        let (writer, there) = start(self.pack, again)?;
        Ok(Self { shard, writer, there, tables: [None; 6], ..self })
    }

    fn add_aliases(&mut self) -> Result<()> {
        for (t, _) in self.plan.tensors.iter().zip(self.shards).filter(|(_, s)| **s == self.shard) {
            if let Decision::Alias(target) = &t.decision {
                self.writer.add_alias_as(&t.name, target, Some(t.role))?;
            }
        }
        Ok(())
    }

    /// Ends the last shard.
    ///
    /// # Errors
    /// As [`NewPack::end`].
    pub(super) fn end(mut self) -> Result<()> {
        self.add_aliases()?;
        self.pack.end(self.writer, self.manifest)
    }
}
