//! Decoding: what a caller may ask for, and the reader of each encoding.

use std::ops::Range;

use super::exact::Exact;
use super::fetch::WHOLE_BYTES;
use super::open::TensorView;
use super::planes::Planes;
use super::raw::Raw;
use super::reader::{Request, TensorReader};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Dtype, Encoding, MAX_PLANES, MIN_PLANES};
use crate::kernels::Kernel;
use crate::memory::{to_usize, zeroed};
use crate::setters::setters;
use crate::storage::ReadAt;

/// The reader of each encoding. With `exact`, tensors with planes are read through their residual.
fn reader_of<'a, R: ReadAt>(
    view: &TensorView<'a, R>,
    exact: bool,
) -> Result<&'a dyn TensorReader<R>> {
    match view.entry().encoding {
        Encoding::Raw => Ok(&Raw),
        Encoding::Planes { .. } if exact => Ok(&Exact),
        Encoding::Planes { .. } => Ok(&Planes),
        Encoding::Coded { .. } => Ok(&Exact),
        Encoding::Alias { .. } => Err(Error::argument("an alias is read through its target")),
    }
}

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
    /// Element type of the output; the source's by default. Applies to F16, BF16, F32 and F64
    /// tensors, others keep their type.
    pub dtype: Option<Dtype>,
    /// Rows to decode; all by default. Rows are those of the first dimensions as stored: for a raw
    /// tensor the first dimension.
    pub rows: Option<Range<u64>>,
    /// Read at most this many planes of each row (3 to 8); all by default.
    pub planes: Option<u8>,
    /// The source's own bits instead of the base's values, where the pack has them: a residual, or
    /// the bytes themselves.
    pub exact: bool,
    /// The kernel; [`Kernel::selected`] by default. It changes the speed and nothing else.
    pub kernel: Option<Kernel>,
}

impl DecodeOptions {
    /// Everything, at the source's type.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        with_dtype: dtype = Some(Dtype),
        with_rows: rows = Some(Range<u64>),
        with_planes: planes = Some(u8),
        with_exact: exact = bool,
        with_kernel: kernel = Some(Kernel),
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
        if let Some(n) = self.planes.filter(|n| !(MIN_PLANES..=MAX_PLANES).contains(n)) {
            return Err(Error::argument(format!(
                "can't read {n} planes, {MIN_PLANES} to {MAX_PLANES} are possible"
            )));
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
    /// `InvalidArgument` for impossible options or a buffer of another size, `Integrity` where a
    /// chunk disagrees with its checksum, `Malformed` where stored values break a rule,
    /// `Truncated`, `Io`. After an error the content of `out` is unspecified.
    pub fn decode_into<R: ReadAt>(&self, view: &TensorView<'_, R>, out: &mut [u8]) -> Result<()> {
        let needed = self.output_bytes(view)?;
        if out.len() != needed {
            return Err(Error::argument(format!(
                "buffer has {} bytes, {needed} needed",
                out.len()
            )));
        }
        self.decode_checked(view, out).map_err(|e| view.locate(e))
    }

    fn decode_checked<R: ReadAt>(&self, view: &TensorView<'_, R>, out: &mut [u8]) -> Result<()> {
        let (rows, _) = view.matrix()?;
        let rows = self.range(rows)?;
        let asked = self.request(view, WHOLE_BYTES)?;
        reader_of(&asked.view, self.exact)?.rows(&asked, rows, out)
    }

    /// What is asked of the tensor that holds the values of `view`.
    fn request<'a, R: ReadAt>(
        &self,
        view: &TensorView<'a, R>,
        whole_bytes: u64,
    ) -> Result<Request<'a, R>> {
        Ok(Request {
            view: view.resolve()?,
            rung: self.planes.unwrap_or(MAX_PLANES),
            target: self.target(view),
            kernel: self.kernel,
            whole_bytes,
        })
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
        // An error of the caller's is no error of the tensor.
        let mut refused = None;
        let mut emit = |bytes: &[u8]| {
            emit(bytes).map_err(|e| {
                refused = Some(e);
                Error::new(ErrorKind::Cancelled, "the bytes were refused")
            })
        };
        let decode = |emit| {
            let (rows, cols) = view.matrix()?;
            let rows = self.range(rows)?;
            let asked = self.request(view, whole_bytes)?;
            // Rows without columns cost nothing to claim, so there may be 2^64 of them.
            if cols == 0 {
                return Ok(());
            }
            reader_of(&asked.view, self.exact)?.tiles(&asked, rows, emit)
        };
        let decoded = decode(&mut emit);
        match refused {
            Some(e) => Err(e),
            None => decoded.map_err(|e| view.locate(e)),
        }
    }

    /// About how many bytes of memory [`DecodeOptions::decode_tiles_within`] needs.
    pub(crate) fn tiles_cost<R: ReadAt>(view: &TensorView<'_, R>, whole_bytes: u64) -> u64 {
        // Files whose aliases lead nowhere are never opened.
        let stored = view.resolve().unwrap_or(*view);
        let reader = reader_of(&stored, false);
        reader.map_or(0, |reader| reader.cost(&stored, whole_bytes))
    }
}

impl<R: ReadAt> TensorView<'_, R> {
    /// All values at the source's type, little-endian.
    ///
    /// # Errors
    /// As [`DecodeOptions::decode_into`].
    pub fn decode(&self) -> Result<Vec<u8>> {
        DecodeOptions::new().decode(self)
    }

    /// Elements of a row as [`DecodeOptions::rows`] counts them.
    pub(super) fn row_len(&self) -> Result<u64> {
        self.matrix().map(|(_, cols)| cols)
    }

    /// Rows and columns: as stored for planes, first dimension and the rest for raw tensors.
    fn matrix(&self) -> Result<(u64, u64)> {
        let stored = self.resolve()?;
        reader_of(&stored, false)?.matrix(stored.entry())
    }
}
