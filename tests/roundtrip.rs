//! What is written is what is read: containers of every kind of content against the reference
//! decoder, the encoder's reach, and checkpoints in and out.

#[path = "support/random.rs"]
mod random;

use std::collections::{BTreeMap, HashSet};
use std::io::Cursor;
use std::ops::Range;

use proptest::prelude::*;
use ultracompress::codec::{
    LevelSet, Levels, PlaneCounts, PlaneLayout, RunBytes, RunDecoder, convert_raw, reference,
};
use ultracompress::format::{Attachment, AttachmentKind, LevelsEntry};
use ultracompress::{
    Container, DecodeOptions, Dtype, EncodeOptions, EncodedTensor, ErrorKind, Manifest, PackWriter,
    PlaneParts, Role, StoredFile, VerifyOptions, WriteSummary,
};

use random::{Rng, size};

const FLOATS: [Dtype; 4] = [Dtype::Bf16, Dtype::F16, Dtype::F32, Dtype::F64];
const GROUPS: [u32; 6] = [0, 16, 32, 64, 128, 256];

fn elem_bytes(dtype: Dtype) -> usize {
    size(dtype.bits() / 8)
}

// ---- Content of packs -------------------------------------------------------------------------

#[derive(Debug, Clone)]
struct PlanesSpec {
    dtype: Dtype,
    shape: Vec<u64>,
    row_dims: u8,
    group: u32,
    counts: PlaneCounts,
    custom_levels: bool,
    seed: u64,
}

impl PlanesSpec {
    fn layout(&self) -> PlaneLayout {
        PlaneLayout::new(&self.shape, self.row_dims, self.group).expect("valid spec")
    }

    /// Random parts: every bit pattern that the format allows.
    fn parts(&self, level_ids: [u16; 6]) -> PlaneParts {
        let layout = self.layout();
        let mut rng = Rng(self.seed);
        let (rows, cols) = (size(layout.rows), size(layout.cols));
        let top_exponent = if self.dtype == Dtype::F16 { 128 } else { 240 };
        let mut scales = Vec::new();
        for _ in 0..rows {
            // Mostly anything allowed; sometimes where binary16 has its subnormals and its end.
            let exponent = match rng.below(3) {
                0 => 100 + rng.below(29),
                _ => 1 + rng.below(top_exponent),
            };
            let bits = u16::try_from((exponent << 7) | rng.below(128)).expect("15 bits");
            scales.extend(bits.to_le_bytes());
        }
        let steps_row = size(layout.steps_row_bytes());
        let mut steps = rng.bytes(steps_row * rows);
        if layout.n_groups() % 2 == 1 {
            steps.chunks_mut(steps_row).for_each(|row| row[steps_row - 1] &= 15);
        }
        let row_bytes = size(layout.row_bytes());
        let planes = self
            .counts
            .rows_with(layout.rows)
            .into_iter()
            .filter(|&rows| rows > 0)
            .map(|rows| {
                let mut plane = rng.bytes(size(rows) * row_bytes);
                if cols % 8 != 0 {
                    let keep = (1u8 << (cols % 8)) - 1;
                    plane.chunks_mut(row_bytes).for_each(|row| row[row_bytes - 1] &= keep);
                }
                plane
            })
            .collect();
        PlaneParts {
            row_dims: self.row_dims,
            group: self.group,
            counts: self.counts.clone(),
            level_ids,
            scales,
            steps,
            planes,
        }
    }

    /// Adds a table of its own for every count that occurs.
    fn add_levels<W: std::io::Write + std::io::Seek>(
        &self,
        writer: &mut PackWriter<W>,
    ) -> [u16; 6] {
        let mut ids = [0; 6];
        let mut rng = Rng(!self.seed);
        let used: HashSet<u8> = match &self.counts {
            PlaneCounts::Uniform(n) => [*n].into(),
            PlaneCounts::PerRow(counts) => counts.iter().copied().collect(),
        };
        for (native, id) in (3u8..).zip(&mut ids) {
            if self.custom_levels && used.contains(&native) {
                let levels = (3..=native).rev().flat_map(|read| random_table(read, &mut rng));
                *id = writer.add_levels(native, levels.collect()).expect("few tables");
            }
        }
        ids
    }
}

/// 2^read different levels in rising order.
fn random_table(read: u8, rng: &mut Rng) -> Vec<i8> {
    let mut all: Vec<i8> = (i8::MIN..=i8::MAX).collect();
    for i in (1..all.len()).rev() {
        all.swap(i, size(rng.below(i as u64 + 1)));
    }
    all.truncate(1 << read);
    all.sort_unstable();
    all
}

#[derive(Debug, Clone)]
enum Content {
    Raw { dtype: Dtype, shape: Vec<u64>, bytes: Vec<u8> },
    Planes(PlanesSpec),
    AliasOf(prop::sample::Index),
}

#[derive(Debug, Clone)]
struct Case {
    tensors: Vec<(String, Content)>,
    files: BTreeMap<String, Vec<u8>>,
    attachments: BTreeMap<(u16, String), Vec<u8>>,
    zstd: bool,
}

impl Case {
    /// The tensor that an alias resolves to, if there is one at all.
    fn target(&self, index: prop::sample::Index) -> Option<&(String, Content)> {
        let own: Vec<_> =
            self.tensors.iter().filter(|(_, c)| !matches!(c, Content::AliasOf(_))).collect();
        (!own.is_empty()).then(|| own[index.index(own.len())])
    }

    fn options(&self) -> EncodeOptions {
        EncodeOptions::new().with_zstd_level((self.zstd && cfg!(feature = "zstd")).then_some(3))
    }
}

fn attachment_kind(code: u16) -> AttachmentKind {
    match code {
        1 => AttachmentKind::Receipt,
        2 => AttachmentKind::Signature,
        other => AttachmentKind::Unknown(other),
    }
}

fn raw_content() -> impl Strategy<Value = Content> {
    let dtype = prop::sample::select(Dtype::ALL);
    let shape = prop::collection::vec(0u64..6, 0..=5);
    (dtype, shape, any::<u64>(), any::<bool>()).prop_map(|(dtype, mut shape, seed, noise)| {
        if dtype.tensor_bytes(&shape).is_none() {
            shape.push(4);
        }
        let n = size(dtype.tensor_bytes(&shape).expect("whole bytes"));
        let bytes = if noise { Rng(seed).bytes(n) } else { vec![seed.to_le_bytes()[0]; n] };
        Content::Raw { dtype, shape, bytes }
    })
}

prop_compose! {
    fn planes_spec()(
        mut shape in prop::collection::vec(1u64..=3, 1..=4),
        last in prop_oneof![4 => 1u64..70, 1 => 250u64..262],
        row_dims in any::<prop::sample::Index>(),
        dtype in prop::sample::select(&FLOATS[..]),
        group in prop::sample::select(&GROUPS[..]),
        uniform in prop::option::of(3u8..=8),
        custom_levels in any::<bool>(),
        seed in any::<u64>(),
    ) -> PlanesSpec {
        shape.push(last);
        let row_dims = u8::try_from(1 + row_dims.index(shape.len())).expect("at most 5");
        let rows = size(shape[..usize::from(row_dims)].iter().product());
        let counts = match uniform {
            Some(n) => PlaneCounts::Uniform(n),
            None => per_row_counts(rows, seed),
        };
        PlanesSpec { dtype, shape, row_dims, group, counts, custom_levels, seed }
    }
}

