//! Vectors of the section on parts of spec/container.md.

use ultracompress::Dtype;

use super::file::{
    CHUNK, File, Part, Record, carried, changes, hex, plain, raw, unknown_part, zstd_frame,
    zstd_rle,
};
use super::planes::{Planes, weights};
use super::set::VectorSet;

pub fn add(set: &mut VectorSet) {
    valid(set);
    valid_unknown(set);
    invalid(set);
    interleaved(set);
    invalid_zstd(set);
}

fn valid(set: &mut VectorSet) {
    let longer = vec![0u8; CHUNK + 500];
    let mut big = raw("zeros", Dtype::U8, &[CHUNK as u64 + 500], &longer);
    big.parts[0].storage = 1;
    big.parts[0].chunks = vec![zstd_rle(0, CHUNK), zstd_rle(0, 500)];
    set.valid(
        "raw-zstd",
        &["PRT-2", "PRT-7", "PRT-23"],
        "a part of two chunks, each a zstd frame",
        &File::of(vec![big]),
    );
    let mixed_chunks = [vec![0u8; CHUNK], vec![1, 2, 3]].concat();
    let mut big = raw("zeros", Dtype::U8, &[CHUNK as u64 + 3], &mixed_chunks);
    big.parts[0].storage = 1;
    big.parts[0].chunks[0] = zstd_rle(0, CHUNK);
    set.valid(
        "raw-zstd-mixed",
        &["PRT-2", "PRT-7"],
        "a chunk as a zstd frame, and one that is as long as its content and so stored as it is",
        &File::of(vec![big]),
    );
    let long: Vec<u8> =
        (0..CHUNK + 5).map(|i| u8::try_from(i * 7 % 251).expect("below 251")).collect();
    set.valid(
        "two-leaves",
        &["ROOT-1", "ROOT-3", "PRT-2", "PRT-6"],
        "a plain part of two chunks; the core has two leaves",
        &File::of(vec![raw("long", Dtype::U8, &[CHUNK as u64 + 5], &long)]),
    );
    let mut window = raw("zeros", Dtype::U8, &[500], &[0; 500]);
    window.parts[0].storage = 1;
    window.parts[0].chunks = vec![zstd_frame(1, &[13 << 3, 0], 1, 500)];
    set.valid(
        "raw-zstd-window",
        &["PRT-24", "PRT-25"],
        "a frame with a window of 8 MiB and the dictionary 0, which means none",
        &File::of(vec![window]),
    );
}

fn valid_unknown(set: &mut VectorSet) {
    let mut residual = weights().record();
    residual.parts.push(Part { flags: 1, ..plain(17, 0, b"a part of a later version") });
    set.valid(
        "unknown-optional-part",
        &["PRT-11", "PRT-22"],
        "an optional part of an unknown kind behind the planes",
        &File::of(vec![residual.clone()]),
    );
    let coded = residual.parts.last_mut().expect("the residual");
    (coded.storage, coded.len) = (7, 1000);
    set.valid(
        "unknown-optional-storage",
        &["PRT-1", "PRT-11"],
        "an optional part of an unknown kind in an unknown storage",
        &File::of(vec![residual]),
    );
    let around = File::of(vec![
        {
            let mut r = raw("a", Dtype::U8, &[1], &[1]);
            r.parts.push(unknown_part(6, 200));
            r
        },
        {
            let mut r = raw("b", Dtype::F16, &[0, 3], &[]);
            r.parts.push(unknown_part(255, 0));
            r
        },
        {
            let mut r = weights().record();
            r.parts.extend([unknown_part(6, 0), unknown_part(6, 1), unknown_part(15, 0)]);
            r
        },
        {
            let mut r = carried("x", b"1");
            r.parts.push(unknown_part(7, 0));
            r
        },
        {
            let mut r = carried("y", b"");
            r.parts.push(unknown_part(7, 0));
            r
        },
    ]);
    set.valid(
        "unknown-parts-around",
        &["PRT-1", "PRT-11", "PRT-22"],
        "optional parts of unknown kinds in tensors and files, also in empty ones; their storage is unknown too, though its code is that of zstd",
        &around,
    );
    let mut skipped = File::of(vec![raw("a", Dtype::U8, &[1], &[1])]);
    skipped.records.push(Record {
        kind: 77,
        flags: 1,
        name: b"future".to_vec(),
        parts: vec![
            Part { flags: 1, ..plain(1, 3, b"data that may be skipped") },
            Part { storage: 1, len: 1000, ..plain(3, 0, b"no frame") },
            plain(5, 9, b"plane nine"),
            unknown_part(6, 0),
        ],
        ..Record::default()
    });
    set.valid(
        "skipped-record-parts",
        &["IDX-8", "PRT-16"],
        "a record that is skipped has parts as no known record may have them: optional data, scales as zstd which are no frame, a ninth plane",
        &skipped,
    );
}

