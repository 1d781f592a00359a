//! Tensors with overlays: reading factors, and decoding (spec/overlay.md).

use sha2::{Digest as _, Sha256};

use super::decode::DecodeOptions;
use super::open::{Container, TensorView};
use crate::codec::{Factors, convert_raw, read_f32, round_to};
use crate::error::{Error, Result};
use crate::format::{Digest, Dtype, OverlayBlock, OverlayEntry};
use crate::kernels::Kernel;
use crate::memory::{reserve_more, to_usize};
use crate::storage::ReadAt;

impl<R: ReadAt> Container<R> {
    /// The overlays of this file, in the order in which they are applied.
    pub fn overlays(&self) -> Vec<&OverlayEntry> {
        let mut all: Vec<_> = self.index().overlays.iter().collect();
        all.sort_by_key(|o| o.order);
        all
    }

    /// The factors of a block of one of the overlays of this file.
    ///
    /// # Errors
    /// `Malformed` (UC-OVL-13, UC-OVL-5, UC-OVL-18), `Integrity`, `Truncated`, `Io`.
    pub fn read_factors(&self, overlay: &OverlayEntry, block: &OverlayBlock) -> Result<Factors> {
        let read = || {
            let part = &overlay.parts[0];
            let len = block.padded_bytes().unwrap_or(u64::MAX);
            let bytes = self.read_part(part, block.start..block.start.saturating_add(len))?;
            Factors::parse(block, &bytes).map_err(|e| e.at(part.offset + block.start))
        };
        let locate = |e: Error| self.locate(e.in_part(&block.tensor).in_tensor(&overlay.name));
        read().map_err(locate)
    }

    /// Checks the factors of all blocks of an overlay, in one pass over its part.
    ///
    /// # Errors
    /// As [`Container::read_factors`], and whatever `each` returns, which is called before each
    /// block.
    pub(crate) fn check_factors(
        &self,
        overlay: &OverlayEntry,
        mut each: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let part = &overlay.parts[0];
        let (mut from, mut window) = (0u64, vec![]);
        for block in &overlay.blocks {
            each()?;
            let mut check = || {
                let end = block.start.saturating_add(block.padded_bytes().unwrap_or(u64::MAX));
                if end > from + window.len() as u64 {
                    from = block.start;
                    let ahead = part.len.min(from.saturating_add(WINDOW_BYTES));
                    window = self.read_part(part, from..ahead.max(end))?;
                }
                let own = &window[to_usize(block.start - from)?..to_usize(end - from)?];
                Factors::parse(block, own).map_err(|e| e.at(part.offset + block.start))
            };
            let locate = |e: Error| self.locate(e.in_part(&block.tensor).in_tensor(&overlay.name));
            check().map_err(locate)?;
        }
        Ok(())
    }
}

/// Bytes of a part that are read at a time when all its blocks are checked.
const WINDOW_BYTES: u64 = 4 << 20;

/// A tensor together with what overlays add to it. Made by
/// [`Pack::effective_tensor`](crate::Pack::effective_tensor).
#[derive(Debug)]
pub struct EffectiveTensor<'a, R> {
    view: TensorView<'a, R>,
    factors: Vec<Factors>,
}

impl<'a, R: ReadAt> EffectiveTensor<'a, R> {
    /// A tensor with factors in the order of the overlays; `view` is no alias.
    #[cfg(feature = "checkpoints")]
    pub(crate) fn new(view: TensorView<'a, R>, factors: Vec<Factors>) -> Self {
        Self { view, factors }
    }

    /// A tensor with the first `overlays` of the file `first`. An alias has what its target has.
    ///
    /// # Errors
    /// As [`Container::read_factors`].
    pub(crate) fn read(
        first: &Container<R>,
        view: &TensorView<'a, R>,
        overlays: usize,
    ) -> Result<Self> {
        let view = view.resolve()?;
        let stack = first.overlays().into_iter().take(overlays);
        let blocks = stack.filter_map(|o| Some((o, o.block(view.name())?)));
        let factors = blocks.map(|(o, block)| first.read_factors(o, block));
        Ok(Self { view, factors: factors.collect::<Result<_>>()? })
    }