/// Counts of 3 to 8 that are not all equal; one row alone can't have such.
fn per_row_counts(rows: usize, seed: u64) -> PlaneCounts {
    let mut rng = Rng(seed ^ 1);
    let mut counts: Vec<u8> = (0..rows).map(|_| 3 + rng.byte() % 6).collect();
    match counts[..] {
        [only] => PlaneCounts::Uniform(only),
        [first, second, ..] if first == second => {
            counts[0] = 3 + (first - 2) % 6;
            PlaneCounts::PerRow(counts)
        }
        _ => PlaneCounts::PerRow(counts),
    }
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        3 => raw_content(),
        3 => planes_spec().prop_map(Content::Planes),
        1 => any::<prop::sample::Index>().prop_map(Content::AliasOf),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let tensors = prop::collection::btree_map("\\PC{1,20}", content(), 0..6)
        .prop_map(|map| map.into_iter().collect::<Vec<_>>())
        .prop_shuffle();
    // An ending on the last component only, so that no path is a folder of another.
    let files = prop::collection::btree_map(
        "[a-zß]{1,4}(/[a-z]{1,4}){0,2}\\.[a-z]{2}",
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            (0usize..2000).prop_map(|n| vec![b'a'; n])
        ],
        0..4,
    );
    let attachments = prop::collection::btree_map(
        (1u16..5, "\\PC{1,12}"),
        prop::collection::vec(any::<u8>(), 0..150),
        0..3,
    );
    (tensors, files, attachments, any::<bool>())
        .prop_map(|(tensors, files, attachments, zstd)| Case { tensors, files, attachments, zstd })
}

// ---- Writing and checking ---------------------------------------------------------------------

struct Written {
    file: Vec<u8>,
    summary: WriteSummary,
    planes: BTreeMap<String, (PlaneLayout, PlaneParts)>,
    levels: Vec<LevelsEntry>,
}

fn write(case: &Case) -> Written {
    let mut writer = PackWriter::new(Cursor::new(Vec::new())).expect("memory");
    let mut manifest = Manifest::new("test");
    let mut planes = BTreeMap::new();
    let mut encoded = BTreeMap::new();
    for (name, content) in &case.tensors {
        let tensor = match content {
            Content::Raw { dtype, shape, bytes } => {
                manifest.add_tensor(name, bytes, "raw");
                EncodedTensor::raw(name, *dtype, shape, bytes, &case.options())
            }
            Content::Planes(spec) => {
                manifest.add_tensor(name, b"", "planes");
                let parts = spec.parts(spec.add_levels(&mut writer));
                planes.insert(name.clone(), (spec.layout(), parts.clone()));
                let levels = writer.levels();
                EncodedTensor::from_planes(name, spec.dtype, &spec.shape, Role::Body, parts, levels)
            }
            Content::AliasOf(_) => continue,
        };
        let tensor = tensor.expect("the case is valid");
        encoded.insert(name.clone(), tensor.clone());
        writer.add_tensor(tensor).expect("memory");
    }
    for (name, content) in &case.tensors {
        let Content::AliasOf(index) = content else { continue };
        let Some((target, content)) = case.target(*index) else { continue };
        match content {
            Content::Raw { bytes, .. } => manifest.add_tensor(name, bytes, "alias"),
            _ => manifest.add_tensor(name, b"", "alias"),
        }
        let alias = EncodedTensor::alias(name, &encoded[target]).expect("valid");
        writer.add_tensor(alias).expect("memory");
    }
    for (path, bytes) in &case.files {
        let file = StoredFile::new(path, bytes, case.options().zstd_level).expect("valid path");
        manifest.add_file(&file);
        writer.add_file(file).expect("memory");
    }
    for ((kind, name), data) in &case.attachments {
        let (kind, name, data) = (attachment_kind(*kind), name.clone(), data.clone());
        writer.add_attachment(Attachment { kind, name, data });
    }
    let levels = writer.levels().to_vec();
    let manifest = manifest.to_bytes().expect("canonical");
    let (summary, file) = writer.finish(&manifest).expect("the case is valid");
    Written { file: file.into_inner(), summary, planes, levels }
}

/// What the reference decoder makes of `rows`, as little-endian bytes.
fn reference_bytes(
    layout: PlaneLayout,
    parts: &PlaneParts,
    levels: Levels<'_>,
    rows: Range<u64>,
    rung: u8,
    target: Dtype,
) -> Vec<u8> {
    let stored = reference::StoredPlanes {
        layout,
        counts: &parts.counts,
        levels,
        scales: &parts.scales,
        steps: &parts.steps,
        planes: &parts.planes,
    };
    let mut out = Vec::new();
    for row in rows {
        for col in 0..layout.cols {
            let bits = reference::decode_weight(&stored, size(row), size(col), rung, target);
            assert!(
                target.bits() == 64 || bits >> target.bits() == 0,
                "the reference decoder made {bits:#x} of a {target}"
            );
            out.extend_from_slice(&bits.to_le_bytes()[..elem_bytes(target)]);
        }
    }
    out
}

fn check_planes(
    written: &Written,
    name: &str,
    source: Dtype,
    pack: &Container<&[u8]>,
    view_name: &str,
    rng: &mut Rng,
) {
    let (layout, parts) = &written.planes[name];
    let levels = Levels::resolve(&parts.level_ids, &written.levels).expect("valid ids");
    let view = pack.tensor(view_name).expect("written");
    let all = reference_bytes(*layout, parts, levels, 0..layout.rows, 8, source);
    assert_eq!(view.decode().expect("valid"), all, "{view_name:?} whole");
    let mut tiles = Vec::new();
    let collect = |bytes: &[u8]| {
        tiles.extend_from_slice(bytes);
        Ok(())
    };
    DecodeOptions::new().decode_tiles(&view, collect).expect("valid");
    assert_eq!(tiles, all, "{view_name:?} in tiles");
    let start = rng.below(layout.rows + 1);
    let rows = start..start + rng.below(layout.rows - start + 1);
    let rung = 3 + rng.byte() % 6;
    let target = FLOATS[size(rng.below(4))];
    let options = DecodeOptions::new().with_rows(rows.clone()).with_planes(rung).with_dtype(target);
    let found = options.decode(&view).expect("valid");
    let expected = reference_bytes(*layout, parts, levels, rows.clone(), rung, target);
    assert_eq!(found, expected, "{view_name:?} rows {rows:?}, {rung} planes, as {target}");
}

fn check(case: &Case, written: &Written, seed: u64) {
    let mut rng = Rng(seed);
    let pack = Container::open(&written.file[..]).expect("the writer's own file opens");
    let report = VerifyOptions::new().verify(&pack).expect("readable");
    assert!(report.is_ok(), "{:?}", report.failures);
    assert_eq!(report.stored_root, written.summary.stored_root);
    assert_eq!(report.decoded_root, written.summary.decoded_root);
    assert_eq!(pack.preamble().decoded_root, written.summary.decoded_root);
    assert_eq!(written.file.len() as u64, written.summary.file_len);

    let mut n_tensors = 0;
    for (name, content) in &case.tensors {
        let (target, content) = match content {
            Content::AliasOf(index) => match case.target(*index) {
                Some((target, content)) => (target, content),
                None => continue,
            },
            own => (name, own),
        };
        n_tensors += 1;
        let view = pack.tensor(name).expect("written");
        match content {
            Content::Raw { dtype, shape, bytes } => {
                assert_eq!((view.dtype(), view.shape()), (*dtype, &shape[..]));
                assert_eq!(&view.decode().expect("valid"), bytes, "{name:?}");
                check_raw_rows(name, &pack, bytes, &mut rng);
            }
            Content::Planes(spec) => {
                assert_eq!((view.dtype(), view.shape()), (spec.dtype, &spec.shape[..]));
                check_planes(written, target, spec.dtype, &pack, name, &mut rng);
            }
            Content::AliasOf(_) => unreachable!("resolved above"),
        }
    }
    assert_eq!(pack.tensors().len(), n_tensors);

    let files: BTreeMap<String, Vec<u8>> = pack
        .index()
        .files
        .iter()
        .map(|f| (f.path.clone(), pack.read_file(f).expect("valid")))
        .collect();
    assert_eq!(files, case.files);
    let attachments: Vec<Attachment> = case
        .attachments
        .iter()
        .map(|((kind, name), data)| Attachment {
            kind: attachment_kind(*kind),
            name: name.clone(),
            data: data.clone(),
        })
        .collect();
    assert_eq!(pack.attachments().expect("valid"), attachments);
}

