//! Writing what the jobs come to, in their order, to the files of the pack.

use std::fs::File;

use sha2::{Digest as _, Sha256};

use super::calibrated::Calibrated;
use super::jobs::{Done, Encoded, Item, Job, Jobs, Task, changed};
use super::plan::{Decision, Plan};
use crate::container::{EncodedTensor, OpenData, OpenPlanes};
use crate::error::{Error, Result};
use crate::format::{Digest, Encoding, FileEntry, MIN_PLANES, PLANE_COUNTS, TensorEntry};
use crate::output::{NewPack, PackState, ShardWriter, Written, partial_set_len};
use crate::source::{Scan, Scans, Source};

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
pub(crate) struct Output<'a> {
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
    tables: [Option<u16>; PLANE_COUNTS],
    open: Option<(Open, crc32fast::Hasher)>,
    state: &'a mut PackState,
    /// The open file, as an earlier run left it.
    there: Option<File>,
    restored: usize,
}

impl<'a> Output<'a> {
    /// `again` when the first file is there already.
    pub(crate) fn new(
        task: Task<'a>,
        pack: &'a mut NewPack,
        manifest: &'a [u8],
        state: &'a mut PackState,
        again: bool,
    ) -> Result<Self> {
        let Task { source, plan, scans, shards, calibrated, .. } = task;
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
            tables: [None; PLANE_COUNTS],
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
    pub(crate) fn take(self, job: &Job, done: Done) -> Result<Self> {
        let (name, shard) = match job.item {
            Item::Tensor(i) => (&self.source.tensors()[i].name, self.shards[i]),
            Item::File(i) => (&self.source.files[i].path, 0),
        };
        let mut output = if shard == self.shard { self } else { self.next_shard(shard, false)? };
        output.write(job, name, done).map_err(|e| e.in_tensor(name))?;
        Ok(output)
    }

    fn write(&mut self, job: &Job, name: &str, done: Done) -> Result<()> {
        let Done { crc: of_job, what } = done;
        let (mut open, mut crc, what) = match self.open.take() {
            Some((open, crc)) => (open, crc, Some(what)),
            None => {
                let (open, what) = self.begin(what)?;
                (open, crc32fast::Hasher::new(), what)
            }
        };
        crc.combine(&of_job);
        self.put(&mut open, what)?;
        if !job.last {
            self.open = Some((open, crc));
            return Ok(());
        }
        let scan = self.compare(job, &open, crc.finalize())?;
        self.end_item(job, name, open, scan)?;
        self.note(job)
    }

    /// Starts an item with what its first job came to; gives back what is still to be put.
    fn begin(&mut self, what: Encoded) -> Result<(Open, Option<Encoded>)> {
        Ok(match what {
            Encoded::Tile(tile, Some(entry)) => {
                let planes = Box::new(self.writer.begin_planes(entry)?);
                (Open::Planes(planes, Sha256::new()), Some(Encoded::Tile(tile, None)))
            }
            Encoded::Whole(tensor) => (Open::Whole(tensor), None),
            Encoded::Reused(tensor) => (Open::Reused(tensor), None),
            what => (Open::Data(self.writer.begin_data()?), Some(what)),
        })
    }

    /// Writes what a job came to.
    fn put(&mut self, open: &mut Open, what: Option<Encoded>) -> Result<()> {
        match (open, what) {
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
        Ok(())
    }

    /// Compares what was read with what the scan had read.
    fn compare(&self, job: &Job, open: &Open, crc32: u32) -> Result<Scan> {
        let (scan, file) = match job.item {
            Item::Tensor(i) => (Some(self.scans.tensors[i]), &self.source.tensors()[i].file),
            Item::File(i) => (self.scans.files[i], &self.source.files[i].path),
        };
        // The scan found the digest that the old pack's manifest has.
        let taken_over = matches!(open, Open::Reused(_));
        let same = |scan: &Scan| taken_over || scan.crc32 == crc32;
        scan.filter(same).ok_or_else(|| changed("its checksum differs").in_file(file))
    }

    /// Lists an item that is written.
    fn end_item(&mut self, job: &Job, name: &str, open: Open, scan: Scan) -> Result<()> {
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
        Ok(())
    }

    /// Notes in the state that an item is written.
    fn note(&mut self, job: &Job) -> Result<()> {
        self.writer.flush()?;
        let (tensor, file) = self.writer.last_listed();
        let written = match job.item {
            Item::Tensor(_) => tensor.cloned().map(Written::Tensor),
            Item::File(_) => file.cloned().map(Written::File),
        };
        written.map_or(Ok(()), |written| self.state.add(written))
    }

    /// Takes over what an earlier run wrote, as far as it is whole and in the order of `jobs`.
    /// Gives the first job that is left to do.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn restore(mut self, jobs: &Jobs, done: Vec<Written>) -> Result<(Self, usize)> {
        let (mut job, mut items) = (0, 0);
        for written in done {
            if job == jobs.len() {
                break;
            }
            let item = jobs.get(job).item;
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
            job += jobs.of_item(job);
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
    pub(crate) fn restored(&self) -> usize {
        self.restored
    }

    /// The numbers of the level tables of a tensor. A table is added to the shard with the first
    /// tensor that uses it.
    fn tables_of(&mut self, i: usize) -> Result<[u16; PLANE_COUNTS]> {
        let mut ids = [0; PLANE_COUNTS];
        let Some(calibrated) = self.calibrated else { return Ok(ids) };
        let used = calibrated.counts(i);
        for (at, native) in (0..PLANE_COUNTS).zip(MIN_PLANES..) {
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
        Ok(Self { shard, writer, there, tables: [None; PLANE_COUNTS], ..self })
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
    pub(crate) fn end(mut self) -> Result<()> {
        self.add_aliases()?;
        self.pack.end(self.writer, self.manifest)
    }
}
