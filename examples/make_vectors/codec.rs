//! Vectors of spec/codec.md.

use serde_json::json;
use ultracompress::Dtype;

use super::file::{File, Part, Record, changes, hex, level_record, plain, put, raw, zstd_rle};
use super::planes::{Planes, custom3, custom5, mixed, weights};
use super::set::VectorSet;

pub fn add(set: &mut VectorSet) {
    valid(set);
    raw_targets(set);
    invalid_levels(set);
    invalid(set);
    codec(set);
}

fn valid(set: &mut VectorSet) {
    set.valid(
        "planes-uniform",
        &[
            "PLN-1", "PLN-2", "PLN-4", "PLN-6", "PLN-7", "PLN-8", "VAL-1", "VAL-2", "VAL-3",
            "VAL-4", "LVL-4",
        ],
        "five planes, groups of 16, the last one short",
        &File::of(vec![weights().record()]),
    );
    set.valid(
        "planes-per-row",
        &["PLN-3", "PLN-5", "PLN-9", "PRT-5"],
        "3 to 8 planes by row, odd columns: rows are stored by falling count",
        &File::of(vec![mixed().record()]),
    );
    let mut folded = Planes::new("experts", Dtype::F16, &[2, 2, 24], 32, &[6; 4]);
    folded.row_dims = 2;
    set.valid(
        "planes-row-dims",
        &["PLN-2"],
        "two of three dimensions are rows",
        &File::of(vec![folded.record()]),
    );
    let whole = Planes::new("w", Dtype::F64, &[3, 9], 0, &[4, 4, 4]);
    set.valid(
        "planes-no-groups",
        &["PLN-4"],
        "no steps part: every step is 128",
        &File::of(vec![whole.record()]),
    );
    let mut custom = Planes::new("w", Dtype::Bf16, &[4, 16], 16, &[3, 5, 3, 5]);
    custom.level_ids = [0, 0, 1, 0, 0, 0];
    custom.custom = Some((5, custom5()));
    set.valid(
        "planes-custom-levels",
        &["LVL-1", "LVL-2", "LVL-3", "VAL-5"],
        "tables of the file's own for rows of 5 planes, read as 5, 4 and 3",
        &File::of(vec![level_record("custom", 5, &custom5()), custom.record()]),
    );
}

/// Elements of raw tensors as F16, BF16, F32 and F64, each worked out by hand.
type Converted = [u64; 4];

const OF_F16: [Converted; 4] = [
    [0x3c05, 0x3f81, 0x3f80_a000, 0x3ff0_1400_0000_0000],
    // The smallest subnormal; minus infinity; a signalling NaN.
    [0x0001, 0x3380, 0x3380_0000, 0x3e70_0000_0000_0000],
    [0xfc00, 0xff80, 0xff80_0000, 0xfff0_0000_0000_0000],
    [0x7c01, 0x7fc0, 0x7fc0_0000, 0x7ff8_0000_0000_0000],
];

const OF_BF16: [Converted; 3] = [
    [0x0000, 0x0001, 0x0001_0000, 0x37a0_0000_0000_0000],
    [0xfc00, 0xff7f, 0xff7f_0000, 0xc7ef_e000_0000_0000],
    [0x7e00, 0x7f81, 0x7fc0_0000, 0x7ff8_0000_0000_0000],
];

const OF_F32: [Converted; 10] = [
    // A tie of bfloat16, the smallest subnormal, a tie of subnormals of bfloat16.
    [0x3c04, 0x3f80, 0x3f80_8000, 0x3ff0_1000_0000_0000],
    [0x0000, 0x0000, 0x0000_0001, 0x36a0_0000_0000_0000],
    [0x8000, 0x8002, 0x8001_8000, 0xb7a8_0000_0000_0000],
    [0x0001, 0x3380, 0x3380_0000, 0x3e70_0000_0000_0000],
    // 65520 is the smallest number that overflows F16.
    [0x7c00, 0x4780, 0x477f_f000, 0x40ef_fe00_0000_0000],
    [0xfc00, 0xff80, 0xff7f_ffff, 0xc7ef_ffff_e000_0000],
    [0xfc00, 0xff80, 0xff80_0000, 0xfff0_0000_0000_0000],
    [0x7e00, 0x7fc0, 0x7f80_0001, 0x7ff8_0000_0000_0000],
    [0xfe00, 0xffc0, 0xffab_cdef, 0xfff8_0000_0000_0000],
    [0x8000, 0x8000, 0x8000_0000, 0x8000_0000_0000_0000],
];