/// A row range of a raw tensor is a byte range of it.
fn check_raw_rows(name: &str, pack: &Container<&[u8]>, bytes: &[u8], rng: &mut Rng) {
    let view = pack.tensor(name).expect("written");
    let Some((&rows, rest)) = view.shape().split_first() else { return };
    let Some(row_bytes) = view.dtype().tensor_bytes(rest) else { return };
    let start = rng.below(rows + 1);
    let end = start + rng.below(rows - start + 1);
    let found = DecodeOptions::new().with_rows(start..end).decode(&view).expect("valid");
    assert_eq!(found, bytes[size(start * row_bytes)..size(end * row_bytes)], "{name:?}");
}

/// The same content, as it was read from a pack.
fn read_back(case: &Case, file: &[u8]) -> Case {
    let pack = Container::open(file).expect("valid");
    let mut again = case.clone();
    for (name, content) in &mut again.tensors {
        if let Content::Raw { dtype, shape, bytes } = content {
            let view = pack.tensor(name).expect("written");
            (*dtype, *shape) = (view.dtype(), view.shape().to_vec());
            *bytes = view.decode().expect("valid");
        }
    }
    for (path, bytes) in &mut again.files {
        let entry = pack.index().files.iter().find(|f| &f.path == path).expect("written");
        *bytes = pack.read_file(entry).expect("valid");
    }
    again
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..Default::default() })]

    #[test]
    fn what_is_written_is_read_and_written_again_to_the_same_bytes(
        case in case(),
        seed in any::<u64>(),
    ) {
        let written = write(&case);
        check(&case, &written, seed);
        let again = write(&read_back(&case, &written.file));
        prop_assert!(again.file == written.file, "bytes differ when written again");
    }
}

#[test]
fn parts_longer_than_a_chunk_are_read_across_the_border() {
    let n = (1 << 20) + 12_345;
    let noise = Rng(5).bytes(n);
    let zeros = vec![0u8; n];
    let case = Case {
        tensors: vec![
            (
                "noise".into(),
                Content::Raw { dtype: Dtype::U8, shape: vec![n as u64], bytes: noise.clone() },
            ),
            (
                "zeros".into(),
                Content::Raw { dtype: Dtype::U8, shape: vec![n as u64], bytes: zeros.clone() },
            ),
        ],
        files: [("zeros.bin".to_owned(), zeros)].into(),
        attachments: BTreeMap::new(),
        zstd: true,
    };
    let written = write(&case);
    check(&case, &written, 0);
    let pack = Container::open(&written.file[..]).expect("valid");
    let view = pack.tensor("noise").expect("written");
    assert_eq!(view.entry().parts[0].chunks.len(), 2);
    let border = (1 << 20) - 3..(1 << 20) + 5u64;
    let found = DecodeOptions::new().with_rows(border.clone()).decode(&view).expect("valid");
    assert_eq!(found, noise[size(border.start)..size(border.end)]);
}

#[test]
fn every_count_group_rung_and_target_equals_the_reference() {
    for group in GROUPS {
        for dtype in FLOATS {
            let mut tensors = Vec::new();
            for native in 3..=8 {
                let spec = |counts, cols, custom_levels| {
                    Content::Planes(PlanesSpec {
                        dtype,
                        shape: vec![2, 2, cols],
                        row_dims: 2,
                        group,
                        counts,
                        custom_levels,
                        seed: u64::from(native) + u64::from(group),
                    })
                };
                let cols = if group == 256 { 259 } else { 37 };
                let uniform = spec(PlaneCounts::Uniform(native), cols, native % 2 == 0);
                tensors.push((format!("uniform {native}"), uniform));
                let low = if native == 3 { 8 } else { 3 };
                let counts = PlaneCounts::PerRow(vec![low, native, low, native]);
                tensors.push((format!("per row {native}"), spec(counts, 21, native % 2 == 1)));
            }
            let (files, attachments) = (BTreeMap::new(), BTreeMap::new());
            let written = write(&Case { tensors, files, attachments, zstd: false });
            let pack = Container::open(&written.file[..]).expect("valid");
            for (name, (layout, parts)) in &written.planes {
                let levels = Levels::resolve(&parts.level_ids, &written.levels).expect("valid");
                let view = pack.tensor(name).expect("written");
                for rung in 3..=8 {
                    // Every target on the way, each tensor with another one first.
                    let target = FLOATS[(usize::from(rung) + name.len() + size(group.into())) % 4];
                    for target in [dtype, target] {
                        let options = DecodeOptions::new().with_planes(rung).with_dtype(target);
                        let found = options.decode(&view).expect("valid");
                        let rows = 0..layout.rows;
                        let expected = reference_bytes(*layout, parts, levels, rows, rung, target);
                        assert!(
                            found == expected,
                            "{name}: {dtype}, group {group}, {rung} planes as {target}"
                        );
                    }
                }
            }
        }
    }
}

/// All codes at all steps for every native count and every number of planes read: one row a scale,
/// one group of 256 columns a step.
#[test]
fn every_code_and_step_decodes_as_the_reference_does() {
    let layout = PlaneLayout::new(&[1, 4096], 1, 256).expect("valid");
    let levels = Levels::default();
    let steps: Vec<u8> = (0..8).map(|i| (2 * i) | ((2 * i + 1) << 4)).collect();
    for native in 3..=8u8 {
        let codes: Vec<u16> = (0..4096u16).map(|c| c % (1 << native)).collect();
        let planes: Vec<Vec<u8>> = (0..native)
            .rev()
            .map(|bit| {
                let byte = |eight: &[u16]| {
                    eight.iter().rev().fold(0u8, |b, code| {
                        b << 1 | u8::try_from(code >> bit & 1).expect("one bit")
                    })
                };
                codes.chunks(8).map(byte).collect()
            })
            .collect();
        // The smallest scale, one with all fraction bits, and the largest for each source.
        for (scale, source) in [
            (0x0080u16, Dtype::Bf16),
            (0x3fff, Dtype::F32),
            (0x407f, Dtype::F16),
            (0x787f, Dtype::F64),
        ] {
            let scales = scale.to_le_bytes();
            let counts = PlaneCounts::Uniform(native);
            let stored = reference::StoredPlanes {
                layout,
                counts: &counts,
                levels,
                scales: &scales,
                steps: &steps,
                planes: &planes,
            };
            for read in 3..=native {
                let slices: Vec<&[u8]> =
                    planes[..usize::from(read)].iter().map(Vec::as_slice).collect();
                let run = RunBytes { native, scales: &scales, steps: &steps, planes: &slices };
                let mut found = vec![0xa5; codes.len() * elem_bytes(source)];
                let decoder = RunDecoder::new(layout, levels, source, source);
                decoder.expect("floats").decode(&run, &mut found, |row| row).expect("valid");
                for (col, bytes) in found.chunks(elem_bytes(source)).enumerate() {
                    let bits = reference::decode_weight(&stored, 0, col, read, source);
                    assert_eq!(
                        bytes,
                        &bits.to_le_bytes()[..elem_bytes(source)],
                        "code {} at step {}, {native} planes read as {read}, {source}",
                        codes[col],
                        col / 256
                    );
                }
            }
        }
    }
}

#[test]
fn values_beyond_binary16_become_infinite_as_rounding_to_nearest_says() {
    let layout = PlaneLayout::new(&[1, 8], 1, 0).expect("valid");
    let levels = Levels::default();
    let (scales, counts) = (0x7700u16.to_le_bytes(), PlaneCounts::Uniform(3));
    // Codes 0, 1, ..., 7: the least level is negative, the largest positive.
    let planes = [vec![0b1111_0000u8], vec![0b1100_1100], vec![0b1010_1010]];
    let stored = reference::StoredPlanes {
        layout,
        counts: &counts,
        levels,
        scales: &scales,
        steps: &[],
        planes: &planes,
    };
    let slices: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
    let run = RunBytes { native: 3, scales: &scales, steps: &[], planes: &slices };
    let mut found = vec![0; 16];
    let decoder = RunDecoder::new(layout, levels, Dtype::F32, Dtype::F16);
    decoder.expect("floats").decode(&run, &mut found, |row| row).expect("valid");
    for (col, bytes) in found.chunks(2).enumerate() {
        let infinity = if col < 4 { 0xfc00u16 } else { 0x7c00 };
        assert_eq!(bytes, infinity.to_le_bytes(), "fast decoder, code {col}");
        let bits = reference::decode_weight(&stored, 0, col, 3, Dtype::F16);
        assert_eq!(bits, u64::from(infinity), "reference decoder, code {col}");
    }
}

