//! Vectors of spec/container.md but for parts and shards.

use serde_json::json;
use ultracompress::{Digest, Dtype};

use super::file::{
    File, Record, alias, attachment, base, carried, changes, hex, plain, put, raw, seal,
};
use super::planes::{Planes, weights};
use super::set::VectorSet;

pub fn add(set: &mut VectorSet) {
    valid(set);
    valid_records(set);
    invalid_preamble(set);
    invalid_records(set);
}

fn valid(set: &mut VectorSet) {
    set.valid(
        "example",
        &["PLN-6", "PLN-7", "VAL-3", "VAL-4"],
        "the file that spec/example.md takes apart",
        &File::of(vec![Planes::new("w", Dtype::Bf16, &[1, 10], 16, &[3]).record()]),
    );
    set.valid(
        "empty",
        &[
            "HDR-1", "HDR-3", "HDR-4", "HDR-6", "HDR-7", "HDR-14", "HDR-16", "IDX-3", "ROOT-1",
            "MAN-1",
        ],
        "a pack without tensors and files",
        &File::of(vec![]),
    );
    let basics = vec![
        raw("bias", Dtype::F32, &[2], &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]),
        raw("empty", Dtype::F16, &[0, 3], &[]),
        raw("mask", Dtype::Bool, &[3], &[1, 0, 1]),
        raw("steps", Dtype::I64, &[], &7i64.to_le_bytes()),
    ];
    set.valid(
        "raw-basic",
        &[
            "TEN-1", "TEN-2", "TEN-5", "TEN-10", "IDX-1", "IDX-2", "IDX-4", "IDX-7", "PRT-1",
            "PRT-3", "PRT-4", "PRT-5", "PRT-6", "PRT-22", "ROOT-2", "ROOT-3",
        ],
        "raw tensors: a vector, an empty tensor, three bytes, a scalar",
        &File::of(basics),
    );
    let dtypes: Vec<Record> = Dtype::ALL
        .iter()
        .map(|d| {
            let bytes = usize::try_from(d.bits()).expect("small");
            raw(&format!("t{:02}", d.code()), *d, &[2, 4], &vec![1; bytes])
        })
        .collect();
    set.valid("all-dtypes", &["DTY-1"], "one raw tensor of each type", &File::of(dtypes));
    set.valid(
        "name-longest",
        &["NAM-1"],
        "a name of 1024 bytes",
        &File::of(vec![raw(&"n".repeat(1024), Dtype::U8, &[1], &[1])]),
    );

    let head = weights().record();
    let tied = File::of(vec![alias("embed", "w", &head), head]);
    set.valid("alias", &["TEN-4", "TEN-8", "TEN-9"], "two names, one tensor", &tied);
    let files = File::of(vec![
        carried("1_Pooling/config.json", b"{}"),
        carried("config.json", b"{\"a\":1}"),
        carried("empty.txt", b""),
    ]);
    set.valid(
        "files",
        &["FIL-1", "FIL-2", "NAM-1", "NAM-2", "NAM-3", "MAN-3", "LIM-1"],
        "carried files, one in a folder, one empty",
        &files,
    );
    let mut attached = File::of(vec![]);
    attached.attachments = [
        attachment(1, b"eval", b"{}"),
        attachment(2, b"eval", &[7; 70]),
        attachment(900, b"new", b""),
    ]
    .concat();
    set.valid(
        "attachments",
        &["ATT-1", "ATT-2", "ATT-3", "ATT-5", "ATT-6", "ATT-7"],
        "a receipt that is no record, a signature of the same name, and an unknown kind",
        &attached,
    );
    set.valid(
        "rank-sixteen",
        &["TEN-1"],
        "16 dimensions",
        &File::of(vec![raw("a", Dtype::U8, &[1; 16], &[1])]),
    );
}

