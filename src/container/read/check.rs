//! Checks between records: parts against geometry, aliases against targets, parts against
//! the file (spec/container.md, "Parts" and "Placement").

use std::collections::HashSet;

use crate::codec::exact::{ExactModel, coded_matrix, exact_model_name};
use crate::codec::{Levels, PlaneLayout};
use crate::error::{Error, Result};
use crate::format::{
    ALIGN_BYTES, Dtype, Encoding, Index, OverlayBlock, PREAMBLE_BYTES, Part, PartKind, Preamble,
    Storage, TensorEntry, align_up, elements,
};
use crate::rule::Rule;

/// Checks an index that parsed.
///
/// # Errors
/// `Malformed` with the rule, the record and the offset concerned.
pub(crate) fn check_index(index: &Index, preamble: &Preamble) -> Result<()> {
    for t in &index.tensors {
        check_tensor(t, index).map_err(|e| e.in_tensor(&t.name))?;
        if matches!(t.encoding, Encoding::Coded { .. }) && !preamble.has_coded() {
            let text = "a coded tensor in a file without the feature `coded_raw`";
            return Err(Error::malformed(Rule::TEN_7, text).in_tensor(&t.name));
        }
    }
    for model in &index.exact_models {
        let check = || {
            let name = exact_model_name(ExactModel::parse(&model.body)?.name()?);
            if name != model.name {
                return Err(Error::malformed(Rule::EXA_13, format!("the model is called {name}")));
            }
            Ok(())
        };
        check().map_err(|e: Error| e.in_tensor(&model.name))?;
    }
    check_overlays(index, preamble)?;
    check_paths(index)?;
    let mut files = index.files.iter().chain(&index.heads);
    if let Some(file) = files.next().filter(|_| preamble.shard_number > 1) {
        return Err(Error::malformed(Rule::SHD_8, "a shard that isn't the first carries a file")
            .in_tensor(&file.path));
    }
    check_placement(index, preamble)
}

/// Most overlays of one pack: each is decoded by itself when a pack is verified.
const MAX_OVERLAYS: usize = 256;

/// Overlays of one file: their places, and what they are for. Of a sharded pack only the pack knows
/// its root.
fn check_overlays(index: &Index, preamble: &Preamble) -> Result<()> {
    let only = preamble.is_overlays_only();
    let others = index.tensors.len() + index.levels.len() + index.exact_models.len();
    if only && (others > 0 || index.overlays.is_empty() || preamble.is_sharded()) {
        let text = "a file of overlays holds one overlay at least, no tensors, and is no shard";
        return Err(Error::malformed(Rule::OVL_10, text));
    }
    let mut orders: Vec<u16> = index.overlays.iter().map(|o| o.order).collect();
    orders.sort_unstable();
    let n = orders.len();
    if n > MAX_OVERLAYS || !orders.into_iter().eq((1..=u16::MAX).take(n)) {
        let text = format!("{n} overlays aren't numbered 1, 2, ..., at most {MAX_OVERLAYS}");
        return Err(Error::malformed(
            if n > MAX_OVERLAYS { Rule::OVL_14 } else { Rule::OVL_3 },
            text,
        ));
    }
    let first = index.overlays.first().map(|o| o.base_root);
    for overlay in &index.overlays {
        let fail = |rule, text: String| Err(Error::malformed(rule, text).in_tensor(&overlay.name));
        if preamble.shard_number > 1 {
            return fail(Rule::OVL_16, "a shard that isn't the first holds an overlay".into());
        }
        if Some(overlay.base_root) != first {
            let rule = if only { Rule::OVL_21 } else { Rule::OVL_15 };
            let text = "is for another base than the first overlay";
            return Err(Error::malformed(rule, text).in_tensor(&overlay.name));
        }
        if only || preamble.is_sharded() {
            continue;
        }
        if overlay.base_root != preamble.decoded_root {
            // Overlays alone are for a base in another file, which a feature has to say.
            let alone = index.tensors.is_empty();
            return fail(
                if alone { Rule::OVL_20 } else { Rule::OVL_15 },
                format!(
                    "is for the decoded root {}, this file's is {}",
                    overlay.base_root, preamble.decoded_root
                ),
            );
        }
        for block in &overlay.blocks {
            check_block(block, index.tensor(&block.tensor))
                .map_err(|e| e.in_part(&block.tensor).in_tensor(&overlay.name))?;
        }
    }
    Ok(())
}