const OF_F64: [Converted; 6] = [
    // Just above a tie of bfloat16: rounded to binary32 first, it would be one.
    [0x3c04, 0x3f81, 0x3f80_8000, 0x3ff0_1000_0000_0001],
    // Just below, and at, half a last place above the largest F32.
    [0x7c00, 0x7f80, 0x7f7f_ffff, 0x47ef_ffff_efff_ffff],
    [0x7c00, 0x7f80, 0x7f80_0000, 0x47ef_ffff_f000_0000],
    [0x7e00, 0x7fc0, 0x7fc0_0000, 0x7ff0_0000_0000_0001],
    [0xfc00, 0xff80, 0xff80_0000, 0xfff0_0000_0000_0000],
    [0x8000, 0x8000, 0x8000_0000, 0x8000_0000_0000_0001],
];

fn raw_targets(set: &mut VectorSet) {
    let dtypes = [Dtype::F16, Dtype::Bf16, Dtype::F32, Dtype::F64];
    let sources: [(&str, &[Converted]); 4] =
        [("a", &OF_F16), ("b", &OF_BF16), ("c", &OF_F32), ("d", &OF_F64)];
    let records = sources.iter().enumerate().map(|(own, (name, elements))| {
        let at = |i: usize| -> Vec<u8> {
            let size = usize::try_from(dtypes[i].bits() / 8).expect("small");
            elements.iter().flat_map(|e| e[i].to_le_bytes()[..size].to_vec()).collect()
        };
        let mut record = raw(name, dtypes[own], &[elements.len() as u64], &at(own));
        record.tensor.as_mut().expect("a tensor").targets =
            (0..4).filter(|&i| i != own).map(|i| (dtypes[i].name(), at(i))).collect();
        record
    });
    set.valid(
        "raw-converted",
        &["VAL-7", "VAL-8", "VAL-9", "VAL-10", "VAL-11", "VAL-12"],
        "raw tensors at other types: ties, subnormals, overflow, zeros, infinities, NaNs",
        &File::of(records.collect()),
    );
}

fn invalid_levels(set: &mut VectorSet) {
    let mut file = changes(set);
    file("level-body", "LVL-1", "a level table for 9 planes", "malformed", &|f| {
        f.records.insert(0, level_record("t", 9, &[0; 1016]));
    });
    file("level-length", "LVL-1", "a level table that lacks its last level", "malformed", &|f| {
        f.records.insert(0, level_record("t", 3, &custom3()[..7]));
    });
    file("level-reserved", "LVL-1", "a reserved byte is set", "malformed", &|f| {
        let mut r = level_record("t", 3, &custom3());
        r.body[7] = 1;
        f.records.insert(0, r);
    });
    file("level-order", "LVL-2", "two equal levels", "malformed", &|f| {
        f.records.insert(0, level_record("t", 3, &[-4, -3, -2, -1, 0, 1, 1, 2]));
    });
    file(
        "level-order-fewer",
        "LVL-2",
        "two equal levels in the table for 4 of 5 planes",
        "malformed",
        &|f| {
            let mut levels = custom5();
            levels[33] = levels[32];
            f.records.insert(0, level_record("t", 5, &levels));
        },
    );
}

