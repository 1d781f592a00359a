//! The state that an interrupted run leaves, so that another goes on where it ended.
//!
//! Files of a pack are written as `NAME.partial`. Beside them `OUT.pack-state` lists, line by line,
//! what they hold: first the digest of all that decides the bytes of the pack, then the files,
//! then, where a calibration steers the encoder, what it was told to do, then each tensor and
//! carried file in the order of the bytes, and last, when all is complete, the names that the files
//! get. A line is written when what it speaks of is; it starts with its own CRC-32. The state is
//! locked while a run works with it. It is trusted as the output is: who can write here could write
//! the pack.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind as IoKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::file::{ClosedFile, partial_path, remove_stale};
use crate::container::Container;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Digest, FileEntry, Index, TensorEntry, write_index};

const FORMAT: &str = "ultracompress-pack-state-1";

/// What names end with of files that hold a pack as it is encoded. These are gone on with; later
/// ones are made again.
pub(crate) const BASE: &str = ".partial";
/// Of the same pack with tables for rungs, with their roots, and with the exact rung.
pub(crate) const RUNGS: &str = ".partial-rungs";
pub(crate) const ROOTS: &str = ".partial-roots";
pub(crate) const EXACT: &str = ".partial-exact";
pub(crate) const STAGES: [&str; 4] = [BASE, RUNGS, ROOTS, EXACT];

/// Longest state that is read. A line takes about 64 bytes and 24 for each MiB of its tensor.
const MOST_BYTES: u64 = 1 << 30;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
enum Line {
    /// What the state is, and the digest of everything that decides the bytes of the pack.
    #[serde(rename = "head")]
    Head { format: String, run: String },
    /// Names of the files that hold what is done, at any stage.
    #[serde(rename = "partial")]
    Partial(Vec<String>),
    /// How the calibration encodes.
    #[serde(rename = "calibrated")]
    Calibrated(Value),
    /// An index with one record, in hexadecimal.
    #[serde(rename = "done")]
    Done(String),
    /// All files are complete and get their names now, in this order.
    #[serde(rename = "named")]
    Named(Vec<NewName>),
}

/// A complete file that gets its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewName {
    /// Where it was written.
    from: String,
    /// Its name.
    to: String,
    /// Its stored root; of an index file the SHA-256.
    id: String,
}

/// A tensor or a carried file that was written.
#[derive(Debug)]
pub(crate) enum Written {
    Tensor(TensorEntry),
    File(FileEntry),
}

/// The open, locked state of a run.
#[derive(Debug)]
pub(crate) struct PackState {
    path: PathBuf,
    file: File,
    keep: bool,
    /// Whether this run has written to it, or made it: then it vanishes with the run unless it is
    /// to be kept.
    ours: bool,
    run: Option<String>,
    partial: Vec<String>,
    calibrated: Option<Value>,
    /// What was done, with the length of the state before its line.
    done: Vec<(Written, u64)>,
    /// These lengths, when what was done has been taken.
    before: Vec<u64>,
    named: Option<(Vec<NewName>, u64)>,
    len: u64,
}

fn state_path(output: &Path) -> PathBuf {
    partial_path(output, ".pack-state")
}

/// Bytes that an earlier run of `output` left, which are gone on with.
pub(crate) fn bytes_there(output: &Path) -> u64 {
    let path = state_path(output);
    if !path.symlink_metadata().is_ok_and(|m| m.is_file()) {
        return 0;
    }
    let text = File::open(&path).and_then(|file| read_capped(&file));
    let names = text.ok().into_iter().flat_map(|text| {
        let lines = text.split(|b| *b == b'\n').map_while(parse_line);
        let names = lines.filter_map(|l| if let Line::Partial(n) = l { Some(n) } else { None });
        names.flatten().collect::<Vec<_>>()
    });
    let base = names.filter(|n| n.ends_with(BASE) && is_plain(n));
    base.filter_map(|n| Some(path.with_file_name(n).symlink_metadata().ok()?.len())).sum()
}

fn read_capped(file: &File) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut text)?;
    Ok(text)
}

