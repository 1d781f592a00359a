//! Decoding consecutive stored rows.

use super::value::{check_scale, scale_f32};
use crate::codec::{Levels, PlaneLayout};
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::kernels::{Float, Kernel, RowDecoder, can_stream, stream_copy, stream_end};
use crate::memory::to_usize;
use crate::rule::Rule;

/// Outputs from this size on don't fit the caches of one core's share: their rows are decoded to a
/// buffer and go to memory from there, which spares reading the lines that they replace.
const STREAM_BYTES: usize = 16 << 20;
/// Rows longer than this don't fit the buffer's cache.
const STREAM_ROW_BYTES: usize = 256 << 10;

/// Consecutive stored rows of one plane count, as byte slices of the parts.
#[derive(Debug, Clone)]
pub struct RunBytes<'a> {
    /// Native planes of these rows.
    pub native: u8,
    /// Two bytes a row.
    pub scales: &'a [u8],
    /// `steps_row_bytes` a row.
    pub steps: &'a [u8],
    /// `row_bytes` a row for each plane read, most significant first: 3 to `native` of them.
    pub planes: &'a [&'a [u8]],
}

/// Decodes stored rows of one tensor.
///
/// ```
/// use ultracompress::Dtype;
/// use ultracompress::codec::{Levels, PlaneLayout, RunBytes, RunDecoder};
///
/// // One row of eight columns, three planes, scale 1.0: codes 0 to 7.
/// let layout = PlaneLayout::new(&[1, 8], 1, 0)?;
/// let planes: [&[u8]; 3] = [&[0b1111_0000], &[0b1100_1100], &[0b1010_1010]];
/// let run = RunBytes { native: 3, scales: &[0x80, 0x3f], steps: &[], planes: &planes };
/// let mut decoder = RunDecoder::new(layout, Levels::default(), Dtype::F32, Dtype::F32)?;
/// let mut out = [0; 32];
/// decoder.decode(&run, &mut out, |row| row)?;
/// assert_eq!(out[..4], (128.0 * -127.0f32).to_le_bytes());
/// # Ok::<(), ultracompress::Error>(())
/// ```
#[derive(Debug)]
pub struct RunDecoder<'a> {
    kernel: Kernel,
    layout: PlaneLayout,
    levels: Levels<'a>,
    source: Dtype,
    float: Float,
    cols: usize,
    row_bytes: usize,
    n_groups: usize,
    steps_row_bytes: usize,
    /// Bytes of the output that runs are pieces of, when that is known.
    whole_output: Option<usize>,
    /// By native planes and planes read.
    decoders: Vec<((u8, usize), RowDecoder)>,
}

/// Ends streaming however decoding ends: nobody may look at streamed bytes before.
struct Streaming;

impl Drop for Streaming {
    fn drop(&mut self) {
        stream_end();
    }
}

impl<'a> RunDecoder<'a> {
    /// A decoder to `target` elements, with [`Kernel::selected`]. `source` is the tensor's own
    /// dtype, which bounds the row scales.
    ///
    /// # Errors
    /// `InvalidArgument` when `target` is not a float of UC-VAL-4, or for a kernel that can't run;
    /// `Malformed` for an empty matrix or a group size that doesn't exist.
    pub fn new(
        layout: PlaneLayout,
        levels: Levels<'a>,
        source: Dtype,
        target: Dtype,
    ) -> Result<Self> {
        let float = match target {
            Dtype::Bf16 => Float::Bf16,
            Dtype::F16 => Float::F16,
            Dtype::F32 => Float::F32,
            Dtype::F64 => Float::F64,
            other => return Err(Error::argument(format!("planes don't decode to {other}"))),
        };
        layout.check()?;
        Ok(Self {
            kernel: Kernel::selected()?,
            layout,
            levels,
            source,
            float,
            cols: to_usize(layout.cols)?,
            row_bytes: to_usize(layout.row_bytes())?,
            n_groups: to_usize(layout.n_groups())?,
            steps_row_bytes: to_usize(layout.steps_row_bytes())?,
            whole_output: None,
            decoders: Vec::new(),
        })
    }

    /// Decodes with this kernel.
    ///
    /// # Errors
    /// `InvalidArgument` when the CPU can't run it.
    pub fn with_kernel(mut self, kernel: Kernel) -> Result<Self> {
        self.kernel = kernel.require()?;
        self.decoders.clear();
        Ok(self)
    }

