//! The encoding `planes`: codes in bit planes, with scales, steps and levels (spec/codec.md).

use std::collections::HashMap;
use std::ops::Range;

use super::fetch::{Piece, Rows, WHOLE_BYTES, Want};
use super::open::TensorView;
use super::reader::{
    Emit, RAW_PIECE_BYTES, Request, TILE_WEIGHTS, TensorReader, tile_cost, tiles_of,
};
use super::stored_planes::{PlaneRun, StoredPlanes};
use crate::codec::{Levels, PlaneCounts, PlaneLayout, RowRun, RunBytes, RunCursor, RunDecoder};
use crate::error::{Error, Result};
use crate::format::{CHUNK_BYTES, Dtype, Encoding, MAX_PLANES, MIN_PLANES, PartKind, TensorEntry};
use crate::memory::{reserve, to_usize};
use crate::rule::Rule;
use crate::storage::ReadAt;

/// Columns of one piece of a row that is longer than a tile: whole bytes in planes and steps.
const SEGMENT_COLS: u64 = TILE_WEIGHTS;
/// Stored bytes that are kept of a tensor where short reads are cheap: chunks in turn stay in
/// cache, and need no fresh pages.
const NEAR_WHOLE_BYTES: u64 = 4 << 20;

/// Reads tensors with planes.
pub(super) struct Planes;

impl<R: ReadAt> TensorReader<R> for Planes {
    fn matrix(&self, entry: &TensorEntry) -> Result<(u64, u64)> {
        let layout = layout_of(entry)?;
        Ok((layout.rows, layout.cols))
    }

    fn rows(&self, asked: &Request<'_, R>, rows: Range<u64>, out: &mut [u8]) -> Result<()> {
        let (container, planes) = (asked.view.container(), PlanesReader::new(asked.view)?);
        let decoder = decoder(asked, &planes, planes.layout)?.with_whole_output(out.len());
        let whole = held_whole(asked.view.entry(), asked.rung) <= may_keep(&asked.view, u64::MAX);
        let cols = planes.layout.cols;
        if whole || cols > TILE_WEIGHTS {
            let mut pass = planes.pass(Rows::Direct(container), decoder);
            return planes.decode_rows(&mut pass, rows, asked.rung, out);
        }
        // Chunk by chunk through the cache, instead of through fresh memory for all of them.
        let mut pass = planes.pass(Rows::Forward(container, HashMap::new()), decoder);
        let row_bytes = to_usize(cols * asked.target.bits() / 8)?;
        let mut rest = out;
        for tile in tiles_of(rows, cols) {
            let bytes = to_usize(tile.end - tile.start)? * row_bytes;
            let (out, behind) = rest.split_at_mut(bytes);
            planes.decode_rows(&mut pass, tile, asked.rung, out)?;
            rest = behind;
        }
        Ok(())
    }

    fn tiles(&self, asked: &Request<'_, R>, rows: Range<u64>, emit: Emit<'_>) -> Result<()> {
        let (entry, container) = (asked.view.entry(), asked.view.container());
        let planes = PlanesReader::new(asked.view)?;
        let parts: Vec<_> = entry.parts.iter().filter(|p| is_read(p.kind, asked.rung)).collect();
        let source = if held_whole(entry, asked.rung) <= may_keep(&asked.view, asked.whole_bytes) {
            Rows::whole(container, &parts)?
        } else {
            Rows::Forward(container, HashMap::new())
        };
        let mut pass = planes.pass(source, decoder(asked, &planes, planes.layout)?);
        let mut buffer = Vec::new();
        let cols = planes.layout.cols;
        if cols > TILE_WEIGHTS {
            return rows
                .into_iter()
                .try_for_each(|row| long_row(asked, &planes, &mut pass, row, &mut buffer, emit));
        }
        for tile in tiles_of(rows, cols) {
            let bytes = (tile.end - tile.start) * cols * asked.target.bits() / 8;
            buffer.resize(to_usize(bytes)?, 0);
            planes.decode_rows(&mut pass, tile, asked.rung, &mut buffer)?;
            emit(&buffer)?;
        }
        Ok(())
    }

    fn cost(&self, view: &TensorView<'_, R>, whole_bytes: u64) -> u64 {
        let entry = view.entry();
        let stored = held_whole(entry, MAX_PLANES);
        // Chunk by chunk, each plane of each native count has one at hand, and one for each of the
        // scales and steps. Counts are held as stored and as a byte a row.
        let counts = view.part(PartKind::Counts).map(|p| 3 * p.len);
        let chunks = if counts.is_none() { 10 } else { 45 } * CHUNK_BYTES;
        let held = if stored <= may_keep(view, whole_bytes) { stored } else { stored.min(chunks) };
        let counts = counts.unwrap_or(0);
        held.saturating_add(counts).saturating_add(residual_cost(view) + tile_cost(entry))
    }
}

