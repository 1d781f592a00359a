//! One tensor of an open container, and decoding it.

use std::collections::HashMap;
use std::ops::Range;

use super::exact::ExactReader;
use super::fetch::{Piece, Rows, Want};
use super::read_at::ReadAt;
use super::reader::Container;
use super::stored_planes::{PlaneRun, StoredPlanes};
use crate::codec::exact::coded_matrix;
use crate::codec::{
    Levels, PlaneCounts, PlaneLayout, RowRun, RunBytes, RunCursor, RunDecoder, convert_raw,
};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{
    CHUNK_BYTES, Dtype, Encoding, PartKind, Rule, TensorEntry, reserve, to_usize, zeroed,
};
use crate::kernels::Kernel;

/// Weights that are decoded at a time when a tensor goes by in tiles.
const TILE_WEIGHTS: u64 = 1 << 17;
/// Columns of one piece of a row that is longer than a tile: whole bytes in planes and steps.
const SEGMENT_COLS: u64 = TILE_WEIGHTS;
/// Bytes of a raw tensor that are read at a time: some chunks, so that a server is asked less often.
const RAW_PIECE_BYTES: u64 = 4 << 20;
/// Stored bytes of a tensor that are read at once and kept while it goes by in tiles. Above this,
/// each part is read chunk by chunk.
pub(crate) const WHOLE_BYTES: u64 = 64 << 20;
/// The same where short reads are cheap: chunks in turn stay in cache, and need no fresh pages.
const NEAR_WHOLE_BYTES: u64 = 4 << 20;

/// A tensor of a [`Container`]: its record, and the way to its values.
#[derive(Debug)]
pub struct TensorView<'a, R> {
    container: &'a Container<R>,
    entry: &'a TensorEntry,
}

impl<R> Clone for TensorView<'_, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for TensorView<'_, R> {}

/// How to decode a tensor.
///
/// ```no_run
/// # use ultracompress::{Container, DecodeOptions, Dtype};
/// # let pack = Container::open_path("model.uc")?;
/// # let view = pack.tensor("lm_head.weight").expect("the model has a head");
/// // Rows 16 to 31 of the first four planes, as binary32.
/// let some = DecodeOptions::new().with_dtype(Dtype::F32).with_planes(4).with_rows(16..32);
/// let bytes = some.decode(&view)?;
/// # Ok::<(), ultracompress::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct DecodeOptions {
    /// Element type of the output; the source's by default. Applies to F16, BF16, F32 and F64 tensors,
    /// others keep their type.
    pub dtype: Option<Dtype>,
    /// Rows to decode; all by default. Rows are those of the first dimensions as stored: for a raw
    /// tensor the first dimension.
    pub rows: Option<Range<u64>>,
    /// Read at most this many planes of each row (3 to 8); all by default.
    pub planes: Option<u8>,
    /// The source's own bits instead of the base's values, where the pack has them: a residual, or the bytes themselves.
    pub exact: bool,
    /// The kernel; [`Kernel::selected`] by default. It changes the speed and nothing else.
    pub kernel: Option<Kernel>,
}

impl DecodeOptions {
    /// Everything, at the source's type.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`DecodeOptions::dtype`].
    #[must_use]
    pub fn with_dtype(mut self, dtype: Dtype) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// Sets [`DecodeOptions::rows`].
    #[must_use]
    pub fn with_rows(mut self, rows: Range<u64>) -> Self {
        self.rows = Some(rows);
        self
    }

    /// Sets [`DecodeOptions::planes`].
    #[must_use]
    pub fn with_planes(mut self, planes: u8) -> Self {
        self.planes = Some(planes);
        self
    }

    /// Sets [`DecodeOptions::exact`].
    #[must_use]
    pub fn with_exact(mut self, exact: bool) -> Self {
        self.exact = exact;
        self
    }

