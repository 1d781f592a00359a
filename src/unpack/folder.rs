//! From a pack back to a folder of safetensors and carried files.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use regex::Regex;
use sha2::{Digest as _, Sha256};

use crate::container::{DecodeOptions, EffectiveTensor, TensorView, WHOLE_BYTES};
use crate::error::{Error, Result};
use crate::format::{Digest, Dtype, OverlayBlock, TreeHasher, tensor_leaf};
use crate::manifest::{Manifest, Pack, SourceFile, has_residual};
use crate::memory::{self, DEFAULT_MAX_RAM};
use crate::output::NewFolder;
use crate::par;
use crate::progress::{NoProgress, Progress, step};
use crate::rule::Rule;
use crate::setters::setters;
use crate::source::{build_header, parse_header};
use crate::storage::ReadAt;

/// The file for tensors that were packed from memory.
const DEFAULT_FILE: &str = "model.safetensors";
/// Files that are written at the same time: few enough for any system's limit of open files.
const FILES_AT_ONCE: usize = 64;

/// How to unpack.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UnpackOptions {
    /// Element type of float tensors; the source's by default.
    pub dtype: Option<Dtype>,
    /// Read at most this many planes of each row; all by default.
    pub planes: Option<u8>,
    /// The source's own bits, in its own files: needs a pack that holds them. Default false.
    pub exact: bool,
    /// With the overlays of the pack; without them the base. Not with a rung or exact bits, which
    /// overlays don't belong to. Default true.
    pub overlays: bool,
    /// Only tensors whose name this matches somewhere, and no carried files; everything by
    /// default.
    pub tensors: Option<String>,
    /// Write into a folder that isn't empty, replacing files of the same name. Default false.
    pub force: bool,
    /// Bytes of memory to stay within, whatever the size of the pack; at least
    /// [`MIN_MAX_RAM`](crate::MIN_MAX_RAM). Default [`DEFAULT_MAX_RAM`](crate::DEFAULT_MAX_RAM).
    pub max_ram: u64,
}

impl Default for UnpackOptions {
    fn default() -> Self {
        Self {
            dtype: None,
            planes: None,
            exact: false,
            overlays: true,
            tensors: None,
            force: false,
            max_ram: DEFAULT_MAX_RAM,
        }
    }
}

/// What was unpacked.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UnpackReport {
    /// Tensors written.
    pub tensors: u64,
    /// Bytes of all files written.
    pub bytes: u64,
    /// The root over the tensors as written. Equals the pack's when everything was written at the
    /// source's types and full planes.
    pub decoded_root: Digest,
    /// Overlays that were applied.
    pub overlays: u64,
    /// Tensors compared with their decoded or effective digest: all that were written at source
    /// type and full planes. Exact ones are compared with their source digest.
    pub compared: u64,
    /// Weights files that are those of the source, byte for byte: compared with their digest.
    pub files_recreated: u64,
}