// ---- Conversions of raw tensors ---------------------------------------------------------------

/// Whether `found` (the value of `bits`) is the value nearest to `v`, ties to even, among its
/// neighbours `below` and `above`. All are exact in binary64, and so are the differences.
fn is_nearest(v: f64, found: f64, below: f64, above: f64, bits: u64) -> bool {
    let error = (v - found).abs();
    let closer = |other: f64| {
        let e = (v - other).abs();
        other.is_finite() && (e < error || (e == error && bits % 2 == 1))
    };
    !closer(below) && !closer(above)
}

#[test]
fn raw_floats_convert_with_a_single_rounding() {
    use half::{bf16, f16};
    let mut values = Vec::new();
    for power in [-30, -24, -15, -14, -3, 0, 1, 10] {
        for fraction in 0..64u64 {
            let base = (1.0 + fraction as f64 / 64.0) * 2f64.powi(power);
            // On ties of both short types, and a hair to either side of them.
            for tie in [0.0, 2f64.powi(-9), 2f64.powi(-8), 2f64.powi(-12), 2f64.powi(-11)] {
                for hair in [0.0, 2f64.powi(-23), -2f64.powi(-23), 2f64.powi(-50), -2f64.powi(-50)]
                {
                    let v = base + (tie + hair) * 2f64.powi(power);
                    values.extend([v, -v]);
                }
            }
        }
    }
    for from in [Dtype::F64, Dtype::F32] {
        for &v in &values {
            #[allow(clippy::cast_possible_truncation, reason = "the source is binary32 then")]
            let (v, bytes) = match from {
                Dtype::F64 => (v, v.to_le_bytes().to_vec()),
                _ => (f64::from(v as f32), (v as f32).to_le_bytes().to_vec()),
            };
            for to in [Dtype::F16, Dtype::Bf16] {
                let (out, dtype) = convert_raw(bytes.clone(), from, to);
                assert_eq!(dtype, to);
                let bits = u16::from_le_bytes(out.try_into().expect("one element"));
                let value = |bits: u16| match to {
                    Dtype::F16 => f16::from_bits(bits).to_f64(),
                    _ => bf16::from_bits(bits).to_f64(),
                };
                // Next to zero the neighbour has the other sign; its distance decides all the same.
                let smaller = if bits & 0x7fff == 0 { bits ^ 0x8001 } else { bits - 1 };
                assert!(
                    is_nearest(v, value(bits), value(smaller), value(bits + 1), bits.into()),
                    "{v:e} ({from}) became {:e} ({to})",
                    value(bits)
                );
            }
        }
    }
}

#[test]
fn raw_floats_widen_exactly_and_keep_zeros_infinities_and_nan() {
    for bits in 0..=u16::MAX {
        for from in [Dtype::F16, Dtype::Bf16] {
            let (wide, _) = convert_raw(bits.to_le_bytes().to_vec(), from, Dtype::F32);
            let found = f32::from_le_bytes(wide.clone().try_into().expect("one element"));
            let expected = match from {
                Dtype::F16 => half::f16::from_bits(bits).to_f32(),
                _ => half::bf16::from_bits(bits).to_f32(),
            };
            assert!(
                found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()),
                "{bits:#06x} ({from}) became {found:e}"
            );
            let (back, _) = convert_raw(wide, Dtype::F32, from);
            if !found.is_nan() {
                assert_eq!(back, bits.to_le_bytes(), "{bits:#06x} ({from}) and back");
            }
        }
    }
}

// ---- The encoder's reach ----------------------------------------------------------------------

#[allow(clippy::cast_possible_truncation, reason = "rounds to the source's type")]
fn to_source(v: f64, dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F16 => half::f16::from_f32(v as f32).to_le_bytes().to_vec(),
        Dtype::Bf16 => half::bf16::from_f32(v as f32).to_le_bytes().to_vec(),
        Dtype::F32 => (v as f32).to_le_bytes().to_vec(),
        _ => v.to_le_bytes().to_vec(),
    }
}

fn to_wide(bytes: &[u8], dtype: Dtype) -> Vec<f64> {
    let (wide, _) = convert_raw(bytes.to_vec(), dtype, Dtype::F64);
    wide.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes"))).collect()
}

fn largest(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F16 => half::f16::MAX.to_f64(),
        Dtype::Bf16 => half::bf16::MAX.to_f64(),
        // Weights are binary32 numbers at most.
        _ => f64::from(f32::MAX),
    }
}

fn encode_and_decode(
    dtype: Dtype,
    shape: &[u64],
    bytes: &[u8],
    options: &EncodeOptions,
) -> (Vec<u8>, Vec<u8>) {
    let tensor = EncodedTensor::planes("w", dtype, shape, bytes, options).expect("finite");
    let mut manifest = Manifest::new("test");
    manifest.add_tensor("w", bytes, "test");
    let mut writer = PackWriter::new(Cursor::new(Vec::new())).expect("memory");
    writer.add_tensor(tensor).expect("memory");
    let manifest = manifest.to_bytes().expect("canonical");
    let (_, file) = writer.finish(&manifest).expect("valid");
    let file = file.into_inner();
    let pack = Container::open(&file[..]).expect("valid");
    let report = VerifyOptions::new().verify(&pack).expect("readable");
    assert!(report.is_ok(), "{:?}", report.failures);
    let decoded = pack.tensor("w").expect("written").decode().expect("valid");
    (file, decoded)
}

/// Rows of every magnitude that `dtype` has, down to its subnormals and up to its largest value, and
/// odd ones: all zero, one outlier, one non-zero weight, constant.
fn rows_of_all_magnitudes(dtype: Dtype, cols: usize) -> Vec<Vec<f64>> {
    let mut rng = Rng(11);
    let mut noise = |peak: f64| {
        let mut row: Vec<f64> = (0..cols).map(|_| peak * rng.signed()).collect();
        row[cols / 2] = peak;
        row
    };
    let powers = match dtype {
        Dtype::F16 => -24..=15,
        _ => -149..=127,
    };
    let mut rows: Vec<Vec<f64>> = powers.step_by(3).map(|p| noise(2f64.powi(p))).collect();
    rows.extend([noise(largest(dtype)), noise(-largest(dtype)), vec![largest(dtype); cols]]);
    rows.push(vec![0.0; cols]);
    rows.push(vec![-0.0; cols]);
    for peak in [1.0, 1000.0, largest(dtype)] {
        let mut outlier = noise(1e-3 * peak);
        outlier[cols / 2] = 0.0;
        outlier[cols - 1] = peak;
        rows.push(outlier);
        let mut single = vec![0.0; cols];
        single[0] = -peak;
        rows.push(single);
    }
    rows
}