    /// Says that the outputs are pieces of one of so many bytes.
    pub(crate) fn with_whole_output(mut self, bytes: usize) -> Self {
        self.whole_output = Some(bytes);
        self
    }

    /// Decodes a run. `out` holds whole rows of little-endian elements; row `i` of the run becomes
    /// row `row_of(i)` of it.
    ///
    /// # Errors
    /// `Malformed` for a row scale out of range (UC-VAL-1) or padding bits that are not zero
    /// (UC-PLN-11, UC-PLN-12); `InvalidArgument` when slices don't fit the layout.
    ///
    /// # Panics
    /// When `out` has no row `row_of(i)`.
    pub fn decode(
        &mut self,
        run: &RunBytes<'_>,
        out: &mut [u8],
        mut row_of: impl FnMut(usize) -> usize,
    ) -> Result<()> {
        let row_out = self.cols * self.float.bytes();
        let (cols, row_bytes, steps_row) = (self.cols, self.row_bytes, self.steps_row_bytes);
        self.check_sizes(run)?;
        let mut planes = run.planes.to_vec();
        let kernel = self.kernel;
        let whole_output = self.whole_output.unwrap_or(out.len());
        let stream =
            can_stream(kernel) && whole_output >= STREAM_BYTES && row_out <= STREAM_ROW_BYTES;
        let mut buffer = vec![0; if stream { row_out } else { 0 }];
        let _streaming = stream.then_some(Streaming);
        for row in 0..run.scales.len() / 2 {
            let scale = self.check_row(run, row)?;
            for (slot, plane) in planes.iter_mut().zip(run.planes) {
                *slot = &plane[row * row_bytes..][..row_bytes];
            }
            let steps = &run.steps[row * steps_row..][..steps_row];
            let out = &mut out[row_of(row) * row_out..][..row_out];
            let decoder = self.decoder(run.native, run.planes.len());
            if stream {
                decoder.decode(&planes, steps, scale, cols, &mut buffer);
                stream_copy(kernel, out, &buffer);
            } else {
                decoder.decode(&planes, steps, scale, cols, out);
            }
        }
        Ok(())
    }

    /// Checks a run as [`RunDecoder::decode`] does.
    ///
    /// # Errors
    /// As [`RunDecoder::decode`].
    pub fn check(&self, run: &RunBytes<'_>) -> Result<()> {
        self.check_sizes(run)?;
        (0..run.scales.len() / 2).try_for_each(|row| self.check_row(run, row).map(drop))
    }

    fn check_sizes(&self, run: &RunBytes<'_>) -> Result<()> {
        let rows = run.scales.len() / 2;
        let (row_bytes, steps_row) = (self.row_bytes, self.steps_row_bytes);
        let fits = (3..=usize::from(run.native)).contains(&run.planes.len())
            && run.native <= 8
            && run.scales.len() == 2 * rows
            && run.steps.len() == steps_row * rows
            && run.planes.iter().all(|p| p.len() == row_bytes * rows);
        if !fits {
            return Err(Error::argument("slices don't fit the layout of the tensor"));
        }
        Ok(())
    }

    /// Checks one row; returns its scale.
    fn check_row(&self, run: &RunBytes<'_>, row: usize) -> Result<f32> {
        let bits = u16::from_le_bytes([run.scales[2 * row], run.scales[2 * row + 1]]);
        check_scale(bits, self.source)?;
        let last_steps = (row + 1) * self.steps_row_bytes;
        if self.n_groups % 2 == 1 && run.steps[last_steps - 1] >> 4 != 0 {
            return Err(Error::malformed(Rule::PLN_12, "padding of the steps is not zero"));
        }
        let (last, used) = ((row + 1) * self.row_bytes - 1, self.cols % 8);
        if used != 0 && run.planes.iter().any(|plane| plane[last] >> used != 0) {
            return Err(Error::malformed(Rule::PLN_11, "bits behind the last column are not zero"));
        }
        Ok(scale_f32(bits))
    }

    fn decoder(&mut self, native: u8, read: usize) -> &mut RowDecoder {
        let at = self.decoders.iter().position(|(key, _)| *key == (native, read));
        let at = at.unwrap_or_else(|| {
            let planes = u8::try_from(read).expect("at most 8");
            let table = self.levels.set(native).table(planes);
            let group = self.layout.group as usize;
            let decoder = RowDecoder::new(self.kernel, table, group, self.float);
            self.decoders.push(((native, read), decoder));
            self.decoders.len() - 1
        });
        &mut self.decoders[at].1
    }
}
