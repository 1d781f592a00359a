//! A whole pack: one container, or all its shards.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::shards::{INDEX_ENDING, ShardIndex};
use super::{Manifest, json};
use crate::container::{Container, EffectiveTensor, TensorView, check_block};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Attachment, Digest, FileEntry, OverlayEntry, TensorEntry, decoded_root};
use crate::limits::{Limit, Limits};
use crate::rule::Rule;
use crate::storage::{Input, ReadAt, beside, file_name, read_section};

/// A pack: one `.uc` file, or several shards that an index file lists.
///
/// ```no_run
/// use ultracompress::Pack;
///
/// let pack = Pack::open_path("model.uc.index.json")?; // or model.uc, or an address
/// let bf16 = pack.tensor("lm_head.weight").expect("the model has a head").decode()?;
/// # Ok::<(), ultracompress::Error>(())
/// ```
#[derive(Debug)]
pub struct Pack<R> {
    containers: Vec<Container<R>>,
    /// Container and place of each tensor, by name.
    order: Vec<(usize, usize)>,
    index: Option<ShardIndex>,
    index_name: Option<String>,
    complete: bool,
}

impl Pack<Input> {
    /// Opens a path or an address: a `.uc` file, or the `.uc.index.json` of a sharded pack, whose
    /// shards lie beside it.
    ///
    /// # Errors
    /// As [`Container::open`]; `Malformed` (UC-SHD) and `Integrity` where shards and index file
    /// disagree. Errors name the file.
    pub fn open_path(location: impl AsRef<Path>) -> Result<Self> {
        Self::open_some(location.as_ref(), |_| true)
    }

    /// As [`Pack::open_path`], but opens only the first shard and those that hold tensors which are
    /// `wanted`. Other tensors are not there then.
    ///
    /// # Errors
    /// As [`Pack::open_path`].
    pub fn open_some(location: &Path, wanted: impl Fn(&str) -> bool) -> Result<Self> {
        Self::open_with(location, wanted, Limits::default())
    }

    /// As [`Pack::open_some`], with limits of the caller. That of the index holds for all shards
    /// together.
    ///
    /// # Errors
    /// As [`Pack::open_path`].
    pub fn open_with(
        location: &Path,
        wanted: impl Fn(&str) -> bool,
        limits: Limits,
    ) -> Result<Self> {
        let name = location.display().to_string();
        if !file_name(location).ends_with(INDEX_ENDING) {
            let open = || Container::open_with(Input::open(location)?, limits);
            return open().map(|c| c.with_name(&name).into()).map_err(|e| e.in_file(name));
        }
        let index = read_index(location, &limits).map_err(|e| e.in_file(&name))?;
        let wanted: HashSet<&str> =
            index.weight_map.iter().filter(|(t, _)| wanted(t)).map(|(_, f)| f.as_str()).collect();
        let mut limits = limits;
        let mut open = |shard: usize| {
            let file = &index.shards[shard].file;
            (shard == 0 || wanted.contains(file.as_str())).then(|| {
                let shard = beside(location, file);
                let name = shard.display().to_string();
                let open = || Container::open_with(Input::open(&shard)?, limits.clone());
                let container = open().map_err(|e| e.in_file(&name))?;
                limits.max_index_bytes -= container.preamble().index_len;
                Ok(container.with_name(name))
            })
        };
        let shards = (0..index.shards.len()).map(|i| open(i).transpose()).collect::<Result<_>>()?;
        match Self::from_shards(index, shards) {
            Ok(pack) => Ok(Self { index_name: Some(name), ..pack }),
            Err(e) => Err(e.in_file(name)),
        }
    }
}

fn read_index(location: &Path, limits: &Limits) -> Result<ShardIndex> {
    let input = Input::open(location)?;
    let len = input.len_bytes()?;
    if len > limits.max_manifest_bytes {
        return Err(Error::new(
            ErrorKind::LimitExceeded(Limit::ManifestBytes),
            format!("{len} bytes, {} allows {}", Limit::ManifestBytes, limits.max_manifest_bytes),
        ));
    }
    ShardIndex::parse(&read_section(&input, 0, len)?)
}