#[test]
fn rows_of_every_magnitude_decode_within_the_quantizers_reach() {
    let cols = 96;
    for dtype in FLOATS {
        let rows = rows_of_all_magnitudes(dtype, cols);
        let bytes: Vec<u8> = rows.iter().flatten().flat_map(|&v| to_source(v, dtype)).collect();
        let source = to_wide(&bytes, dtype);
        for (planes, group) in [(3, 32), (4, 16), (5, 32), (5, 0), (6, 64), (7, 256), (8, 32)] {
            let options = EncodeOptions::new().with_planes(planes).with_group(group);
            let shape = [rows.len() as u64, cols as u64];
            let (_, decoded) = encode_and_decode(dtype, &shape, &bytes, &options);
            let decoded = to_wide(&decoded, dtype);
            let table = LevelSet::default_for(planes).table(planes);
            let gap =
                table.windows(2).map(|w| f64::from(w[1]) - f64::from(w[0])).fold(0.0, f64::max);
            for (x, y) in source.chunks(cols).zip(decoded.chunks(cols)) {
                let peak = x.iter().fold(0f64, |m, v| m.max(v.abs()));
                assert!(y.iter().all(|v| v.is_finite()), "{dtype}: a row of peak {peak:e}");
                // Relative to the peak, so that no square over- or underflows.
                let unit = if peak == 0.0 { 1.0 } else { peak };
                let mean = x.iter().zip(y).map(|(x, y)| ((x - y) / unit).powi(2)).sum::<f64>()
                    / cols as f64;
                let rms = mean.sqrt() * unit;
                // Half the widest gap with the peak on the outermost level, and half as much again
                // for the grid of scales; the smallest scale; the rounding to the source's type.
                let reach = 1.5 * peak * gap / 2.0 / 127.0;
                let step = if group == 0 { 128.0 } else { 32.0 };
                let smallest = 2f64.powi(-126) * step * gap / 2.0;
                // What UC-VAL-1 leaves unreachable below the largest value of the type.
                let highest_scale = if dtype == Dtype::F16 { 2.0 } else { 2f64.powi(113) };
                let beyond = (peak - 255.0 / 128.0 * highest_scale * 128.0 * 127.0).max(0.0);
                let rounding = match dtype {
                    Dtype::F16 => peak * 2f64.powi(-11) + 2f64.powi(-25),
                    _ => peak * 2f64.powi(-9),
                };
                assert!(
                    rms <= reach + smallest + beyond + rounding,
                    "{dtype}, {planes} planes, group {group}: a row of peak {peak:e} is off by {rms:e}"
                );
            }
        }
    }
}

#[test]
fn more_planes_never_cost_accuracy() {
    let (rows, cols) = (4u64, 256u64);
    let mut rng = Rng(3);
    let bytes: Vec<u8> = (0..rows * cols)
        .flat_map(|_| to_source(rng.signed() * rng.signed() * rng.signed(), Dtype::F32))
        .collect();
    let source = to_wide(&bytes, Dtype::F32);
    let mut previous = f64::INFINITY;
    for planes in 3..=8 {
        let options = EncodeOptions::new().with_planes(planes);
        let (_, decoded) = encode_and_decode(Dtype::F32, &[rows, cols], &bytes, &options);
        let decoded = to_wide(&decoded, Dtype::F32);
        let error: f64 = source.iter().zip(&decoded).map(|(x, y)| (x - y).powi(2)).sum();
        // One more bit divides squared error by about four.
        assert!(error < 0.5 * previous, "{planes} planes: {error} after {previous}");
        previous = error;
    }
}

#[test]
fn the_encoder_refuses_what_it_cannot_represent() {
    let one = |v: f64, dtype| {
        let bytes: Vec<u8> = (0..64).flat_map(|_| to_source(v, dtype)).collect();
        EncodedTensor::planes("w", dtype, &[1, 64], &bytes, &EncodeOptions::new())
    };
    for dtype in FLOATS {
        for v in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let e = one(v, dtype).expect_err("not finite");
            assert_eq!(e.kind(), &ErrorKind::InvalidArgument);
            assert_eq!(e.tensor(), Some("w"));
        }
    }
    let e = one(1e300, Dtype::F64).expect_err("beyond binary32");
    assert_eq!(e.kind(), &ErrorKind::InvalidArgument);
    one(1e-300, Dtype::F64).expect("rounds to zero in binary32");

    let bytes = vec![0; 128];
    for options in [
        EncodeOptions::new().with_planes(2),
        EncodeOptions::new().with_planes(9),
        EncodeOptions::new().with_group(48),
        EncodeOptions::new().with_row_dims(0),
        EncodeOptions::new().with_row_dims(3),
    ] {
        let result = EncodedTensor::planes("w", Dtype::Bf16, &[1, 64], &bytes, &options);
        assert!(result.is_err(), "{options:?}");
    }
    let wrong_length =
        EncodedTensor::planes("w", Dtype::Bf16, &[1, 63], &bytes, &EncodeOptions::new());
    assert!(wrong_length.is_err());
}

#[test]
fn level_tables_of_the_wrong_length_are_refused_before_they_are_used() {
    let spec = PlanesSpec {
        dtype: Dtype::F32,
        shape: vec![2, 16],
        row_dims: 1,
        group: 16,
        counts: PlaneCounts::Uniform(4),
        custom_levels: true,
        seed: 1,
    };
    for levels in [vec![], vec![0; 8], vec![0; 25]] {
        let mut writer = PackWriter::new(Cursor::new(Vec::new())).expect("memory");
        let made = writer.add_levels(4, levels).and_then(|id| {
            let parts = spec.parts([0, id, 0, 0, 0, 0]);
            let levels = writer.levels();
            EncodedTensor::from_planes("w", spec.dtype, &spec.shape, Role::Other, parts, levels)
        });
        let e = made.expect_err("the table is no table");
        assert!(!e.message().is_empty());
    }
}

#[cfg(feature = "rayon")]
#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let (rows, cols) = (40u64, 2048u64);
    let in_pool = |threads, work: &(dyn Fn() -> Vec<u8> + Sync)| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(work)
    };
    for dtype in FLOATS {
        let mut rng = Rng(9);
        let bytes: Vec<u8> =
            (0..rows * cols).flat_map(|_| to_source(rng.signed().powi(3), dtype)).collect();
        let work = || encode_and_decode(dtype, &[rows, cols], &bytes, &EncodeOptions::new()).0;
        assert!(in_pool(1, &work) == in_pool(4, &work), "{dtype}");
    }
}

// ---- Checkpoints ------------------------------------------------------------------------------

#[cfg(feature = "checkpoints")]
mod checkpoints {
    use std::collections::HashMap;
    use std::fs::{self, File};
    use std::path::{Path, PathBuf};
    use std::time::{Duration, SystemTime};

    use safetensors::SafeTensors;
    use safetensors::tensor::{Dtype as StDtype, TensorView as StView};
    use ultracompress::audit::{against, diff, same};
    use ultracompress::pack::{Decision, PackOptions, PackReport, Recipe, RecipeRule};
    use ultracompress::source::{Model, Source};
    use ultracompress::unpack::UnpackOptions;
    use ultracompress::{Check, Encoding, Input, NoProgress, Pack};

    use super::*;

    type Tensors = BTreeMap<String, (StDtype, Vec<usize>, Vec<u8>)>;

    fn floats(dtype: StDtype, n: usize, seed: u64) -> Vec<u8> {
        let mut rng = Rng(seed);
        let to = Dtype::from_name(&dtype.to_string()).expect("one of ours");
        (0..n).flat_map(|_| to_source(0.05 * rng.signed() * rng.signed(), to)).collect()
    }