/// Whether a block of an overlay fits its tensor.
///
/// # Errors
/// `Malformed` (UC-OVL-4, UC-OVL-17).
pub(crate) fn check_block(block: &OverlayBlock, tensor: Option<&TensorEntry>) -> Result<()> {
    let fail = |rule, text: String| Err(Error::malformed(rule, text));
    let Some(t) = tensor else { return fail(Rule::OVL_4, "there is no such tensor".into()) };
    let single = matches!(t.dtype, Dtype::Bf16 | Dtype::F16 | Dtype::F32);
    match t.encoding {
        Encoding::Planes { .. } => {}
        Encoding::Raw if single => {}
        _ => {
            return fail(
                Rule::OVL_4,
                format!("overlays can't change {} as {}", t.dtype, t.encoding.name()),
            );
        }
    }
    let splits = (0..=t.shape.len()).map(|at| (elements(&t.shape[..at]), elements(&t.shape[at..])));
    if !splits.into_iter().any(|split| split == (Some(block.rows), Some(block.cols))) {
        return fail(
            Rule::OVL_17,
            format!("{} x {} for a tensor {:?}", block.rows, block.cols, t.shape),
        );
    }
    Ok(())
}

/// Type of a tensor that is coded.
fn check_coded_type(t: &TensorEntry) -> Result<()> {
    if t.dtype.has_planes() {
        return Ok(());
    }
    Err(Error::malformed(Rule::EXA_28, format!("{} tensors can't be coded", t.dtype)))
}

fn check_tensor(t: &TensorEntry, index: &Index) -> Result<()> {
    match &t.encoding {
        Encoding::Raw => {
            let bytes = t.dtype.tensor_bytes(&t.shape).unwrap_or(0);
            let expected = if bytes == 0 { vec![] } else { vec![(PartKind::Data, bytes)] };
            check_parts(&t.parts, &expected)
        }
        Encoding::Coded { row_dims } => {
            check_coded_type(t)?;
            coded_matrix(&t.shape, *row_dims)?;
            let Some(part) = t.parts.iter().find(|p| p.kind == PartKind::Residual) else {
                return check_parts(&t.parts, &[(PartKind::Residual, 0)]);
            };
            if part.optional {
                let text = "the residual of a coded tensor can't be optional";
                return Err(Error::malformed(Rule::PRT_13, text).in_part(part.kind.name()));
            }
            check_parts(&t.parts, &[(PartKind::Residual, part.len)])
        }
        Encoding::Alias { target } => check_alias(t, target, index),
        Encoding::Planes { row_dims, group, planes, level_ids } => {
            let layout = check_planes(t, *row_dims, *group)?;
            Levels::resolve(level_ids, &index.levels)?;
            check_parts(&t.parts, &plane_parts(t, &layout, *planes)?)
        }
    }
}

fn check_planes(t: &TensorEntry, row_dims: u8, group: u32) -> Result<PlaneLayout> {
    if !t.dtype.has_planes() {
        return Err(Error::malformed(
            Rule::PLN_1,
            format!("{} tensors can't be stored as planes", t.dtype),
        ));
    }
    PlaneLayout::new(&t.shape, row_dims, group)
}

/// Kinds and lengths of the parts of a tensor with so many planes, or with counts per row.
fn plane_parts(
    t: &TensorEntry,
    layout: &PlaneLayout,
    planes: Option<u8>,
) -> Result<Vec<(PartKind, u64)>> {
    let listed = |p: &&Part| matches!(p.kind, PartKind::Plane(_));
    let n_planes = t.parts.iter().filter(listed).count();
    let rows = u128::from(layout.rows);
    let plane = u128::from(layout.row_bytes()) * rows;
    let mut expected = vec![];
    if planes.is_none() {
        expected.push((PartKind::Counts, u128::from(layout.counts_bytes())));
    }
    expected.push((PartKind::Scales, 2 * rows));
    if layout.n_groups() > 0 {
        expected.push((PartKind::Steps, u128::from(layout.steps_row_bytes()) * rows));
    }
    // With counts per row the first three planes are whole, the others at most that long;
    // their exact length follows from the counts part and is checked when that is read.
    for p in 0..planes.map_or(n_planes.clamp(4, 8), usize::from) {
        let p = u8::try_from(p).expect("at most 8");
        let len = match t.parts.iter().find(|x| x.kind == PartKind::Plane(p)) {
            Some(part) if planes.is_none() && p >= 3 && u128::from(part.len) <= plane => {
                u128::from(part.len)
            }
            _ => plane,
        };
        expected.push((PartKind::Plane(p), len));
    }
    let expected: Option<Vec<_>> =
        expected.into_iter().map(|(k, n)| Some((k, u64::try_from(n).ok()?))).collect();
    let mut expected =
        expected.ok_or_else(|| Error::malformed(Rule::TEN_10, "tensor is too large"))?;
    if let Some(part) = t.parts.iter().find(|p| p.kind == PartKind::Residual) {
        if !part.optional {
            let text = "the residual of a tensor with planes must be optional";
            return Err(Error::malformed(Rule::PRT_13, text).in_part(part.kind.name()));
        }
        expected.push((PartKind::Residual, part.len));
    }
    Ok(expected)
}

