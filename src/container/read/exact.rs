//! Reading the exact rung of a tensor: blocks of its residual, decoded against the planes
//! (spec/exact.md).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::fetch::{Rows, WHOLE_BYTES, Want};
use super::open::{Container, TensorView};
use super::planes::{PlanesReader, layout_of, residual_cost};
use super::reader::{Emit, Request, TILE_WEIGHTS, TensorReader, tile_cost, tiles_of};
use crate::codec::exact::{
    Block, BlockBase, BlockCoder, BlockTables, ExactLayout, ExactModel, RESIDUAL_HEADER_BYTES,
    coded_matrix, exact_model_name,
};
use crate::codec::{
    PlaneCounts, PlaneLayout, RowRun, RunBytes, RunCursor, RunDecoder, STEPS, scale_f32,
};
use crate::error::{Error, Result};
use crate::format::{Dtype, Encoding, Part, PartKind, TensorEntry};
use crate::kernels::{Kernel, unpack};
use crate::memory::{reserve, to_usize};
use crate::rule::Rule;
use crate::storage::ReadAt;

/// Reads coded tensors, and those with planes at the exact rung.
pub(super) struct Exact;

impl<R: ReadAt> TensorReader<R> for Exact {
    fn matrix(&self, entry: &TensorEntry) -> Result<(u64, u64)> {
        if let Encoding::Coded { row_dims } = entry.encoding {
            return coded_matrix(&entry.shape, row_dims);
        }
        let layout = layout_of(entry)?;
        Ok((layout.rows, layout.cols))
    }

    fn rows(&self, asked: &Request<'_, R>, rows: Range<u64>, out: &mut [u8]) -> Result<()> {
        if asked.target == asked.view.dtype() {
            return ExactReader::new(asked.view, asked.kernel()?)?.decode_rows(rows, out);
        }
        let mut at = 0;
        self.tiles(asked, rows, &mut |bytes| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
            Ok(())
        })
    }

    fn tiles(&self, asked: &Request<'_, R>, rows: Range<u64>, emit: Emit<'_>) -> Result<()> {
        let mut reader = ExactReader::new(asked.view, asked.kernel()?)?;
        let (cols, dtype) = (reader.cols(), asked.view.dtype());
        let mut converted = |bytes: &[u8]| {
            if asked.target == dtype {
                return emit(bytes);
            }
            emit(&asked.convert(bytes.to_vec()))
        };
        if cols > TILE_WEIGHTS {
            return rows.into_iter().try_for_each(|row| reader.emit_row(row, &mut converted));
        }
        let mut buffer = Vec::new();
        for tile in tiles_of(rows, cols) {
            let bytes = (tile.end - tile.start) * cols * dtype.bits() / 8;
            buffer.resize(to_usize(bytes)?, 0);
            reader.decode_rows(tile, &mut buffer)?;
            converted(&buffer)?;
        }
        Ok(())
    }

    fn cost(&self, view: &TensorView<'_, R>, _: u64) -> u64 {
        residual_cost(view) + tile_cost(view.entry())
    }
}

/// Codes and factors of the rows of a block.
#[derive(Debug, Default)]
pub(crate) struct BlockRows {
    pub codes: Vec<u8>,
    /// Columns that share a factor.
    pub group: usize,
    pub factors: Vec<f32>,
}

impl BlockRows {
    pub(crate) fn base(&self) -> BlockBase<'_> {
        BlockBase::Planes { codes: &self.codes, group: self.group, factors: &self.factors }
    }
}

/// Where parts are read from: all at once where short reads cost much, else chunk by chunk, so that
/// no chunk is read twice.
fn rows_of<'a, R: ReadAt>(
    view: TensorView<'a, R>,
    wanted: impl Fn(PartKind) -> bool,
) -> Result<Rows<'a, R>> {
    let container = view.container();
    let parts: Vec<&Part> = view.entry().parts.iter().filter(|p| wanted(p.kind)).collect();
    let bytes = parts.iter().fold(0u64, |sum, p| sum.saturating_add(p.len));
    match container.reader().long_reads_pay() && bytes <= WHOLE_BYTES {
        true => Rows::whole(container, &parts),
        false => Ok(Rows::Forward(container, HashMap::new())),
    }
}