    /// Every kind of tensor that the default rule tells apart.
    fn tensors() -> Tensors {
        let mut all = Tensors::new();
        let mut add = |name: &str, dtype: StDtype, shape: &[usize], bytes: Vec<u8>| {
            assert!(all.insert(name.to_owned(), (dtype, shape.to_vec(), bytes)).is_none());
        };
        let embedding = floats(StDtype::BF16, 32 * 64, 1);
        add("model.embed_tokens.weight", StDtype::BF16, &[32, 64], embedding.clone());
        add("lm_head.weight", StDtype::BF16, &[32, 64], embedding);
        let q = "model.layers.0.self_attn.q_proj.weight";
        add(q, StDtype::BF16, &[64, 64], floats(StDtype::BF16, 64 * 64, 2));
        let v = "model.layers.0.self_attn.v_proj.weight";
        add(v, StDtype::F16, &[16, 64], floats(StDtype::F16, 16 * 64, 3));
        let up = "model.layers.0.mlp.up_proj.weight";
        add(up, StDtype::F32, &[24, 65], floats(StDtype::F32, 24 * 65, 4));
        let wide = "model.layers.0.mlp.wide.weight";
        add(wide, StDtype::F64, &[3, 70], floats(StDtype::F64, 3 * 70, 5));
        let experts = "model.layers.0.experts.w1";
        add(experts, StDtype::BF16, &[2, 5, 64], floats(StDtype::BF16, 640, 6));
        add("model.conv.weight", StDtype::F32, &[4, 20, 4], floats(StDtype::F32, 320, 7));
        let gate = "model.layers.0.mlp.gate.weight";
        add(gate, StDtype::BF16, &[4, 64], floats(StDtype::BF16, 256, 8));
        add("model.norm.weight", StDtype::BF16, &[64], floats(StDtype::BF16, 64, 9));
        add("model.narrow.weight", StDtype::F32, &[64, 8], floats(StDtype::F32, 512, 10));
        add("model.scalar", StDtype::F32, &[], floats(StDtype::F32, 1, 11));
        add("model.empty", StDtype::F32, &[0, 64], vec![]);
        add("model.ids", StDtype::I64, &[3, 65], Rng(12).bytes(3 * 65 * 8));
        add("model.mask", StDtype::BOOL, &[5], vec![0, 1, 1, 0, 1]);
        add("model.fp4", StDtype::F4, &[2, 3, 2], Rng(13).bytes(6));
        let mut nan = floats(StDtype::F32, 2 * 64, 14);
        nan[4 * 77..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
        add("model.nan.weight", StDtype::F32, &[2, 64], nan);
        let mut infinite = floats(StDtype::BF16, 2 * 64, 15);
        infinite[2 * 3..][..2].copy_from_slice(&half::bf16::NEG_INFINITY.to_le_bytes());
        add("model.inf.weight", StDtype::BF16, &[2, 64], infinite);
        let huge: Vec<u8> = (0..128).flat_map(|i| (1e299 * f64::from(i)).to_le_bytes()).collect();
        add("model.huge.weight", StDtype::F64, &[2, 64], huge);
        all
    }

    const ODD: [&str; 3] = ["model.huge.weight", "model.inf.weight", "model.nan.weight"];

    fn write_safetensors(path: &Path, tensors: &Tensors) {
        let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
            (name, StView::new(*dtype, shape.clone(), bytes).expect("sizes fit"))
        });
        let metadata: HashMap<_, _> =
            [("format".to_owned(), "pt".to_owned()), ("a".to_owned(), "ü".to_owned())].into();
        safetensors::serialize_to_file(views, Some(metadata), path).expect("can write");
    }

    fn carried() -> BTreeMap<&'static str, Vec<u8>> {
        [
            ("config.json", br#"{"architectures": ["LlamaForCausalLM"]}"#.to_vec()),
            ("tokenizer.json", vec![b' '; 5000]),
            ("README.md", b"---\nlicense: apache-2.0\n---\n# A model\n".to_vec()),
            ("empty.txt", vec![]),
            ("1_Pooling/deep/config.json", b"\x00\xff not JSON".to_vec()),
        ]
        .into()
    }

    fn write_folder(folder: &Path, shards: usize) {
        for (path, bytes) in carried() {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().expect("below the folder")).expect("can write");
            fs::write(path, bytes).expect("can write");
        }
        // Left out: other formats of the same weights, hidden files.
        fs::write(folder.join("pytorch_model.bin"), b"pickle").expect("can write");
        fs::write(folder.join(".gitattributes"), b"x").expect("can write");
        let tensors = tensors();
        if shards == 1 {
            return write_safetensors(&folder.join("model.safetensors"), &tensors);
        }
        let mut weight_map = serde_json::Map::new();
        for shard in 0..shards {
            let file = format!("model-{:05}-of-{shards:05}.safetensors", shard + 1);
            let own: Tensors = tensors
                .iter()
                .enumerate()
                .filter(|(i, _)| i % shards == shard)
                .map(|(_, (name, t))| (name.clone(), t.clone()))
                .collect();
            write_safetensors(&folder.join(&file), &own);
            weight_map.extend(own.keys().map(|name| (name.clone(), file.clone().into())));
        }
        let index = serde_json::json!({ "metadata": {}, "weight_map": weight_map }).to_string();
        fs::write(folder.join("model.safetensors.index.json"), index).expect("can write");
    }

    struct Packed {
        dir: tempfile::TempDir,
        report: PackReport,
    }

    impl Packed {
        fn source(&self) -> PathBuf {
            self.dir.path().join("source")
        }

        fn file(&self) -> PathBuf {
            self.dir.path().join("model.uc")
        }

        fn open(&self) -> Pack<Input> {
            Pack::open_path(self.file()).expect("valid")
        }

        fn unpack(&self, options: &UnpackOptions) -> PathBuf {
            let folder = self.dir.path().join("unpacked");
            options.unpack(&self.open(), &folder).expect("valid");
            folder
        }
    }

    fn packed(shards: usize, recipe: Recipe) -> Packed {
        let dir = tempfile::tempdir().expect("can write");
        let source = dir.path().join("source");
        write_folder(&source, shards);
        let source = Source::open(&source).expect("valid");
        let options = PackOptions::new().with_recipe(recipe);
        let report = options.pack(&source, &dir.path().join("model.uc")).expect("valid");
        Packed { dir, report }
    }

    fn decision<'a>(report: &'a PackReport, name: &str) -> &'a Decision {
        let planned = report.plan.tensors.iter().find(|t| t.name == name);
        &planned.unwrap_or_else(|| panic!("{name} is in the plan")).decision
    }

    /// Every tensor of the safetensors files of a folder.
    fn read_folder(folder: &Path) -> Tensors {
        let mut all = Tensors::new();
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("readable").path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                let bytes = fs::read(&path).expect("readable");
                let file = SafeTensors::deserialize(&bytes).expect("what we wrote is valid");
                for (name, t) in file.tensors() {
                    let t = (t.dtype(), t.shape().to_vec(), t.data().to_vec());
                    assert!(all.insert(name, t).is_none());
                }
            }
        }
        all
    }

    fn is_raw(pack: &Pack<Input>, name: &str) -> bool {
        pack.tensor(name).expect("packed").entry().encoding == Encoding::Raw
    }

    #[test]
    fn a_folder_comes_back_with_raw_tensors_and_files_bit_equal() {
        for shards in [1, 3] {
            let packed = packed(shards, Recipe::default());
            let pack = packed.open();
            let report = VerifyOptions::new().verify_pack(&pack).expect("readable");
            assert!(report.is_ok(), "{:?}", report.failures);
            assert_eq!(report.tensors_checked, tensors().len());

            let folder = packed.unpack(&UnpackOptions::new());
            let (before, after) = (tensors(), read_folder(&folder));
            assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
            for (name, (dtype, shape, bytes)) in &before {
                let found = &after[name];
                assert_eq!((dtype, shape), (&found.0, &found.1), "{name}");
                let raw = is_raw(&pack, name);
                assert_eq!(raw, bytes == &found.2, "{name}: raw {raw}");
                let view = pack.tensor(name).expect("packed");
                assert_eq!(found.2, view.decode().expect("valid"), "{name}");
            }
            for (path, bytes) in carried() {
                assert_eq!(fs::read(folder.join(path)).expect("carried"), bytes, "{path}");
            }
            for path in ["pytorch_model.bin", ".gitattributes"] {
                assert!(!folder.join(path).exists(), "{path}");
                assert!(packed.report.left_out.iter().any(|p| p == path), "{path}");
            }
            // The same files hold the same tensors, and the index still fits.
            let index = "model.safetensors.index.json";
            if shards > 1 {
                assert_eq!(
                    fs::read(folder.join(index)).expect("carried"),
                    fs::read(packed.source().join(index)).expect("written")
                );
            }
            let again = Source::open(&folder).expect("what we wrote is valid");
            let source = Source::open(&packed.source()).expect("valid");
            for t in source.tensors() {
                assert_eq!(again.tensor(&t.name).map(|t| &t.file), Some(&t.file), "{}", t.name);
            }

            let (a, b) = (Model::open(&packed.file()), Model::open(&folder));
            let (a, b) = (a.expect("valid"), b.expect("valid"));
            let result = same(&a, &b, &NoProgress).expect("readable");
            assert!(result.same, "{:?}", result.first_difference);
            assert_eq!(result.a, packed.report.decoded_root);
            assert_eq!(result.b, packed.report.decoded_root);

            let original = Model::open(&packed.source()).expect("valid");
            let result = same(&a, &original, &NoProgress).expect("readable");
            assert!(!result.same, "quantized weights differ from their source");
            assert_eq!(result.first_difference.as_deref(), Some("lm_head.weight: values differ"));
        }
    }

    #[test]
    fn a_pack_does_not_depend_on_sharding_times_or_threads() {
        let packed = packed(1, Recipe::default());
        let copy = packed.dir.path().join("copy");
        // Another order of creation, other times.
        let mut paths: Vec<_> = carried().into_keys().rev().collect();
        paths.extend(["model.safetensors", "pytorch_model.bin", ".gitattributes"]);
        for (i, path) in (1u64..).zip(paths) {
            let to = copy.join(path);
            fs::create_dir_all(to.parent().expect("below the folder")).expect("can write");
            fs::copy(packed.source().join(path), &to).expect("can copy");
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400 * 365 * i);
            File::options()
                .append(true)
                .open(&to)
                .and_then(|f| f.set_modified(time))
                .expect("can set times");
        }
        let first = fs::read(packed.file()).expect("written");
        for threads in [1, 4] {
            let out = packed.dir.path().join(format!("again-{threads}.uc"));
            let pack = || {
                let source = Source::open(&copy).expect("valid");
                PackOptions::new().pack(&source, &out).expect("valid");
            };
            rayon_pool(threads, pack);
            assert!(fs::read(&out).expect("written") == first, "{threads} threads");
        }

        let sharded = super::checkpoints::packed(2, Recipe::default());
        let (a, b) = (&packed.report, &sharded.report);
        assert_eq!(a.decoded_root, b.decoded_root);
        assert_ne!(a.stored_root, b.stored_root);
    }

    fn rayon_pool(threads: usize, work: impl FnOnce() + Send) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(work);
    }

    #[test]
    fn tensors_that_are_not_finite_are_stored_raw_and_reported() {
        let packed = packed(1, Recipe::default());
        let mut odd = packed.report.odd.clone();
        odd.sort();
        assert_eq!(odd, ODD);
        let pack = packed.open();
        for name in ODD {
            assert!(is_raw(&pack, name), "{name}");
            let view = pack.tensor(name).expect("packed");
            assert_eq!(view.decode().expect("valid"), tensors()[name].2, "{name}");
        }
    }

    #[test]
    fn the_default_rule_decides_by_role_type_and_shape() {
        let report = packed(1, Recipe::default()).report;
        let planes = |planes, row_dims| Decision::Planes { planes, row_dims };
        // The first of two equal tensors by name is the one that is stored.
        assert_eq!(decision(&report, "lm_head.weight"), &planes(8, 1));
        assert_eq!(
            decision(&report, "model.embed_tokens.weight"),
            &Decision::Alias("lm_head.weight".into())
        );
        for (name, expected) in [
            ("model.layers.0.self_attn.q_proj.weight", planes(5, 1)),
            ("model.layers.0.self_attn.v_proj.weight", planes(5, 1)),
            ("model.layers.0.mlp.up_proj.weight", planes(5, 1)),
            ("model.layers.0.mlp.wide.weight", planes(5, 1)),
            ("model.layers.0.experts.w1", planes(5, 2)),
            ("model.conv.weight", planes(5, 1)),
            ("model.layers.0.mlp.gate.weight", Decision::Raw),
            ("model.norm.weight", Decision::Raw),
            ("model.narrow.weight", Decision::Raw),
            ("model.scalar", Decision::Raw),
            ("model.empty", Decision::Raw),
            ("model.ids", Decision::Raw),
        ] {
            assert_eq!(decision(&report, name), &expected, "{name}");
        }
        let stats = &report.stats;
        assert_eq!(stats.tensors, tensors().len() as u64);
        let elements = |(_, (_, shape, _)): (&String, &(StDtype, Vec<usize>, Vec<u8>))| {
            shape.iter().product::<usize>() as u64
        };
        let all: u64 = tensors().iter().map(elements).sum();
        assert_eq!(stats.weights, all - 32 * 64, "an alias is counted once");
    }

    #[test]
    fn quantization_stays_close_to_the_source() {
        let packed = packed(1, Recipe::default());
        let (a, b) = (Model::open(&packed.source()), Model::open(&packed.file()));
        let report = diff(&a.expect("valid"), &b.expect("valid"), &NoProgress).expect("readable");
        assert!(report.unmatched.is_empty());
        let pack = packed.open();
        for t in &report.tensors {
            if is_raw(&pack, &t.name) {
                assert!(t.max_abs == 0.0 && t.sqnr_db == f64::INFINITY, "{}", t.name);
            } else {
                let expected =
                    if t.name.contains("layers") || t.name.contains("conv") { 22.0 } else { 38.0 };
                assert!(t.sqnr_db > expected && t.sqnr_db < 80.0, "{}: {} dB", t.name, t.sqnr_db);
            }
        }
        let worst = report.worst.expect("something was quantized");
        let lowest = report.tensors.iter().min_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
        assert_eq!(Some(&worst), lowest.map(|t| &t.name));
    }

    #[test]
    fn unpacking_converts_types_reads_rungs_and_selects_tensors() {
        let packed = packed(3, Recipe::default());
        let pack = packed.open();
        for target in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
            let folder = packed.dir.path().join(target.name());
            let options = UnpackOptions::new().with_dtype(Some(target));
            let report = options.unpack(&pack, &folder).expect("valid");
            assert_ne!(report.decoded_root, packed.report.decoded_root);
            let after = read_folder(&folder);
            assert_eq!(after.len(), tensors().len());
            for (name, (dtype, _, bytes)) in &after {
                let view = pack.tensor(name).expect("packed");
                let expected = if view.dtype().has_planes() { target } else { view.dtype() };
                assert_eq!(dtype.to_string(), expected.name(), "{name}");
                let values = DecodeOptions::new().with_dtype(target).decode(&view);
                assert_eq!(bytes, &values.expect("valid"), "{name}");
            }
        }
        let folder = packed.dir.path().join("rung");
        let options = UnpackOptions::new().with_planes(Some(4));
        options.unpack(&pack, &folder).expect("valid");
        let full = read_folder(&packed.unpack(&UnpackOptions::new()));
        let mut coarser = 0;
        for (name, (_, _, bytes)) in read_folder(&folder) {
            let view = pack.tensor(&name).expect("packed");
            let values = DecodeOptions::new().with_planes(4).decode(&view).expect("valid");
            assert_eq!(bytes, values, "{name}");
            coarser += usize::from(bytes != full[&name].2);
        }
        assert!(coarser >= 8, "{coarser} tensors changed");

        let folder = packed.dir.path().join("some");
        let options = UnpackOptions::new().with_tensors(Some("(q|v)_proj".into()));
        let report = options.unpack(&pack, &folder).expect("valid");
        assert_eq!(report.tensors, 2);
        let some = read_folder(&folder);
        assert_eq!(some.len(), 2);
        assert!(some.iter().all(|(name, t)| t == &full[name]));
        assert!(!folder.join("config.json").exists());

        let options = UnpackOptions::new().with_tensors(Some("no such tensor".into()));
        let e = options.unpack(&pack, &packed.dir.path().join("none")).expect_err("no match");
        assert_eq!(e.kind(), &ErrorKind::InvalidArgument);
        assert!(!packed.dir.path().join("none").exists());
    }

    #[test]
    fn recipes_override_the_default_rule() {
        let mut recipe = Recipe::default();
        recipe.bits = 4;
        recipe.head_bits = 6;
        recipe.group = 64;
        recipe.zstd_level = 0;
        for rule in ["proj=8", "v_proj=raw", "narrow=3", "norm=8", "embed_tokens=7"] {
            recipe.tensors.push(RecipeRule::parse(rule).expect("valid"));
        }
        let packed = packed(1, recipe);
        let pack = packed.open();
        let expected = |name: &str, planes| {
            let found = match &pack.tensor(name).expect("packed").entry().encoding {
                Encoding::Planes { planes, group, .. } => {
                    assert_eq!(*group, 64, "{name}");
                    *planes
                }
                _ => None,
            };
            assert_eq!(found, planes, "{name}");
        };
        expected("lm_head.weight", Some(6));
        expected("model.embed_tokens.weight", Some(7));
        expected("model.layers.0.self_attn.q_proj.weight", Some(8));
        expected("model.layers.0.mlp.up_proj.weight", Some(8));
        expected("model.layers.0.self_attn.v_proj.weight", None);
        expected("model.narrow.weight", Some(3));
        expected("model.conv.weight", Some(4));
        expected("model.norm.weight", None);
        let manifest = pack.manifest().expect("valid");
        assert_eq!(manifest.recipe["bits"], 4);
        assert_eq!(manifest.recipe["tensor"][1]["bits"], "raw");
        assert_eq!(manifest.licence.as_deref(), Some("apache-2.0"));
        let report = VerifyOptions::new().verify_pack(&pack).expect("readable");
        assert!(report.is_ok(), "{:?}", report.failures);

        let mut recipe = Recipe::default();
        recipe.raw_all = true;
        let packed = super::checkpoints::packed(1, recipe);
        let (a, b) = (Model::open(&packed.source()), Model::open(&packed.file()));
        let result = same(&a.expect("valid"), &b.expect("valid"), &NoProgress).expect("readable");
        assert!(result.same, "raw_all loses nothing: {:?}", result.first_difference);
    }

    #[test]
    fn impossible_recipes_are_refused_and_write_nothing() {
        let dir = tempfile::tempdir().expect("can write");
        let folder = dir.path().join("source");
        write_folder(&folder, 1);
        let source = Source::open(&folder).expect("valid");
        let change = |f: &dyn Fn(&mut Recipe)| {
            let mut recipe = Recipe::default();
            f(&mut recipe);
            recipe
        };
        for recipe in [
            change(&|r| r.bits = 2),
            change(&|r| r.head_bits = 9),
            change(&|r| r.embedding_bits = 0),
            change(&|r| r.group = 33),
            change(&|r| r.zstd_level = 20),
            change(&|r| r.tensors.push(RecipeRule::parse("a=9").expect("parses"))),
            change(&|r| r.tensors.push(RecipeRule::parse("(=5").expect("parses"))),
        ] {
            let out = dir.path().join("out.uc");
            let options = PackOptions::new().with_recipe(recipe.clone());
            let e = options.pack(&source, &out).expect_err("impossible");
            assert_eq!(e.kind(), &ErrorKind::InvalidArgument, "{recipe:?}");
        }
        for text in ["no setting", "a=", "a=five", "a=RAW", "a=300"] {
            assert!(RecipeRule::parse(text).is_err(), "{text}");
        }
        let left: Vec<_> = fs::read_dir(dir.path()).expect("a folder").collect();
        assert_eq!(left.len(), 1, "only the source: {left:?}");
    }

    #[test]
    fn a_pack_is_compared_with_its_source_tensor_by_tensor() {
        let packed = packed(1, Recipe::default());
        let pack = packed.open();
        let manifest = pack.manifest().expect("valid");
        let source = Source::open(&packed.source()).expect("valid");
        let report =
            against(&pack, &manifest, &source, &NoProgress, Check::NotChecked).expect("readable");
        assert!(report.failures.is_empty(), "{report:?}");
        assert_eq!(report.exact + report.claimed, pack.tensors().len() as u64);
        assert!(report.exact > 0 && report.claimed > 0 && report.files > 0, "{report:?}");

        let mut changed = tensors();
        // The least bit of one weight of a quantized tensor, one tensor less, one more.
        let name = "model.layers.0.mlp.up_proj.weight";
        changed.get_mut(name).expect("there").2[0] ^= 1;
        changed.remove("model.mask");
        changed.insert("model.new".into(), (StDtype::U8, vec![1], vec![7]));
        write_safetensors(&packed.dir.path().join("other.safetensors"), &changed);
        let other = Source::open(&packed.dir.path().join("other.safetensors")).expect("valid");
        let failures = against(&pack, &manifest, &other, &NoProgress, Check::NotChecked)
            .expect("readable")
            .failures;
        let mut names: Vec<_> = failures.iter().filter_map(|f| f.tensor.as_deref()).collect();
        names.sort_unstable();
        assert_eq!(names, [name, "model.mask", "model.new"]);
        assert!(failures.iter().all(|f| f.kind == ErrorKind::Integrity));

        fs::write(packed.source().join("config.json"), b"{\"other\":1}").expect("can write");
        let source = Source::open(&packed.source()).expect("valid");
        let failures = against(&pack, &manifest, &source, &NoProgress, Check::NotChecked)
            .expect("readable")
            .failures;
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert_eq!(failures[0].tensor.as_deref(), Some("config.json"));
    }

    #[test]
    fn a_pack_never_replaces_a_file_of_its_source() {
        let packed = packed(1, Recipe::default());
        let source = Source::open(&packed.source()).expect("valid");
        for name in ["model.safetensors", "config.json"] {
            let target = packed.source().join(name);
            let before = fs::read(&target).expect("there");
            let options = PackOptions::new().with_force(true);
            let e = options.pack(&source, &target).expect_err("a source file");
            assert_eq!(e.kind(), &ErrorKind::Io, "{e}");
            assert_eq!(fs::read(&target).expect("there"), before, "{name}");
        }
    }

    #[test]
    fn a_pack_in_its_source_folder_can_be_made_again_with_equal_bytes() {
        let packed = packed(1, Recipe::default());
        let target = packed.source().join("model.uc");
        let make = || {
            let source = Source::open(&packed.source()).expect("valid");
            PackOptions::new().with_force(true).pack(&source, &target).expect("packs");
            fs::read(&target).expect("there")
        };
        assert!(make() == make());
    }

    #[test]
    fn existing_output_is_kept_unless_forced() {
        let packed = packed(1, Recipe::default());
        let source = Source::open(&packed.source()).expect("valid");
        let out = packed.dir.path().join("taken");
        fs::write(&out, b"precious").expect("can write");
        let e = PackOptions::new().pack(&source, &out).expect_err("taken");
        assert_eq!(e.kind(), &ErrorKind::Io);
        assert_eq!(fs::read(&out).expect("still there"), b"precious");
        PackOptions::new().with_force(true).pack(&source, &out).expect("forced");
        let bytes = fs::read(&out).expect("replaced");
        assert!(bytes == fs::read(packed.file()).expect("written"));

        let folder = packed.dir.path().join("full");
        fs::create_dir(&folder).expect("can write");
        fs::write(folder.join("config.json"), b"old").expect("can write");
        fs::write(folder.join("other"), b"precious").expect("can write");
        let pack = packed.open();
        let e = UnpackOptions::new().unpack(&pack, &folder).expect_err("not empty");
        assert_eq!(e.kind(), &ErrorKind::Io);
        assert_eq!(fs::read(folder.join("config.json")).expect("still there"), b"old");
        UnpackOptions::new().with_force(true).unpack(&pack, &folder).expect("forced");
        assert_eq!(fs::read(folder.join("other")).expect("stays"), b"precious");
        assert_eq!(
            fs::read(folder.join("config.json")).expect("replaced"),
            carried()["config.json"]
        );
        assert_eq!(read_folder(&folder).len(), tensors().len());
    }
}
