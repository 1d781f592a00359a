//! Vectors of the section on sharded packs of spec/container.md.

use serde_json::{Value, json};
use ultracompress::Dtype;
use ultracompress::format::TreeHasher;

use super::file::{File, Record, alias, attachment, carried, hex, level_record, put, raw, seal};
use super::planes::{Planes, custom3, custom5, weights};
use super::set::VectorSet;
use super::{exact, overlay};

pub fn add(set: &mut VectorSet) {
    single(set);
    packs(set);
}

/// Shards by themselves.
fn single(set: &mut VectorSet) {
    let shard = |number, manifest| File {
        shard: Some((number, 2)),
        manifest,
        ..File::of(vec![raw("a", Dtype::U8, &[1], &[1])])
    };
    set.valid("shard-first", &["HDR-8"], "shard 1 of 2 by itself", &shard(1, None));
    let second = shard(2, Some(vec![]));
    set.valid("shard-second", &["HDR-8", "SHD-1"], "shard 2 of 2 by itself", &second);
    let mut lacking = overlay::shards().remove(0);
    lacking.shard = Some((1, 2));
    lacking.manifest = Some(
        serde_json_canonicalizer::to_vec(&File::of(vec![]).default_manifest()).expect("plain JSON"),
    );
    set.invalid(
        "shard-manifest-lacks",
        &["SHD-7", "MAN-3"],
        "the first shard of two: its manifest names none of its own tensors",
        "malformed",
        &lacking.bytes(),
    );
    for (id, comment, number, count) in [
        ("shard-zero", "shard 0 of 2", 0, 2),
        ("shard-beyond", "shard 3 of 2", 3, 2),
        ("shard-alone", "the feature bit in shard 1 of 1", 1, 1),
        ("shard-too-many", "shard 1 of 100000", 1, 100_000),
        ("shard-all-ones", "shard 1 of 2^32 - 1", 1, u32::MAX),
    ] {
        let file = File { shard: Some((number, count)), ..File::of(vec![]) };
        set.invalid(id, &["HDR-8"], comment, "malformed", &file.bytes());
    }
    let later = File { shard: Some((2, 2)), manifest: Some(vec![]), ..File::default() };
    let manifest = File { manifest: None, ..later.clone() };
    set.invalid(
        "shard-manifest",
        &["SHD-1"],
        "the second shard has a manifest",
        "malformed",
        &manifest.bytes(),
    );
    let mut bytes = later.bytes();
    put(&mut bytes, 80, &[1]);
    set.invalid(
        "shard-manifest-crc",
        &["SHD-1"],
        "the second shard has a checksum of no manifest",
        "malformed",
        &seal(bytes),
    );
    let mut head = carried("x", b"1");
    (head.kind, head.flags) = (6, 1);
    let head = File { records: vec![head], ..later.clone() };
    set.invalid(
        "shard-head",
        &["SHD-8"],
        "the second shard has a head",
        "malformed",
        &head.bytes(),
    );
    let receipt = File { attachments: attachment(1, b"r", b"{}"), ..later.clone() };
    set.invalid(
        "shard-attachment",
        &["SHD-1"],
        "the second shard has an attachment",
        "malformed",
        &receipt.bytes(),
    );
    let file = File { records: vec![carried("x", b"1")], ..later };
    set.invalid(
        "shard-file",
        &["SHD-8"],
        "the second shard carries a file",
        "malformed",
        &file.bytes(),
    );
}

/// Files by name.
type Shards = Vec<(String, Vec<u8>)>;

/// A pack of several files: the shards, and the index file.
#[derive(Clone)]
struct Sharded {
    shards: Shards,
    index: Value,
}

