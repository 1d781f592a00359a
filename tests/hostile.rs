//! Damaged and hostile input: every cut and every flipped bit of a pack is noticed, claims cost no
//! memory, and broken checkpoints are refused with a reason.
//!
//! In a binary of its own, for the allocator counts what all threads take. Tests take turns, so
//! that each sees its own memory alone.

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};

use ultracompress::codec::PlaneCounts;
use ultracompress::format::{Attachment, AttachmentKind, Storage};
use ultracompress::{
    Container, DecodeOptions, Dtype, EncodeOptions, EncodedTensor, Error, ErrorKind, Manifest,
    PlaneParts, Role, Rule, StoredFile, VerifyOptions,
};

use support::allocator::{Counting, alone, peak_of};
use support::damage::{patched, patched_index, resealed, word};
use support::pack::{MemoryWriter, NewPack, writer};
use support::random::{Rng, size};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// ---- A small pack with everything in it -------------------------------------------------------

fn attachment(name: &str, data: &[u8]) -> Attachment {
    Attachment { kind: AttachmentKind::Receipt, name: name.into(), data: data.to_vec() }
}

/// Planes (uniform, per row, own levels), raw (plain and zstd), an alias, files and attachments.
fn small_pack() -> Vec<u8> {
    small_pack_of(1)
}

/// Other numbers for another `seed`.
fn small_pack_of(seed: u64) -> Vec<u8> {
    let numbers = |n: usize| Rng(seed).bytes(n);
    let mut pack = NewPack::new();
    let levels = (-4..4).map(|l: i8| 30 * l).collect();
    let id = pack.writer.add_levels(3, levels).expect("one table");

    let weights: Vec<u8> = numbers(60).into_iter().flat_map(|b| [b, 0x3c | (b & 0x80)]).collect();
    let options = EncodeOptions::new().with_group(16).with_role(Role::Body);
    let uniform = EncodedTensor::planes("uniform", Dtype::Bf16, &[3, 20], &weights, &options);
    let uniform = uniform.expect("valid");
    let alias = EncodedTensor::alias("alias", &uniform).expect("valid");
    pack.add("uniform", uniform, &weights);

    let parts = PlaneParts {
        row_dims: 1,
        group: 16,
        counts: PlaneCounts::PerRow(vec![3, 5, 4]),
        level_ids: [id, 0, 0, 0, 0, 0],
        scales: [0x3f80u16, 0x3f81, 0x3f82].iter().flat_map(|s| s.to_le_bytes()).collect(),
        steps: vec![0x51, 0x62, 0x73],
        planes: [3, 3, 3, 2, 1]
            .map(|rows| numbers(3 * rows).chunks(3).flat_map(|b| [b[0], b[1], b[2] & 15]).collect())
            .into(),
    };
    let levels = pack.writer.levels();
    let per_row =
        EncodedTensor::from_planes("per row", Dtype::F32, &[3, 20], Role::Other, parts, levels);
    pack.add("per row", per_row.expect("valid"), b"");

    pack.add_raw("plain", Dtype::I16, &[9], &numbers(18));
    pack.add("alias", alias, &weights);

    let zstd = cfg!(feature = "zstd").then_some(3);
    let options = EncodeOptions::new().with_zstd_level(zstd);
    let packed = EncodedTensor::raw("zstd", Dtype::U8, &[100], &[7; 100], &options);
    pack.add("zstd", packed.expect("valid"), &[7; 100]);
    for (path, bytes) in [("a/config.json", &b"{}"[..]), ("empty", b""), ("text", &[b'x'; 90])] {
        pack.add_file(StoredFile::new(path, bytes, zstd).expect("valid"));
    }
    pack.writer.add_attachment(attachment("receipt", b"{\"kld\":1}"));
    pack.writer.add_attachment(attachment("empty", b""));
    pack.bytes()
}

/// What a careful reader does: opens, verifies everything, reads everything.
fn read_all(file: &[u8]) -> Result<(), Vec<String>> {
    let message = |e: &Error| vec![e.to_string()];
    let pack = Container::open(file).map_err(|e| message(&e))?;
    for decode in [false, true] {
        let report = VerifyOptions::new().with_decode(decode).verify(&pack);
        let report = report.map_err(|e| message(&e))?;
        if !report.is_ok() {
            return Err(report.failures.into_iter().map(|f| f.reason).collect());
        }
    }
    Ok(())
}

/// As [`read_all`]; a panic is told apart from an error.
fn noticed(file: &[u8]) -> Result<bool, String> {
    match catch_unwind(AssertUnwindSafe(|| read_all(file))) {
        Ok(Ok(())) => Ok(false),
        Ok(Err(reasons)) if reasons.iter().any(String::is_empty) => {
            Err("an error without a message".into())
        }
        Ok(Err(_)) => Ok(true),
        Err(_) => Err("a panic".into()),
    }
}