impl UnpackOptions {
    /// Everything as in the source.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        with_dtype: dtype = Option<Dtype>,
        with_planes: planes = Option<u8>,
        with_exact: exact = bool,
        with_overlays: overlays = bool,
        with_tensors: tensors = Option<String>,
        with_force: force = bool,
        with_max_ram: max_ram = u64,
    }

    /// Unpacks into the folder `output`, which appears only when it is complete.
    ///
    /// # Errors
    /// `Integrity` where a checksum or digest disagrees, `Malformed`, `InvalidArgument` for a
    /// pattern that matches nothing, a single shard, or too little memory; `Io`.
    pub fn unpack<R: ReadAt + Sync>(&self, pack: &Pack<R>, output: &Path) -> Result<UnpackReport> {
        self.unpack_with(pack, output, &NoProgress)
    }

    /// As [`UnpackOptions::unpack`], with progress in bytes of output tensors.
    ///
    /// # Errors
    /// As [`UnpackOptions::unpack`]; `Cancelled`.
    pub fn unpack_with<R: ReadAt + Sync>(
        &self,
        pack: &Pack<R>,
        output: &Path,
        progress: &dyn Progress,
    ) -> Result<UnpackReport> {
        pack.require_base()?;
        let budget = self.budget(pack)?;
        let manifest = pack.manifest()?;
        let wanted = self.wanted()?;
        // A sharded pack of which only the shards with these tensors are open will do.
        if self.tensors.is_none() || pack.shard_index().is_none() {
            pack.require_complete()?;
        }
        if self.exact {
            self.check_exact(pack)?;
        }
        let folder = NewFolder::create(output, self.force)?;
        let files = by_file(pack, &manifest, wanted);
        if let Some(pattern) = self.tensors.as_ref().filter(|_| files.is_empty()) {
            return Err(Error::argument(format!("no tensor matches \"{pattern}\"")));
        }
        let mut report = UnpackReport {
            tensors: 0,
            bytes: 0,
            decoded_root: Digest([0; 32]),
            overlays: self.applied(pack) as u64,
            compared: 0,
            files_recreated: 0,
        };
        let mut leaves = BTreeMap::new();
        for files in files.chunks(FILES_AT_ONCE) {
            let mut outputs = vec![];
            for (name, views) in files {
                outputs.push(self.start(pack, folder.path(), name, views, &manifest)?);
            }
            let written = self.write_weights(pack, &outputs, &manifest, budget, progress)?;
            report.tensors += written.len() as u64;
            for (view, (digest, compared)) in written {
                let target = self.decode_options().target(view);
                report.compared += u64::from(compared);
                leaves.insert(view.name(), tensor_leaf(view.name(), target, view.shape(), digest));
            }
            for output in outputs {
                report.files_recreated += u64::from(output.check(folder.path())?);
                output.file.sync_all().map_err(|e| output.error(e))?;
                report.bytes += output.len;
            }
        }
        if self.tensors.is_none() {
            report.bytes += write_carried(pack, folder.path(), progress)?;
        }
        let mut tree = TreeHasher::new();
        leaves.into_values().for_each(|leaf| tree.push(leaf));
        report.decoded_root = tree.root();
        folder.commit()?;
        Ok(report)
    }

    /// About how many bytes unpacking writes.
    ///
    /// # Errors
    /// `InvalidArgument` for a bad pattern.
    pub fn output_bytes<R: ReadAt>(&self, pack: &Pack<R>) -> Result<u64> {
        let wanted = self.wanted()?;
        let tensors = pack
            .tensors()
            .filter(|v| wanted(v.name()))
            .filter_map(|v| self.decode_options().target(&v).tensor_bytes(v.shape()));
        let files = pack.files().iter().filter(|_| self.tensors.is_none()).map(|f| f.len);
        Ok(tensors.chain(files).fold(0, u64::saturating_add))
    }

    /// Whether a tensor of this name will be unpacked.
    ///
    /// # Errors
    /// `InvalidArgument` for a bad pattern.
    pub fn wanted(&self) -> Result<impl Fn(&str) -> bool + use<>> {
        let pattern = self.pattern()?;
        Ok(move |name: &str| pattern.as_ref().is_none_or(|p| p.is_match(name)))
    }

    fn budget<R: ReadAt>(&self, pack: &Pack<R>) -> Result<u64> {
        let wanted = self.wanted()?;
        let wanted = pack.tensors().filter(|v| wanted(v.name()));
        let stack = pack.overlays();
        let cost = |v: TensorView<'_, R>| {
            let factors = EffectiveTensor::<R>::cost(&stack, v.name());
            DecodeOptions::tiles_cost(&v, 0) + if stack.is_empty() { 0 } else { factors }
        };
        let largest = wanted.map(cost).max().unwrap_or(0);
        memory::for_work(self.max_ram, pack.tables_bytes(), largest)
    }

    fn pattern(&self) -> Result<Option<Regex>> {
        let compile = |p: &String| {
            Regex::new(p)
                .map_err(|e| Error::argument(format!("pattern \"{p}\": {e}")).with_source(e))
        };
        self.tensors.as_ref().map(compile).transpose()
    }

    /// How many overlays are applied.
    fn applied<R: ReadAt>(&self, pack: &Pack<R>) -> usize {
        let base = !self.overlays || self.exact || self.planes.is_some();
        if base { 0 } else { pack.overlays().len() }
    }

    fn decode_options(&self) -> DecodeOptions {
        let mut options = DecodeOptions::new();
        options.dtype = self.dtype;
        options.planes = self.planes;
        options.exact = self.exact;
        options
    }

    /// Starts the weights file of that name: the source's, byte for byte, or one of the tensors
    /// that are wanted.
    fn start<'v, R: ReadAt>(
        &self,
        pack: &Pack<R>,
        folder: &Path,
        name: &'v str,
        views: &'v [TensorView<'v, R>],
        manifest: &Manifest,
    ) -> Result<Output<'v, R>> {
        // Files are sorted by path (UC-MAN-7).
        let own = manifest.files.binary_search_by(|f| f.path.as_str().cmp(name));
        let own = own.ok().map(|at| &manifest.files[at]);
        let metadata = own.and_then(|f| f.metadata.as_ref());
        let mut output = match self.head(pack, own)? {
            Some(head) => self.start_original(folder, name, views, &head)?,
            None => self.start_weights(folder, name, views, metadata)?,
        };
        output.original = output.original.and(own.and_then(|f| f.sha256.clone()));
        Ok(output)
    }

    /// Starts one safetensors file: its header, and room for its tensors.
    fn start_weights<'v, R: ReadAt>(
        &self,
        folder: &Path,
        name: &'v str,
        views: &'v [TensorView<'v, R>],
        metadata: Option<&BTreeMap<String, String>>,
    ) -> Result<Output<'v, R>> {
        let options = self.decode_options();
        let tensors: Vec<_> =
            views.iter().map(|v| (v.name(), options.target(v), v.shape())).collect();
        let (head, offsets, len) = build_header(&tensors, metadata).map_err(|e| e.in_file(name))?;
        let file = create(folder, name, &head, len).map_err(|e| write_error(name, e))?;
        Ok(Output { name, file, len, tensors: views.iter().zip(offsets).collect(), original: None })
    }

    /// Whether everything that is asked for can be exact.
    fn check_exact<R: ReadAt>(&self, pack: &Pack<R>) -> Result<()> {
        if self.planes.is_some() || self.dtype.is_some() {
            return Err(Error::argument("exact values have no rung, and their own type"));
        }
        let wanted = self.wanted()?;
        for view in pack.tensors().filter(|v| wanted(v.name())) {
            let stored = view.resolve()?;
            if stored.entry().encoding.is_quantized() && !has_residual(&stored) {
                let text = "has no residual: its exact bytes are not in the pack";
                return Err(Error::argument(text).in_tensor(view.name()));
            }
        }
        Ok(())
    }

    /// What stood in front of the tensors of a weights file, when all of it is wanted as it was.
    fn head<R: ReadAt>(
        &self,
        pack: &Pack<R>,
        file: Option<&SourceFile>,
    ) -> Result<Option<(Vec<u8>, u64)>> {
        let Some(file) = file.filter(|_| self.exact && self.tensors.is_none()) else {
            return Ok(None);
        };
        let first = &pack.containers()[0];
        let head = first.index().heads.iter().find(|h| h.path == file.path);
        head.map(|head| Ok((first.read_file(head)?, file.bytes))).transpose()
    }

    /// Starts a safetensors file that is the source's, byte for byte.
    fn start_original<'v, R: ReadAt>(
        &self,
        folder: &Path,
        name: &'v str,
        views: &'v [TensorView<'v, R>],
        (head, len): &(Vec<u8>, u64),
    ) -> Result<Output<'v, R>> {
        let broken = |text: String| Error::malformed(Rule::EXA_32, text).in_file(name);
        let header = parse_header(head, *len).map_err(|e| broken(e.message().to_owned()))?;
        if header.head_len != head.len() as u64 || header.tensors.len() != views.len() {
            return Err(broken("the file's head is not that of its tensors".into()));
        }
        let mut tensors = vec![];
        for t in &header.tensors {
            let at = views.binary_search_by(|v| v.name().cmp(&t.name));
            let view = at.ok().map(|at| &views[at]);
            let same = |v: &&TensorView<'_, R>| (v.dtype(), v.shape()) == (t.dtype, &t.shape[..]);
            let Some(view) = view.filter(same) else {
                return Err(broken(format!(
                    "its head names \"{}\", which the pack has not so",
                    t.name
                )));
            };
            tensors.push((view, t.offset));
        }
        let file = create(folder, name, head, *len).map_err(|e| write_error(name, e))?;
        Ok(Output { name, file, len: *len, tensors, original: Some(String::new()) })
    }

    /// Writes the tensors of several files.
    fn write_weights<'v, R: ReadAt + Sync>(
        &self,
        pack: &Pack<R>,
        outputs: &[Output<'v, R>],
        manifest: &Manifest,
        budget: u64,
        progress: &dyn Progress,
    ) -> Result<Vec<Written<'v, R>>> {
        let options = self.decode_options();
        let mut jobs: Vec<_> = outputs
            .iter()
            .flat_map(|output| output.tensors.iter().map(move |&(view, at)| (output, view, at)))
            .collect();
        // A tensor is hashed by one thread, so the largest come first: a large one that comes last
        // would leave the other threads without work.
        let bytes = |view: &TensorView<'_, R>| options.target(view).tensor_bytes(view.shape());
        jobs.sort_by_key(|(_, view, _)| Reverse(bytes(view)));
        let whole = par::share(budget, WHOLE_BYTES);
        let overlays = self.applied(pack);
        let stack: Vec<_> = pack.overlays().into_iter().take(overlays).collect();
        let cost = |i: usize| {
            let name = jobs[i].1.name();
            let factors =
                if stack.is_empty() { 0 } else { EffectiveTensor::<R>::cost(&stack, name) };
            DecodeOptions::tiles_cost(jobs[i].1, whole).saturating_add(factors)
        };
        let digests = par::map_within(jobs.len(), budget, cost, |i| {
            let (output, view, mut at) = jobs[i];
            let mut sha = Sha256::new();
            let emit = |bytes: &[u8]| {
                // Only what goes wrong with the output names it: damage is in the pack.
                write_at(&output.file, at, bytes).map_err(|e| output.error(e))?;
                at += bytes.len() as u64;
                sha.update(bytes);
                step(progress, bytes.len() as u64)
            };
            let stored = view.resolve()?;
            let changed = stack.iter().rev().find_map(|o| o.block(stored.name()));
            match changed {
                Some(_) => {
                    pack.effective_tensor(view.name(), overlays)?.decode_tiles(&options, emit)?
                }
                None => options.decode_tiles_within(view, whole, emit)?,
            }
            let digest = Digest(sha.finalize().into());
            let compared = match self.exact {
                true => compare_exact(view, digest, manifest)?,
                false => self.compare(view, digest, changed)?,
            };
            Ok((digest, compared))
        })?;
        Ok(jobs.into_iter().map(|(_, view, _)| view).zip(digests).collect())
    }

    /// Compares what was written of a tensor with the pack's digest, if it is what was packed:
    /// whether it is. `changed` is the last overlay on it.
    fn compare<R: ReadAt>(
        &self,
        view: &TensorView<'_, R>,
        digest: Digest,
        changed: Option<&OverlayBlock>,
    ) -> Result<bool> {
        let (expected, rule) = match changed {
            Some(block) => (block.effective_sha256, Rule::OVL_9),
            None => (view.entry().decoded_sha256, Rule::TEN_5),
        };
        let target = self.decode_options().target(view);
        let as_packed = self.planes.is_none() && target == view.dtype();
        if as_packed && digest != expected {
            return Err(Error::integrity(format!(
                "decoded SHA-256 is {digest}, the index says {expected} ({rule})"
            ))
            .in_tensor(view.name()));
        }
        Ok(as_packed)
    }
}