/// Whether it is the name of a file in the same folder.
fn is_plain(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|n| n == name)
}

impl PackState {
    /// Whether a run of `output` left one.
    pub(crate) fn is_there(output: &Path) -> bool {
        state_path(output).symlink_metadata().is_ok()
    }

    /// Of the run that writes `output`. `keep` goes on with what is there, and leaves what was done
    /// when this run fails; otherwise what is there is removed, when the run starts.
    ///
    /// # Errors
    /// `Io`, also when another process is writing the same pack, or something else is in the way.
    pub(crate) fn open(output: &Path, keep: bool) -> Result<Self> {
        let path = state_path(output);
        let io = |e| Error::io("can't write", e).in_file(path.display().to_string());
        let in_the_way = || {
            Error::new(ErrorKind::Io, "is in the way: it is no state of an earlier run")
                .in_file(path.display().to_string())
        };
        let (file, new) = loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true);
            let (file, new) = match options.clone().create_new(true).open(&path) {
                Err(e) if e.kind() == IoKind::AlreadyExists => {
                    // A link would lead elsewhere, a pipe would never answer.
                    if !path.symlink_metadata().is_ok_and(|m| m.is_file()) {
                        return Err(in_the_way());
                    }
                    (options.open(&path).map_err(io)?, false)
                }
                file => (file.map_err(io)?, true),
            };
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::new(ErrorKind::Io, "another run is writing this pack")
                        .in_file(path.display().to_string()));
                }
                // Some file systems have no locks.
                Err(TryLockError::Error(_)) | Ok(()) => {}
            }
            // The run that held the lock may have ended and removed the file, and a third one made
            // another.
            if is_still_there(&file, &path) {
                break (file, new);
            }
        };
        let text = read_capped(&file).map_err(io)?;
        let mut state = Self {
            path: path.clone(),
            file,
            keep,
            ours: new,
            run: None,
            partial: vec![],
            calibrated: None,
            done: vec![],
            before: vec![],
            named: None,
            len: 0,
        };
        state.read(&text);
        if state.run.is_none() && !text.is_empty() {
            return Err(in_the_way());
        }
        Ok(state)
    }

    /// Takes lines until one isn't whole: the last one of a killed run, or a damaged one.
    fn read(&mut self, text: &[u8]) {
        for line in text.split_inclusive(|b| *b == b'\n') {
            let Some(parsed) = line.strip_suffix(b"\n").and_then(parse_line) else { return };
            match parsed {
                Line::Head { format, run } if self.len == 0 && format == FORMAT => {
                    self.run = Some(run);
                }
                _ if self.run.is_none() => return,
                Line::Head { .. } => return,
                Line::Partial(names) => self.partial = names,
                Line::Calibrated(value) => self.calibrated = Some(value),
                Line::Done(record) => {
                    let Some(written) = parse_record(&record) else { return };
                    self.done.push((written, self.len));
                }
                Line::Named(names) => self.named = Some((names, self.len)),
            }
            self.len += line.len() as u64;
        }
    }

    fn io(&self, what: &'static str) -> impl Fn(std::io::Error) -> Error + use<> {
        let path = self.path.display().to_string();
        move |e| Error::io(what, e).in_file(&path)
    }

    /// Whether an earlier run was giving files their names when it ended.
    pub(crate) fn was_naming(&self) -> bool {
        self.keep && self.named.is_some()
    }

    /// Goes on with what is there, or starts anew. `run` is the digest of everything that decides
    /// the bytes of the pack.
    ///
    /// # Errors
    /// `Source` when what is there is of another run; `Io`.
    pub(crate) fn start(&mut self, run: Digest) -> Result<()> {
        let run = run.to_string();
        if let (Some(earlier), true) = (&self.run, self.keep) {
            if *earlier != run {
                let text = "is the state of another run: the source, the recipe or the tool was another; start again without --resume";
                // It stays as it was.
                return Err(Error::source_file(text).in_file(self.path.display().to_string()));
            }
            self.ours = true;
            return self.cut(self.len);
        }
        self.ours = true;
        self.remove_partial(&STAGES)?;
        self.forget();
        self.cut(0)?;
        self.append(&Line::Head { format: FORMAT.into(), run })
    }

    fn forget(&mut self) {
        (self.calibrated, self.named) = (None, None);
        self.partial.clear();
        self.done.clear();
    }

    /// Removes the listed files of these stages.
    fn remove_partial(&self, stages: &[&str]) -> Result<()> {
        let of_stage = |n: &&String| is_plain(n) && stages.iter().any(|s| n.ends_with(s));
        for name in self.partial.iter().filter(of_stage) {
            remove_stale(&self.path.with_file_name(name)).map_err(self.io("can't remove"))?;
        }
        Ok(())
    }

    /// Gives the remaining files of a run their names, if it had begun to and all of them are
    /// there. Says whether that ended the run; if not, what stands there of stages that can't
    /// be gone on with is removed.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn roll_forward(&mut self, targets: &[PathBuf], force: bool) -> Result<bool> {
        let named = self.named.take();
        if let Some((names, before)) = named {
            if self.all_there(&names, targets, force)? {
                for (name, target) in names.iter().zip(targets) {
                    let from = self.path.with_file_name(&name.from);
                    if is_file_of(&from, &name.id)? {
                        std::fs::rename(&from, target).map_err(|e| {
                            Error::io("can't rename", e).in_file(target.display().to_string())
                        })?;
                    }
                }
                ClosedFile::sync_parent(&self.path);
                return Ok(true);
            }
            self.cut(before)?;
        }
        self.remove_partial(&STAGES[1..])?;
        Ok(false)
    }

    /// Whether each file of `names` is complete, where it was written or where it belongs, and
    /// nobody else's is in its place.
    fn all_there(&self, names: &[NewName], targets: &[PathBuf], force: bool) -> Result<bool> {
        let is_called = |(name, target): (&NewName, &PathBuf)| {
            target.file_name().is_some_and(|t| t == name.to.as_str())
        };
        let same = names.len() == targets.len() && names.iter().zip(targets).all(is_called);
        let ours = |n: &NewName| {
            STAGES.iter().any(|stage| n.from == format!("{}{stage}", n.to)) && is_plain(&n.from)
        };
        if !same || !names.iter().all(ours) {
            return Ok(false);
        }
        for (name, target) in names.iter().zip(targets) {
            let from = self.path.with_file_name(&name.from);
            let free = force || target.symlink_metadata().is_err();
            let ready = free && is_file_of(&from, &name.id)?;
            if !ready && !is_file_of(target, &name.id)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the files that hold what is done aren't recorded yet.
    pub(crate) fn is_new(&self) -> bool {
        self.partial.is_empty()
    }

    /// How the calibration encodes, if an earlier run found it out.
    pub(crate) fn calibrated(&self) -> Option<&Value> {
        self.calibrated.as_ref()
    }

    /// What an earlier run did, in the order of the bytes.
    pub(crate) fn take_done(&mut self) -> Vec<Written> {
        let (done, before) = std::mem::take(&mut self.done).into_iter().unzip();
        self.before = before;
        done
    }

    /// Forgets all but the first `n` of what was done.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn keep_first(&mut self, n: usize) -> Result<()> {
        let len = self.before.get(n).map_or(self.len, |before| *before);
        self.cut(len)
    }

    /// Records the files that will hold what is done.
    ///
    /// # Errors
    /// `Io`, also when one of them is there: it is somebody else's.
    pub(crate) fn add_partial(&mut self, paths: &[PathBuf]) -> Result<()> {
        if let Some(path) = paths.iter().find(|p| p.symlink_metadata().is_ok()) {
            let text = "is in the way: no interrupted run is known that wrote it";
            return Err(Error::new(ErrorKind::Io, text).in_file(path.display().to_string()));
        }
        let name = |p: &PathBuf| p.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.partial = paths.iter().map(name).collect();
        let line = Line::Partial(self.partial.clone());
        self.append(&line)
    }

    /// Records that files get their names now: where each was written, its name, and what it is.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn add_named(&mut self, names: Vec<NewName>) -> Result<()> {
        self.append(&Line::Named(names))?;
        // Before the first rename: what is named without a line would be somebody else's.
        self.file.sync_all().map_err(self.io("can't write"))
    }

    /// Records how the calibration encodes.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn add_calibrated(&mut self, value: Value) -> Result<()> {
        self.append(&Line::Calibrated(value))
    }

    /// Records a tensor or a carried file whose bytes are written.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn add(&mut self, written: Written) -> Result<()> {
        let mut index = Index::default();
        match written {
            Written::Tensor(entry) => index.tensors.push(entry),
            Written::File(entry) => index.files.push(entry),
        }
        self.append(&Line::Done(hex(&write_index(&index)?.0)))
    }

    fn append(&mut self, line: &Line) -> Result<()> {
        let text = serde_json::to_string(line)
            .map_err(|e| Error::argument(format!("state: {e}")).with_source(e))?;
        let bytes = format!("{:08x} {text}\n", crc32fast::hash(text.as_bytes()));
        self.file.write_all(bytes.as_bytes()).map_err(self.io("can't write"))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn cut(&mut self, len: u64) -> Result<()> {
        let cut = self.file.set_len(len).and_then(|()| self.file.seek(SeekFrom::Start(len)));
        self.len = cut.map_err(self.io("can't write"))?;
        Ok(())
    }

    /// Removes the state and what the pack was made from: it has its name.
    pub(crate) fn end(mut self) {
        self.keep = false;
        // What can't be removed is of no consequence.
        let _ = self.remove_partial(&STAGES);
    }
}