impl Sharded {
    /// The manifest of the first shard names what is in all of them.
    fn new(mut files: Vec<File>) -> Self {
        let count = u32::try_from(files.len()).expect("few");
        let all = File::of(files.iter().flat_map(|f| f.records.clone()).collect());
        for (number, file) in (1..).zip(&mut files) {
            file.shard = Some((number, count));
            file.manifest.get_or_insert_with(|| {
                if number == 1 {
                    serde_json_canonicalizer::to_vec(&all.default_manifest()).expect("plain JSON")
                } else {
                    vec![]
                }
            });
        }
        let shards: Vec<_> = (1..)
            .zip(&files)
            .map(|(n, f)| (format!("m-{n:05}-of-{count:05}.uc"), f.bytes()))
            .collect();
        let mut weight_map = serde_json::Map::new();
        for ((name, _), file) in shards.iter().zip(&files) {
            for r in file.records.iter().filter(|r| r.tensor.is_some()) {
                let tensor = String::from_utf8(r.name.clone()).expect("valid name");
                weight_map.insert(tensor, name.clone().into());
            }
        }
        let listed: Vec<_> = shards.iter().map(|(name, bytes)| Self::listed(name, bytes)).collect();
        // Roots are those of one file with all records.
        let index = json!({
            "format": "ultracompress-index-1",
            "stored_root": Self::stored_root(&shards),
            "decoded_root": hex(&all.bytes()[96..128]),
            "shards": listed,
            "weight_map": weight_map,
        });
        Self { shards, index }
    }

    fn listed(name: &str, bytes: &[u8]) -> Value {
        let core_len = u64::from_le_bytes(bytes[32..40].try_into().expect("8 bytes"));
        json!({
            "file": name, "core_len": core_len,
            "stored_root": hex(&bytes[128..160]), "decoded_root": hex(&bytes[96..128]),
        })
    }

    fn stored_root(shards: &[(String, Vec<u8>)]) -> String {
        let mut tree = TreeHasher::new();
        shards.iter().for_each(|(_, bytes)| tree.push(TreeHasher::leaf(&bytes[128..160])));
        tree.root().to_string()
    }

    /// Lists the shards again, after one was exchanged.
    fn relist(&mut self) {
        let listed: Vec<_> = self.shards.iter().map(|(n, b)| Self::listed(n, b)).collect();
        self.index["shards"] = listed.into();
        self.index["stored_root"] = Self::stored_root(&self.shards).into();
    }

    fn index_bytes(&self) -> Vec<u8> {
        serde_json_canonicalizer::to_vec(&self.index).expect("plain JSON")
    }

    fn input(&self, index: &[u8]) -> Value {
        let shards: serde_json::Map<String, Value> =
            self.shards.iter().map(|(name, bytes)| (name.clone(), hex(bytes).into())).collect();
        json!({ "index": hex(index), "shards": shards })
    }
}