/// The planes of a tensor, block by block, or its shape when it has none.
pub(crate) struct ExactBase<'a, R> {
    dtype: Dtype,
    planes: Option<PlanesReader<'a, R>>,
    pub layout: ExactLayout,
    kernel: Kernel,
    rows: Rows<'a, R>,
    buffer: BlockRows,
}

impl<'a, R: ReadAt> ExactBase<'a, R> {
    /// Of a `planes` tensor, or a tensor that is coded as a matrix of `row_dims`.
    ///
    /// # Errors
    /// As for decoding.
    pub(crate) fn new(
        view: TensorView<'a, R>,
        row_dims: Option<u8>,
        kernel: Kernel,
    ) -> Result<Self> {
        let (planes, layout) = match row_dims {
            Some(row_dims) => {
                let (rows, cols) = coded_matrix(view.shape(), row_dims)?;
                (None, ExactLayout::of_raw(rows, cols))
            }
            None => {
                let planes = PlanesReader::new(view)?;
                let layout = ExactLayout::of_planes(&planes.layout, &planes.counts);
                (Some(planes), layout)
            }
        };
        let base = |kind| !matches!(kind, PartKind::Counts | PartKind::Residual);
        let rows = rows_of(view, base)?;
        let (dtype, buffer) = (view.dtype(), BlockRows::default());
        Ok(Self { dtype, planes, layout, kernel, rows, buffer })
    }

    /// The levels of rows with so many planes; nothing without a base.
    pub(crate) fn levels(&self, native: u8) -> Option<&[i8]> {
        self.planes.as_ref().map(|p| p.levels.set(native).table(native))
    }

    /// The tables of rows with so many planes, for all of them and for fewer; none without a base.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn all_levels(&self, native: u8) -> &[i8] {
        self.planes.as_ref().map_or(&[], |p| p.levels.set(native).all())
    }

    /// Planes of each row.
    pub(crate) fn counts(&self) -> PlaneCounts {
        self.planes.as_ref().map_or(PlaneCounts::Uniform(0), |p| p.counts.clone())
    }

    /// Codes and factors of a block; nothing without a base.
    ///
    /// # Errors
    /// As for decoding.
    pub(crate) fn load(&mut self, block: &Block) -> Result<Option<&BlockRows>> {
        let Some(planes) = &self.planes else { return Ok(None) };
        let layout = planes.layout;
        let rows = to_usize(block.rows.end - block.rows.start)?;
        let cols = to_usize(block.cols.end - block.cols.start)?;
        let run = RowRun { native: block.native, stored: block.rows.clone() };
        let whole = block.cols == (0..layout.cols);
        // A piece of a row: planes and steps of its columns are whole bytes.
        let piece = PlaneLayout { cols: block.cols.end - block.cols.start, ..layout };
        let mut wants = planes.wants(&run, 8)?;
        if !whole {
            planes.cut(&mut wants, &block.cols);
        }
        let pieces = self.rows.get(&wants)?;
        let (scales, steps, bits) = planes.split(&pieces);
        let bytes = RunBytes { native: block.native, scales, steps, planes: &bits };
        RunDecoder::new(piece, planes.levels, self.dtype, Dtype::F32)?.check(&bytes)?;

        let BlockRows { codes, group, factors } = &mut self.buffer;
        *group = if layout.group == 0 { cols } else { (layout.group as usize).min(cols) };
        let groups = cols.div_ceil(*group);
        let (row_bytes, row_steps) =
            (to_usize(piece.row_bytes())?, to_usize(piece.steps_row_bytes())?);
        codes.resize(rows * cols, 0);
        factors.clear();
        let mut slices: [&[u8]; 8] = [&[]; 8];
        for (row, codes) in codes.chunks_exact_mut(cols).enumerate() {
            let slices = &mut slices[..bits.len()];
            for (slice, plane) in slices.iter_mut().zip(&bits) {
                *slice = &plane[row * row_bytes..][..row_bytes];
            }
            unpack(self.kernel, slices, codes);
            let scale = scale_f32(u16::from_le_bytes([scales[2 * row], scales[2 * row + 1]]));
            let steps = &steps[row * row_steps..][..row_steps];
            let index = |g: usize| match steps.get(g / 2) {
                Some(byte) => usize::from(byte >> (4 * (g % 2)) & 15),
                None => 15,
            };
            factors.extend((0..groups).map(|g| scale * f32::from(STEPS[index(g)])));
        }
        Ok(Some(&self.buffer))
    }
}