impl Drop for PackState {
    fn drop(&mut self) {
        // Of a run that never started what is there stays as it was; of one that wrote nothing
        // there is nothing to keep.
        if self.ours && (!self.keep || self.partial.is_empty()) {
            let _ = remove_stale(&self.path);
        }
    }
}

impl NewName {
    /// # Errors
    /// `Io`.
    pub(crate) fn new(from: &Path, to: &Path) -> Result<Self> {
        let name = |p: &Path| p.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { from: name(from), to: name(to), id: id_of(from)? })
    }
}

/// Whether a path leads to a regular file that is this one.
fn is_file_of(path: &Path, id: &str) -> Result<bool> {
    if !path.symlink_metadata().is_ok_and(|m| m.is_file()) {
        return Ok(false);
    }
    Ok(id_of(path)? == id)
}

/// The stored root that a container has in its preamble: it was written and synced as a whole. Of
/// other files the SHA-256.
fn id_of(path: &Path) -> Result<String> {
    if let Ok(pack) = Container::open_path(path) {
        return Ok(pack.preamble().stored_root.to_string());
    }
    let io = |e| Error::io("can't read", e).in_file(path.display().to_string());
    let text = File::open(path).and_then(|file| read_capped(&file)).map_err(io)?;
    Ok(Digest::of(&text).to_string())
}

#[cfg(unix)]
fn is_still_there(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |m: std::fs::Metadata| (m.dev(), m.ino());
    let (open, there) = (file.metadata().map(id), path.symlink_metadata().map(id));
    open.ok().is_some_and(|open| there.is_ok_and(|there| open == there))
}

#[cfg(not(unix))]
fn is_still_there(_: &File, path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn parse_line(line: &[u8]) -> Option<Line> {
    let (crc, text) = line.split_first_chunk::<8>()?;
    let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?, 16).ok()?;
    let text = text.strip_prefix(b" ").filter(|text| crc32fast::hash(text) == crc)?;
    serde_json::from_slice(text).ok()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

fn parse_record(record: &str) -> Option<Written> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, []) = record.as_bytes().as_chunks::<2>() else { return None };
    let bytes: Option<Vec<u8>> =
        pairs.iter().map(|[a, b]| Some(digit(*a)? << 4 | digit(*b)?)).collect();
    let mut index = Index::parse(&bytes?, u64::MAX, 1).ok()?;
    let tensor = index.tensors.pop().map(Written::Tensor);
    tensor.or_else(|| index.files.pop().map(Written::File))
}