fn valid_records(set: &mut VectorSet) {
    let mut unknown = File::of(vec![raw("a", Dtype::U8, &[1], &[1])]);
    unknown.records.push(Record {
        kind: 77,
        flags: 1,
        name: b"future".to_vec(),
        body: vec![1, 2, 3],
        parts: vec![plain(9, 1, b"payload")],
        ..Record::default()
    });
    set.valid(
        "unknown-optional-record",
        &["IDX-8"],
        "an optional record of an unknown kind with a part",
        &unknown,
    );
    let mut unused = File::of(vec![raw("a", Dtype::U8, &[1], &[1])]);
    (unused.required, unused.optional) = (Some(1), Some(3));
    set.valid(
        "features-unused",
        &["HDR-11", "HDR-12"],
        "feature bits for coded tensors, residuals and overlays, of which there are none",
        &unused,
    );
    let emoji = File::of(
        ["\u{fb33}", "\u{1f600}"].iter().map(|name| raw(name, Dtype::U8, &[1], &[1])).collect(),
    );
    set.valid(
        "names-by-bytes",
        &["IDX-4", "ROOT-2", "MAN-1"],
        "U+FB33 and U+1F600: records and leaves are in the order of bytes, members of the manifest in that of UTF-16",
        &emoji,
    );
    for (id, rule, at, value, comment) in [
        ("minor-version", "HDR-13", 10usize, 7u8, "a later minor version"),
        ("optional-feature", "HDR-9", 24, 0x80, "an unknown optional feature bit"),
    ] {
        let mut bytes = File::of(vec![]).bytes();
        bytes[at] = value;
        let bytes = seal(bytes);
        let output = json!({ "stored_root": hex(&bytes[128..160]), "decoded_root": hex(&bytes[96..128]), "tensors": {} });
        set.add(
            "container/valid",
            id,
            &[rule],
            comment,
            &[],
            hex(&bytes).into(),
            "ok",
            Some(output),
        );
    }
}