    /// Sets [`DecodeOptions::kernel`].
    #[must_use]
    pub fn with_kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = Some(kernel);
        self
    }

    /// The element type that `view` decodes to.
    pub fn target<R: ReadAt>(&self, view: &TensorView<'_, R>) -> Dtype {
        match self.dtype {
            Some(to) if view.dtype().has_planes() => to,
            _ => view.dtype(),
        }
    }

    /// Bytes that [`DecodeOptions::decode_into`] needs for `view`.
    ///
    /// # Errors
    /// `InvalidArgument` for rows outside the tensor or a type that isn't a float.
    pub fn output_bytes<R: ReadAt>(&self, view: &TensorView<'_, R>) -> Result<usize> {
        let (rows, cols) = view.matrix()?;
        let range = self.range(rows)?;
        let target = self.target(view);
        let bits =
            u128::from(range.end - range.start) * u128::from(cols) * u128::from(target.bits());
        u64::try_from(bits / 8)
            .map_err(|_| Error::argument("output is too large"))
            .and_then(to_usize)
    }

    fn range(&self, rows: u64) -> Result<Range<u64>> {
        let range = self.rows.clone().unwrap_or(0..rows);
        if range.start > range.end || range.end > rows {
            return Err(Error::argument(format!("rows {range:?} of a tensor with {rows} rows")));
        }
        if let Some(to) = self.dtype.filter(|d| !d.has_planes()) {
            return Err(Error::argument(format!("can't decode to {to}")));
        }
        if self.exact && self.planes.is_some() {
            return Err(Error::argument("exact values have no rung"));
        }
        if let Some(n) = self.planes.filter(|n| !(3..=8).contains(n)) {
            return Err(Error::argument(format!("can't read {n} planes, 3 to 8 are possible")));
        }
        Ok(range)
    }

    /// Decodes to a new buffer of little-endian elements, row by row.
    ///
    /// # Errors
    /// As [`DecodeOptions::decode_into`].
    pub fn decode<R: ReadAt>(&self, view: &TensorView<'_, R>) -> Result<Vec<u8>> {
        // A compressed tensor may be far larger than its file: no memory is an error, not an abort.
        let bytes = self.output_bytes(view)?;
        let mut out = zeroed(bytes).map_err(|e| e.in_tensor(view.name()))?;
        self.decode_into(view, &mut out)?;
        Ok(out)
    }

    /// Decodes into `out`, which must have exactly [`DecodeOptions::output_bytes`].
    ///
    /// # Errors
    /// `InvalidArgument` for impossible options or a buffer of another size, `Integrity` where a chunk
    /// disagrees with its checksum, `Malformed` where stored values break a rule, `Truncated`, `Io`.
    /// After an error the content of `out` is unspecified.
    pub fn decode_into<R: ReadAt>(&self, view: &TensorView<'_, R>, out: &mut [u8]) -> Result<()> {
        let needed = self.output_bytes(view)?;
        if out.len() != needed {
            return Err(Error::argument(format!(
                "buffer has {} bytes, {needed} needed",
                out.len()
            )));
        }
        self.decode_checked(view, out).map_err(|e| view.container.place(e.in_tensor(view.name())))
    }

    fn decode_checked<R: ReadAt>(&self, view: &TensorView<'_, R>, out: &mut [u8]) -> Result<()> {
        let (rows, cols) = view.matrix()?;
        let range = self.range(rows)?;
        let stored = view.resolve()?;
        if self.is_coded(stored) {
            let target = self.target(view);
            if target == stored.dtype() {
                let kernel = self.kernel.map_or_else(Kernel::selected, Ok)?;
                return ExactReader::new(stored, kernel)?.decode_rows(range, out);
            }
            let mut at = 0;
            return self.exact_tiles(stored, range, target, |bytes| {
                out[at..at + bytes.len()].copy_from_slice(bytes);
                at += bytes.len();
                Ok(())
            });
        }
        let Encoding::Planes { .. } = stored.entry.encoding else {
            let Some(part) = stored.part(PartKind::Data) else { return Ok(()) };
            let row_bits = u128::from(cols) * u128::from(view.dtype().bits());
            let at =
                |row: u64| u64::try_from(u128::from(row) * row_bits / 8).expect("within the part");
            let bytes = view.container.read_part(part, at(range.start)..at(range.end))?;
            let (bytes, _) = convert_raw(bytes, view.dtype(), self.target(view));
            out.copy_from_slice(&bytes);
            return Ok(());
        };
        let planes = PlanesReader::new(stored)?;
        let rung = self.planes.unwrap_or(8);
        let decoder = self.decoder(&planes, planes.layout)?.with_whole_output(out.len());
        let whole = held_whole(stored.entry, rung) <= whole_bytes_of(view, u64::MAX);
        if whole || cols > TILE_WEIGHTS {
            let mut from = planes.from(Rows::Direct(view.container), decoder);
            return planes.decode_rows(&mut from, range, rung, out);
        }
        // Chunk by chunk through the cache, instead of through fresh memory for all of them.
        let mut from = planes.from(Rows::Forward(view.container, HashMap::new()), decoder);
        let row_out = to_usize(cols * self.target(view).bits() / 8)?;
        let step = (TILE_WEIGHTS / cols).max(1);
        let mut row = range.start;
        for out in out.chunks_mut(to_usize(step)? * row_out) {
            let tile = row..(row + step).min(range.end);
            row = tile.end;
            planes.decode_rows(&mut from, tile, rung, out)?;
        }
        Ok(())
    }

    /// Decodes tile by tile, in order, so that a tensor of any size needs little memory: calls
    /// `emit` with the bytes of each tile.
    ///
    /// # Errors
    /// As [`DecodeOptions::decode_into`], and whatever `emit` returns.
    pub fn decode_tiles<R: ReadAt>(
        &self,
        view: &TensorView<'_, R>,
        emit: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.decode_tiles_within(view, WHOLE_BYTES, emit)
    }

    /// As [`DecodeOptions::decode_tiles`], where stored bytes up to `whole_bytes` may be kept.
    pub(crate) fn decode_tiles_within<R: ReadAt>(
        &self,
        view: &TensorView<'_, R>,
        whole_bytes: u64,
        mut emit: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let in_tensor = |e: Error| view.container.place(e.in_tensor(view.name()));
        let (rows, cols) = view.matrix().map_err(in_tensor)?;
        let range = self.range(rows).map_err(in_tensor)?;
        let stored = view.resolve().map_err(in_tensor)?;
        let target = self.target(view);
        // Rows without columns cost nothing to claim, so there may be 2^64 of them.
        if cols == 0 {
            return Ok(());
        }
        if self.is_coded(stored) {
            return self.exact_tiles(stored, range, target, emit).map_err(in_tensor);
        }
        let Encoding::Planes { .. } = stored.entry.encoding else {
            return self.raw_tiles(view, stored, range, cols, emit).map_err(in_tensor);
        };
        let rung = self.planes.unwrap_or(8);
        let planes = PlanesReader::new(stored).map_err(in_tensor)?;
        let parts: Vec<_> = stored.entry.parts.iter().filter(|p| is_read(p.kind, rung)).collect();
        let whole_bytes = whole_bytes_of(view, whole_bytes);
        let source = if held_whole(stored.entry, rung) <= whole_bytes {
            Rows::whole(view.container, &parts).map_err(in_tensor)?
        } else {
            Rows::Forward(view.container, HashMap::new())
        };
        let decoder = self.decoder(&planes, planes.layout).map_err(in_tensor)?;
        let mut from = planes.from(source, decoder);
        let mut buffer = Vec::new();
        if cols > TILE_WEIGHTS {
            for row in range {
                let Some(run) = from.runs.runs(&planes.counts, row..row + 1).pop() else { break };
                for i in 0..cols.div_ceil(SEGMENT_COLS) {
                    let start = i * SEGMENT_COLS;
                    let segment = start..cols.min(start + SEGMENT_COLS);
                    let layout =
                        PlaneLayout { rows: 1, cols: segment.end - segment.start, ..planes.layout };
                    buffer.resize(to_usize(layout.cols * target.bits() / 8)?, 0);
                    let mut decoder = self.decoder(&planes, layout).map_err(in_tensor)?;
                    planes
                        .decode_segment(&mut from, &run, segment, rung, &mut decoder, &mut buffer)
                        .map_err(in_tensor)?;
                    emit(&buffer)?;
                }
            }
            return Ok(());
        }
        let step = (TILE_WEIGHTS / cols).max(1);
        let mut row = range.start;
        while row < range.end {
            let tile = row..(row + step).min(range.end);
            row = tile.end;
            let bytes = (tile.end - tile.start) * cols * target.bits() / 8;
            buffer.resize(to_usize(bytes)?, 0);
            planes.decode_rows(&mut from, tile, rung, &mut buffer).map_err(in_tensor)?;
            emit(&buffer)?;
        }
        Ok(())
    }

    /// A decoder of rows of `layout` from `planes`.
    fn decoder<'a, R: ReadAt>(
        &self,
        planes: &PlanesReader<'a, R>,
        layout: PlaneLayout,
    ) -> Result<RunDecoder<'a>> {
        let (view, levels) = (&planes.view, planes.levels);
        let decoder = RunDecoder::new(layout, levels, view.dtype(), self.target(view))?;
        match self.kernel {
            Some(kernel) => decoder.with_kernel(kernel),
            None => Ok(decoder),
        }
    }

    /// About how many bytes of memory [`DecodeOptions::decode_tiles_within`] needs.
    pub(crate) fn tiles_cost<R: ReadAt>(view: &TensorView<'_, R>, whole_bytes: u64) -> u64 {
        let whole_bytes = whole_bytes_of(view, whole_bytes);
        let entry = view.resolve().map_or(view.entry, |stored| stored.entry);
        let stored = held_whole(entry, 8);
        // Of the residual a chunk for each native count, or all of it, and a block with what it is made from.
        let far = view.container.reader().long_reads_pay();
        let of_part = |len: u64| if far { len.min(2 * WHOLE_BYTES) } else { 7 * CHUNK_BYTES };
        let part = entry.parts.iter().find(|p| p.kind == PartKind::Residual);
        let residual = part.map_or(0, |p| of_part(p.len) + 6 * (2 << 20));
        // Chunk by chunk, each plane of each native count has one at hand, and one for each of the
        // scales and steps. Counts are held as stored and as a byte a row.
        let counts = entry.parts.iter().find(|p| p.kind == PartKind::Counts).map(|p| 3 * p.len);
        let chunks = if counts.is_none() { 10 } else { 45 } * CHUNK_BYTES;
        let held = if stored <= whole_bytes { stored } else { stored.min(chunks) };
        // A tile of up to eight bytes a weight, and what it is made from.
        let decoded = entry.dtype.tensor_bytes(&entry.shape).unwrap_or(u64::MAX);
        let tile = decoded.saturating_mul(2).min(3 * RAW_PIECE_BYTES);
        held.saturating_add(counts.unwrap_or(0)).saturating_add(residual + tile + (1 << 20))
    }
}

