//! Cutting a pack into shards, and naming them.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::file::{ClosedFile, NewFile, Partial, partial_path};
use crate::container::{Container, PackWriter, WriteSummary};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{MAX_SHARDS, check_file_path};
use crate::manifest::{INDEX_ENDING, Pack, ShardIndex};
use crate::storage::ReadAt;

/// Least `shard_size`, in bytes: smaller files than a chunk make no sense.
pub(crate) const MIN_SHARD_BYTES: u64 = 1 << 20;

/// The shard of each tensor, from 0: tensors in the order given, each shard filled until the next
/// tensor would make it larger than `limit`. `bytes` is the content of its parts; nothing for an
/// alias, which goes where its target is.
pub(crate) fn assign(tensors: &[Placed], limit: Option<u64>) -> Vec<usize> {
    let limit = limit.unwrap_or(u64::MAX);
    let (mut shard, mut filled) = (0, 0u64);
    let mut shards = vec![0; tensors.len()];
    for (slot, tensor) in shards.iter_mut().zip(tensors) {
        let Placed::Bytes(bytes) = tensor else { continue };
        if filled > 0 && *bytes > 0 && filled.saturating_add(*bytes) > limit {
            (shard, filled) = (shard + 1, 0);
        }
        filled = filled.saturating_add(*bytes);
        *slot = shard;
    }
    for i in 0..shards.len() {
        if let Placed::With(target) = tensors[i] {
            shards[i] = shards[target];
        }
    }
    shards
}

/// What decides in which shard a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placed {
    /// Bytes of its content.
    Bytes(u64),
    /// It is an alias of this tensor.
    With(usize),
}

/// # Errors
/// `InvalidArgument` for a size that is too small.
pub(crate) fn check_shard_size(limit: Option<u64>) -> Result<()> {
    match limit {
        Some(n) if n < MIN_SHARD_BYTES => Err(Error::argument(format!(
            "shards of {n} bytes: at least {MIN_SHARD_BYTES} are possible"
        ))),
        _ => Ok(()),
    }
}

/// The file or files of a new pack.
#[derive(Debug)]
pub(crate) struct NewPack {
    /// The pack, or its shards and the index file.
    targets: Vec<PathBuf>,
    force: bool,
    /// How many of them are containers.
    count: usize,
    /// What names of files end with that another run finds, and whether they stay when this one
    /// fails.
    partial: Option<(&'static str, bool)>,
    done: Vec<(ClosedFile, WriteSummary)>,
}

/// A file that was written and has no name yet. It is opened for each read: a pack may have more
/// shards than a process may have open files.
#[derive(Debug)]
pub(crate) struct Unnamed(PathBuf);

impl Unnamed {
    fn open(&self) -> Result<File> {
        File::open(&self.0).map_err(|e| Error::io("can't read", e))
    }
}

impl ReadAt for Unnamed {
    fn len_bytes(&self) -> Result<u64> {
        self.open()?.len_bytes()
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.open()?.read_exact_at(offset, buf)
    }
}

/// Writes one file of a new pack.
pub(crate) type ShardWriter = PackWriter<BufWriter<NewFile>>;

impl NewPack {
    /// Whether the files of such a pack may be made, as far as that can be seen.
    ///
    /// # Errors
    /// As [`NewPack::create`].
    pub(crate) fn check(output: &Path, force: bool, count: usize) -> Result<()> {
        Self::create(output, force, count)?;
        NewFile::probe(output)
    }

    /// A pack of `count` files: `output` itself if it is one, else shards beside an index file that
    /// are called after it.
    ///
    /// # Errors
    /// `Io` when one of the files exists (unless `force`) or can't be written.
    pub(crate) fn create(output: &Path, force: bool, count: usize) -> Result<Self> {
        let targets = targets(output, count)?;
        targets.iter().try_for_each(|t| NewFile::check(t, force))?;
        Ok(Self { targets, force, count, partial: None, done: vec![] })
    }

