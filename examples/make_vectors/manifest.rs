//! Vectors of spec/manifest.md.

use serde_json::{Value, json};
use ultracompress::{Digest, Dtype};

use super::file::{File, alias, carried, changes, hex, raw};
use super::set::VectorSet;

pub fn add(set: &mut VectorSet) {
    against_index(set);
    manifests(set);
}

/// Manifests that disagree with the index of their file.
fn against_index(set: &mut VectorSet) {
    let mut file = changes(set);
    file(
        "manifest-tensor-missing",
        "MAN-3",
        "a tensor that the manifest doesn't name",
        "malformed",
        &|f| {
            let mut m = f.default_manifest();
            m["tensors"].as_object_mut().expect("an object").remove("b");
            f.manifest = Some(serde_json_canonicalizer::to_vec(&m).expect("plain JSON"));
        },
    );
    file(
        "manifest-raw-digest",
        "MAN-3",
        "a raw tensor with another source digest",
        "malformed",
        &|f| {
            let mut m = f.default_manifest();
            m["tensors"]["b"]["sha256"] = Digest::of(b"").to_string().into();
            f.manifest = Some(serde_json_canonicalizer::to_vec(&m).expect("plain JSON"));
        },
    );
    file(
        "manifest-carried",
        "MAN-3",
        "a carried file that the manifest doesn't list",
        "malformed",
        &|f| {
            f.manifest =
                Some(serde_json_canonicalizer::to_vec(&f.default_manifest()).expect("plain JSON"));
            f.records.push(carried("x", b"12"));
        },
    );
    file(
        "manifest-tensor-extra",
        "MAN-3",
        "a tensor that isn't there is in the manifest",
        "malformed",
        &|f| {
            let mut m = f.default_manifest();
            m["tensors"]["c"] = m["tensors"]["b"].clone();
            f.manifest = Some(serde_json_canonicalizer::to_vec(&m).expect("plain JSON"));
        },
    );
    file(
        "manifest-carried-extra",
        "MAN-3",
        "a file that isn't there is carried by the manifest",
        "malformed",
        &|f| {
            let more = File::of(vec![carried("x", b"12")]).default_manifest();
            let mut m = f.default_manifest();
            m["files"] = more["files"].clone();
            f.manifest = Some(serde_json_canonicalizer::to_vec(&m).expect("plain JSON"));
        },
    );
    file(
        "manifest-alias-digest",
        "MAN-3",
        "an alias of a raw tensor with another source digest",
        "malformed",
        &|f| {
            let c = alias("c", "b", &f.records[1]);
            f.records.push(c);
            let mut m = f.default_manifest();
            m["tensors"]["c"]["sha256"] = Digest::of(b"").to_string().into();
            f.manifest = Some(serde_json_canonicalizer::to_vec(&m).expect("plain JSON"));
        },
    );
    file(
        "manifest-carried-digest",
        "MAN-3",
        "a carried file with another digest",
        "malformed",
        &|f| {
            f.records.push(carried("x", b"12"));
            let mut m = f.default_manifest();
            m["files"][0]["sha256"] = Digest::of(b"34").to_string().into();
            f.manifest = Some(serde_json_canonicalizer::to_vec(&m).expect("plain JSON"));
        },
    );
}