/// A copy, or an error where there is no memory for it.
fn copy(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut copy = reserve(bytes.len())?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

/// Stored bytes that are kept of a tensor where `allowed` may be.
fn whole_bytes_of<R: ReadAt>(view: &TensorView<'_, R>, allowed: u64) -> u64 {
    let far = view.container.reader().long_reads_pay();
    if far { allowed } else { allowed.min(NEAR_WHOLE_BYTES) }
}

/// Bytes of all parts that are needed for the first `rung` planes: as stored, or their content where that is
/// more.
fn held_whole(entry: &TensorEntry, rung: u8) -> u64 {
    let parts = entry.parts.iter().filter(|p| is_read(p.kind, rung));
    parts.fold(0u64, |sum, p| sum.saturating_add(p.stored_len.max(p.len)))
}

/// Whether a part is needed for the first `rung` planes. The counts part is read by itself.
fn is_read(kind: PartKind, rung: u8) -> bool {
    match kind {
        PartKind::Scales | PartKind::Steps => true,
        PartKind::Plane(p) => p < rung,
        PartKind::Data | PartKind::Counts | PartKind::Residual | PartKind::Unknown(..) => false,
    }
}

impl DecodeOptions {
    /// Whether the values come from a residual.
    fn is_coded<R: ReadAt>(&self, stored: TensorView<'_, R>) -> bool {
        match stored.entry.encoding {
            Encoding::Coded { .. } => true,
            Encoding::Planes { .. } => self.exact,
            _ => false,
        }
    }

    /// Exact values, some rows at a time, or pieces of long ones.
    fn exact_tiles<R: ReadAt>(
        &self,
        stored: TensorView<'_, R>,
        rows: Range<u64>,
        target: Dtype,
        mut emit: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let kernel = self.kernel.map_or_else(Kernel::selected, Ok)?;
        let mut reader = ExactReader::new(stored, kernel)?;
        let (cols, dtype) = (reader.cols(), stored.dtype());
        let mut converted = |bytes: &[u8]| {
            if target == dtype {
                return emit(bytes);
            }
            emit(&convert_raw(bytes.to_vec(), dtype, target).0)
        };
        if cols > TILE_WEIGHTS {
            return rows.into_iter().try_for_each(|row| reader.emit_row(row, &mut converted));
        }
        let step = (TILE_WEIGHTS / cols).max(1);
        let mut row = rows.start;
        let mut buffer = Vec::new();
        while row < rows.end {
            let tile = row..(row + step).min(rows.end);
            row = tile.end;
            let bytes = (tile.end - tile.start) * cols * dtype.bits() / 8;
            buffer.resize(to_usize(bytes)?, 0);
            reader.decode_rows(tile, &mut buffer)?;
            converted(&buffer)?;
        }
        Ok(())
    }

    /// Raw tensors go in pieces of whole chunks, whatever their shape: a row may be as long as the
    /// tensor.
    fn raw_tiles<R: ReadAt>(
        &self,
        view: &TensorView<'_, R>,
        stored: TensorView<'_, R>,
        rows: Range<u64>,
        cols: u64,
        mut emit: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let Some(part) = stored.part(PartKind::Data) else { return Ok(()) };
        let row_bits = u128::from(cols) * u128::from(view.dtype().bits());
        let at = |row: u64| u64::try_from(u128::from(row) * row_bits / 8).expect("within the part");
        let (mut from, end) = (at(rows.start), at(rows.end));
        while from < end {
            // Elements of two bytes and more never straddle a piece: both are powers of two.
            let to = end.min((from / RAW_PIECE_BYTES + 1) * RAW_PIECE_BYTES);
            let bytes = view.container.read_part(part, from..to)?;
            emit(&convert_raw(bytes, view.dtype(), self.target(view)).0)?;
            from = to;
        }
        Ok(())
    }
}

impl<'a, R: ReadAt> TensorView<'a, R> {
    pub(crate) fn new(container: &'a Container<R>, entry: &'a TensorEntry) -> Self {
        Self { container, entry }
    }

    /// The file it is in.
    pub(crate) fn container(&self) -> &'a Container<R> {
        self.container
    }

    /// The tensor's name.
    pub fn name(&self) -> &'a str {
        &self.entry.name
    }

    /// The element type of the source.
    pub fn dtype(&self) -> Dtype {
        self.entry.dtype
    }

    /// The dimensions.
    pub fn shape(&self) -> &'a [u64] {
        &self.entry.shape
    }

    /// The index record.
    pub fn entry(&self) -> &'a TensorEntry {
        self.entry
    }

    /// All values at the source's type, little-endian.
    ///
    /// # Errors
    /// As [`DecodeOptions::decode_into`].
    pub fn decode(&self) -> Result<Vec<u8>> {
        DecodeOptions::new().decode(self)
    }

    /// The tensor whose parts hold the values: this one, or the target of an alias.
    pub(crate) fn resolve(&self) -> Result<TensorView<'a, R>> {
        match &self.entry.encoding {
            Encoding::Alias { target } => self.container.tensor(target).ok_or_else(|| {
                Error::malformed(Rule::TEN_4, format!("alias of \"{target}\", which doesn't exist"))
            }),
            _ => Ok(*self),
        }
    }

    /// Reads and checks at most `planes` planes of each row.
    pub(crate) fn stored_planes(&self, planes: u8) -> Result<StoredPlanes> {
        self.stored_planes_checked(planes)
            .map_err(|e| self.container.place(e.in_tensor(self.name())))
    }

    /// Plane counts that rows of a `planes` tensor have.
    #[cfg(feature = "safetensors")]
    pub(crate) fn native_counts(&self) -> Result<Vec<u8>> {
        let planes = PlanesReader::new(*self)?;
        let with = planes.counts.rows_with(planes.layout.rows);
        let above = |n: u8| with.get(usize::from(n)).copied().unwrap_or(0);
        Ok((3..=8).filter(|&n| with[usize::from(n) - 1] > above(n)).collect())
    }

    fn stored_planes_checked(&self, rung: u8) -> Result<StoredPlanes> {
        if !(3..=8).contains(&rung) {
            return Err(Error::argument(format!("can't read {rung} planes, 3 to 8 are possible")));
        }
        let reader = PlanesReader::new(self.resolve()?)?;
        let layout = reader.layout;
        let row_bytes = to_usize(layout.row_bytes())?;
        let steps_row_bytes = to_usize(layout.steps_row_bytes())?;
        let checker = RunDecoder::new(layout, reader.levels, self.dtype(), Dtype::F32)?;
        let mut source = Rows::Direct(self.container);
        let mut runs = Vec::new();
        let mut places = Vec::new();
        for run in reader.counts.runs(0..layout.rows) {
            let pieces = source.get(&reader.wants(&run, rung)?)?;
            let (scales, steps, planes) = reader.split(&pieces);
            let bytes = RunBytes { native: run.native, scales, steps, planes: &planes };
            checker.check(&bytes)?;
            let mut owned = PlaneRun {
                native: run.native,
                scales: copy(scales)?,
                steps: copy(steps)?,
                planes: Vec::new(),
                row_bytes,
                steps_row_bytes,
            };
            drop(planes);
            // One at a time, so that no more than a plane is there twice.
            let first = pieces.len() - usize::from(run.native.min(rung));
            for piece in pieces.into_iter().skip(first) {
                owned.planes.push(copy(&piece)?);
            }
            runs.push(owned);
            if let PlaneCounts::PerRow(counts) = &reader.counts {
                let own = (0..).zip(counts).filter(|(_, n)| **n == run.native);
                places.push(own.map(|(row, _)| row).collect());
            }
        }
        let places = matches!(reader.counts, PlaneCounts::PerRow(_)).then_some(places);
        Ok(StoredPlanes {
            layout,
            source: self.dtype(),
            levels: reader.levels.into(),
            runs,
            places,
        })
    }

    pub(super) fn part(&self, kind: PartKind) -> Option<&'a crate::format::Part> {
        self.entry.parts.iter().find(|p| p.kind == kind)
    }

    /// Elements of a row as [`DecodeOptions::rows`] counts them.
    pub(super) fn row_len(&self) -> Result<u64> {
        self.matrix().map(|(_, cols)| cols)
    }

    /// Rows and columns: as stored for planes, first dimension and the rest for raw tensors.
    fn matrix(&self) -> Result<(u64, u64)> {
        let stored = self.resolve()?;
        if let Encoding::Planes { row_dims, group, .. } = stored.entry.encoding {
            let layout = PlaneLayout::new(&stored.entry.shape, row_dims, group)?;
            return Ok((layout.rows, layout.cols));
        }
        if let Encoding::Coded { row_dims } = stored.entry.encoding {
            return coded_matrix(&stored.entry.shape, row_dims);
        }
        let shape = self.shape();
        // Whole bytes a row: element types of 4 and 6 bits are read as one row.
        match shape.split_first() {
            Some((&rows, rest)) if self.dtype().tensor_bytes(rest).is_some() => {
                Ok((rows, crate::format::elements(rest).unwrap_or(0)))
            }
            _ => Ok((1, crate::format::elements(shape).unwrap_or(0))),
        }
    }
}