#[allow(clippy::too_many_lines, reason = "a list of cases")]
fn invalid_preamble(set: &mut VectorSet) {
    let base = base();
    let good = base.bytes();
    // A change of the preamble that keeps its checksum and the stored root right.
    let mut patch = |id: &str, rule: &str, comment: &str, expect: &str, at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        put(&mut bytes, at, value);
        set.invalid(id, &[rule], comment, expect, &seal(bytes));
    };
    patch("magic-text-mode", "HDR-1", "line ends were translated", "malformed", 4, b"\n\x1a\n\0");
    patch(
        "magic-safetensors",
        "HDR-1",
        "no magic at all",
        "malformed",
        0,
        &[0x40, 0, 0, 0, 0, 0, 0, 0, b'{'],
    );
    patch("major-version", "HDR-2", "major version 2", "unsupported_version", 8, &[2]);
    patch("preamble-len", "HDR-4", "preamble of 512 bytes", "malformed", 12, &[0, 2]);
    patch("preamble-reserved", "HDR-14", "a reserved byte is set", "malformed", 172, &[1]);
    patch("preamble-reserved-word", "HDR-14", "the reserved word is set", "malformed", 92, &[1]);
    patch(
        "required-feature-three",
        "HDR-5",
        "unknown required bit 3",
        "unsupported_feature",
        16,
        &[8],
    );
    patch(
        "required-feature-unknown",
        "HDR-5",
        "unknown required bit 63",
        "unsupported_feature",
        23,
        &[0x80],
    );
    patch("shard-two", "HDR-16", "shard 1 of 2 without the feature bit", "malformed", 88, &[2]);
    patch("shard-number", "HDR-16", "shard 2 of 1", "malformed", 84, &[2]);
    patch(
        "index-offset-huge",
        "HDR-7",
        "index at 2^62",
        "malformed",
        40,
        &(1u64 << 62).to_le_bytes(),
    );
    patch(
        "index-len-huge",
        "HDR-7",
        "index of 2^63 bytes",
        "malformed",
        48,
        &(1u64 << 63).to_le_bytes(),
    );
    patch("index-len-all-ones", "HDR-7", "index length wraps around", "malformed", 48, &[0xff; 8]);
    patch(
        "manifest-offset",
        "HDR-7",
        "manifest not right behind the index",
        "malformed",
        56,
        &(good.len() as u64).to_le_bytes(),
    );
    patch(
        "core-len",
        "HDR-7",
        "core ends inside the manifest",
        "malformed",
        32,
        &320u64.to_le_bytes(),
    );
    patch(
        "attachments-crc-without",
        "ATT-5",
        "a checksum of no attachments",
        "malformed",
        168,
        &[1],
    );
    patch("record-count", "IDX-3", "one record less than the index has", "malformed", 72, &[1]);
    patch(
        "record-count-more",
        "IDX-3",
        "one record more than the index has",
        "malformed",
        72,
        &[3],
    );
    patch("index-crc", "IDX-1", "the index's checksum is wrong", "integrity", 76, &[0, 0, 0, 0]);
    patch(
        "manifest-crc",
        "MAN-4",
        "the manifest's checksum is wrong",
        "integrity",
        80,
        &[0, 0, 0, 0],
    );
    patch("decoded-root", "ROOT-2", "the decoded root is wrong", "integrity", 96, &[0; 32]);

    let mut attached = base.clone();
    attached.attachments = attachment(1, b"a", b"x");
    let with_attachment = attached.bytes();
    let with_crc = |mut bytes: Vec<u8>| {
        let crc = crc32fast::hash(&bytes[..252]);
        put(&mut bytes, 252, &crc.to_le_bytes());
        bytes
    };
    // An index of no records: eight bytes of the preamble that are zero.
    let mut bytes = File::of(vec![]).bytes();
    put(&mut bytes, 40, &[192, 0]);
    put(&mut bytes, 48, &[8]);
    put(&mut bytes, 76, &crc32fast::hash(&[0; 8]).to_le_bytes());
    set.invalid(
        "index-offset-in-preamble",
        &["HDR-7"],
        "the index is at 192, inside the preamble",
        "malformed",
        &seal(bytes),
    );
    let mut bytes = File { stray: 64, ..File::default() }.bytes();
    assert_eq!((bytes[40..42].to_vec(), bytes[48]), (vec![64, 1], 0), "an empty index at 320");
    put(&mut bytes, 40, &[8, 1]);
    set.invalid(
        "index-offset-unaligned",
        &["HDR-7", "PRT-3"],
        "the index, which is empty, is at 264",
        "malformed",
        &seal(bytes),
    );
    let mut unaligned = base.clone();
    unaligned.attachments = attachment(1, b"a", b"x");
    unaligned.attachments.truncate(18);
    set.invalid(
        "attachments-unaligned",
        &["HDR-7", "ATT-2"],
        "a section of 18 bytes: an attachment without its padding",
        "malformed",
        &unaligned.bytes(),
    );
    let mut bytes = good.clone();
    bytes[130] ^= 1;
    set.invalid(
        "stored-root",
        &["ROOT-3"],
        "the stored root is wrong",
        "integrity",
        &with_crc(bytes),
    );
    let mut bytes = good.clone();
    bytes[252] ^= 64;
    set.invalid(
        "preamble-crc",
        &["HDR-3"],
        "the preamble's checksum is wrong",
        "integrity",
        &bytes,
    );
    set.invalid(
        "file-cut",
        &["HDR-6"],
        "the last 64 bytes are missing",
        "truncated",
        &good[..good.len() - 64],
    );
    set.invalid("file-cut-in-preamble", &["HDR-6"], "100 bytes", "truncated", &good[..100]);
    set.invalid("file-empty", &["HDR-1"], "no bytes", "malformed", &[]);
    let mut bytes = good.clone();
    bytes.push(0);
    set.invalid(
        "file-longer",
        &["HDR-6"],
        "one byte more than the preamble says",
        "malformed",
        &bytes,
    );
    let mut bytes = good.clone();
    let index_end = 384 + usize::from(good[48]) + 256 * usize::from(good[49]);
    assert!(index_end % 64 != 0, "the base file has padding behind its index");
    bytes[index_end] = 1;
    set.invalid(
        "padding-behind-index",
        &["HDR-15"],
        "padding is not zero",
        "malformed",
        &seal(bytes),
    );
    let mut bytes = with_attachment.clone();
    put(&mut bytes, 168, &[0; 4]);
    set.invalid(
        "attachments-crc",
        &["ATT-5"],
        "the attachments' checksum is wrong",
        "integrity",
        &seal(bytes),
    );
    let mut bytes = good.clone();
    let manifest_end = usize::try_from(
        u64::from_le_bytes(good[56..64].try_into().expect("8"))
            + u64::from_le_bytes(good[64..72].try_into().expect("8")),
    )
    .expect("small");
    assert!(manifest_end % 64 != 0, "the base file has padding behind its manifest");
    bytes[manifest_end] = 1;
    set.invalid(
        "padding-behind-manifest",
        &["HDR-15"],
        "padding is not zero",
        "malformed",
        &seal(bytes),
    );
}