fn invalid(set: &mut VectorSet) {
    let mut planes = |id: &str,
                      rule: &str,
                      comment: &str,
                      expect: &str,
                      p: &Planes,
                      change: &dyn Fn(&mut Record)| {
        let mut r = p.record();
        change(&mut r);
        let mut file = File::of(vec![r]);
        if let Some((native, levels)) = &p.custom {
            file.records.insert(0, level_record("custom", *native, levels));
        }
        set.invalid(id, &[rule], comment, expect, &file.bytes());
    };
    // Changes stored bytes of part `i`, which keeps all checksums right.
    let at = |i: usize, byte: usize, change: fn(u8) -> u8| {
        move |r: &mut Record| {
            let b = &mut r.parts[i].chunks[0][byte];
            *b = change(*b);
        }
    };
    let w = weights();
    let m = mixed();
    planes("planes-of-integers", "PLN-1", "an I16 tensor as planes", "malformed", &w, &|r| {
        r.body[0] = Dtype::I16.code()
    });
    let one_row = Planes::new("w", Dtype::Bf16, &[1, 80], 16, &[5]);
    planes("planes-row-dims-zero", "PLN-2", "no row dimension", "malformed", &one_row, &|r| {
        r.body[4] = 0;
        (r.body[8], r.body[16]) = (2, 40);
        r.tensor.as_mut().expect("a tensor").shape = vec![2, 40];
    });
    let columns_of_one =
        Planes { row_dims: 2, ..Planes::new("w", Dtype::Bf16, &[2, 40], 16, &[5; 80]) };
    planes(
        "planes-row-dims-three",
        "PLN-2",
        "more row dimensions than dimensions",
        "malformed",
        &columns_of_one,
        &|r| r.body[4] = 3,
    );
    // No part of a plane can be there: parts are never empty.
    let no_columns = Planes::new("w", Dtype::Bf16, &[2, 40], 0, &[3, 3]);
    let of_none = "PLN-8 PRT-22";
    planes("planes-no-columns", of_none, "no columns", "malformed", &no_columns, &|r| {
        r.body[16] = 0;
        r.parts.truncate(1);
        r.decodes_to(&[]);
        r.tensor.as_mut().expect("a tensor").shape = vec![2, 0];
    });
    let sixteen = Planes::new("w", Dtype::Bf16, &[2, 16], 16, &[5, 5]);
    planes("planes-group-8", "PLN-4", "groups of 8", "malformed", &sixteen, &|r| {
        // The second group's step has half a byte that a group of 16 leaves zero.
        r.body[5] = 3;
        r.decodes_to(&sixteen.multiplied(f32::from_bits(u32::from(sixteen.scale) << 16), 8));
    });
    planes("planes-two", "PLN-3", "two planes", "malformed", &w, &|r| r.body[6] = 2);
    planes("planes-nine", "PLN-3", "nine planes", "malformed", &w, &|r| r.body[6] = 9);
    planes("planes-part-missing", "PRT-22", "the last plane is missing", "malformed", &w, &|r| {
        r.parts.pop();
    });
    planes("planes-part-extra", "PRT-22", "a sixth plane for five", "malformed", &w, &|r| {
        let extra = Part { plane: 5, ..r.parts[6].clone() };
        r.parts.push(extra);
    });
    planes("planes-part-order", "PRT-4", "planes in falling order", "malformed", &w, &|r| {
        r.parts.swap(5, 6)
    });
    planes("planes-part-length", "PRT-5", "a plane that is too short", "malformed", &w, &|r| {
        r.parts[4].chunks[0].pop();
        r.parts[4].len -= 1;
    });
    planes("planes-scales-length", "PRT-5", "a scale too many", "malformed", &w, &|r| {
        r.parts[0] = plain(3, 0, &[&r.parts[0].chunks[0][..], &[0x12, 0x3a]].concat());
    });
    planes("planes-steps-length", "PRT-5", "steps of three rows for two", "malformed", &w, &|r| {
        r.parts[1] = plain(4, 0, &[&r.parts[1].chunks[0][..], &[0, 0]].concat());
    });
    planes(
        "planes-counts-length",
        "PRT-5",
        "a fourth plane longer than the counts allow",
        "malformed",
        &m,
        &|r| {
            let plane3 = r.parts[6].chunks[0].clone();
            r.parts[6] = plain(5, 3, &[plane3, vec![0; 5]].concat());
        },
    );
    planes(
        "planes-zstd",
        "PRT-27",
        "a plane stored as zstd",
        "malformed",
        &Planes::new("w", Dtype::Bf16, &[16, 40], 16, &[5; 16]),
        &|r| {
            r.parts[2].storage = 1;
            r.parts[2].chunks = vec![zstd_rle(0, 80)];
            let zeros = Planes::new("w", Dtype::Bf16, &[16, 40], 16, &[5; 16]);
            let mut stored = zeros.stored();
            stored.planes[0].fill(0);
            r.decodes_to(&zeros.decode(&stored, 8, Dtype::Bf16));
        },
    );
    planes(
        "planes-tail-bits",
        "PLN-11",
        "a bit behind the last column",
        "malformed",
        &m,
        &at(3, 4, |b| b | 0x80),
    );
    planes(
        "planes-steps-padding",
        "PLN-12",
        "half a byte behind the last group",
        "malformed",
        &w,
        &at(1, 1, |b| b | 0x10),
    );
    planes(
        "planes-count-value",
        "PLN-3",
        "a row of 9 planes",
        "malformed",
        &m,
        &at(0, 0, |b| (b & 0xf0) | 6),
    );
    planes(
        "planes-count-padding",
        "PLN-13",
        "half a byte behind the last row",
        "malformed",
        &m,
        &at(0, 3, |b| b | 0x10),
    );
    planes(
        "planes-counts-uniform",
        "PLN-10",
        "a counts part of equal counts",
        "malformed",
        &Planes::new("w", Dtype::F32, &[2, 16], 16, &[5, 5]),
        &|r| {
            r.body[6] = 0;
            r.parts.insert(0, plain(2, 0, &[0x22]));
        },
    );
    planes(
        "planes-counts-short",
        "PRT-5",
        "a counts part that is too short",
        "malformed",
        &m,
        &|r| {
            r.parts[0] = plain(2, 0, &r.parts[0].chunks[0][..3]);
        },
    );
    let five = Planes::new("w", Dtype::F32, &[3, 16], 16, &[5, 4, 3]);
    planes(
        "planes-beyond-counts",
        "PRT-22",
        "a sixth plane, rows have five at most",
        "malformed",
        &five,
        &|r| {
            r.parts.push(plain(5, 5, &[0, 0]));
        },
    );
    planes(
        "planes-below-counts",
        "PRT-22",
        "four planes, a row has five",
        "malformed",
        &five,
        &|r| {
            r.parts.pop();
        },
    );
    planes(
        "planes-counts-swapped",
        "PLN-5 TEN-5",
        "the counts of two rows are exchanged: the digest is of other rows",
        "integrity",
        &m,
        &at(0, 0, |b| b.rotate_left(4)),
    );
    planes(
        "planes-bit-order",
        "PLN-6 TEN-5",
        "eight columns of a plane begin with the highest bit of their byte",
        "integrity",
        &w,
        &|r| {
            let byte = &mut r.parts[2].chunks[0][0];
            assert_ne!(*byte, byte.reverse_bits(), "the order shows");
            *byte = byte.reverse_bits();
        },
    );
    planes(
        "planes-steps-swapped",
        "PLN-7 TEN-5",
        "the steps of two groups are exchanged",
        "integrity",
        &w,
        &|r| {
            let byte = &mut r.parts[1].chunks[0][0];
            assert_ne!(*byte, byte.rotate_left(4), "the order shows");
            *byte = byte.rotate_left(4);
        },
    );
    planes(
        "planes-counts-halves",
        "PLN-9 TEN-5",
        "counts of even rows in the upper half of each byte",
        "integrity",
        &Planes::new("w", Dtype::F32, &[4, 16], 16, &[5, 4, 5, 4]),
        &|r| {
            assert_eq!(r.parts[0].chunks[0], [0x12, 0x12]);
            r.parts[0].chunks[0].fill(0x21);
        },
    );
    // Digests are those of a reader that multiplies whatever it finds.
    let mut scale = |id: &str, comment: &str, p: &Planes, bits: u16| {
        planes(id, "VAL-1", comment, "malformed", p, &|r| {
            put(&mut r.parts[0].chunks[0], 0, &bits.to_le_bytes());
            r.decodes_to(&p.multiplied(f32::from_bits(u32::from(bits) << 16), p.group));
        });
    };
    scale("scale-zero", "a row scale of zero", &w, 0);
    scale("scale-subnormal", "a subnormal row scale", &w, 0x7f);
    scale("scale-negative", "a negative row scale", &w, 0xba12);
    scale("scale-infinite", "an infinite row scale", &w, 0x7f80);
    scale("scale-nan", "a row scale that is not a number", &w, 0x7fc0);
    scale("scale-too-large", "exponent 241: products could overflow", &w, 241 << 7);
    scale(
        "scale-too-large-f16",
        "exponent 129 in an F16 tensor",
        &Planes::new("w", Dtype::F16, &[1, 16], 16, &[5]),
        129 << 7,
    );
    planes(
        "code-changed",
        "TEN-5",
        "one bit of one code differs from what the digest covers",
        "integrity",
        &w,
        &at(6, 0, |b| b ^ 1),
    );
    planes("level-missing", "LVL-3", "a level table that doesn't exist", "malformed", &w, &|r| {
        r.body[8 + 16 + 32 + 4] = 1
    });
    planes(
        "planes-body-reserved",
        "TEN-1",
        "reserved bytes behind the level ids are set",
        "malformed",
        &w,
        &|r| {
            let last = r.body.len() - 1;
            r.body[last] = 1;
        },
    );
    let mut unused = Planes::new("w", Dtype::Bf16, &[2, 16], 16, &[5, 5]);
    unused.custom = Some((3, custom3()));
    planes(
        "level-unused",
        "LVL-5",
        "a table for a count that no row has",
        "malformed",
        &unused,
        &|r| r.body[8 + 16 + 32] = 1,
    );

    // A set for 5 planes holds tables for 4 and 3: the digests are those of a reader that takes
    // them.
    let mut of_five = Planes::new("w", Dtype::Bf16, &[2, 16], 16, &[4, 4]);
    of_five.level_ids = [0, 1, 0, 0, 0, 0];
    of_five.custom = Some((4, custom5()[32..].to_vec()));
    set.invalid(
        "level-other-count",
        &["LVL-3"],
        "a table for 5 planes used for 4",
        "malformed",
        &File::of(vec![level_record("custom", 5, &custom5()), of_five.record()]).bytes(),
    );
}