/// Compares what was written of a tensor with its source digest.
fn compare_exact<R: ReadAt>(
    view: &TensorView<'_, R>,
    digest: Digest,
    manifest: &Manifest,
) -> Result<bool> {
    let source = manifest.tensors.get(view.name()).map(|t| t.sha256.as_str());
    if source != Some(&digest.to_string()) {
        return Err(Error::integrity(format!(
            "exact SHA-256 is {digest}, the manifest says {} ({})",
            source.unwrap_or("nothing"),
            Rule::EXA_11
        ))
        .in_tensor(view.name()));
    }
    Ok(true)
}

/// The tensors that are wanted, by the weights file that each belongs to.
fn by_file<'a, R: ReadAt>(
    pack: &'a Pack<R>,
    manifest: &'a Manifest,
    wanted: impl Fn(&str) -> bool,
) -> Vec<(&'a str, Vec<TensorView<'a, R>>)> {
    let mut files: BTreeMap<&str, Vec<TensorView<'_, R>>> = BTreeMap::new();
    for view in pack.tensors().filter(|v| wanted(v.name())) {
        let file = manifest.tensors.get(view.name()).and_then(|t| t.file.as_deref());
        files.entry(file.unwrap_or(DEFAULT_FILE)).or_default().push(view);
    }
    files.into_iter().collect()
}