fn packs(set: &mut VectorSet) {
    let first = || {
        let head = weights().record();
        let tied = alias("tied", "w", &head);
        File::of(vec![tied, head, carried("config.json", b"{}")])
    };
    let second = || File::of(vec![raw("bias", Dtype::U8, &[3], &[1, 2, 3])]);
    let good = || Sharded::new(vec![first(), second()]);
    let three = Sharded::new(vec![
        File::of(vec![]),
        second(),
        File::of(vec![level_record("t", 3, &custom3()), {
            let mut planes = Planes::new("w", Dtype::F16, &[2, 40], 16, &[3, 3]);
            planes.level_ids[0] = 1;
            planes.custom = Some((3, custom3()));
            planes.record()
        }]),
    ]);
    let again = |name, native, levels: Vec<i8>| {
        let mut custom = Planes::new("t", Dtype::F16, &[2, 40], 16, &[native, native]);
        custom.name = if name == "v" { "t1" } else { "t2" };
        custom.level_ids[usize::from(native) - 3] = 1;
        custom.custom = Some((native, levels.clone()));
        let exact = exact::with_residual(name);
        let records = vec![level_record("t", native, &levels), custom.record()];
        File::of([records, exact].concat())
    };
    let mut more = good();
    more.index["later"] = json!([1, "a member of a later version"]);
    more.index["shards"][0]["later"] = true.into();
    for (id, rules, comment, pack) in [
        (
            "index-unknown-member",
            ["SHD-11", "SHD-10"],
            "members of the index file and of a shard that a reader doesn't know",
            more,
        ),
        (
            "two-shards",
            [
                "HDR-8 SHD-1 SHD-2 SHD-3 SHD-4 SHD-5",
                "SHD-8 SHD-9 SHD-10 SHD-12 SHD-13 SHD-14 SHD-15",
            ],
            "planes, alias and file; raw",
            good(),
        ),
        (
            "three-shards",
            ["SHD-6 SHD-17", "ROOT-2"],
            "an empty first shard; a level table in the third",
            three,
        ),
        (
            "records-again",
            ["SHD-16", "EXA-22"],
            "level tables of one name and one exact model in both shards, each for its own",
            Sharded::new(vec![again("v", 3, custom3()), again("w", 5, custom5())]),
        ),
        (
            "overlays-over-shards",
            ["OVL-16", "OVL-4"],
            "an overlay in the first shard, for tensors of both",
            Sharded::new(overlay::shards()),
        ),
    ] {
        let output = json!({
            "stored_root": pack.index["stored_root"], "decoded_root": pack.index["decoded_root"],
        });
        let input = pack.input(&pack.index_bytes());
        set.add("pack/valid", id, &rules, comment, &[], input, "ok", Some(output));
    }

    let mut add =
        |id: &str, rule: &str, comment: &str, expect: &str, pack: &Sharded, index: &[u8]| {
            set.add("pack/invalid", id, &[rule], comment, &[], pack.input(index), expect, None);
        };
    let mut index = |id: &str, rule: &str, comment: &str, edit: &dyn Fn(&mut Value)| {
        let mut pack = good();
        edit(&mut pack.index);
        let kind = if id.ends_with("-root") { "integrity" } else { "malformed" };
        add(id, rule, comment, kind, &pack, &pack.index_bytes());
    };
    index("index-format", "SHD-10", "another format", &|v| {
        v["format"] = "ultracompress-index-2".into()
    });
    index("index-one-shard", "SHD-10", "one shard", &|v| {
        v["shards"].as_array_mut().expect("a list").truncate(1);
    });
    index("index-root-case", "SHD-10", "upper-case digits", &|v| {
        let upper = v["decoded_root"].as_str().expect("text").to_uppercase();
        v["decoded_root"] = upper.into();
    });
    index("index-no-map", "SHD-10", "no weight_map", &|v| {
        v.as_object_mut().expect("an object").remove("weight_map");
    });
    index("index-fraction", "SHD-3", "a length that isn't an integer", &|v| {
        v["shards"][0]["core_len"] = json!(1.5);
    });
    index("name-number", "SHD-2", "the second shard is named as the first", &|v| {
        v["shards"][1]["file"] = v["shards"][0]["file"].clone();
    });
    index("stored-root", "SHD-6", "another stored root", &|v| {
        v["stored_root"] = v["decoded_root"].clone();
    });
    index("decoded-root", "SHD-17", "another decoded root", &|v| {
        v["decoded_root"] = v["stored_root"].clone();
    });
    index("core-len", "SHD-13", "another length", &|v| v["shards"][1]["core_len"] = 64.into());
    index("map-unlisted", "SHD-15 SHD-14", "a tensor in a file that isn't listed", &|v| {
        v["weight_map"]["bias"] = "m.uc".into();
    });
    index("map-other-shard", "SHD-14", "a tensor is said to be in the other shard", &|v| {
        v["weight_map"]["bias"] = v["weight_map"]["w"].clone();
    });
    index("map-lacks", "SHD-14", "a tensor that the map lacks", &|v| {
        v["weight_map"].as_object_mut().expect("an object").remove("bias");
    });
    index("map-extra", "SHD-14", "a tensor that no shard has", &|v| {
        v["weight_map"]["more"] = v["weight_map"]["w"].clone();
    });
    index("map-name", "NAM-1", "a tensor name with a control character", &|v| {
        v["weight_map"]["a\u{7}"] = v["weight_map"]["w"].clone();
    });
    // The files are there under the names that are listed.
    for (id, rule, comment, names) in [
        (
            "name-folder",
            "SHD-9",
            "a shard in a folder",
            ["m-00001-of-00002.uc", "a/m-00002-of-00002.uc"],
        ),
        (
            "name-folders",
            "SHD-9",
            "shards in a folder",
            ["a/m-00001-of-00002.uc", "a/m-00002-of-00002.uc"],
        ),
        (
            "name-up",
            "SHD-9",
            "shards in the folder above",
            ["../m-00001-of-00002.uc", "../m-00002-of-00002.uc"],
        ),
        (
            "name-stem",
            "SHD-2",
            "names differ in more than the number",
            ["m-00001-of-00002.uc", "n-00002-of-00002.uc"],
        ),
        (
            "name-no-stem",
            "SHD-2",
            "nothing in front of the number",
            ["-00001-of-00002.uc", "-00002-of-00002.uc"],
        ),
        ("name-digits", "SHD-2", "four digits", ["m-0001-of-0002.uc", "m-0002-of-0002.uc"]),
    ] {
        let mut pack = good();
        for (shard, name) in pack.shards.iter_mut().zip(names) {
            shard.0 = name.into();
        }
        pack.relist();
        for (tensor, i) in [("bias", 1), ("tied", 0), ("w", 0)] {
            pack.index["weight_map"][tensor] = names[i].into();
        }
        add(id, rule, comment, "malformed", &pack, &pack.index_bytes());
    }
    let pack = good();
    let mut text = pack.index_bytes();
    text.push(b'\n');
    add("index-trailing", "SHD-3", "a line feed behind the object", "malformed", &pack, &text);
    add("index-empty", "SHD-3", "an empty index file", "malformed", &pack, b"");
    let text = String::from_utf8(pack.index_bytes()).expect("JSON is UTF-8");
    let twice = text.replacen("\"format\":", "\"format\":\"x\",\"format\":", 1);
    add("index-duplicate", "SHD-3", "a member twice", "malformed", &pack, twice.as_bytes());
    let deep = text.replacen("{", &format!("{{\"a\":{}{},", "[".repeat(200), "]".repeat(200)), 1);
    add("index-deep", "SHD-3", "deeply nested JSON", "malformed", &pack, deep.as_bytes());

    let mut missing = good();
    missing.shards.pop();
    add(
        "shard-missing",
        "SHD-4",
        "the second shard isn't there",
        "missing",
        &missing,
        &pack.index_bytes(),
    );
    let mut change = |id: &str,
                      rule: &str,
                      comment: &str,
                      expect: &str,
                      relist: bool,
                      edit: &dyn Fn(&mut Shards)| {
        let mut pack = good();
        edit(&mut pack.shards);
        if relist {
            pack.relist();
        }
        add(id, rule, comment, expect, &pack, &pack.index_bytes());
    };
    change(
        "shards-swapped",
        "SHD-12",
        "the shards have each other's names",
        "malformed",
        true,
        &|s| {
            let (one, two) = (s[0].1.clone(), s[1].1.clone());
            (s[0].1, s[1].1) = (two, one);
        },
    );
    change("shard-twice", "SHD-12", "the first shard is there twice", "malformed", true, &|s| {
        s[1].1 = s[0].1.clone();
    });
    change("shard-count", "SHD-12", "the second shard is one of three", "malformed", true, &|s| {
        put(&mut s[1].1, 88, &[3]);
        s[1].1 = seal(s[1].1.clone());
    });
    change(
        "shard-of-none",
        "SHD-12",
        "the second file is a pack of its own",
        "malformed",
        true,
        &|s| {
            s[1].1 = second().bytes();
        },
    );
    change("shard-other", "SHD-13", "a shard of another pack", "integrity", false, &|s| {
        let other = File::of(vec![raw("bias", Dtype::U8, &[3], &[3, 2, 1])]);
        s[1].1 = Sharded::new(vec![first(), other]).shards[1].1.clone();
    });
    change("shard-short", "HDR-6", "the second shard is cut off", "truncated", false, &|s| {
        let len = s[1].1.len();
        s[1].1.truncate(len - 64);
    });
    let both =
        Sharded::new(vec![File::of(vec![raw("bias", Dtype::U8, &[3], &[1, 2, 3])]), second()]);
    add(
        "tensor-twice",
        "SHD-5 SHD-14",
        "a tensor in two shards",
        "malformed",
        &both,
        &both.index_bytes(),
    );
    let later = |n: u8| Record {
        kind: 9,
        flags: 1,
        name: b"later".to_vec(),
        body: vec![n],
        ..Record::default()
    };
    let mut twice = [first(), second()];
    (0u8..).zip(&mut twice).for_each(|(n, file)| file.records.push(later(n)));
    let twice = Sharded::new(twice.to_vec());
    add(
        "record-twice",
        "SHD-16",
        "an optional record in two shards",
        "malformed",
        &twice,
        &twice.index_bytes(),
    );
    let mut lacking = first();
    lacking.manifest =
        Some(serde_json_canonicalizer::to_vec(&first().default_manifest()).expect("plain JSON"));
    let lacking = Sharded::new(vec![lacking, second()]);
    let text = lacking.index_bytes();
    add(
        "manifest-lacks",
        "MAN-3",
        "the manifest lacks a tensor of the second shard",
        "malformed",
        &lacking,
        &text,
    );
}