    /// Writes under names that another run finds; what is there stays if this one fails and is to
    /// `keep` it.
    #[must_use]
    pub(crate) fn with_partial_files(mut self, stage: &'static str, keep: bool) -> Self {
        self.partial = Some((stage, keep));
        self
    }

    /// What the files of a pack of `count` containers are called: containers, then the index file.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that packs can't have.
    pub(crate) fn targets_of(output: &Path, count: usize) -> Result<Vec<PathBuf>> {
        targets(output, count)
    }

    /// Where the files are until they are complete, with names that end like this.
    pub(crate) fn partial_paths(&self, stage: &'static str) -> impl Iterator<Item = PathBuf> {
        self.targets.iter().map(move |t| partial_path(t, stage))
    }

    /// How many containers it consists of.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Refuses to replace one of `inputs`.
    ///
    /// # Errors
    /// `Io` naming the file.
    pub(crate) fn refuse_inputs<'a>(&self, inputs: impl Iterator<Item = &'a str>) -> Result<()> {
        let inputs: HashSet<PathBuf> =
            inputs.filter_map(|path| Path::new(path).canonicalize().ok()).collect();
        let same = |t: &&PathBuf| t.canonicalize().is_ok_and(|t| inputs.contains(&t));
        match self.targets.iter().find(same) {
            Some(target) => Err(Error::new(ErrorKind::Io, "output is the input")
                .in_file(target.display().to_string())),
            None => Ok(()),
        }
    }

    /// Starts the next file.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn start(&self) -> Result<ShardWriter> {
        self.start_from(false)
    }

    /// What an earlier run left of the next file, to read and to cut; nothing when there is no such
    /// file.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn open_partial(&self) -> Result<Option<File>> {
        let stage = self.partial.map_or("", |(stage, _)| stage);
        let path = partial_path(&self.targets[self.done.len()], stage);
        match File::options().read(true).write(true).open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("can't read", e).in_file(path.display().to_string())),
        }
    }

    /// As [`NewPack::start`]; `again` goes on with the file that an earlier run left.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn start_from(&self, again: bool) -> Result<ShardWriter> {
        let i = self.done.len();
        let target = &self.targets[i];
        let file = self.new_file(target, again)?;
        let out = BufWriter::with_capacity(1 << 20, file);
        let number = |n: usize| u32::try_from(n).expect("checked with the names");
        let name = target.display().to_string();
        let writer = PackWriter::new(out)
            .map_err(|e| e.in_file(&name))?
            .with_name(name)
            .with_shard(number(i + 1), number(self.count));
        Ok(writer)
    }

    fn new_file(&self, target: &Path, again: bool) -> Result<NewFile> {
        match self.partial {
            Some((stage, keep)) => {
                NewFile::partial(target, self.force, Partial { stage, keep, again })
            }
            None => NewFile::create(target, self.force),
        }
    }

    /// Ends the file that was started last. `manifest` belongs to the first.
    ///
    /// # Errors
    /// As [`PackWriter::finish`].
    pub(crate) fn end(&mut self, writer: ShardWriter, manifest: &[u8]) -> Result<()> {
        let target = self.targets[self.done.len()].display().to_string();
        let end = || {
            let manifest = if self.done.is_empty() { manifest } else { &[] };
            let (summary, out) = writer.finish(manifest)?;
            let out = out.into_inner().map_err(|e| Error::io("can't write", e.into_error()))?;
            Ok((out.close()?, summary))
        };
        let done = end().map_err(|e: Error| e.in_file(target))?;
        self.done.push(done);
        Ok(())
    }

    /// Opens what was written, which has no name yet.
    ///
    /// # Errors
    /// As [`Pack::open_path`].
    pub(crate) fn open(&self) -> Result<Pack<Unnamed>> {
        let open = |file: &ClosedFile, target: &Path| {
            let name = target.display().to_string();
            match Container::open(Unnamed(file.path().to_owned())) {
                Ok(container) => Ok(container.with_name(name)),
                Err(e) => Err(e.in_file(name)),
            }
        };
        if let [(file, _)] = &self.done[..] {
            return Ok(open(file, &self.targets[0])?.into());
        }
        let name = |path: &PathBuf| {
            path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let shards: Vec<_> = self
            .targets
            .iter()
            .zip(&self.done)
            .map(|(target, (file, _))| Ok((name(target), open(file, target)?)))
            .collect::<Result<_>>()?;
        let index = ShardIndex::of(&shards);
        Pack::from_shards(index, shards.into_iter().map(|(_, c)| Some(c)).collect())
    }

    /// Gives the files their names: shards first, the index file last. Returns all paths with
    /// lengths.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn commit(self, pack: &Pack<Unnamed>) -> Result<Vec<(PathBuf, u64)>> {
        self.commit_after(pack, |_| Ok(()))
    }

    /// As [`NewPack::commit`]; `before` is called with where each complete file is and what it will
    /// be called.
    ///
    /// # Errors
    /// `Io`, and that of `before`.
    pub(crate) fn commit_after(
        mut self,
        pack: &Pack<Unnamed>,
        before: impl FnOnce(&[(&Path, &Path)]) -> Result<()>,
    ) -> Result<Vec<(PathBuf, u64)>> {
        let targets = std::mem::take(&mut self.targets);
        let mut lengths: Vec<u64> = self.done.iter().map(|(_, s)| s.file_len).collect();
        let done = std::mem::take(&mut self.done);
        let mut files: Vec<ClosedFile> = done.into_iter().map(|(file, _)| file).collect();
        if let Some(index) = pack.shard_index() {
            let target = targets.last().expect("the index file is the last");
            let bytes = index.to_bytes()?;
            let mut out = self.new_file(target, false)?;
            out.write_all(&bytes)
                .map_err(|e| Error::io("can't write", e).in_file(target.display().to_string()))?;
            files.push(out.close()?);
            lengths.push(bytes.len() as u64);
        }
        let names: Vec<_> =
            files.iter().map(ClosedFile::path).zip(targets.iter().map(PathBuf::as_path)).collect();
        before(&names)?;
        ClosedFile::commit(files)?;
        Ok(targets.into_iter().zip(lengths).collect())
    }
}