/// The exact rung of one tensor.
pub(crate) struct ExactReader<'a, R> {
    container: &'a Container<R>,
    part: &'a Part,
    base: ExactBase<'a, R>,
    coders: HashMap<u8, BlockCoder>,
    /// Where blocks start and end in the part.
    starts: Vec<u64>,
    /// Bytes of a weight.
    size: usize,
    counts: Arc<PlaneCounts>,
    runs: RunCursor,
    models: [[u8; 8]; 6],
    kernel: Kernel,
    residual: Rows<'a, R>,
    /// The block that was decoded last, by native planes.
    decoded: HashMap<u8, (usize, Vec<u8>)>,
}

impl<'a, R: ReadAt> ExactReader<'a, R> {
    /// Of a tensor that is no alias.
    ///
    /// # Errors
    /// `InvalidArgument` for a tensor that has neither a residual nor coded bytes; as for decoding.
    pub(crate) fn new(view: TensorView<'a, R>, kernel: Kernel) -> Result<Self> {
        let row_dims = match view.entry().encoding {
            Encoding::Coded { row_dims } => Some(row_dims),
            _ => None,
        };
        let part = view.part(PartKind::Residual).ok_or_else(|| {
            Error::argument("has no residual: its exact bytes are not in the pack")
        })?;
        let base = ExactBase::new(view, row_dims, kernel)?;
        let container = view.container();
        let locate = |e: Error| e.in_part(PartKind::Residual.name()).at(part.offset);
        let n = base.layout.len()? as u64;
        let fixed = n.checked_mul(4).and_then(|n| n.checked_add(RESIDUAL_HEADER_BYTES));
        let fixed = fixed.filter(|&fixed| fixed <= part.len).ok_or_else(|| {
            locate(Error::malformed(
                Rule::EXA_21,
                "residual is shorter than the lengths of its blocks",
            ))
        })?;
        let header = container.read_part(part, 0..fixed)?;
        let (names, lengths) = header.split_at(48);
        let mut models = [[0; 8]; 6];
        models.copy_from_slice(names.as_chunks::<8>().0);
        let word = |b: &[u8; 4]| u64::from(u32::from_le_bytes(*b));
        let lengths = lengths.as_chunks::<4>().0;
        let mut starts = Vec::with_capacity(lengths.len() + 1);
        let mut end = fixed;
        starts.push(end);
        for length in &lengths[1..] {
            end += word(length);
            starts.push(end);
        }
        if word(&lengths[0]) != n || end != part.len {
            return Err(locate(Error::malformed(
                if word(&lengths[0]) != n { Rule::EXA_4 } else { Rule::EXA_21 },
                format!("blocks end at {end} of {} bytes, or are not {n}", part.len),
            )));
        }
        let used = |i: usize| match row_dims {
            Some(_) => i == 0,
            None => base.layout.natives().any(|n| usize::from(n) == i + 3),
        };
        if (0..6).any(|i| (models[i] != [0; 8]) != used(i)) {
            return Err(locate(Error::malformed(
                Rule::EXA_23,
                "models are not those of the plane counts that occur",
            )));
        }
        let size = to_usize(view.dtype().bits() / 8)?;
        let counts = Arc::new(base.counts());
        Ok(Self {
            runs: RunCursor::new(&counts),
            container,
            part,
            base,
            coders: HashMap::new(),
            starts,
            size,
            counts,
            models,
            kernel,
            residual: rows_of(view, |kind| kind == PartKind::Residual)?,
            decoded: HashMap::new(),
        })
    }

    /// Rows and columns.
    pub(crate) fn cols(&self) -> u64 {
        self.base.layout.cols()
    }

    fn coder(&mut self, native: u8) -> Result<()> {
        if self.coders.contains_key(&native) {
            return Ok(());
        }
        let name = exact_model_name(self.models[usize::from(native).saturating_sub(3)]);
        let levels = self.base.levels(native);
        let tables = self.container.exact_tables().get(
            (&name, self.base.dtype),
            levels,
            self.kernel,
            || {
                let mut records = self.container.index().exact_models.iter();
                let record = records.find(|m| m.name == name).ok_or_else(|| {
                    Error::malformed(Rule::EXA_22, format!("exact model {name} doesn't exist"))
                })?;
                let model = ExactModel::parse(&record.body)?;
                if (model.dtype, model.native) != (self.base.dtype, native) {
                    return Err(Error::malformed(
                        Rule::EXA_22,
                        format!(
                            "exact model {name} is for {} of {} planes",
                            model.dtype, model.native
                        ),
                    ));
                }
                BlockTables::new(&model, levels, self.kernel)
            },
        )?;
        let coder = BlockCoder::new(tables);
        self.coders.insert(native, coder);
        Ok(())
    }