fn codec(set: &mut VectorSet) {
    let mut add = |id: &str, rules: &[&str], comment: &str, p: &Planes, rung: u8, target: Dtype| {
        let stored = p.stored();
        let decoded = p.decode(&stored, rung, target);
        let input = json!({
            "dtype": p.dtype.name(), "rows": p.counts.len(), "cols": stored.layout.cols, "group": p.group,
            "counts": p.counts, "scales": hex(&stored.scales), "steps": hex(&stored.steps),
            "planes": stored.planes.iter().map(|b| hex(b)).collect::<Vec<_>>(),
            "rung": rung, "target": target.name(),
        });
        set.add(
            "codec",
            id,
            rules,
            comment,
            &[],
            input,
            "ok",
            Some(json!({ "bytes": hex(&decoded) })),
        );
    };
    for rung in 3..=8u8 {
        // Scale 1 and a step of 32 show the tables themselves: value = 32 * level.
        let mut all = Planes::new("w", Dtype::F32, &[6, 256], 0, &[3, 4, 5, 6, 7, 8]);
        all.scale = 0x3f80;
        add(
            &format!("default-levels-rung-{rung}"),
            &["LVL-4", "VAL-5", "VAL-3"],
            "every code of 3 to 8 planes, scales from 1 up, step 128",
            &all,
            rung,
            Dtype::F32,
        );
    }
    for target in [Dtype::F16, Dtype::Bf16, Dtype::F32, Dtype::F64] {
        let steps = Planes::new("w", Dtype::Bf16, &[3, 528], 16, &[5, 5, 5]);
        add(
            &format!("steps-to-{}", target.name().to_lowercase()),
            &["VAL-2", "VAL-4"],
            "every step and code, rounded to each type",
            &steps,
            8,
            target,
        );
        let mut tiny = Planes::new("w", Dtype::F32, &[2, 64], 16, &[8, 8]);
        tiny.scale = 0x0080;
        add(
            &format!("smallest-scale-to-{}", target.name().to_lowercase()),
            if target == Dtype::F16 { &["VAL-1", "VAL-6", "VAL-8"] } else { &["VAL-1", "VAL-6"] },
            "the smallest scales: level 0, signed zeros in F16",
            &tiny,
            8,
            target,
        );
    }
    let mut large = Planes::new("w", Dtype::F32, &[1, 256], 16, &[8]);
    large.scale = (240 << 7) | 0x7f;
    add(
        "largest-scale",
        &["VAL-1"],
        "the largest scale: every product is finite",
        &large,
        8,
        Dtype::Bf16,
    );
    let mut large = Planes::new("w", Dtype::F16, &[1, 256], 16, &[8]);
    large.scale = (128 << 7) | 0x7f;
    add(
        "largest-scale-f16",
        &["VAL-1"],
        "the largest scale of an F16 tensor",
        &large,
        8,
        Dtype::F16,
    );
    // 4.03125 * 128 * 127 = 65532: above 65520, half way between the largest F16 and the next that
    // there would be.
    let mut beyond = Planes::new("w", Dtype::F32, &[1, 256], 0, &[8]);
    beyond.scale = 0x4081;
    add(
        "overflow-to-f16",
        &["VAL-4", "VAL-9"],
        "values that round to infinity in a smaller type, and some that don't",
        &beyond,
        8,
        Dtype::F16,
    );
    let mut subnormal = Planes::new("w", Dtype::F16, &[2, 64], 32, &[6, 6]);
    subnormal.scale = 97 << 7;
    add("subnormal-f16", &["VAL-4", "VAL-7"], "subnormals of F16", &subnormal, 8, Dtype::F16);
    for cols in [1u64, 7, 8, 9, 31, 33, 255, 257] {
        let tail = Planes::new("w", Dtype::Bf16, &[2, cols], 32, &[5, 7]);
        add(
            &format!("columns-{cols}"),
            &["PLN-5", "PLN-6", "PLN-7", "PLN-11", "PLN-12"],
            "rows that end inside a byte or a group",
            &tail,
            8,
            Dtype::Bf16,
        );
    }
}