/// Every file of a pack of `count` containers that is called after `output`.
fn targets(output: &Path, count: usize) -> Result<Vec<PathBuf>> {
    if output.to_string_lossy().ends_with(INDEX_ENDING) {
        return Err(Error::argument("is a name for an index file: name the pack NAME.uc")
            .in_file(output.display().to_string()));
    }
    if count == 1 {
        return Ok(vec![output.to_owned()]);
    }
    let name = output.file_name().and_then(|n| n.to_str()).ok_or_else(|| {
        Error::argument("output has no name in UTF-8").in_file(output.display().to_string())
    })?;
    let stem = name.strip_suffix(".uc").unwrap_or(name);
    if stem.is_empty() || check_file_path(stem).is_err() {
        return Err(Error::argument(
            "shards can't be called after it: no stem, or a character that an index can't list",
        )
        .in_file(output.display().to_string()));
    }
    let count = u32::try_from(count).ok().filter(|&n| n <= MAX_SHARDS).ok_or_else(|| {
        Error::argument(format!("{count} shards, at most {MAX_SHARDS} are possible"))
    })?;
    let shards = (1..=count).map(|number| ShardIndex::file_name(stem, number, count));
    let all = shards.chain([format!("{stem}{INDEX_ENDING}")]);
    Ok(all.map(|name| output.with_file_name(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_filled_in_order_and_aliases_follow_their_targets() {
        use Placed::{Bytes, With};
        let tensors = [With(3), Bytes(4), Bytes(6), Bytes(1), Bytes(20), Bytes(0), Bytes(3)];
        assert_eq!(assign(&tensors, None), [0; 7]);
        assert_eq!(assign(&tensors, Some(10)), [1, 0, 0, 1, 2, 2, 3]);
    }
}