    /// The elements of a block.
    fn block(&mut self, block: &Block) -> Result<&[u8]> {
        let known = self.decoded.get(&block.native).is_some_and(|(n, _)| *n == block.number);
        if !known {
            let (_, mut bytes) = self.decoded.remove(&block.native).unwrap_or_default();
            let n = to_usize(block.weights())? * self.size;
            if bytes.capacity() < n {
                bytes = reserve(n)?;
            }
            bytes.resize(n, 0);
            self.decode_block(block, &mut bytes)?;
            self.decoded.insert(block.native, (block.number, bytes));
        }
        Ok(&self.decoded[&block.native].1)
    }

    fn decode_block(&mut self, block: &Block, out: &mut [u8]) -> Result<()> {
        let range = self.starts[block.number]..self.starts[block.number + 1];
        let locate =
            |e: Error| e.in_part(PartKind::Residual.name()).at(self.part.offset + range.start);
        let want = Want { part: self.part, native: block.native, range: range.clone() };
        let pieces = self.residual.get(&[want])?;
        let shape = (
            to_usize(block.rows.end - block.rows.start)?,
            to_usize(block.cols.end - block.cols.start)?,
        );
        self.coder(block.native).map_err(locate)?;
        let rows = self.base.load(block)?;
        let base = rows.map_or(BlockBase::None, BlockRows::base);
        let coder = self.coders.get_mut(&block.native).expect("made above");
        coder.decode(&pieces[0], &base, shape, out).map_err(locate)
    }

    /// Decodes rows of the tensor to little-endian elements.
    ///
    /// # Errors
    /// As for decoding.
    pub(crate) fn decode_rows(&mut self, range: Range<u64>, out: &mut [u8]) -> Result<()> {
        let row_out = to_usize(self.cols())? * self.size;
        let first = to_usize(range.start)?;
        let own = Arc::clone(&self.counts);
        let runs = match &*own {
            PlaneCounts::Uniform(_) => vec![(range.clone(), None)],
            PlaneCounts::PerRow(counts) => {
                let of_range = &counts[first..to_usize(range.end)?];
                let row_order = |native: u8| {
                    let own = of_range.iter().enumerate().filter(|(_, n)| **n == native);
                    own.map(|(row, _)| row).collect::<Vec<usize>>()
                };
                let runs = self.runs.runs(&own, range.clone());
                runs.into_iter().map(|r| (r.stored, Some(row_order(r.native)))).collect()
            }
        };
        for (stored, row_order) in runs {
            for block in self.base.layout.blocks(stored.clone())? {
                // A block of whole rows that go to one place needs no copy.
                let inside = stored.start <= block.rows.start && block.rows.end <= stored.end;
                let rows = to_usize(block.rows.end - block.rows.start)?;
                if inside && row_order.is_none() && block.cols.end - block.cols.start == self.cols()
                {
                    let from = to_usize(block.rows.start - stored.start)? * row_out;
                    self.decode_block(&block, &mut out[from..from + rows * row_out])?;
                    continue;
                }
                let at = to_usize(block.cols.start)? * self.size;
                let width = to_usize(block.cols.end - block.cols.start)? * self.size;
                let decoded = self.block(&block)?;
                for row in block.rows.start.max(stored.start)..block.rows.end.min(stored.end) {
                    let i = to_usize(row - stored.start)?;
                    let own_row = row_order.as_ref().map_or(i, |p| p[i]);
                    let from = to_usize(row - block.rows.start)? * width;
                    out[own_row * row_out + at..][..width]
                        .copy_from_slice(&decoded[from..][..width]);
                }
            }
        }
        Ok(())
    }

    /// Calls `emit` with the elements of one row, block by block.
    ///
    /// # Errors
    /// As for decoding, and whatever `emit` returns.
    pub(crate) fn emit_row(
        &mut self,
        row: u64,
        mut emit: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let stored = self.counts.runs(row..row + 1).pop().map_or(row..row + 1, |r| r.stored);
        for block in self.base.layout.blocks(stored)? {
            emit(self.block(&block)?)?;
        }
        Ok(())
    }
}
