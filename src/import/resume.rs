//! What an interrupted run leaves, so that another goes on where it ended.
//!
//! Files of a pack are written as `NAME.partial`. Beside them `OUT.pack-state` lists, line by line, what they hold: first
//! the digest of all that decides the bytes of the pack, then, where a calibration steers the encoder, what it was told
//! to do, then each tensor and carried file in the order of the bytes. A line is written when its bytes are.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind as IoKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::output::{partial_path, remove_stale};
use crate::container::Container;
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Digest, FileEntry, Index, TensorEntry, write_index};

const FORMAT: &str = "ultracompress-pack-state-1";

/// What names end with of files that hold a pack as it is encoded. These are gone on with; later ones are made again.
pub(super) const BASE: &str = ".partial";
/// Of the same pack with tables for rungs, with their roots, and with the exact rung.
pub(super) const RUNGS: &str = ".partial-rungs";
pub(super) const ROOTS: &str = ".partial-roots";
pub(super) const EXACT: &str = ".partial-exact";
pub(super) const STAGES: [&str; 4] = [BASE, RUNGS, ROOTS, EXACT];

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    format: String,
    /// Digest of everything that decides the bytes of the pack.
    run: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
enum Line {
    /// Names of the files that hold what was done.
    #[serde(rename = "partial")]
    Partial(Vec<String>),
    /// The files get their names now: these, with these stored roots.
    #[serde(rename = "named")]
    Named(BTreeMap<String, String>),
    /// How the calibration encodes.
    #[serde(rename = "calibrated")]
    Calibrated(Value),
    /// An index with one record, in hexadecimal, and its CRC-32.
    #[serde(rename = "done")]
    Done { record: String, crc32: u32 },
}

/// A tensor or a carried file that was written.
#[derive(Debug)]
pub(super) enum Written {
    Tensor(TensorEntry),
    File(FileEntry),
}

/// The open, locked state of a run. Dropped, it vanishes unless it is to be kept.
#[derive(Debug)]
pub(super) struct PackState {
    path: PathBuf,
    file: File,
    keep: bool,
    calibrated: Option<Value>,
    /// What was done, with the length of the state before its line.
    done: Vec<(Written, u64)>,
    /// These lengths, when what was done has been taken.
    before: Vec<u64>,
    len: u64,
}

fn state_path(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(".pack-state");
    output.with_file_name(name)
}

/// Takes their names from files of `output` that a run was giving them when it was killed, so that another run goes on with
/// them. A file that isn't what that run wrote keeps its name.
///
/// # Errors
/// `Io`.
pub(super) fn take_back(output: &Path) -> Result<()> {
    let Ok(text) = std::fs::read(state_path(output)) else { return Ok(()) };
    let named = text.split(|b| *b == b'\n').filter_map(|l| match serde_json::from_slice(l) {
        Ok(Line::Named(names)) => Some(names),
        _ => None,
    });
    for (name, root) in named.last().into_iter().flatten() {
        let path = output.with_file_name(&name);
        let plain = Path::new(&name).file_name().is_some_and(|n| n == name.as_str());
        let partial = partial_path(&path, BASE);
        let written = || Some(Container::open_path(&path).ok()?.preamble().stored_root.to_string());
        if plain && partial.symlink_metadata().is_err() && written() == Some(root) {
            std::fs::rename(&path, &partial)
                .map_err(|e| Error::io("can't rename", e).in_file(path.display().to_string()))?;
        }
    }
    Ok(())
}