impl<R: ReadAt> From<Container<R>> for Pack<R> {
    fn from(container: Container<R>) -> Self {
        let order = (0..container.index().tensors.len()).map(|i| (0, i)).collect();
        let complete = !container.preamble().is_sharded();
        Self { containers: vec![container], order, index: None, index_name: None, complete }
    }
}

impl<R: ReadAt> Pack<R> {
    /// Joins the shards that `index` lists, in their order. Shards may be left out, but not the
    /// first; then their tensors are not there.
    ///
    /// # Errors
    /// `Malformed` (UC-SHD-5, UC-SHD-12 to UC-SHD-17) or `Integrity` where shards and
    /// index disagree; `InvalidArgument` for another number of shards.
    pub fn from_shards(index: ShardIndex, shards: Vec<Option<Container<R>>>) -> Result<Self> {
        if shards.len() != index.shards.len() || shards.first().is_none_or(Option::is_none) {
            return Err(Error::argument(format!(
                "{} shards, the index lists {}; the first can't be left out",
                shards.len(),
                index.shards.len()
            )));
        }
        let complete = shards.iter().all(Option::is_some);
        let mut named: HashMap<&str, usize> = HashMap::new();
        index.weight_map.values().for_each(|file| *named.entry(file).or_default() += 1);
        let mut containers = Vec::new();
        let mut listed = 0;
        for (i, container) in shards.into_iter().enumerate() {
            let Some(container) = container else { continue };
            let n = named.get(index.shards[i].file.as_str()).copied().unwrap_or(0);
            check_shard(&container, i, &index, n).map_err(|e| container.locate(e))?;
            listed += container.index().tensors.len();
            containers.push(container);
        }
        let mut order: Vec<_> = containers
            .iter()
            .enumerate()
            .flat_map(|(c, container)| (0..container.index().tensors.len()).map(move |i| (c, i)))
            .collect();
        let entry = |&(c, i): &(usize, usize)| &containers[c].index().tensors[i];
        order.sort_by(|a, b| entry(a).name.cmp(&entry(b).name));
        if let Some(pair) = order.windows(2).find(|p| entry(&p[0]).name == entry(&p[1]).name) {
            return Err(
                Error::malformed(Rule::SHD_5, "is in two shards").in_tensor(&entry(&pair[0]).name)
            );
        }
        let mut others = HashSet::new();
        for record in containers.iter().flat_map(|c| &c.index().others) {
            if !others.insert((record.kind, record.name.as_str())) {
                return Err(Error::malformed(Rule::SHD_16, "optional record is in two shards")
                    .in_tensor(&record.name));
            }
        }
        if complete {
            if listed != index.weight_map.len() {
                return Err(Error::malformed(
                    Rule::SHD_14,
                    format!(
                        "the shards hold {listed} tensors, the index names {}",
                        index.weight_map.len()
                    ),
                ));
            }
            let found = decoded_root(order.iter().map(entry)).to_string();
            if found != index.decoded_root {
                return Err(Error::integrity(format!(
                    "decoded root over all shards is {found}, the index says {} ({})",
                    index.decoded_root,
                    Rule::SHD_17
                )));
            }
        }
        let pack = Self { containers, order, index: Some(index), index_name: None, complete };
        pack.check_overlays()?;
        Ok(pack)
    }

    /// The files of the pack that are open.
    pub fn containers(&self) -> &[Container<R>] {
        &self.containers
    }