/// About how many bytes of memory a residual takes while it is decoded: a chunk for each native
/// count, or all of it, and a block with what it is made from.
pub(super) fn residual_cost<R: ReadAt>(view: &TensorView<'_, R>) -> u64 {
    let far = view.container().reader().long_reads_pay();
    let of_part = |len: u64| if far { len.min(2 * WHOLE_BYTES) } else { 7 * CHUNK_BYTES };
    view.part(PartKind::Residual).map_or(0, |p| of_part(p.len) + 3 * RAW_PIECE_BYTES)
}

/// Rows and columns of a tensor with planes.
///
/// # Errors
/// `Malformed` for a shape that planes can't have.
pub(super) fn layout_of(entry: &TensorEntry) -> Result<PlaneLayout> {
    let Encoding::Planes { row_dims, group, .. } = entry.encoding else {
        return Err(Error::argument("tensor is not stored as planes"));
    };
    PlaneLayout::new(&entry.shape, row_dims, group)
}

/// A decoder of rows of `layout` from `planes`.
fn decoder<'a, R: ReadAt>(
    asked: &Request<'_, R>,
    planes: &PlanesReader<'a, R>,
    layout: PlaneLayout,
) -> Result<RunDecoder<'a>> {
    let decoder = RunDecoder::new(layout, planes.levels, planes.view.dtype(), asked.target)?;
    match asked.kernel {
        Some(kernel) => decoder.with_kernel(kernel),
        None => Ok(decoder),
    }
}

/// Decodes one row that is longer than a tile, piece by piece.
fn long_row<R: ReadAt>(
    asked: &Request<'_, R>,
    planes: &PlanesReader<'_, R>,
    pass: &mut Pass<'_, R>,
    row: u64,
    buffer: &mut Vec<u8>,
    emit: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let cols = planes.layout.cols;
    let Some(run) = pass.runs.runs(&planes.counts, row..row + 1).pop() else { return Ok(()) };
    for i in 0..cols.div_ceil(SEGMENT_COLS) {
        let start = i * SEGMENT_COLS;
        let segment = start..cols.min(start + SEGMENT_COLS);
        let layout = PlaneLayout { rows: 1, cols: segment.end - segment.start, ..planes.layout };
        buffer.resize(to_usize(layout.cols * asked.target.bits() / 8)?, 0);
        let mut decoder = decoder(asked, planes, layout)?;
        planes.decode_segment(pass, &run, segment, asked.rung, &mut decoder, buffer)?;
        emit(buffer)?;
    }
    Ok(())
}

/// A copy, or an error where there is no memory for it.
fn copy(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut copy = reserve(bytes.len())?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

/// Stored bytes that are kept of a tensor where `allowed` may be.
fn may_keep<R: ReadAt>(view: &TensorView<'_, R>, allowed: u64) -> u64 {
    let far = view.container().reader().long_reads_pay();
    if far { allowed } else { allowed.min(NEAR_WHOLE_BYTES) }
}

/// Bytes of all parts that are needed for the first `rung` planes: as stored, or their content
/// where that is more.
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

impl<R: ReadAt> TensorView<'_, R> {
    /// Reads and checks at most `planes` planes of each row.
    pub(crate) fn stored_planes(&self, planes: u8) -> Result<StoredPlanes> {
        self.stored_planes_checked(planes).map_err(|e| self.locate(e))
    }

    /// Plane counts that rows of a `planes` tensor have.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn native_counts(&self) -> Result<Vec<u8>> {
        let planes = PlanesReader::new(*self)?;
        let with = planes.counts.rows_with(planes.layout.rows);
        let above = |n: u8| with.get(usize::from(n)).copied().unwrap_or(0);
        Ok((MIN_PLANES..=MAX_PLANES).filter(|&n| with[usize::from(n) - 1] > above(n)).collect())
    }

    fn stored_planes_checked(&self, rung: u8) -> Result<StoredPlanes> {
        if !(MIN_PLANES..=MAX_PLANES).contains(&rung) {
            return Err(Error::argument(format!("can't read {rung} planes, 3 to 8 are possible")));
        }
        let reader = PlanesReader::new(self.resolve()?)?;
        let layout = reader.layout;
        let row_bytes = to_usize(layout.row_bytes())?;
        let steps_row_bytes = to_usize(layout.steps_row_bytes())?;
        let checker = RunDecoder::new(layout, reader.levels, self.dtype(), Dtype::F32)?;
        let mut source = Rows::Direct(self.container());
        let mut runs = Vec::new();
        let mut row_order = Vec::new();
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
                row_order.push(own.map(|(row, _)| row).collect());
            }
        }
        let row_order = matches!(reader.counts, PlaneCounts::PerRow(_)).then_some(row_order);
        Ok(StoredPlanes {
            layout,
            source: self.dtype(),
            levels: reader.levels.into(),
            runs,
            row_order,
        })
    }
}