#[test]
fn the_small_pack_is_valid_and_small() {
    let _one = alone();
    let file = small_pack();
    assert_eq!(read_all(&file), Ok(()));
    assert!(file.len() < 8192, "{} bytes: the exhaustive tests take too long", file.len());
}

#[test]
fn every_cut_is_an_error() {
    let _one = alone();
    let file = small_pack();
    for len in 0..file.len() {
        let cut = &file[..len];
        let e = catch_unwind(|| Container::open(cut).expect_err("cut"));
        let e = e.unwrap_or_else(|_| panic!("a panic or no error when cut at {len}"));
        assert!(!e.to_string().is_empty() && !e.message().is_empty(), "cut at {len}");
        if len >= 8 {
            assert!(matches!(e.kind(), ErrorKind::Truncated { .. }), "cut at {len}: {e}");
        }
    }
}

#[test]
fn bytes_behind_the_end_are_an_error() {
    let _one = alone();
    for more in [1, 63, 64, 4096] {
        let mut file = small_pack();
        file.resize(file.len() + more, 0);
        let e = Container::open(file).expect_err("longer than it says");
        assert_eq!(e.kind(), &ErrorKind::Malformed(Rule::HDR_6));
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let _one = alone();
    let file = small_pack();
    let bits = file.len() * 8;
    let threads = 2;
    let failed: Vec<String> = std::thread::scope(|scope| {
        let file = &file;
        let work = |first: usize| {
            let mut damaged = file.clone();
            let mut failed = Vec::new();
            for bit in (first..bits).step_by(threads) {
                damaged[bit / 8] ^= 1 << (bit % 8);
                match noticed(&damaged) {
                    Ok(true) => {}
                    Ok(false) => failed.push(format!("byte {} bit {}: missed", bit / 8, bit % 8)),
                    Err(what) => failed.push(format!("byte {} bit {}: {what}", bit / 8, bit % 8)),
                }
                damaged[bit / 8] ^= 1 << (bit % 8);
            }
            failed
        };
        let handles: Vec<_> = (0..threads).map(|t| scope.spawn(move || work(t))).collect();
        handles.into_iter().flat_map(|h| h.join().expect("panics are caught")).collect()
    });
    assert!(failed.is_empty(), "{} of {bits}: {:?}", failed.len(), &failed[..failed.len().min(9)]);
}

#[test]
fn preamble_fields_lie_where_these_tests_patch_them() {
    let _one = alone();
    let file = small_pack();
    let pack = Container::open(&file[..]).expect("valid");
    let p = pack.preamble();
    let fields =
        [p.core_len, p.index_offset, p.index_len, p.manifest_offset, p.manifest_len, p.file_len];
    assert_eq!([32, 40, 48, 56, 64, 160].map(|at| word(&file, at)), fields);
    assert_eq!(file[72..76], p.n_records.to_le_bytes());
    assert_eq!(file[76..80], p.index_crc32.to_le_bytes());
    assert_eq!(patched(&file, 0, &file[..8]), file);
    assert_eq!(patched_index(&file, 0, &file[size(p.index_offset)..][..8]), file);
}

#[test]
fn huge_claims_in_the_preamble_are_errors_and_cost_no_memory() {
    let _one = alone();
    let file = small_pack();
    let ceiling = 16 * file.len() + (1 << 20);
    for at in [32, 40, 48, 56, 64, 160] {
        let old = word(&file, at);
        for value in [
            0,
            1,
            63,
            old - 1,
            old + 1,
            old + 64,
            1 << 31,
            1 << 32,
            1 << 40,
            1 << 62,
            i64::MAX.unsigned_abs(),
            u64::MAX - 255,
            u64::MAX - 63,
            u64::MAX,
        ] {
            let hostile = patched(&file, at, &value.to_le_bytes());
            let (found, peak) = peak_of(|| noticed(&hostile));
            assert_eq!(found, Ok(true), "{value} at {at}");
            assert!(peak <= ceiling, "{value} at {at}: {peak} bytes in use");
        }
    }
    for at in [8, 10, 12, 72, 80, 84, 88, 92, 168, 176] {
        for value in [u32::MAX, 1 << 31, 0x0001_0001] {
            let hostile = patched(&file, at, &value.to_le_bytes());
            let (found, peak) = peak_of(|| noticed(&hostile));
            assert_eq!(found, Ok(true), "{value} at {at}");
            assert!(peak <= ceiling, "{value} at {at}: {peak} bytes in use");
        }
    }
}

#[test]
fn every_byte_of_the_index_can_lie_without_panic_or_memory() {
    let _one = alone();
    let file = small_pack();
    let len = size(Container::open(&file[..]).expect("valid").preamble().index_len);
    // A zstd chunk may hold 1 MiB whatever its stored size: two threads decode two of them.
    let ceiling = 16 * file.len() + (4 << 20);
    for at in 0..len {
        for value in [0x00, 0x01, 0x7f, 0x80, 0xff] {
            let hostile = patched_index(&file, at, &[value]);
            if hostile == file {
                continue;
            }
            let (found, peak) = peak_of(|| noticed(&hostile));
            assert_eq!(found, Ok(true), "{value:#x} at byte {at} of the index");
            assert!(peak <= ceiling, "{value:#x} at byte {at} of the index: {peak} bytes in use");
        }
    }
    for at in (0..len - 8).step_by(8) {
        let hostile = patched_index(&file, at, &[0xff; 8]);
        let (found, peak) = peak_of(|| noticed(&hostile));
        assert_eq!(found, Ok(true), "all ones at byte {at} of the index");
        assert!(peak <= ceiling, "all ones at byte {at} of the index: {peak} bytes in use");
    }
}

#[test]
fn an_index_of_a_hostile_author_causes_no_panic_and_no_memory() {
    let _one = alone();
    let file = small_pack();
    assert_eq!(resealed(&file), file);
    let p = Container::open(&file[..]).expect("valid").preamble().clone();
    let [start, len] = [p.index_offset, p.index_len].map(size);
    let ceiling = 16 * file.len() + (4 << 20);
    for at in start..start + len {
        for flip in [0x01, 0x04, 0x80, 0xff] {
            let mut hostile = file.clone();
            hostile[at] ^= flip;
            let hostile = resealed(&hostile);
            let (found, peak) = peak_of(|| noticed(&hostile));
            // A role or a name may change unnoticed; nothing may break.
            assert!(found.is_ok(), "{flip:#x} at byte {at}: {found:?}");
            assert!(peak <= ceiling, "{flip:#x} at byte {at}: {peak} bytes in use");
        }
    }
}

#[test]
fn changed_values_behind_right_checksums_are_noticed_by_decoding() {
    let _one = alone();
    let file = small_pack();
    let pack = Container::open(&file[..]).expect("valid");
    let mut tried = 0;
    for t in &pack.index().tensors {
        for part in &t.parts {
            let (from, len) = (size(part.offset), size(part.stored_len));
            // In the part's header the offset stands 24 bytes before the chunk's checksum.
            let (offset, crc) = (part.offset.to_le_bytes(), part.chunks[0].crc32.to_le_bytes());
            let is_here = |i: &usize| file[*i..i + 8] == offset && file[i + 24..i + 28] == crc;
            let place = 24 + (0..file.len() - 28).find(is_here).expect("in the index");
            for bit in 0..8 * len {
                let mut hostile = file.clone();
                hostile[from + bit / 8] ^= 1 << (bit % 8);
                let crc = crc32fast::hash(&hostile[from..from + len]);
                hostile[place..place + 4].copy_from_slice(&crc.to_le_bytes());
                let found = noticed(&resealed(&hostile));
                // Two frames may hold the same bytes.
                let expected = part.storage == Storage::Plain;
                assert!(
                    found == Ok(true) || (found == Ok(false) && !expected),
                    "{:?}, {}, bit {bit}: {found:?}",
                    t.name,
                    part.kind.name()
                );
                tried += 1;
            }
        }
    }
    assert!(tried > 1000, "{tried} bits");
}

/// Memory that opening and verifying may take: so many bytes for each byte of the file, and a
/// working set.
const PER_BYTE: usize = 16;
const WORKING_SET: usize = 8 << 20;

#[test]
fn sections_and_parts_of_another_pack_are_noticed() {
    let _one = alone();
    let a = small_pack();
    // The same records with other values: every section has its place and its length, but not its
    // bytes.
    let b = small_pack_of(2);
    assert_eq!(a.len(), b.len());
    let pack = Container::open(&a[..]).expect("valid");
    let p = pack.preamble();
    let mut sections = vec![
        (p.index_offset, p.index_len),
        (p.manifest_offset, p.manifest_len),
        (p.core_len, p.file_len - p.core_len),
        (0, 256),
        (256, p.index_offset - 256),
        (p.index_offset, p.file_len - p.index_offset),
    ];
    let parts = pack.index().tensors.iter().flat_map(|t| &t.parts);
    sections.extend(parts.map(|part| (part.offset, part.stored_len)));
    let mut spliced = 0;
    for (from, len) in sections {
        let range = size(from)..size(from + len);
        if a[range.clone()] == b[range.clone()] {
            continue;
        }
        let mut file = a.clone();
        file[range.clone()].copy_from_slice(&b[range.clone()]);
        assert_eq!(noticed(&file), Ok(true), "{range:?}");
        // With every checksum outside the index made right, too.
        assert_eq!(noticed(&resealed(&file)), Ok(true), "{range:?}, resealed");
        spliced += 1;
    }
    assert!(spliced > 10, "{spliced} splices");
}

/// A file of `n` raw tensors of 64 bytes.
fn many_tensors(n: usize) -> Vec<u8> {
    let mut pack = NewPack::new();
    for i in 0..n {
        pack.add_raw(&format!("{i:06}"), Dtype::U8, &[64], &Rng(1).bytes(64));
    }
    pack.bytes()
}

#[test]
fn thousands_of_entries_with_one_payload_are_refused_within_memory() {
    let _one = alone();
    let n = 5000;
    let mut file = many_tensors(n);
    assert_eq!(read_all(&file), Ok(()));
    let pack = Container::open(&file[..]).expect("valid");
    let places: Vec<[u8; 8]> =
        pack.index().tensors.iter().map(|t| t.parts[0].offset.to_le_bytes()).collect();
    let crc = pack.index().tensors[0].parts[0].chunks[0].crc32.to_le_bytes();
    let mut at = size(pack.preamble().index_offset);
    for place in &places {
        // In the part's header the offset stands 24 bytes before the chunk's checksum.
        let here = |w: &[u8]| w[..8] == *place && w[24..] == crc;
        at += file[at..].windows(28).position(here).expect("in the index");
        file[at..at + 8].copy_from_slice(&places[0]);
    }
    let file = resealed(&file);
    let (found, peak) = peak_of(|| Container::open(&file[..]).map(drop));
    let e = found.expect_err("parts overlap");
    assert_eq!(e.kind(), &ErrorKind::Malformed(Rule::PRT_3), "{e}");
    assert!(peak < PER_BYTE * file.len() + WORKING_SET, "{peak} bytes for {}", file.len());
}

#[test]
fn thousands_of_aliases_are_decoded_once() {
    let _one = alone();
    let mut pack = NewPack::new();
    pack.add_raw("a", Dtype::U8, &[1 << 20], &Rng(1).bytes(1 << 20));
    for i in 0..5000 {
        let name = format!("b{i:06}");
        pack.writer.add_alias(&name, "a").expect("valid");
        pack.manifest.tensors.insert(name, pack.manifest.tensors["a"].clone());
    }
    let file = pack.bytes();
    // Five gigabytes of tensors in a few megabytes.
    let (found, peak) = peak_of(|| read_all(&file));
    assert_eq!(found, Ok(()));
    assert!(peak < PER_BYTE * file.len() + WORKING_SET, "{peak} bytes for {}", file.len());
}

#[cfg(feature = "zstd")]
#[test]
fn what_expands_a_thousandfold_is_read_in_pieces() {
    let _one = alone();
    let bytes = vec![0; 64 << 20];
    let mut pack = NewPack::new();
    let options = EncodeOptions::new().with_zstd_level(Some(19));
    let tensor = EncodedTensor::raw("a", Dtype::U8, &[64 << 20], &bytes, &options);
    pack.add("a", tensor.expect("valid"), &bytes);
    pack.add_file(StoredFile::new("zeros", &bytes, Some(19)).expect("valid"));
    drop(bytes);
    let file = pack.bytes();
    assert!(file.len() < 64 << 10, "{} bytes", file.len());
    let (found, peak) = peak_of(|| read_all(&file));
    assert_eq!(found, Ok(()));
    assert!(peak < PER_BYTE * file.len() + WORKING_SET, "{peak} bytes for {}", file.len());
}

#[test]
fn foreign_files_are_told_apart() {
    let _one = alone();
    for (bytes, hint) in [
        (&b""[..], "empty"),
        (b"\x89UCP\n\x1a\n\0", "binary mode"),
        (b"\x09UCP\r\n\x1a\n", "7-bit"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"PK\x03\x04....", "zip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (b"\x10\0\0\0\0\0\0\0{\"a\":1}         ", "safetensors"),
        (b"something else entirely", "expected"),
    ] {
        let e = Container::open(bytes).expect_err("not a pack");
        assert_eq!(e.kind(), &ErrorKind::Malformed(Rule::HDR_1));
        assert!(e.to_string().contains(hint), "{e}");
    }
}

#[test]
fn other_versions_and_unknown_features_are_refused_by_kind() {
    let _one = alone();
    let file = small_pack();
    let kind = |at, bytes: &[u8]| {
        let e = Container::open(patched(&file, at, bytes)).expect_err("refused");
        e.kind().clone()
    };
    assert_eq!(kind(8, &2u16.to_le_bytes()), ErrorKind::UnsupportedVersion);
    // Bit 1 is known: with it, shard 1 of 1 is malformed (UC-HDR-8).
    assert_eq!(kind(16, &2u64.to_le_bytes()), ErrorKind::Malformed(Rule::HDR_8));
    // Bit 0 is known too; it allows coded tensors, which need not be there.
    Container::open(patched(&file, 16, &1u64.to_le_bytes())).expect("known");
    // And bit 2: a file of overlays has no tensors.
    assert_eq!(kind(16, &4u64.to_le_bytes()), ErrorKind::Malformed(Rule::OVL_10));
    for bit in 3..64 {
        assert_eq!(kind(16, &(1u64 << bit).to_le_bytes()), ErrorKind::UnsupportedFeature);
    }
    // Later minor versions and optional features are read; only the stored root speaks of them.
    for (at, bytes) in [(10, &9u16.to_le_bytes()[..]), (24, &1u64.to_le_bytes()[..])] {
        Container::open(patched(&file, at, bytes)).expect("a reader ignores it");
    }
}

#[test]
fn an_empty_tensor_of_endless_rows_is_read_at_once() {
    let _one = alone();
    let rows = i64::MAX.unsigned_abs();
    let mut pack = NewPack::new();
    pack.add_raw("w", Dtype::U8, &[rows, 0], b"");
    let pack = Container::open(pack.bytes()).expect("valid");
    let view = pack.tensor("w").expect("written");
    assert_eq!(view.decode().expect("nothing"), b"");
    let mut calls = 0;
    let result = DecodeOptions::new().decode_tiles(&view, |bytes| {
        calls += 1;
        assert!(bytes.is_empty());
        // Ends the test instead of letting it run for weeks.
        if calls > 16 { Err(Error::new(ErrorKind::Cancelled, "too many tiles")) } else { Ok(()) }
    });
    result.expect("no more tiles than bytes");
}

#[test]
fn the_writer_refuses_what_a_reader_refuses() {
    let _one = alone();
    let raw = |name: &str| EncodedTensor::raw(name, Dtype::U8, &[1], &[1], &EncodeOptions::new());
    for name in ["", "a\0b", "a\nb", &"x".repeat(1025)] {
        let e = raw(name).expect_err("a bad name");
        assert_eq!(e.kind(), &ErrorKind::Malformed(Rule::NAM_1), "{name:?}");
    }
    for path in ["/a", "../a", "a/../b", "a//b", ".", "c:a", "a\\b", "a/"] {
        let e = StoredFile::new(path, b"", None).expect_err("a bad path");
        assert_eq!(e.kind(), &ErrorKind::Malformed(Rule::NAM_2), "{path:?}");
    }
    let finish = |add: &dyn Fn(&mut MemoryWriter)| {
        let mut writer = writer();
        add(&mut writer);
        writer.finish(b"{}").expect_err("refused").kind().clone()
    };
    let twice = finish(&|w| {
        w.add_tensor(raw("a").expect("valid")).expect("memory");
        w.add_tensor(raw("a").expect("valid")).expect("memory");
    });
    assert_eq!(twice, ErrorKind::Malformed(Rule::IDX_4));
    let folder = finish(&|w| {
        w.add_file(StoredFile::new("a", b"", None).expect("valid")).expect("memory");
        w.add_file(StoredFile::new("a/b", b"", None).expect("valid")).expect("memory");
    });
    assert_eq!(folder, ErrorKind::Malformed(Rule::NAM_3));
    let dangling = finish(&|w| {
        let alias = EncodedTensor::alias("b", &raw("a").expect("valid")).expect("valid");
        w.add_tensor(alias).expect("memory");
    });
    assert_eq!(dangling, ErrorKind::Malformed(Rule::TEN_4));
    let chain = finish(&|w| {
        let a = raw("a").expect("valid");
        let b = EncodedTensor::alias("b", &a).expect("valid");
        w.add_tensor(EncodedTensor::alias("c", &b).expect("valid")).expect("memory");
        w.add_tensor(b).expect("memory");
        w.add_tensor(a).expect("memory");
    });
    assert_eq!(chain, ErrorKind::Malformed(Rule::TEN_4));
    let levels = finish(&|w| {
        w.add_levels(3, vec![0; 8]).expect("checked at the end");
    });
    assert_eq!(levels, ErrorKind::Malformed(Rule::LVL_2));
    let attachments = finish(&|w| {
        w.add_attachment(attachment("a", b"1"));
        w.add_attachment(attachment("a", b"2"));
    });
    assert_eq!(attachments, ErrorKind::Malformed(Rule::ATT_1));
}

#[test]
fn a_manifest_that_disagrees_with_the_index_is_noticed() {
    let _one = alone();
    let pack_with = |manifest: &[u8]| {
        let mut writer = writer();
        let tensor = EncodedTensor::raw("w", Dtype::U8, &[1], &[1], &EncodeOptions::new());
        writer.add_tensor(tensor.expect("valid")).expect("memory");
        let file = writer.finish(manifest).expect("the manifest is the caller's").1;
        let pack = Container::open(file.into_inner()).expect("valid");
        let report = VerifyOptions::new().verify(&pack).expect("readable");
        let kinds: Vec<_> = report.failures.into_iter().map(|f| f.kind).collect();
        kinds
    };
    let mut right = Manifest::new("test");
    right.add_tensor("w", &[1], "test");
    let bytes = right.to_bytes().expect("canonical");
    assert_eq!(pack_with(&bytes), []);

    let mut other = right.clone();
    other.add_tensor("w", &[2], "another digest");
    let mut more = right.clone();
    more.add_tensor("x", &[1], "not in the index");
    let fewer = Manifest::new("test");
    let mut carried = right.clone();
    carried.add_file(&StoredFile::new("a", b"", None).expect("valid"));
    for wrong in [other, more, fewer, carried] {
        let kinds = pack_with(&wrong.to_bytes().expect("canonical"));
        assert_eq!(kinds, [ErrorKind::Malformed(Rule::MAN_3)]);
    }
    let mut spaced = bytes.clone();
    spaced.push(b' ');
    let text = String::from_utf8(bytes.clone()).expect("JSON");
    let twice = text.replacen('{', "{\"encoder\":\"test\",", 1);
    let fraction = text.replacen("\"recipe\":{}", "\"recipe\":{\"a\":0.5}", 1);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_ne!(fraction, text);
    for wrong in [
        &b""[..],
        b"{}",
        b"[]",
        b"null",
        &spaced,
        twice.as_bytes(),
        fraction.as_bytes(),
        deep.as_bytes(),
    ] {
        let kinds = pack_with(wrong);
        let rules = [Rule::MAN_1, Rule::MAN_2].map(ErrorKind::Malformed);
        assert!(kinds.len() == 1 && rules.contains(&kinds[0]), "{kinds:?}");
    }
}

// ---- Hostile checkpoints ----------------------------------------------------------------------

#[cfg(feature = "checkpoints")]
mod checkpoints {
    use std::fs;
    use std::path::Path;

    use ultracompress::pack::{PackOptions, Recipe};
    use ultracompress::source::Source;

    use super::support::checkpoint::{safetensors, shard_name};
    use super::support::folder::Desk;
    use super::*;

    /// Zeros coded without planes take next to no bytes: 16 MiB come back in pieces.
    #[cfg(feature = "zstd")]
    #[test]
    fn coded_tensors_that_expand_a_thousandfold_are_read_in_pieces() {
        use ultracompress::pack::Exact;
        let _one = alone();
        let desk = Desk::new();
        let header =
            r#"{"w.weight":{"dtype":"BF16","shape":[2048,4096],"data_offsets":[0,16777216]}}"#;
        desk.write("model.safetensors", file(header, 16 << 20));
        let source = Source::open(&desk.path("model.safetensors")).expect("valid");
        let options = PackOptions::new().with_exact(Exact::Only);
        options.pack(&source, &desk.path("m.uc")).expect("packs");
        let bytes = desk.read("m.uc");
        assert!(bytes.len() < 8192, "{} bytes", bytes.len());
        let (found, peak) = peak_of(|| read_all(&bytes));
        assert_eq!(found, Ok(()));
        assert!(peak < PER_BYTE * bytes.len() + WORKING_SET, "{peak} bytes for {}", bytes.len());
    }

    /// A safetensors file with this header and `data` zero bytes.
    fn file(header: &str, data: usize) -> Vec<u8> {
        safetensors(header, &vec![0; data])
    }

    fn open(bytes: &[u8]) -> (Result<Source, Error>, usize) {
        let desk = Desk::new();
        let path = desk.path("model.safetensors");
        desk.write("model.safetensors", bytes);
        let opened = peak_of(|| catch_unwind(|| Source::open(&path)));
        (opened.0.expect("no panic"), opened.1)
    }

    /// The file is refused as a damaged source, and costs no more than a few times its size.
    fn refused(bytes: &[u8], hint: &str) {
        let (result, peak) = open(bytes);
        let e = result.expect_err(hint);
        assert_eq!(e.kind(), &ErrorKind::Source, "{hint}: {e}");
        assert!(e.to_string().contains(hint), "{hint:?} is not in: {e}");
        assert!(e.file().is_some_and(|f| !f.is_empty()), "{e}");
        assert!(peak <= 64 * bytes.len() + (1 << 20), "{hint}: {peak} bytes in use");
    }

    const A: &str = r#""a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;

    #[test]
    fn a_sound_file_is_accepted() {
        let _one = alone();
        let (source, _) = open(&file(&format!("{{{A}}}"), 4));
        let source = source.expect("valid");
        assert_eq!((source.tensors().len(), source.bytes()), (1, 4));
        let (source, _) = open(&file("{}", 0));
        assert_eq!(source.expect("no tensors are tensors too").tensors().len(), 0);
    }

    #[test]
    fn every_cut_of_a_safetensors_file_is_refused() {
        let _one = alone();
        let bytes = file(&format!("{{{A}}}"), 4);
        for len in 0..bytes.len() {
            let (result, _) = open(&bytes[..len]);
            let e = result.expect_err("cut");
            assert_eq!(e.kind(), &ErrorKind::Source, "cut at {len}: {e}");
        }
        let mut longer = bytes;
        longer.push(0);
        refused(&longer, "left over");
    }

    #[test]
    fn huge_headers_are_refused_without_memory() {
        let _one = alone();
        for claim in [100, 100_000_000, 100_000_001, 1 << 40, u64::MAX - 7, u64::MAX] {
            let mut bytes = file(&format!("{{{A}}}"), 4);
            bytes[..8].copy_from_slice(&claim.to_le_bytes());
            refused(&bytes, "header");
        }
    }

    #[test]
    fn headers_that_are_no_json_objects_are_refused() {
        let _one = alone();
        for header in ["", "{", "[]", "null", "{\"a\":1}", "\u{0}", "{}}", "not JSON at all"] {
            refused(&file(header, 0), "header");
        }
        let mut bytes = file("{\"??\":{}}", 0);
        bytes[10..12].copy_from_slice(&[0xff, 0xfe]);
        refused(&bytes, "header");
        refused(&file(&format!("{{\"a\":{}", "[".repeat(100_000)), 0), "header");
    }

    #[test]
    fn duplicate_names_are_refused() {
        let _one = alone();
        refused(&file(&format!("{{{A},{A}}}"), 4), "twice");
        let other = r#""\u0061":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}"#;
        refused(&file(&format!("{{{A},{other}}}"), 8), "twice");
        let field = A.replace("\"shape\"", "\"dtype\":\"U8\",\"shape\"");
        refused(&file(&format!("{{{field}}}"), 4), "header");
    }

    #[test]
    fn holes_overlaps_and_wrong_lengths_are_refused() {
        let _one = alone();
        let b = |from: u64, to: u64| {
            format!(r#"{{{A},"b":{{"dtype":"U8","shape":[4],"data_offsets":[{from},{to}]}}}}"#)
        };
        open(&file(&b(4, 8), 8)).0.expect("the sound neighbour of what follows");
        for (header, data) in [
            (b(5, 9), 9),
            (b(3, 7), 7),
            (b(0, 4), 4),
            (b(8, 4), 8),
            (b(4, 9), 9),
            (b(4, 7), 7),
            (b(u64::MAX - 3, u64::MAX), 8),
            (b(4, u64::MAX), 8),
        ] {
            let (result, _) = open(&file(&header, data));
            let e = result.expect_err(&header);
            assert_eq!(e.kind(), &ErrorKind::Source, "{header}: {e}");
        }
    }

    #[test]
    fn offsets_that_overflow_in_sum_are_refused() {
        let _one = alone();
        // Eight tensors of nearly 2^61 bytes: each size is fine, their sum is not.
        let n = (1u64 << 61) - 1;
        let tensors: Vec<String> = (0..8)
            .map(|i| {
                let (from, to) = (i * n, (i + 1) * n);
                format!(r#""t{i}":{{"dtype":"U8","shape":[{n}],"data_offsets":[{from},{to}]}}"#)
            })
            .collect();
        refused(&file(&format!("{{{}}}", tensors.join(",")), 0), "cut off");
        for shape in ["[18446744073709551615]", "[4294967296,4294967296]", "[1,-1]", "[0.5]"] {
            let header = A.replace("[4]", shape);
            refused(&file(&format!("{{{header}}}"), 4), "header");
        }
    }

    #[test]
    fn unknown_types_are_refused() {
        let _one = alone();
        for dtype in ["F128", "u8", "", "INT4"] {
            let header = A.replace("U8", dtype);
            refused(&file(&format!("{{{header}}}"), 4), "header");
        }
        // Three elements of four bits are no whole bytes.
        let header = r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#;
        refused(&file(header, 1), "");
    }

    #[test]
    fn pointers_to_large_files_are_named_as_such() {
        let _one = alone();
        refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n", "LFS");
    }

    /// A folder with one sound shard and this index.
    fn folder_with_index(folder: &Path, index: &str) {
        let shard = folder.join(shard_name(0, 1));
        fs::write(shard, file(&format!("{{{A}}}"), 4)).expect("can write");
        fs::write(folder.join("model.safetensors.index.json"), index).expect("can write");
    }

    #[test]
    fn indexes_that_leave_the_folder_or_name_missing_shards_are_refused() {
        let _one = alone();
        let desk = Desk::new();
        let folder = desk.folder("model");
        desk.write("secret.safetensors", file(&format!("{{{A}}}"), 4));
        let good = r#"{"weight_map":{"a":"model-00001-of-00001.safetensors"}}"#;
        folder_with_index(&folder, good);
        Source::open(&folder).expect("the sound neighbour of what follows");
        let absolute = desk.path("secret.safetensors");
        let absolute = format!(r#"{{"weight_map":{{"a":{absolute:?}}}}}"#);
        for (index, hint) in [
            (r#"{"weight_map":{"a":"../secret.safetensors"}}"#, "plain file name"),
            (r#"{"weight_map":{"a":"./model-00001-of-00001.safetensors"}}"#, "plain file name"),
            (r#"{"weight_map":{"a":"sub/x.safetensors"}}"#, "plain file name"),
            (r#"{"weight_map":{"a":"..\\secret.safetensors"}}"#, "plain file name"),
            (r#"{"weight_map":{"a":""}}"#, "plain file name"),
            (absolute.as_str(), "plain file name"),
            (r#"{"weight_map":{"a":"model-00002-of-00002.safetensors"}}"#, "model-00002-of-00002"),
            (
                r#"{"weight_map":{"a":"model-00001-of-00001.safetensors","b":"model-00001-of-00001.safetensors"}}"#,
                "doesn't hold it",
            ),
            (r#"{"weight_map":[]}"#, "index"),
            (r#"{}"#, "index"),
            ("not JSON", "index"),
            ("", "index"),
        ] {
            folder_with_index(&folder, index);
            for path in [folder.clone(), folder.join("model.safetensors.index.json")] {
                let e = Source::open(&path).expect_err(index);
                assert_eq!(e.kind(), &ErrorKind::Source, "{index}: {e}");
                assert!(e.to_string().contains(hint), "{index}: {e}");
            }
        }
    }

    #[test]
    fn a_tensor_in_two_shards_is_refused() {
        let _one = alone();
        let desk = Desk::new();
        let index =
            r#"{"weight_map":{"a":"model-00001-of-00001.safetensors","b":"x.safetensors"}}"#;
        folder_with_index(desk.root(), index);
        let b = A.replace("\"a\"", "\"b\"").replace("[0,4]", "[4,8]");
        desk.write("x.safetensors", file(&format!("{{{A},{b}}}"), 8));
        let e = Source::open(desk.root()).expect_err("twice");
        assert_eq!((e.kind(), e.tensor()), (&ErrorKind::Source, Some("a")), "{e}");
    }

    #[test]
    fn folders_without_weights_or_with_several_are_refused() {
        let _one = alone();
        let desk = Desk::new();
        let kind = |hint: &str| {
            let e = Source::open(desk.root()).expect_err(hint);
            assert!(e.to_string().contains(hint), "{e}");
            e.kind().clone()
        };
        assert_eq!(kind("no .safetensors"), ErrorKind::Source);
        desk.write("pytorch_model.bin", b"x");
        assert_eq!(kind(".bin"), ErrorKind::Source);
        for name in ["a.safetensors", "b.safetensors"] {
            desk.write(name, file("{}", 0));
        }
        assert_eq!(kind("a.safetensors, b.safetensors"), ErrorKind::Source);
        let e = Source::open(&desk.path("nothing")).expect_err("not there");
        assert_eq!(e.kind(), &ErrorKind::Io);
        let e = Source::open(&desk.path("pytorch_model.bin")).expect_err("no checkpoint");
        assert_eq!(e.kind(), &ErrorKind::Source);
    }

    #[test]
    fn checkpoints_that_are_already_quantized_are_refused_unless_kept_raw() {
        let _one = alone();
        let gptq = r#"{"quantization_config":{"quant_method":"gptq","bits":4}}"#;
        let qweight = A.replace("\"a\"", "\"model.q_proj.qweight\"");
        for (config, header, hint) in
            [(gptq, A, "gptq"), ("{}", qweight.as_str(), "q_proj.qweight")]
        {
            let desk = Desk::new();
            let folder = desk.folder("model");
            desk.write("model/config.json", config);
            desk.write("model/model.safetensors", file(&format!("{{{header}}}"), 4));
            let source = Source::open(&folder).expect("sound");
            let out = desk.path("out.uc");
            let e = PackOptions::new().pack(&source, &out).expect_err("quantized");
            assert_eq!(e.kind(), &ErrorKind::Source);
            assert!(e.to_string().contains("already quantized"), "{e}");
            assert!(e.to_string().contains(hint), "{e}");
            assert!(!out.exists());
            assert_eq!(desk.names(), ["model"], "nothing is left");

            let mut recipe = Recipe::default();
            recipe.raw_all = true;
            PackOptions::new().with_recipe(recipe).pack(&source, &out).expect("kept as it is");
        }
    }
}