    /// Names of the files that are open, the index file included, as far as they have names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.containers.iter().filter_map(Container::name).chain(self.index_name.as_deref())
    }

    /// The index file of a sharded pack.
    pub fn shard_index(&self) -> Option<&ShardIndex> {
        self.index.as_ref()
    }

    /// The first file, which holds the manifest and what travels along.
    fn first(&self) -> &Container<R> {
        self.containers.first().expect("a pack has a file")
    }

    /// Fails when this is a single shard of a pack, or when shards were left out.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn require_complete(&self) -> Result<()> {
        if self.complete {
            return Ok(());
        }
        let p = self.first().preamble();
        let text = match &self.index {
            Some(_) => "some shards were not opened".to_owned(),
            None => format!(
                "is shard {} of {}: name the index file of the pack (*{INDEX_ENDING}) instead",
                p.shard_number, p.shard_count
            ),
        };
        Err(self.first().locate(Error::argument(text)))
    }

    fn view(&self, (c, i): (usize, usize)) -> TensorView<'_, R> {
        let container = &self.containers[c];
        TensorView::new(container, &container.index().tensors[i])
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_, R>> {
        self.order.iter().map(|&at| self.view(at))
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_, R>> {
        let at = self.order.binary_search_by(|&at| self.view(at).name().cmp(name)).ok()?;
        Some(self.view(self.order[at]))
    }

    /// Which of the open files holds each tensor, by name.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn shards_of_tensors(&self) -> impl Iterator<Item = usize> + '_ {
        self.order.iter().map(|&(c, _)| c)
    }

    /// The records of all tensors, by name.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &TensorEntry> + Clone {
        self.order.iter().map(|&(c, i)| &self.containers[c].index().tensors[i])
    }

    /// The overlays, in the order in which they are applied.
    pub fn overlays(&self) -> Vec<&OverlayEntry> {
        self.first().overlays()
    }

    /// The tensor called `name` with the first `overlays` of [`Pack::overlays`]. An alias has what
    /// its target has.
    ///
    /// # Errors
    /// `InvalidArgument` when there is no such tensor; `Malformed` (UC-OVL-13, UC-OVL-5,
    /// UC-OVL-18), `Integrity`, `Io`.
    pub fn effective_tensor(&self, name: &str, overlays: usize) -> Result<EffectiveTensor<'_, R>> {
        let missing = || Error::argument("no such tensor").in_tensor(name);
        EffectiveTensor::read(self.first(), &self.tensor(name).ok_or_else(missing)?, overlays)
    }

    /// What the pack decodes to with all its overlays; nothing without any.
    pub fn effective_root(&self) -> Option<Digest> {
        self.overlays().last().map(|o| o.effective_root)
    }

    /// Fails for a file of overlays, which has no tensors of its own.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn require_base(&self) -> Result<()> {
        if !self.first().preamble().is_overlays_only() {
            return Ok(());
        }
        let text =
            "holds overlays without a base: add it to the pack that it is for (`uc overlay add`)";
        Err(self.first().locate(Error::argument(text)))
    }

    /// UC-OVL-4, UC-OVL-15, UC-OVL-17 over all shards that are open.
    fn check_overlays(&self) -> Result<()> {
        for overlay in &self.first().index().overlays {
            let locate = |e: Error| self.first().locate(e.in_tensor(&overlay.name));
            if overlay.base_root != self.decoded_root() {
                let text = format!(
                    "is for the decoded root {}, this pack's is {}",
                    overlay.base_root,
                    self.decoded_root()
                );
                return Err(locate(Error::malformed(Rule::OVL_15, text)));
            }
            for block in &overlay.blocks {
                let entry = self.tensor(&block.tensor).map(|t| t.entry());
                if entry.is_none() && !self.complete {
                    continue;
                }
                check_block(block, entry).map_err(|e| locate(e.in_part(&block.tensor)))?;
            }
        }
        Ok(())
    }

    /// The carried files, by path.
    pub fn files(&self) -> &[FileEntry] {
        &self.first().index().files
    }

    /// Calls `emit` with consecutive pieces of a carried file; see [`Container::stream_file`].
    ///
    /// # Errors
    /// As [`Container::stream_file`].
    pub fn stream_file(
        &self,
        file: &FileEntry,
        emit: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.first().stream_file(file, emit)
    }

    /// Receipts and signatures.
    ///
    /// # Errors
    /// As [`Container::attachments`].
    pub fn attachments(&self) -> Result<Vec<Attachment>> {
        self.first().attachments()
    }

    /// The manifest, compared with the indices of all files that are open.
    ///
    /// # Errors
    /// `Integrity` for a checksum that disagrees, `Malformed` (UC-MAN-1 to UC-MAN-3,
    /// UC-MAN-5, UC-MAN-7, UC-MAN-8, UC-MAN-10, UC-EXA-12), `InvalidArgument` for a shard that
    /// isn't the first.
    pub fn manifest(&self) -> Result<Manifest> {
        let first = self.first();
        let p = first.preamble();
        if p.shard_number > 1 {
            self.require_complete()?;
        }
        let bytes = first.manifest_bytes()?;
        let read = || {
            let manifest = Manifest::parse(&bytes)?;
            manifest.check_against(self.entries(), first.index(), self.complete)?;
            Ok(manifest)
        };
        read().map_err(|e: Error| first.locate(e.in_part("manifest").at(p.manifest_offset)))
    }

    /// About how much memory indices, manifest and index file take while the pack is worked on.
    pub(crate) fn tables_bytes(&self) -> u64 {
        let tables = self.containers.iter().map(|c| c.tables_bytes());
        let map = self.index.iter().flat_map(|i| &i.weight_map);
        let map: u64 = map.map(|(tensor, file)| (tensor.len() + file.len() + 128) as u64).sum();
        tables.fold(map, u64::saturating_add)
    }

    /// Length of all files in bytes, without the index file.
    pub fn bytes(&self) -> u64 {
        self.containers.iter().map(|c| c.preamble().file_len).sum()
    }

    /// The stored root that the pack claims.
    pub fn stored_root(&self) -> Digest {
        match &self.index {
            None => self.first().preamble().stored_root,
            Some(index) => index_root(&index.stored_root),
        }
    }

    /// The decoded root that the pack claims.
    pub fn decoded_root(&self) -> Digest {
        match &self.index {
            None => self.first().preamble().decoded_root,
            Some(index) => index_root(&index.decoded_root),
        }
    }
}