fn check_parts(parts: &[Part], expected: &[(PartKind, u64)]) -> Result<()> {
    let known = || parts.iter().filter(|p| !matches!(p.kind, PartKind::Unknown(..)));
    if !known().map(|p| p.kind).eq(expected.iter().map(|e| e.0)) {
        let list =
            |kinds: Vec<PartKind>| kinds.iter().map(|k| k.name()).collect::<Vec<_>>().join(", ");
        return Err(Error::malformed(
            Rule::PRT_22,
            format!(
                "parts are [{}], expected [{}]",
                list(known().map(|p| p.kind).collect()),
                list(expected.iter().map(|e| e.0).collect())
            ),
        ));
    }
    for (part, (_, len)) in known().zip(expected) {
        if part.len != *len {
            return Err(Error::malformed(
                Rule::PRT_5,
                format!("index says {} bytes, the shape needs {len}", part.len),
            )
            .in_part(part.kind.name())
            .at(part.offset));
        }
        if part.storage == Storage::Zstd && part.kind != PartKind::Data {
            return Err(Error::malformed(Rule::PRT_27, "only data parts may be stored as zstd")
                .in_part(part.kind.name())
                .at(part.offset));
        }
    }
    Ok(())
}

fn check_alias(t: &TensorEntry, target: &str, index: &Index) -> Result<()> {
    let fail = |rule, text: &str| {
        Err(Error::malformed(rule, format!("alias of \"{}\": {text}", target.escape_debug())))
    };
    if !t.parts.is_empty() {
        return fail(Rule::TEN_9, "an alias has no parts");
    }
    let Some(other) = index.tensor(target) else {
        return fail(Rule::TEN_4, "there is no such tensor");
    };
    if other.encoding.alias_target().is_some() {
        return fail(Rule::TEN_4, "the target is an alias itself");
    }
    if (other.dtype, &other.shape, other.decoded_sha256) != (t.dtype, &t.shape, t.decoded_sha256) {
        return fail(Rule::TEN_8, "dtype, shape or decoded digest differ");
    }
    Ok(())
}

fn check_paths(index: &Index) -> Result<()> {
    let paths: HashSet<&str> = index.files.iter().map(|f| f.path.as_str()).collect();
    for file in &index.files {
        for (at, _) in file.path.match_indices('/') {
            if paths.contains(&file.path[..at]) {
                return Err(Error::malformed(
                    Rule::NAM_3,
                    format!("\"{}\" is a file and a folder", file.path[..at].escape_debug()),
                )
                .in_tensor(&file.path));
            }
        }
    }
    Ok(())
}

/// Parts tile the bytes between preamble and index: none overlap and nothing hides between them.
fn check_placement(index: &Index, preamble: &Preamble) -> Result<()> {
    let mut parts: Vec<(&str, &Part)> = index.parts().collect();
    parts.sort_by_key(|(_, p)| p.offset);
    let mut end = PREAMBLE_BYTES as u64;
    for (name, part) in parts {
        let expected = align_up(end, ALIGN_BYTES);
        if Some(part.offset) != expected {
            return Err(Error::malformed(
                Rule::PRT_3,
                format!(
                    "part starts at byte {}, the one before it ends at {end}: expected the next multiple of {ALIGN_BYTES}",
                    part.offset
                ),
            )
            .in_tensor(name)
            .in_part(part.kind.name())
            .at(part.offset));
        }
        end = part
            .offset
            .checked_add(part.stored_len)
            .filter(|&e| e <= preamble.index_offset)
            .ok_or_else(|| {
                Error::malformed(
                    Rule::PRT_3,
                    format!(
                        "part of {} bytes reaches beyond the data section, which ends at byte {}",
                        part.stored_len, preamble.index_offset
                    ),
                )
                .in_tensor(name)
                .in_part(part.kind.name())
                .at(part.offset)
            })?;
    }
    if align_up(end, ALIGN_BYTES) != Some(preamble.index_offset) {
        return Err(Error::malformed(
            Rule::PRT_3,
            format!(
                "data ends at byte {end}, the index starts at {}: bytes between belong to nothing",
                preamble.index_offset
            ),
        )
        .at(end));
    }
    check_order(index)
}

/// The parts of one record follow one another in the order they are listed, so that one ranged read
/// fetches a tensor.
fn check_order(index: &Index) -> Result<()> {
    let tensors = index.tensors.iter().map(|t| (&t.name, &t.parts));
    let files = index.files.iter().map(|f| (&f.path, &f.parts));
    let heads = index.heads.iter().map(|f| (&f.path, &f.parts));
    let overlays = index.overlays.iter().map(|o| (&o.name, &o.parts));
    let others = index.others.iter().map(|o| (&o.name, &o.parts));
    for (name, parts) in tensors.chain(files).chain(overlays).chain(heads).chain(others) {
        for pair in parts.windows(2) {
            let end = pair[0].offset.saturating_add(pair[0].stored_len);
            if Some(pair[1].offset) != align_up(end, ALIGN_BYTES) {
                return Err(Error::malformed(
                    Rule::PRT_20,
                    "parts of one record don't follow one another",
                )
                .in_tensor(name)
                .in_part(pair[1].kind.name())
                .at(pair[1].offset));
            }
        }
    }
    Ok(())
}