/// One pass over the rows of a tensor, in order.
struct Pass<'s, R> {
    source: Rows<'s, R>,
    runs: RunCursor,
    decoder: RunDecoder<'s>,
}

/// A `planes` tensor with its counts and level tables at hand.
pub(super) struct PlanesReader<'a, R> {
    view: TensorView<'a, R>,
    pub(super) layout: PlaneLayout,
    pub(super) counts: PlaneCounts,
    pub(super) levels: Levels<'a>,
}

impl<'a, R: ReadAt> PlanesReader<'a, R> {
    pub(super) fn new(view: TensorView<'a, R>) -> Result<Self> {
        let Encoding::Planes { row_dims, group, planes, level_ids } = &view.entry.encoding else {
            return Err(Error::argument("tensor is not stored as planes"));
        };
        let layout = PlaneLayout::new(&view.entry.shape, *row_dims, *group)?;
        let counts = match planes {
            Some(n) => PlaneCounts::Uniform(*n),
            None => {
                let part = view.require(PartKind::Counts)?;
                let bytes = view.container.read_part(part, 0..part.len)?;
                PlaneCounts::parse(&bytes, to_usize(layout.rows)?)
                    .map_err(|e| e.in_part(PartKind::Counts.name()).at(part.offset))?
            }
        };
        for (p, rows) in (0u8..).zip(counts.rows_with(layout.rows)) {
            let found = view.part(PartKind::Plane(p)).map_or(0, |part| part.len);
            let needed = rows * layout.row_bytes();
            if found != needed {
                // A plane that isn't there, or that no row has, is more than a wrong length.
                let rule = if found == 0 || needed == 0 { Rule::PRT_22 } else { Rule::PRT_5 };
                return Err(Error::malformed(
                    rule,
                    format!("index says {found} bytes, the counts need {needed}"),
                )
                .in_part(PartKind::Plane(p).name()));
            }
        }
        let used = |native: u8| match &counts {
            PlaneCounts::Uniform(n) => *n == native,
            PlaneCounts::PerRow(rows) => rows.contains(&native),
        };
        for (native, id) in (3u8..).zip(level_ids) {
            if *id != 0 && !used(native) {
                return Err(Error::malformed(
                    Rule::LVL_5,
                    format!("level table {id} is for {native} planes, which no row has"),
                ));
            }
        }
        let levels = Levels::resolve(level_ids, &view.container.index().levels)?;
        Ok(Self { view, layout, counts, levels })
    }