fn invalid(set: &mut VectorSet) {
    let mut file = changes(set);
    file("part-flags", "PRT-8", "unknown part flags", "malformed", &|f| {
        f.records[1].parts[0].flags = 2
    });
    file("part-optional-data", "PRT-12", "a data part marked optional", "malformed", &|f| {
        f.records[1].parts[0].flags = 1
    });
    file("part-storage", "PRT-1", "unknown storage", "unsupported_feature", &|f| {
        f.records[1].parts[0].storage = 2
    });
    file(
        "part-kind-unknown",
        "PRT-10",
        "an unknown kind that is not optional",
        "unsupported_feature",
        &|f| {
            f.records[1].parts.push(plain(17, 0, b"x"));
        },
    );
    file("part-empty", "PRT-19 PRT-2", "a part without content", "malformed", &|f| {
        f.records[1].parts[0].len = 0
    });
    file("part-chunk-count", "PRT-2", "two chunks for four bytes", "malformed", &|f| {
        f.records[1].parts[0].chunks = vec![vec![4, 5], vec![6, 7]];
    });
    file(
        "part-chunks-claimed",
        "LIM-2 IDX-7",
        "2^32 - 1 chunks and a length to match, in a file of a few hundred bytes",
        "malformed",
        &|f| {
            f.records[1].parts[0].n_chunks = Some(u32::MAX);
            f.records[1].parts[0].len = u64::from(u32::MAX) << 20;
        },
    );
    file("part-stored-len", "PRT-18", "stored length and chunks disagree", "malformed", &|f| {
        f.records[1].parts[0].stored_len = Some(5)
    });
    file(
        "zstd-chunk-longer",
        "PRT-17",
        "a zstd chunk longer than its content",
        "malformed",
        &|f| {
            f.records[1] = raw("b", Dtype::U8, &[4], &[4; 4]);
            f.records[1].parts[0].storage = 1;
            f.records[1].parts[0].chunks = vec![zstd_rle(4, 4)];
        },
    );
    file("part-overlap", "PRT-3", "two parts at one place", "malformed", &|f| {
        f.records[1].parts[0].offset = Some(256)
    });
    file("part-misaligned", "PRT-3", "a part that is not aligned", "malformed", &|f| {
        f.records[1].parts[0].offset = Some(321)
    });
    file("part-beyond-file", "PRT-3", "a part at 2^63", "malformed", &|f| {
        f.records[1].parts[0].offset = Some(1 << 63)
    });
    file(
        "part-hole",
        "PRT-3",
        "64 bytes that belong to nothing between parts",
        "malformed",
        &|f| f.records[1].parts[0].gap = 64,
    );
    file(
        "part-stray-end",
        "PRT-3",
        "64 bytes that belong to nothing behind the parts",
        "malformed",
        &|f| f.stray = 128,
    );
    file("part-padding", "PRT-21", "padding between parts is not zero", "malformed", &|f| {
        f.records[0].parts[0].padding = 1
    });
    file("raw-without-part", "PRT-22", "a raw tensor without its data", "malformed", &|f| {
        f.records[1].parts.clear()
    });
    file("raw-length", "PRT-5", "three bytes for four elements", "malformed", &|f| {
        f.records[1].parts = vec![plain(1, 0, &[4, 5, 6])];
        f.records[1].decodes_to(&[4, 5, 6]);
    });
    file("chunk-crc", "PRT-6", "a chunk's checksum is wrong", "integrity", &|f| {
        f.records[1].parts[0].crc = Some(1)
    });
    let future =
        |parts| Record { kind: 77, flags: 1, name: b"future".to_vec(), parts, ..Record::default() };
    file(
        "skipped-part-order",
        "PRT-4 PRT-15",
        "parts of a skipped record in falling order",
        "malformed",
        &|f| {
            f.records.push(future(vec![plain(5, 0, b"x"), plain(1, 0, b"y")]));
        },
    );
    file(
        "skipped-record-crc",
        "PRT-6 PRT-15",
        "a checksum in a record that is skipped",
        "integrity",
        &|f| {
            f.records.push(future(vec![Part { crc: Some(1), ..plain(1, 0, b"x") }]));
        },
    );
    file(
        "skipped-part-crc",
        "PRT-6 PRT-15",
        "a checksum of a part that is skipped",
        "integrity",
        &|f| {
            f.records[1].parts.push(Part { crc: Some(1), ..unknown_part(17, 0) });
        },
    );
    file(
        "skipped-part-flags",
        "PRT-8 PRT-15",
        "unknown flags of a part that is skipped",
        "malformed",
        &|f| {
            f.records[1].parts.push(Part { flags: 3, ..unknown_part(17, 0) });
        },
    );
    file(
        "part-kind-zero",
        "PRT-9",
        "an optional part of kind 0 before a file's data",
        "malformed",
        &|f| {
            let mut r = carried("x", b"12");
            r.parts.insert(0, Part { flags: 1, ..plain(0, 0, b"1") });
            f.records.push(r);
        },
    );
    file("part-plane", "PRT-14", "a data part of plane 5", "malformed", &|f| {
        f.records[1].parts[0].plane = 5;
    });
}