fn index_root(hex: &str) -> Digest {
    debug_assert!(json::is_hex_digest(hex));
    Digest::from_hex(hex).expect("checked when the index was parsed")
}

/// UC-SHD-12 to UC-SHD-14: the file is the shard that the index lists.
fn check_shard<R: ReadAt>(
    container: &Container<R>,
    i: usize,
    index: &ShardIndex,
    named: usize,
) -> Result<()> {
    let (p, listed) = (container.preamble(), &index.shards[i]);
    let expected = (i + 1, index.shards.len());
    let found = (p.shard_number as usize, p.shard_count as usize);
    if found != expected || !p.is_sharded() {
        return Err(Error::malformed(
            Rule::SHD_12,
            format!(
                "says that it is shard {} of {}, the index lists it as {} of {}",
                found.0, found.1, expected.0, expected.1
            ),
        )
        .at(84));
    }
    for (what, found, listed, at) in [
        ("stored", p.stored_root, &listed.stored_root, 128),
        ("decoded", p.decoded_root, &listed.decoded_root, 96),
    ] {
        if found.to_string() != *listed {
            return Err(Error::integrity(format!(
                "{what} root is {found}, the index lists {listed}: another shard ({})",
                Rule::SHD_13
            ))
            .at(at));
        }
    }
    if p.core_len != listed.core_len {
        return Err(Error::malformed(
            Rule::SHD_13,
            format!("core has {} bytes, the index lists {}", p.core_len, listed.core_len),
        )
        .at(32));
    }
    for t in &container.index().tensors {
        if index.weight_map.get(&t.name).map(String::as_str) != Some(&listed.file) {
            return Err(Error::malformed(Rule::SHD_14, "the index doesn't put it in this shard")
                .in_tensor(&t.name));
        }
    }
    if named != container.index().tensors.len() {
        return Err(Error::malformed(
            Rule::SHD_14,
            format!(
                "holds {} tensors, the index puts {named} in it",
                container.index().tensors.len()
            ),
        ));
    }
    Ok(())
}