    /// What is needed of stored rows `rows` of one native count: scales, steps, planes.
    pub(super) fn wants(&self, run: &RowRun, rung: u8) -> Result<Vec<Want<'a>>> {
        let per_row = [(PartKind::Scales, 2), (PartKind::Steps, self.layout.steps_row_bytes())];
        let planes =
            (0..run.native.min(rung)).map(|p| (PartKind::Plane(p), self.layout.row_bytes()));
        per_row
            .into_iter()
            .filter(|&(_, bytes)| bytes > 0)
            .chain(planes)
            .map(|(kind, bytes)| {
                let range = run.stored.start * bytes..run.stored.end * bytes;
                Ok(Want { part: self.view.require(kind)?, native: run.native, range })
            })
            .collect()
    }

    /// Narrows what is needed of one row to columns that start at whole bytes of planes and steps.
    pub(super) fn cut(&self, wants: &mut [Want<'_>], cols: &Range<u64>) {
        let segment = PlaneLayout { rows: 1, cols: cols.end - cols.start, ..self.layout };
        let steps = match self.layout.group {
            0 => 0,
            group => cols.start / u64::from(group) / 2,
        };
        for want in wants {
            let (skip, len) = match want.part.kind {
                PartKind::Steps => (steps, segment.steps_row_bytes()),
                PartKind::Plane(_) => (cols.start / 8, segment.row_bytes()),
                _ => continue,
            };
            want.range = want.range.start + skip..want.range.start + skip + len;
        }
    }

    /// Splits what [`Self::wants`] asked for into scales, steps and planes.
    pub(super) fn split<'p>(&self, pieces: &'p [Piece<'_>]) -> (&'p [u8], &'p [u8], Vec<&'p [u8]>) {
        let grouped = usize::from(self.layout.n_groups() > 0);
        let steps: &[u8] = if grouped == 1 { &pieces[1] } else { &[] };
        (&pieces[0], steps, pieces[1 + grouped..].iter().map(|p| &**p).collect())
    }

    /// The start of a pass over the rows.
    fn from<'s>(&self, source: Rows<'s, R>, decoder: RunDecoder<'s>) -> Pass<'s, R> {
        Pass { source, runs: RunCursor::new(&self.counts), decoder }
    }

    fn decode_rows(
        &self,
        from: &mut Pass<'_, R>,
        range: Range<u64>,
        rung: u8,
        out: &mut [u8],
    ) -> Result<()> {
        let first = to_usize(range.start)?;
        for run in from.runs.runs(&self.counts, range.clone()) {
            let pieces = from.source.get(&self.wants(&run, rung)?)?;
            let (scales, steps, planes) = self.split(&pieces);
            let bytes = RunBytes { native: run.native, scales, steps, planes: &planes };
            match &self.counts {
                PlaneCounts::Uniform(_) => from.decoder.decode(&bytes, out, |row| row)?,
                // The rows of the run are those of the range with this count, in order.
                PlaneCounts::PerRow(counts) => {
                    let range = &counts[first..to_usize(range.end)?];
                    let own = range.iter().enumerate().filter(|(_, n)| **n == run.native);
                    let places: Vec<usize> = own.map(|(row, _)| row).collect();
                    from.decoder.decode(&bytes, out, |row| places[row])?;
                }
            }
        }
        Ok(())
    }

    /// Decodes columns `cols` of the one row in `run` with a decoder of so many columns. They start at a multiple of [`SEGMENT_COLS`], where planes and
    /// steps have whole bytes.
    fn decode_segment(
        &self,
        from: &mut Pass<'_, R>,
        run: &RowRun,
        cols: Range<u64>,
        rung: u8,
        decoder: &mut RunDecoder<'_>,
        out: &mut [u8],
    ) -> Result<()> {
        let mut wants = self.wants(run, rung)?;
        self.cut(&mut wants, &cols);
        let pieces = from.source.get(&wants)?;
        let (scales, steps, planes) = self.split(&pieces);
        let bytes = RunBytes { native: run.native, scales, steps, planes: &planes };
        decoder.decode(&bytes, out, |row| row)
    }
}

impl<'a, R: ReadAt> TensorView<'a, R> {
    fn require(&self, kind: PartKind) -> Result<&'a crate::format::Part> {
        self.part(kind).ok_or_else(|| {
            Error::new(ErrorKind::Malformed(Rule::PRT_22), format!("{} is missing", kind.name()))
        })
    }
}
