//! Containers of every kind of content, against the reference decoder and written again.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;
use ultracompress::codec::{Levels, PlaneCounts, PlaneLayout, RunBytes, RunDecoder, reference};
use ultracompress::format::{Attachment, AttachmentKind, LevelsEntry};
use ultracompress::{
    Container, DecodeOptions, Dtype, EncodeOptions, EncodedTensor, PlaneParts, Role, StoredFile,
    VerifyOptions, WriteSummary,
};

use crate::support::pack::{MemoryWriter, NewPack, writer};
use crate::support::planes::{FLOATS, GROUPS, reference_bytes, steps_and_planes};
use crate::support::random::{Rng, size};

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
        let top_exponent = if self.dtype == Dtype::F16 { 128 } else { 240 };
        let mut scales = Vec::new();
        for _ in 0..layout.rows {
            // Mostly anything allowed; sometimes where binary16 has its subnormals and its end.
            let exponent = match rng.below(3) {
                0 => 100 + rng.below(29),
                _ => 1 + rng.below(top_exponent),
            };
            let bits = u16::try_from((exponent << 7) | rng.below(128)).expect("15 bits");
            scales.extend(bits.to_le_bytes());
        }
        let (steps, planes) = steps_and_planes(&mut rng, &layout, &self.counts);
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
    fn add_levels(&self, writer: &mut MemoryWriter) -> [u16; 6] {
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
    let mut pack = NewPack::new();
    let mut planes = BTreeMap::new();
    let mut encoded = BTreeMap::new();
    for (name, content) in &case.tensors {
        let (tensor, source) = match content {
            Content::Raw { dtype, shape, bytes } => {
                (EncodedTensor::raw(name, *dtype, shape, bytes, &case.options()), &bytes[..])
            }
            Content::Planes(spec) => {
                let parts = spec.parts(spec.add_levels(&mut pack.writer));
                planes.insert(name.clone(), (spec.layout(), parts.clone()));
                let (dtype, levels) = (spec.dtype, pack.writer.levels());
                let role = Role::Body;
                (
                    EncodedTensor::from_planes(name, dtype, &spec.shape, role, parts, levels),
                    &b""[..],
                )
            }
            Content::AliasOf(_) => continue,
        };
        let tensor = tensor.expect("the case is valid");
        encoded.insert(name.clone(), tensor.clone());
        pack.add(name, tensor, source);
    }
    for (name, content) in &case.tensors {
        let Content::AliasOf(index) = content else { continue };
        let Some((target, content)) = case.target(*index) else { continue };
        let source = match content {
            Content::Raw { bytes, .. } => bytes,
            _ => &b""[..],
        };
        let alias = EncodedTensor::alias(name, &encoded[target]).expect("valid");
        pack.add(name, alias, source);
    }
    for (path, bytes) in &case.files {
        let file = StoredFile::new(path, bytes, case.options().zstd_level);
        pack.add_file(file.expect("valid path"));
    }
    for ((kind, name), data) in &case.attachments {
        let (kind, name, data) = (attachment_kind(*kind), name.clone(), data.clone());
        pack.writer.add_attachment(Attachment { kind, name, data });
    }
    let levels = pack.writer.levels().to_vec();
    let (summary, file) = pack.finish();
    Written { file, summary, planes, levels }
}

fn stored<'a>(
    layout: PlaneLayout,
    parts: &'a PlaneParts,
    levels: Levels<'a>,
) -> reference::StoredPlanes<'a> {
    reference::StoredPlanes {
        layout,
        counts: &parts.counts,
        levels,
        scales: &parts.scales,
        steps: &parts.steps,
        planes: &parts.planes,
    }
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
    let stored = stored(*layout, parts, levels);
    let view = pack.tensor(view_name).expect("written");
    let all = reference_bytes(&stored, 0..layout.rows, 8, source);
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
    let expected = reference_bytes(&stored, rows.clone(), rung, target);
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
                let stored = stored(*layout, parts, levels);
                let view = pack.tensor(name).expect("written");
                for rung in 3..=8 {
                    // Every target on the way, each tensor with another one first.
                    let target = FLOATS[(usize::from(rung) + name.len() + size(group.into())) % 4];
                    for target in [dtype, target] {
                        let options = DecodeOptions::new().with_planes(rung).with_dtype(target);
                        let found = options.decode(&view).expect("valid");
                        let expected = reference_bytes(&stored, 0..layout.rows, rung, target);
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
        let mut writer = writer();
        let made = writer.add_levels(4, levels).and_then(|id| {
            let parts = spec.parts([0, id, 0, 0, 0, 0]);
            let levels = writer.levels();
            EncodedTensor::from_planes("w", spec.dtype, &spec.shape, Role::Other, parts, levels)
        });
        let e = made.expect_err("the table is no table");
        assert!(!e.message().is_empty());
    }
}