impl PackState {
    /// Of the run that writes `output`. `keep` goes on with what is there, and leaves what was done when this run fails;
    /// otherwise what is there is removed.
    ///
    /// # Errors
    /// `Io`, also when another process is writing the same pack.
    pub(super) fn open(output: &Path, keep: bool) -> Result<Self> {
        let path = state_path(output);
        let io = |e| Error::io("can't write", e).in_file(path.display().to_string());
        let file = loop {
            let file = match OpenOptions::new().read(true).write(true).create_new(true).open(&path)
            {
                Err(e) if e.kind() == IoKind::AlreadyExists => {
                    // A link would lead elsewhere.
                    if !path.symlink_metadata().is_ok_and(|m| m.is_file()) {
                        return Err(Error::new(ErrorKind::Io, "is no state of an earlier run")
                            .in_file(path.display().to_string()));
                    }
                    OpenOptions::new().read(true).write(true).open(&path).map_err(io)?
                }
                file => file.map_err(io)?,
            };
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::new(ErrorKind::Io, "another run is writing this pack")
                        .in_file(path.display().to_string()));
                }
                // Some file systems have no locks.
                Err(TryLockError::Error(_)) | Ok(()) => {}
            }
            // The run that held the lock may have ended and removed the file.
            if path.symlink_metadata().is_ok() {
                break file;
            }
        };
        Ok(Self { path, file, keep, calibrated: None, done: vec![], before: vec![], len: 0 })
    }

    fn io(&self, what: &'static str) -> impl Fn(std::io::Error) -> Error {
        let path = self.path.display().to_string();
        move |e| Error::io(what, e).in_file(&path)
    }

    /// Reads what is there, or starts anew. `run` is the digest of everything that decides the bytes of the pack.
    ///
    /// # Errors
    /// `Source` when what is there is of another run; `Io`.
    pub(super) fn start(&mut self, run: Digest) -> Result<()> {
        let mut text = Vec::new();
        let read =
            self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.read_to_end(&mut text));
        read.map_err(self.io("can't read"))?;
        let mut lines = text.split_inclusive(|b| *b == b'\n').filter(|l| l.ends_with(b"\n"));
        let head: Option<Head> = lines.next().and_then(|l| serde_json::from_slice(l).ok());
        if let (Some(head), true) = (&head, self.keep) {
            if head.format != FORMAT || head.run != run.to_string() {
                let text = "is the state of another run: the source, the recipe or the tool was another; start again without --resume";
                // It stays as it was.
                return Err(Error::source_file(text).in_file(self.path.display().to_string()));
            }
            self.len = text.iter().position(|b| *b == b'\n').map_or(0, |at| at as u64 + 1);
            self.read(lines);
            return self.cut(self.len);
        }
        let name_of_ours = |name: &String| {
            let path = Path::new(name);
            let ours = STAGES.iter().any(|stage| name.ends_with(stage));
            ours && path.file_name().is_some_and(|n| n == name.as_str())
        };
        let names = lines.filter_map(|l| match serde_json::from_slice(l) {
            Ok(Line::Partial(names)) => Some(names),
            _ => None,
        });
        for name in names.flatten().filter(name_of_ours) {
            remove_stale(&self.path.with_file_name(name)).map_err(self.io("can't remove"))?;
        }
        let head = Head { format: FORMAT.into(), run: run.to_string() };
        self.cut(0)?;
        self.append(&head)
    }

    /// Takes lines until one isn't whole: the last one of a killed run, or a damaged one.
    fn read<'a>(&mut self, lines: impl Iterator<Item = &'a [u8]>) {
        for line in lines {
            match serde_json::from_slice(line) {
                Ok(Line::Partial(_) | Line::Named(_)) => {}
                Ok(Line::Calibrated(value)) => self.calibrated = Some(value),
                Ok(Line::Done { record, crc32 }) => {
                    let Some(written) = parse(&record, crc32) else { return };
                    self.done.push((written, self.len));
                }
                Err(_) => return,
            }
            self.len += line.len() as u64;
        }
    }

    /// Whether no earlier run had written anything.
    pub(super) fn is_new(&self) -> bool {
        self.done.is_empty()
    }

    /// How the calibration encodes, if an earlier run found it out.
    pub(super) fn calibrated(&self) -> Option<&Value> {
        self.calibrated.as_ref()
    }

    /// What an earlier run did, in the order of the bytes.
    pub(super) fn take_done(&mut self) -> Vec<Written> {
        let (done, before) = std::mem::take(&mut self.done).into_iter().unzip();
        self.before = before;
        done
    }

    /// Forgets all but the first `n` of what was done.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn keep_first(&mut self, n: usize) -> Result<()> {
        let len = self.before.get(n).map_or(self.len, |before| *before);
        self.cut(len)
    }

    /// Records the files that will hold what is done.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn add_partial(&mut self, paths: &[PathBuf]) -> Result<()> {
        let name = |p: &PathBuf| p.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.append(&Line::Partial(paths.iter().map(name).collect()))
    }

    /// Records that files get their names now, with their stored roots.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn add_named(&mut self, roots: BTreeMap<String, String>) -> Result<()> {
        self.append(&Line::Named(roots))
    }

    /// Records how the calibration encodes.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn add_calibrated(&mut self, value: Value) -> Result<()> {
        self.append(&Line::Calibrated(value))
    }

    /// Records a tensor or a carried file whose bytes are written.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn add(&mut self, written: Written) -> Result<()> {
        let mut index = Index::default();
        match written {
            Written::Tensor(entry) => index.tensors.push(entry),
            Written::File(entry) => index.files.push(entry),
        }
        let (bytes, _) = write_index(&index)?;
        self.append(&Line::Done { record: hex(&bytes), crc32: crc32fast::hash(&bytes) })
    }

    fn append(&mut self, line: &impl Serialize) -> Result<()> {
        let mut bytes = serde_json::to_vec(line)
            .map_err(|e| Error::argument(format!("state: {e}")).with_source(e))?;
        bytes.push(b'\n');
        self.file.write_all(&bytes).map_err(self.io("can't write"))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn cut(&mut self, len: u64) -> Result<()> {
        let cut = self.file.set_len(len).and_then(|()| self.file.seek(SeekFrom::Start(len)));
        self.len = cut.map_err(self.io("can't write"))?;
        Ok(())
    }

    /// Removes the state and what lies beside it: the pack has its name.
    pub(super) fn end(mut self, partial: Vec<PathBuf>) {
        self.keep = false;
        for path in partial {
            // What can't be removed is of no consequence.
            let _ = remove_stale(&path);
        }
    }
}

impl Drop for PackState {
    fn drop(&mut self) {
        if !self.keep {
            let _ = remove_stale(&self.path);
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

fn parse(record: &str, crc32: u32) -> Option<Written> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, []) = record.as_bytes().as_chunks::<2>() else { return None };
    let bytes: Option<Vec<u8>> =
        pairs.iter().map(|[a, b]| Some(digit(*a)? << 4 | digit(*b)?)).collect();
    let bytes = bytes.filter(|bytes| crc32fast::hash(bytes) == crc32)?;
    let mut index = Index::parse(&bytes, u64::MAX, 1).ok()?;
    let tensor = index.tensors.pop().map(Written::Tensor);
    tensor.or_else(|| index.files.pop().map(Written::File))
}