/// Writes the files that the pack carries; their bytes.
fn write_carried<R: ReadAt>(pack: &Pack<R>, folder: &Path, progress: &dyn Progress) -> Result<u64> {
    let mut bytes = 0;
    for file in pack.files() {
        let io = |e| Error::io("can't write", e).in_file(&file.path);
        let path = folder.join(&file.path);
        path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(io)?;
        let mut out = File::create_new(&path).map_err(io)?;
        pack.stream_file(file, |piece| {
            step(progress, 0)?;
            out.write_all(piece).map_err(io)
        })?;
        out.sync_all().map_err(io)?;
        bytes += file.len;
    }
    Ok(bytes)
}

/// A safetensors file that is being written.
struct Output<'v, R> {
    name: &'v str,
    file: File,
    len: u64,
    /// With their places in the file.
    tensors: Vec<(&'v TensorView<'v, R>, u64)>,
    /// The SHA-256 of the source's file when this is to be it.
    original: Option<String>,
}

/// A file of `len` bytes that begins with `head`.
fn create(folder: &Path, name: &str, head: &[u8], len: u64) -> std::io::Result<File> {
    let path = folder.join(name);
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    let file = File::create_new(&path)?;
    file.set_len(len)?;
    write_at(&file, 0, head)?;
    Ok(file)
}