#[allow(clippy::too_many_lines, reason = "a list of cases")]
fn invalid_records(set: &mut VectorSet) {
    let mut file = changes(set);
    file("record-len-short", "IDX-7", "a record that ends inside its fields", "malformed", &|f| {
        f.records[1].extra_len = -8
    });
    file("record-len-long", "IDX-2", "a record that reaches beyond the index", "malformed", &|f| {
        f.records[1].extra_len = 8
    });
    file(
        "record-len-odd",
        "IDX-2",
        "a record length that is no multiple of 8",
        "malformed",
        &|f| f.records[1].extra_len = -4,
    );
    file("record-tail", "IDX-7", "bytes behind the last field of a record", "malformed", &|f| {
        f.records[1].tail = vec![0; 8]
    });
    file("record-padding", "IDX-6", "padding behind the name is not zero", "malformed", &|f| {
        f.records[1].padding = 1
    });
    file("record-unsorted", "IDX-4", "names in falling order", "malformed", &|f| {
        f.records.swap(0, 1)
    });
    file("record-twice", "IDX-4", "one name twice", "malformed", &|f| {
        f.records[1].name = b"a".to_vec()
    });
    file("record-kinds-unsorted", "IDX-4", "a file record before a tensor", "malformed", &|f| {
        f.records[0] = carried("a", b"x")
    });
    file(
        "record-kind-unknown",
        "IDX-5",
        "an unknown kind that is not optional",
        "unsupported_feature",
        &|f| f.records[1].kind = 9,
    );
    file("record-optional-tensor", "IDX-9", "a tensor marked optional", "malformed", &|f| {
        f.records[1].flags = 1
    });
    file("record-kind-zero", "IDX-10", "an optional record of kind 0", "malformed", &|f| {
        (f.records[0].kind, f.records[0].flags, f.records[0].tensor) = (0, 1, None);
    });
    file("record-names-utf16", "IDX-4", "names in the order of UTF-16", "malformed", &|f| {
        f.records[0].name = "\u{1f600}".into();
        f.records[1].name = "\u{fb33}".into();
    });
    file("record-flags", "IDX-11", "unknown record flags", "malformed", &|f| {
        f.records[1].flags = 2
    });
    file("name-empty", "NAM-1", "an empty name", "malformed", &|f| f.records[0].name = vec![]);
    file("name-control", "NAM-1", "a line feed in a name", "malformed", &|f| {
        f.records[1].name = b"b\n".to_vec()
    });
    file("name-nul", "NAM-1", "a NUL in a name", "malformed", &|f| {
        f.records[1].name = b"b\0".to_vec()
    });
    file("name-utf8", "NAM-1", "a name that is not UTF-8", "malformed", &|f| {
        f.records[1].name = b"b\xff".to_vec()
    });
    file("name-long", "NAM-1", "a name of 1025 bytes", "malformed", &|f| {
        f.records[1].name = vec![b'b'; 1025]
    });
    file("dtype-unknown", "DTY-1", "dtype 99", "unsupported_feature", &|f| {
        f.records[1].body[0] = 99
    });
    file("encoding-unknown", "TEN-6", "encoding 9", "unsupported_feature", &|f| {
        f.records[1].body[1] = 9
    });
    file("encoding-five", "TEN-6", "unknown encoding 5", "unsupported_feature", &|f| {
        f.records[1].body[1] = 5
    });
    file("role-unknown", "TEN-1", "role 4", "malformed", &|f| f.records[1].body[2] = 4);
    file("tensor-reserved", "TEN-1", "a reserved byte is set", "malformed", &|f| {
        f.records[1].body[7] = 1
    });
    file("tensor-body-short", "TEN-1", "the digest is cut off", "malformed", &|f| {
        f.records[1].body.pop();
    });
    file(
        "tensor-body-long",
        "TEN-1",
        "a byte behind the body of a raw tensor",
        "malformed",
        &|f| f.records[1].body.push(0),
    );
    file("rank-17", "TEN-1", "17 dimensions", "malformed", &|f| {
        f.records[1] = raw("b", Dtype::U8, &[1; 17], &[1]);
    });
    file(
        "shape-overflow",
        "TEN-10",
        "2^62 + 1 times 4 elements, which wraps around to 4",
        "malformed",
        &|f| {
            f.records[1].body[3] = 2;
            let mut shape = ((1u64 << 62) + 1).to_le_bytes().to_vec();
            shape.extend(4u64.to_le_bytes());
            f.records[1].body.splice(8..16, shape);
        },
    );
    file("shape-half-byte", "TEN-2", "three elements of four bits", "malformed", &|f| {
        f.records[1] = raw("b", Dtype::F4, &[3], &[0x21, 3]);
    });
    file(
        "raw-with-planes-field",
        "TEN-3",
        "a raw tensor that claims five planes",
        "malformed",
        &|f| f.records[1].body[6] = 5,
    );
    file("raw-with-row-dims", "TEN-11", "a raw tensor with a row dimension", "malformed", &|f| {
        f.records[1].body[4] = 1
    });
    file("raw-digest", "TEN-5", "the digest of a raw tensor is wrong", "integrity", &|f| {
        let wrong = Digest::of(b"other");
        let t = f.records[1].tensor.as_mut().expect("a tensor");
        t.decoded = b"other".to_vec();
        put(&mut f.records[1].body, 16, &wrong.0);
    });
    file("file-dotdot", "NAM-2", "a path that leaves the folder", "malformed", &|f| {
        f.records.push(carried("../x", b"x"))
    });
    file("file-absolute", "NAM-2", "an absolute path", "malformed", &|f| {
        f.records.push(carried("/etc/x", b"x"))
    });
    file("file-drive", "NAM-2", "a drive letter", "malformed", &|f| {
        f.records.push(carried("C:x", b"x"))
    });
    file("file-backslash", "NAM-2", "a backslash", "malformed", &|f| {
        f.records.push(carried("a\\x", b"x"))
    });
    file("file-is-folder", "NAM-3", "a path that is file and folder", "malformed", &|f| {
        f.records.extend([carried("x", b"1"), carried("x/y", b"2")])
    });
    file("file-length", "FIL-2", "a length that the part doesn't have", "malformed", &|f| {
        let mut r = carried("x", b"12");
        r.body[0] = 3;
        f.records.push(r);
    });
    file("file-digest", "FIL-1", "the digest of a file is wrong", "integrity", &|f| {
        let mut r = carried("x", b"12");
        r.body[8] ^= 1;
        f.records.push(r);
    });
    file("alias-missing", "TEN-4", "an alias of nothing", "malformed", &|f| {
        let other = alias("c", "z", &f.records[1]);
        f.records.push(other);
    });
    file("alias-of-alias", "TEN-4", "an alias of an alias", "malformed", &|f| {
        let (c, d) = (alias("c", "b", &f.records[1]), alias("d", "c", &f.records[1]));
        f.records.extend([c, d]);
    });
    file("alias-shape", "TEN-8", "an alias with another shape", "malformed", &|f| {
        let mut c = alias("c", "b", &f.records[1]);
        c.body[3] = 2;
        let mut shape = 2u64.to_le_bytes().to_vec();
        shape.extend(2u64.to_le_bytes());
        c.body.splice(8..16, shape);
        c.tensor.as_mut().expect("a tensor").shape = vec![2, 2];
        f.records.push(c);
    });
    file("alias-with-part", "TEN-9", "an alias with bytes of its own", "malformed", &|f| {
        let mut c = alias("c", "b", &f.records[1]);
        c.parts.push(plain(1, 0, &[4, 5, 6, 7]));
        f.records.push(c);
    });
    file(
        "attachment-cut",
        "ATT-2",
        "an attachment that reaches beyond the section",
        "malformed",
        &|f| {
            f.attachments = attachment(1, b"a", b"x");
            f.attachments[8] = 200;
        },
    );
    file("attachment-padding", "ATT-3", "padding is not zero", "malformed", &|f| {
        f.attachments = attachment(1, b"a", b"x");
        f.attachments[63] = 1;
    });
    file("attachment-twice", "ATT-1", "one kind and name twice", "malformed", &|f| {
        f.attachments = [attachment(1, b"a", b"x"), attachment(1, b"a", b"y")].concat();
    });
    file("attachment-name", "ATT-4 NAM-1", "a line feed in a name", "malformed", &|f| {
        f.attachments = attachment(1, b"a\n", b"x");
    });
    file("attachment-reserved", "ATT-3", "the reserved word is set", "malformed", &|f| {
        f.attachments = attachment(1, b"a", b"x");
        f.attachments[4] = 1;
    });
    file("alias-dtype", "TEN-8", "an alias of another type", "malformed", &|f| {
        let mut c = alias("c", "b", &f.records[1]);
        c.body[0] = Dtype::I8.code();
        c.tensor.as_mut().expect("a tensor").dtype = Dtype::I8;
        f.records.push(c);
    });
    file("alias-digest", "TEN-8", "an alias with another digest", "malformed", &|f| {
        // Of planes, whose source digest in the manifest is free.
        let w = weights().record();
        let mut alias = alias("v", "w", &w);
        alias.decodes_to(b"other");
        f.records = vec![alias, w];
    });
    file("file-component", "NAM-2", "an empty component", "malformed", &|f| {
        f.records.push(carried("a//x", b"x"));
    });
    file("file-dot", "NAM-2", "a component that is a dot", "malformed", &|f| {
        f.records.push(carried("a/./x", b"x"));
    });
    file("file-body", "FIL-1", "a body of 39 bytes", "malformed", &|f| {
        let mut r = carried("x", b"12");
        r.body.pop();
        f.records.push(r);
    });
    file("name-c1-control", "NAM-1", "the control character U+0085", "malformed", &|f| {
        f.records[1].name = "b\u{85}".into();
    });
}