/// The parts of one record must follow one another: here those of two records alternate.
fn interleaved(set: &mut VectorSet) {
    let first = Planes::new("v", Dtype::Bf16, &[2, 512], 0, &[3, 3]).record();
    let mut second = Planes::new("w", Dtype::Bf16, &[2, 512], 0, &[3, 3]).record();
    let mut first_swapped = first.clone();
    // Both records have parts of equal lengths in equal order; exchange the offsets of the last
    // ones.
    let image = File::of(vec![first.clone(), second.clone()]);
    let (a, b) = (256 + 64 + 2 * 128, 256 + 64 + 3 * 128 + 64 + 2 * 128);
    first_swapped.parts[3].offset = Some(b);
    second.parts[3].offset = Some(a);
    let mut swapped = image;
    swapped.records = vec![first_swapped, second];
    set.invalid(
        "part-interleaved",
        &["PRT-20"],
        "the parts of one record don't follow one another",
        "malformed",
        &swapped.bytes(),
    );
}

fn invalid_zstd(set: &mut VectorSet) {
    let mut zstd = raw("zeros", Dtype::U8, &[500], &[0; 500]);
    zstd.parts[0].storage = 1;
    for (id, rule, chunk, comment) in [
        ("zstd-garbage", "PRT-7", b"no zstd frame".to_vec(), "a chunk that is no frame"),
        ("zstd-short", "PRT-23", zstd_rle(0, 499), "a frame of 499 bytes for 500"),
        (
            "zstd-two-frames",
            "PRT-7",
            [zstd_rle(0, 250), zstd_rle(0, 250)].concat(),
            "two frames that add up",
        ),
        ("zstd-trailing", "PRT-7", [zstd_rle(0, 500), vec![0]].concat(), "a byte behind the frame"),
        ("zstd-bomb", "PRT-23", zstd_rle(0, 1 << 23), "a frame of 8 MiB for 500 bytes"),
        (
            "zstd-dictionary",
            "PRT-24 PRT-23",
            zstd_frame(1, &[13 << 3, 1], 1, 500),
            "a frame that needs dictionary 1",
        ),
        ("zstd-window", "PRT-25", zstd_frame(0, &[13 << 3 | 1], 1, 500), "a window of 9 MiB"),
        (
            "zstd-block-type",
            "PRT-7",
            zstd_frame(0, &[13 << 3], 3, 500),
            "a block of the reserved type",
        ),
        (
            "zstd-reserved-bit",
            "PRT-7",
            zstd_frame(8, &[13 << 3], 1, 500),
            "the reserved bit of the header",
        ),
        (
            "zstd-content-size",
            "PRT-26 PRT-23",
            zstd_frame(0x60, &243u16.to_le_bytes(), 1, 500),
            "a frame that says it holds 499 bytes and holds 500",
        ),
        (
            "zstd-checksum",
            "PRT-26 PRT-23",
            [zstd_frame(4, &[13 << 3], 1, 500), vec![1, 2, 3, 4]].concat(),
            "another checksum than the content's",
        ),
        (
            "zstd-skippable",
            "PRT-7",
            [vec![0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0], zstd_rle(0, 500)].concat(),
            "a skippable frame in front",
        ),
    ] {
        let mut r = zstd.clone();
        r.parts[0].chunks = vec![chunk];
        let bytes = File::of(vec![r]).bytes();
        set.add(
            "container/invalid",
            id,
            &[rule],
            comment,
            &["zstd"],
            hex(&bytes).into(),
            "malformed",
            None,
        );
    }
}