fn manifests(set: &mut VectorSet) {
    let base =
        File::of(vec![raw("a", Dtype::U8, &[1], &[1]), carried("x", b"1")]).default_manifest();
    let canonical = |v: &Value| serde_json_canonicalizer::to_string(v).expect("plain JSON");
    let mut add = |id: &str, rule: &str, comment: &str, expect: &str, text: &str| {
        let output = (expect == "ok").then(|| json!({}));
        set.add("manifest", id, &[rule], comment, &[], hex(text.as_bytes()).into(), expect, output);
    };
    add("valid", "MAN-2", "a tensor and a carried file", "ok", &canonical(&base));
    let mut more = base.clone();
    more["later"] = json!({ "a": [1, true, null, "\u{20ac}"] });
    more["licence"] = "MIT".into();
    let mut calibrated = base.clone();
    calibrated["calibration"] = "5".repeat(64).into();
    add("calibration", "MAN-2", "the digest of a calibration", "ok", &canonical(&calibrated));
    calibrated["calibration"] = "none".into();
    add(
        "no-calibration",
        "MAN-2",
        "a calibration that is no digest",
        "malformed",
        &canonical(&calibrated),
    );
    add("unknown-member", "MAN-6", "members that a reader doesn't know", "ok", &canonical(&more));
    let text = canonical(&base);
    add("not-json", "MAN-1", "cut off", "malformed", &text[..text.len() - 1]);
    let cut = text.find("vector\"").expect("the encoder") + 3;
    add("cut-in-string", "MAN-1", "cut off inside a string", "malformed", &text[..cut]);
    add(
        "space",
        "MAN-1",
        "a space that canonical JSON doesn't have",
        "malformed",
        &text.replacen(':', ": ", 1),
    );
    add(
        "unsorted",
        "MAN-1",
        "members out of order",
        "malformed",
        &format!("{{\"zzz\":1,{}", &text[1..]),
    );
    add(
        "duplicate",
        "MAN-1",
        "a member that stands there twice",
        "malformed",
        &text.replacen(
            "{\"encoder\":\"vector\"",
            "{\"encoder\":\"vector\",\"encoder\":\"vector\"",
            1,
        ),
    );
    add("trailing", "MAN-1", "a line feed behind the object", "malformed", &format!("{text}\n"));
    let (smile, dagesh) = ("\"\u{1f600}\":1", "\"\u{fb33}\":2");
    for (id, expect, first, second, order) in [
        ("keys-utf16", "ok", smile, dagesh, "UTF-16"),
        ("keys-code-points", "malformed", dagesh, smile, "code points"),
    ] {
        let comment = format!("members U+1F600 and U+FB33 in the order of {order}");
        let recipe = format!("\"recipe\":{{{first},{second}");
        add(id, "MAN-1", &comment, expect, &text.replacen("\"recipe\":{", &recipe, 1));
    }
    add(
        "deep",
        "MAN-1",
        "100 arrays in one another",
        "malformed",
        &text.replacen(
            "\"recipe\":{",
            &format!("\"recipe\":{{\"a\":{}{}", "[".repeat(100), "]".repeat(100)),
            1,
        ),
    );
    // The recipe is one level below the outermost object, its member `a` adds the others.
    for (id, expect, arrays) in [("deep-most", "ok", 63), ("deep-one-more", "malformed", 64)] {
        let nested = format!("\"recipe\":{{\"a\":{}1{}", "[".repeat(arrays), "]".repeat(arrays));
        let comment = format!("{} levels of arrays and objects below the outermost", arrays + 1);
        add(id, "MAN-1", &comment, expect, &text.replacen("\"recipe\":{", &nested, 1));
    }
    let with = |key: &str, value: Value| {
        let mut m = base.clone();
        m[key] = value;
        canonical(&m)
    };
    add(
        "float",
        "MAN-1",
        "a number that is not an integer",
        "malformed",
        &with("later", json!(1.5)),
    );
    add(
        "huge-integer",
        "MAN-1",
        "2^53",
        "malformed",
        &text.replacen("{\"encoder\"", "{\"aaa\":9007199254740992,\"encoder\"", 1),
    );
    for (id, expect, number) in [
        ("integers", "ok", "[-9007199254740991,9007199254740991]"),
        ("huge-negative", "malformed", "-9007199254740992"),
        ("negative-zero", "malformed", "-0"),
    ] {
        let member = format!("{{\"aaa\":{number},\"encoder\"");
        add(id, "MAN-1", number, expect, &text.replacen("{\"encoder\"", &member, 1));
    }
    let digest = Digest::of(b"").to_string();
    for (id, rule, expect, planes, root) in [
        ("rungs", "MAN-5 MAN-10", "ok", "7", digest.as_str()),
        ("rung-eight", "MAN-5", "malformed", "8", &digest),
        ("rung-two", "MAN-5", "malformed", "2", &digest),
        ("rung-digest", "MAN-10", "malformed", "3", "12"),
    ] {
        let comment = format!("a root of rung {planes} with {} digits", root.len());
        add(id, rule, &comment, expect, &with("rungs", json!({ planes: root })));
    }
    let mut nulls = base.clone();
    nulls["files"] = json!([{ "path": "w", "role": "left_out", "bytes": 1 }]);
    for (id, member, place) in [
        ("null-calibration", "calibration", ""),
        ("null-licence", "licence", ""),
        ("null-rungs", "rungs", ""),
        ("null-digest", "sha256", "/files/0"),
        ("null-metadata", "metadata", "/files/0"),
        ("null-file", "file", "/tensors/a"),
    ] {
        let mut m = nulls.clone();
        m.pointer_mut(place).expect("it is there")[member] = Value::Null;
        let comment = format!("the optional member {member} is null");
        add(id, "MAN-2", &comment, "malformed", &canonical(&m));
    }
    let mut m = base.clone();
    m["files"][0]["bytes"] = true.into();
    add("bytes-true", "MAN-2", "a length that is true", "malformed", &canonical(&m));
    let mut m = base.clone();
    m["tensors"]["a"]["file"] = "x".into();
    add(
        "file-carried",
        "MAN-8",
        "a tensor from a file that is carried",
        "malformed",
        &canonical(&m),
    );
    add("format", "MAN-2", "another format", "malformed", &with("format", "other".into()));
    add(
        "recipe-array",
        "MAN-2",
        "a recipe that is no object",
        "malformed",
        &with("recipe", json!([])),
    );
    add(
        "no-encoder",
        "MAN-2",
        "a member is missing",
        "malformed",
        &text.replacen("\"encoder\":\"vector\",", "", 1),
    );
    add("array", "MAN-2", "not an object", "malformed", "[]");
    let mut m = base.clone();
    m["files"][0]["path"] = "../x".into();
    add("path", "NAM-2", "a path that leaves the folder", "malformed", &canonical(&m));
    let mut m = base.clone();
    m["files"][0].as_object_mut().expect("an object").remove("sha256");
    add(
        "carried-without-digest",
        "MAN-2",
        "a carried file without a digest",
        "malformed",
        &canonical(&m),
    );
    let mut m = base.clone();
    m["tensors"]["a"]["sha256"] = Digest::of(&[1]).to_string().to_uppercase().into();
    add("digest", "MAN-2", "a digest in upper case", "malformed", &canonical(&m));
    let mut m = base.clone();
    m["tensors"]["a"]["file"] = "y".into();
    add(
        "file-not-listed",
        "MAN-8",
        "a tensor from a file that isn't listed",
        "malformed",
        &canonical(&m),
    );
    let mut m = base.clone();
    let second = json!({ "path": "a", "bytes": 1, "role": "left_out" });
    m["files"].as_array_mut().expect("an array").push(second.clone());
    add("files-unsorted", "MAN-7", "paths in falling order", "malformed", &canonical(&m));
    let mut m = base.clone();
    m["files"].as_array_mut().expect("an array").insert(0, second);
    add("left-out", "MAN-2", "a file that was left out needs no digest", "ok", &canonical(&m));
    let mut m = base.clone();
    m["files"][0]["role"] = "other".into();
    add("role", "MAN-2", "an unknown role", "malformed", &canonical(&m));
    let mut m = base.clone();
    let twice = [m["files"][0].clone(), m["files"][0].clone()];
    m["files"] = json!(twice);
    add("files-twice", "MAN-7", "one path twice", "malformed", &canonical(&m));
}