    /// The tensor without overlays.
    pub fn base(&self) -> TensorView<'a, R> {
        self.view
    }

    /// What overlays add, in their order.
    pub fn factors(&self) -> &[Factors] {
        &self.factors
    }

    /// All values at the source's type, little-endian.
    ///
    /// # Errors
    /// As [`EffectiveTensor::decode_tiles`].
    pub fn decode(&self, options: &DecodeOptions) -> Result<Vec<u8>> {
        let mut all = vec![];
        self.decode_tiles(options, |bytes| {
            reserve_more(&mut all, bytes.len())?;
            all.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(all)
    }

    /// Decodes tile by tile, in order: calls `emit` with the bytes of each tile.
    ///
    /// # Errors
    /// As [`DecodeOptions::decode_tiles`]; `InvalidArgument` for a rung or exact values, which
    /// overlays don't belong to.
    ///
    /// # Spec
    /// UC-OVL-6 to UC-OVL-8, UC-OVL-23 to UC-OVL-25.
    pub fn decode_tiles(
        &self,
        options: &DecodeOptions,
        mut emit: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        if self.factors.is_empty() {
            return options.decode_tiles(&self.view, emit);
        }
        let target = options.target(&self.view);
        let mut out = vec![];
        self.each_tile(options, |base, values, level| {
            if level + 1 < self.factors.len() {
                return Ok(());
            }
            out.clear();
            let rounded = self.round(base, values, target, &mut out);
            rounded.map_err(|e| self.view.locate(e))?;
            emit(&out)
        })
    }

    /// Calls `take` with the base's bytes and the values of a tile, after each overlay with its
    /// place.
    fn each_tile(
        &self,
        options: &DecodeOptions,
        mut take: impl FnMut(&[u8], &[f32], usize) -> Result<()>,
    ) -> Result<()> {
        if options.planes.is_some() || options.exact {
            return Err(Error::argument("overlays belong to all planes of the base"));
        }
        let kernel = options.kernel.map_or_else(Kernel::selected, Ok)?;
        let from = self.read_type();
        let mut base = options.clone();
        base.dtype = Some(from);
        // The first element of the rows that are decoded.
        let mut at = match &options.rows {
            Some(rows) => rows.start.saturating_mul(self.view.row_len()?),
            None => 0,
        };
        let mut values = vec![];
        base.decode_tiles(&self.view, |bytes| {
            values.clear();
            read_f32(bytes, from, &mut values);
            let n = values.len() as u64;
            for (level, factors) in self.factors.iter().enumerate() {
                factors.add(kernel, at, &mut values).map_err(|e| self.view.locate(e))?;
                take(bytes, &values, level)?;
            }
            at += n;
            Ok(())
        })
    }

    /// The type that the base is read as.
    fn read_type(&self) -> Dtype {
        let quantized = self.view.entry().encoding.is_quantized();
        if quantized { Dtype::F32 } else { self.view.dtype() }
    }

    /// Rounds values of a tile, of which `base` are the base's bytes.
    fn round(&self, base: &[u8], values: &[f32], target: Dtype, out: &mut Vec<u8>) -> Result<()> {
        round_to(values, target, out)?;
        if self.view.entry().encoding.is_quantized() {
            return Ok(());
        }
        keep_what_is_not_finite(base, self.read_type(), target, out)
    }

    /// SHA-256 of the tensor at its own type after each of its overlays. The base is decoded once.
    ///
    /// # Errors
    /// As [`EffectiveTensor::decode_tiles`].
    pub(crate) fn digests(
        &self,
        mut emitted: impl FnMut(u64) -> Result<()>,
    ) -> Result<Vec<Digest>> {
        let mut hashers = vec![Sha256::new(); self.factors.len()];
        let mut out = vec![];
        let options = DecodeOptions::new();
        self.each_tile(&options, |base, values, level| {
            out.clear();
            self.round(base, values, self.view.dtype(), &mut out)?;
            hashers[level].update(&out);
            emitted(out.len() as u64)
        })?;
        Ok(hashers.into_iter().map(|sha| Digest(sha.finalize().into())).collect())
    }

    /// About how many bytes of memory [`EffectiveTensor::decode_tiles`] needs on top of the base's.
    pub(crate) fn cost(overlays: &[&OverlayEntry], tensor: &str) -> u64 {
        let blocks = overlays.iter().filter_map(|o| o.block(tensor));
        // Widened twice at most, and a tile as binary32 and as rounded.
        blocks.map(|b| 5 * b.bytes()).fold(8 << 20, u64::saturating_add)
    }
}

/// UC-OVL-25: elements of a raw tensor that are not finite stay as they are.
fn keep_what_is_not_finite(bytes: &[u8], from: Dtype, to: Dtype, out: &mut [u8]) -> Result<()> {
    let mut values = vec![];
    read_f32(bytes, from, &mut values);
    if values.iter().all(|v| v.is_finite()) {
        return Ok(());
    }
    let size = to_usize(to.bits() / 8)?;
    let plain = convert_raw(bytes.to_vec(), from, to).0;
    for (i, _) in values.iter().enumerate().filter(|(_, v)| !v.is_finite()) {
        out[i * size..][..size].copy_from_slice(&plain[i * size..][..size]);
    }
    Ok(())
}