/// One pass over the rows of a tensor, in order.
struct Pass<'s, R> {
    source: Rows<'s, R>,
    runs: RunCursor,
    decoder: RunDecoder<'s>,
}

/// A `planes` tensor with its counts and level tables at hand.
pub(crate) struct PlanesReader<'a, R> {
    view: TensorView<'a, R>,
    pub(crate) layout: PlaneLayout,
    pub(crate) counts: PlaneCounts,
    pub(crate) levels: Levels<'a>,
}

impl<'a, R: ReadAt> PlanesReader<'a, R> {
    pub(crate) fn new(view: TensorView<'a, R>) -> Result<Self> {
        let Encoding::Planes { row_dims, group, planes, level_ids } = &view.entry().encoding else {
            return Err(Error::argument("tensor is not stored as planes"));
        };
        let layout = PlaneLayout::new(&view.entry().shape, *row_dims, *group)?;
        let counts = match planes {
            Some(n) => PlaneCounts::Uniform(*n),
            None => {
                let part = view.require(PartKind::Counts)?;
                let bytes = view.container().read_part(part, 0..part.len)?;
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
        for (native, id) in (MIN_PLANES..).zip(level_ids) {
            if *id != 0 && !used(native) {
                return Err(Error::malformed(
                    Rule::LVL_5,
                    format!("level table {id} is for {native} planes, which no row has"),
                ));
            }
        }
        let levels = Levels::resolve(level_ids, &view.container().index().levels)?;
        Ok(Self { view, layout, counts, levels })
    }

    /// What is needed of stored rows `rows` of one native count: scales, steps, planes.
    pub(crate) fn wants(&self, run: &RowRun, rung: u8) -> Result<Vec<Want<'a>>> {
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
    pub(crate) fn cut(&self, wants: &mut [Want<'_>], cols: &Range<u64>) {
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
    pub(crate) fn split<'p>(&self, pieces: &'p [Piece<'_>]) -> (&'p [u8], &'p [u8], Vec<&'p [u8]>) {
        let grouped = usize::from(self.layout.n_groups() > 0);
        let steps: &[u8] = if grouped == 1 { &pieces[1] } else { &[] };
        (&pieces[0], steps, pieces[1 + grouped..].iter().map(|p| &**p).collect())
    }

    /// The start of a pass over the rows.
    fn pass<'s>(&self, source: Rows<'s, R>, decoder: RunDecoder<'s>) -> Pass<'s, R> {
        Pass { source, runs: RunCursor::new(&self.counts), decoder }
    }

    fn decode_rows(
        &self,
        pass: &mut Pass<'_, R>,
        range: Range<u64>,
        rung: u8,
        out: &mut [u8],
    ) -> Result<()> {
        let first = to_usize(range.start)?;
        for run in pass.runs.runs(&self.counts, range.clone()) {
            let pieces = pass.source.get(&self.wants(&run, rung)?)?;
            let (scales, steps, planes) = self.split(&pieces);
            let bytes = RunBytes { native: run.native, scales, steps, planes: &planes };
            match &self.counts {
                PlaneCounts::Uniform(_) => pass.decoder.decode(&bytes, out, |row| row)?,
                // The rows of the run are those of the range with this count, in order.
                PlaneCounts::PerRow(counts) => {
                    let range = &counts[first..to_usize(range.end)?];
                    let own = range.iter().enumerate().filter(|(_, n)| **n == run.native);
                    let row_order: Vec<usize> = own.map(|(row, _)| row).collect();
                    pass.decoder.decode(&bytes, out, |row| row_order[row])?;
                }
            }
        }
        Ok(())
    }

    /// Decodes columns `cols` of the one row in `run` with a decoder of so many columns. They start
    /// at a multiple of [`SEGMENT_COLS`], where planes and steps have whole bytes.
    fn decode_segment(
        &self,
        pass: &mut Pass<'_, R>,
        run: &RowRun,
        cols: Range<u64>,
        rung: u8,
        decoder: &mut RunDecoder<'_>,
        out: &mut [u8],
    ) -> Result<()> {
        let mut wants = self.wants(run, rung)?;
        self.cut(&mut wants, &cols);
        let pieces = pass.source.get(&wants)?;
        let (scales, steps, planes) = self.split(&pieces);
        let bytes = RunBytes { native: run.native, scales, steps, planes: &planes };
        decoder.decode(&bytes, out, |row| row)
    }
}