impl<R> Output<'_, R> {
    /// Compares a file that is to be the source's with its digest; whether it is one.
    ///
    /// # Errors
    /// `Integrity`, `Io`.
    fn check(&self, folder: &Path) -> Result<bool> {
        let Some(expected) = &self.original else { return Ok(false) };
        let mut file = File::open(folder.join(self.name)).map_err(|e| self.error(e))?;
        let mut sha = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer).map_err(|e| self.error(e))? {
                0 => break,
                n => sha.update(&buffer[..n]),
            }
        }
        let found = Digest(sha.finalize().into());
        if found.to_string() != *expected {
            return Err(Error::integrity(format!(
                "SHA-256 of the file is {found}, the manifest says {expected} ({})",
                Rule::EXA_32
            ))
            .in_file(self.name));
        }
        Ok(true)
    }

    fn error(&self, e: std::io::Error) -> Error {
        write_error(self.name, e)
    }
}

/// A tensor, the digest of what was written of it, and whether that was compared with the pack's.
type Written<'v, R> = (&'v TensorView<'v, R>, (Digest, bool));

fn write_error(name: &str, e: std::io::Error) -> Error {
    Error::io("can't write", e).in_file(name)
}

#[cfg(unix)]
fn write_at(file: &File, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_at(file: &File, mut offset: u64, mut bytes: &[u8]) -> std::io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !bytes.is_empty() {
        let n = file.seek_write(bytes, offset)?;
        if n == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}
