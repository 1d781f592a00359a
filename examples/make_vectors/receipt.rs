//! Vectors of spec/receipt.md.

use serde_json::{Value, json};
use ultracompress::Digest;

use super::file::hex;
use super::set::VectorSet;

/// A record of two sequences, with figures that can be followed by hand.
fn receipt() -> Value {
    // e to the power of 2, 1.5 and 0.5: written out, so that no mathematical library matters.
    const E2: f64 = 7.389_056_098_930_65;
    const E1_5: f64 = 4.481_689_070_338_065;
    const E0_5: f64 = 1.648_721_270_700_128_2;
    let digest = |text: &str| Digest::of(text.as_bytes()).to_string();
    json!({
        "format": "ultracompress-eval-1", "tool": "vectors", "metric": "kld",
        "architecture": "LlamaForCausalLM", "reference_root": digest("reference"),
        "tokenizer_sha256": digest("tokenizer"),
        "model": {
            "decoded_root": digest("decoded"), "stored_root": digest("stored"), "encoder": "vectors",
            "rung": null, "body_bpw": 5.25, "file_bpw": 6.5,
        },
        "text": { "sha256": digest("text"), "bytes": 4096, "tokens": 1025 },
        "protocol": { "seq_len": 128, "max_tokens": 256, "sequences": 2, "tokens": 254 },
        "rows": {
            "nll": [1.0, 3.0], "nll_reference": [1.0, 2.0], "kld": [0.25, 0.75], "top1": [1.0, 0.5],
        },
        "kld_largest": [2.0, 1.5, 1.25],
        // Differences of nll are 0 and 1: mean 1/2, standard error 1/2.
        "headline": {
            "ppl": E2, "ppl_reference": E1_5, "ppl_ratio": E0_5, "ppl_ratio_se": E0_5 / 2.0, "kld_mean": 0.5, "kld_se": 0.25, "kld_p99": 1.25,
            "top1_agreement": 0.75,
        },
        "baselines": [{
            "name": "q8_0", "body_bpw": 8.5,
            "rows": { "nll": [1.0, 2.0], "kld": [0.125, 0.125], "top1": [1.0, 1.0] },
            "headline": {
                "ppl": E1_5, "ppl_reference": E1_5, "ppl_ratio": 1.0,
                "ppl_ratio_se": 0.0, "kld_mean": 0.125, "kld_se": 0.0, "top1_agreement": 1.0,
            },
        }],
    })
}

pub fn add(set: &mut VectorSet) {
    let canonical = |v: &Value| serde_json_canonicalizer::to_vec(v).expect("finite numbers");
    let mut add = |id: &str, rule: &str, comment: &str, bytes: &[u8], expect: &str| {
        set.add("receipt", id, &[rule], comment, &[], json!(hex(bytes)), expect, None);
    };
    let all = "RCP-1 RCP-2 RCP-3 RCP-5 RCP-6 RCP-7 RCP-8 RCP-9 RCP-14";
    add("valid", all, "a record of two sequences", &canonical(&receipt()), "ok");
    let changed = |pointer: &str, to: Value| {
        let mut v = receipt();
        *v.pointer_mut(pointer).expect("the record has it") = to;
        canonical(&v)
    };
    let cosine = {
        let mut v = receipt();
        v["metric"] = json!("cosine");
        v["architecture"] = json!("BertModel");
        v["kld_largest"] = json!([]);
        v["baselines"] = json!([]);
        v["protocol"] = json!({ "seq_len": 64, "max_tokens": null, "sequences": 1, "tokens": 62 });
        v["rows"] = json!({ "cosine_pooled": [0.5], "cosine_hidden": [0.75] });
        v["headline"] = json!({
            "cosine_pooled_mean": 0.5, "cosine_pooled_se": null, "cosine_pooled_min": 0.5,
            "cosine_hidden_mean": 0.75, "cosine_hidden_se": null, "cosine_hidden_min": 0.75,
        });
        v
    };
    add("cosine", all, "an encoder, one sequence: no standard errors", &canonical(&cosine), "ok");
    let mut largest = cosine.clone();
    largest["kld_largest"] = json!([0.5]);
    add("cosine-largest", "RCP-9", "divergences of an encoder", &canonical(&largest), "malformed");
    let mut fewer = receipt();
    fewer["protocol"]["max_tokens"] = Value::Null;
    add(
        "fewer-sequences",
        "RCP-6",
        "two sequences of eight that the text has",
        &canonical(&fewer),
        "ok",
    );
    // The mean of three equal numbers is another number in binary64, unless sums are taken with
    // more bits.
    let equal = |se: f64, mean: f64| {
        let mut v = receipt();
        v["protocol"] = json!({ "seq_len": 128, "max_tokens": 384, "sequences": 3, "tokens": 381 });
        v["baselines"] = json!([]);
        v["rows"] = json!({ "nll": [0, 0, 0], "nll_reference": [0, 0, 0], "kld": [0.1, 0.1, 0.1], "top1": [1, 1, 1] });
        v["kld_largest"] = json!([2.0, 1.5, 1.25, 1.0]);
        v["headline"] = json!({
            "ppl": 1, "ppl_reference": 1, "ppl_ratio": 1, "ppl_ratio_se": 0, "kld_mean": mean, "kld_se": se, "kld_p99": 1,
            "top1_agreement": 1,
        });
        canonical(&v)
    };
    add(
        "error-zero",
        "RCP-3",
        "a standard error of 0, where binary64 may leave 10^-17",
        &equal(0.0, 0.1),
        "ok",
    );
    add("error-floor", "RCP-3", "the same as 9 x 10^-13: it counts as 0", &equal(9e-13, 0.1), "ok");
    add("error-beyond", "RCP-3", "the same as 2 x 10^-12", &equal(2e-12, 0.1), "integrity");
    add(
        "mean-precision",
        "RCP-3",
        "a mean that is off by 5 x 10^-10",
        &equal(0.0, 0.1 + 5e-10),
        "integrity",
    );

    let one = canonical(&receipt());
    add("not-json", "RCP-1", "cut off", &one[..one.len() - 1], "malformed");
    let spaced = [&one[..], b"\n"].concat();
    add("trailing", "RCP-1", "a line feed behind it", &spaced, "malformed");
    let text = String::from_utf8(one.clone()).expect("JSON");
    let plus = text.replace("\"body_bpw\":5.25", "\"body_bpw\":5.250");
    add("number", "RCP-1", "a number with a zero too many", plus.as_bytes(), "malformed");
    let twice = text.replace("\"tool\":", "\"text\":{},\"tool\":");
    add("twice", "RCP-1 RCP-2", "a member twice", twice.as_bytes(), "malformed");

    for (id, rule, comment, pointer, to) in [
        ("format", "RCP-2", "an unknown format", "/format", json!("ultracompress-eval-2")),
        ("metric", "RCP-2", "an unknown metric", "/metric", json!("accuracy")),
        ("digest", "RCP-2", "a digest in capitals", "/text/sha256", json!("A".repeat(64))),
        ("rung", "RCP-2", "a rung of nine planes", "/model/rung", json!(9)),
        ("no-sequences", "RCP-2 RCP-5", "no sequences", "/protocol/sequences", json!(0)),
        (
            "largest-few",
            "RCP-9",
            "two of three largest divergences",
            "/kld_largest",
            json!([2.0, 1.25]),
        ),
        (
            "largest-too-large",
            "RCP-13",
            "more divergence in three tokens than in all",
            "/kld_largest/0",
            json!(1000.0),
        ),
        ("largest-null", "RCP-2", "a divergence that is no number", "/kld_largest/1", Value::Null),
        (
            "few-tokens",
            "RCP-5",
            "not all tokens of the sequences are scored",
            "/protocol/tokens",
            json!(227),
        ),
        ("text-short", "RCP-6", "more tokens than the text has", "/text/tokens", json!(255)),
        (
            "too-many-tokens",
            "RCP-5",
            "more tokens than the sequences have",
            "/protocol/tokens",
            json!(257),
        ),
    ] {
        add(id, rule, comment, &changed(pointer, to), "malformed");
    }
    // Their headlines follow.
    for (id, rule, comment, pointer, to, figures) in [
        (
            "column-short",
            "RCP-7",
            "a column of one number",
            "/rows/kld",
            json!([0.5]),
            json!({ "kld_mean": 0.5, "kld_se": null }),
        ),
        (
            "top1-above-one",
            "RCP-8",
            "a share above 1",
            "/rows/top1",
            json!([2.0, 0.5]),
            json!({ "top1_agreement": 1.25 }),
        ),
        (
            "kld-negative",
            "RCP-8",
            "a divergence below zero by more than rounding",
            "/rows/kld",
            json!([-0.25, 1.25]),
            json!({ "kld_se": 0.75 }),
        ),
        (
            "largest-rising",
            "RCP-12",
            "divergences that rise",
            "/kld_largest",
            json!([1.25, 1.5, 2.0]),
            json!({ "kld_p99": 2.0 }),
        ),
        (
            "largest-negative",
            "RCP-10",
            "the last of the largest is below zero by more than rounding",
            "/kld_largest/2",
            json!(-0.01),
            json!({ "kld_p99": -0.01 }),
        ),
    ] {
        let mut v = receipt();
        *v.pointer_mut(pointer).expect("the record has it") = to;
        for (name, figure) in figures.as_object().expect("an object") {
            v["headline"][name] = figure.clone();
        }
        add(id, rule, comment, &canonical(&v), "malformed");
    }
    for (id, rule, pointer) in [
        ("extra-model", "RCP-2", "/model"),
        ("extra-text", "RCP-2", "/text"),
        ("extra-protocol", "RCP-2", "/protocol"),
        ("extra-baseline", "RCP-2", "/baselines/0"),
        ("extra-column", "RCP-7", "/rows"),
        ("extra-baseline-column", "RCP-7", "/baselines/0/rows"),
    ] {
        let mut v = receipt();
        let place = v.pointer_mut(pointer).expect("the record has it");
        // A column has numbers in range.
        place["nll_reference_"] = json!([0.5, 0.5]);
        let comment = format!("{pointer} has a member that is not defined");
        add(id, rule, &comment, &canonical(&v), "malformed");
    }
    let mut figure = receipt();
    figure["headline"]["kld_median"] = json!(0.5);
    add("extra-figure", "RCP-14", "a figure that is not defined", &canonical(&figure), "integrity");
    let mut wide = cosine.clone();
    wide["rows"]["cosine_pooled"] = json!([1.5]);
    (wide["headline"]["cosine_pooled_mean"], wide["headline"]["cosine_pooled_min"]) =
        (json!(1.5), json!(1.5));
    add("cosine-range", "RCP-8", "a cosine of 1.5", &canonical(&wide), "malformed");
    let mut exact = cosine.clone();
    exact["text"]["tokens"] = json!(62);
    add(
        "cosine-tokens",
        "RCP-6",
        "a text of just the tokens between the ends",
        &canonical(&exact),
        "ok",
    );
    let most = changed("/protocol/max_tokens", json!(255));
    add("max-tokens", "RCP-6", "a token more than max_tokens", &most, "malformed");
    for (id, rung, expect) in [("rung-eight", 8, "ok"), ("rung-two", 2, "malformed")] {
        let comment = format!("a rung of {rung} planes");
        add(id, "RCP-2", &comment, &changed("/model/rung", json!(rung)), expect);
    }
    for (id, integer, expect) in
        [("integer-most", (1u64 << 53) - 1, "ok"), ("integer-beyond", 1u64 << 53, "malformed")]
    {
        let comment = format!("a text of {integer} bytes");
        add(id, "RCP-2", &comment, &changed("/text/bytes", json!(integer)), expect);
    }
    let close = changed("/headline/kld_mean", json!(0.5 * (1.0 + 5e-10)));
    add("mean-close", "RCP-3", "a mean that is off by half of what is allowed", &close, "ok");
    let mut slack = receipt();
    slack["rows"]["kld"] = json!([-1e-7, 1e-7]);
    slack["kld_largest"] = json!([1e-6, 1e-6, 1e-6]);
    for (name, figure) in [("kld_mean", 0.0), ("kld_se", 1e-7), ("kld_p99", 1e-6)] {
        slack["headline"][name] = json!(figure);
    }
    let comment =
        "divergences of zero but for rounding: one is below, the largest are more than all";
    add("rounding", "RCP-8 RCP-10 RCP-13", comment, &canonical(&slack), "ok");
    let mut nulls = receipt();
    for member in ["stored_root", "encoder", "body_bpw", "file_bpw"] {
        nulls["model"][member] = Value::Null;
    }
    nulls["baselines"][0]["body_bpw"] = Value::Null;
    add("nulls", "RCP-2", "a model that is no pack", &canonical(&nulls), "ok");
    for (id, number, written) in [
        ("number-1e20", 1e20, "100000000000000000000"),
        ("number-1e21", 1e21, "1e+21"),
        ("number-1e-6", 1e-6, "0.000001"),
        ("number-1e-7", 1e-7, "1e-7"),
    ] {
        let bytes = changed("/model/file_bpw", json!(number));
        let member = format!("\"file_bpw\":{written}");
        assert!(String::from_utf8_lossy(&bytes).contains(&member), "{written}");
        let comment = format!("a number that is written as {written}");
        add(id, "RCP-1", &comment, &bytes, "ok");
    }
    let huge = text.replace("\"body_bpw\":5.25", "\"body_bpw\":1e999");
    add("infinite", "RCP-1", "a number beyond binary64", huge.as_bytes(), "malformed");
    let mut both = receipt();
    both["model"]["rung"] = json!(4);
    both["model"]["effective_root"] = both["model"]["decoded_root"].clone();
    add("rung-with-overlays", "RCP-4", "a rung with overlays", &canonical(&both), "malformed");
    let mut overlays = receipt();
    overlays["model"]["effective_root"] = json!("5".repeat(64));
    add("overlays", "RCP-2", "the root of a model with overlays", &canonical(&overlays), "ok");
    let mut extra = receipt();
    extra["host"] = json!("a");
    add("extra", "RCP-2", "a member that is not defined", &canonical(&extra), "malformed");
    let mut missing = receipt();
    missing.as_object_mut().expect("an object").remove("tool");
    add("missing", "RCP-2", "a member is missing", &canonical(&missing), "malformed");
    let mut named = receipt();
    named["baselines"] = json!([named["baselines"][0], named["baselines"][0]]);
    add("baseline-twice", "RCP-11", "two baselines of one name", &canonical(&named), "malformed");

    for (id, comment, pointer, to) in [
        ("headline-kld", "a better mean than the rows give", "/headline/kld_mean", json!(0.4)),
        (
            "headline-overflow",
            "rows whose mean overflows: nothing follows",
            "/rows/kld",
            json!([1e308, 1e308]),
        ),
        (
            "headline-null",
            "no standard error where the rows give one",
            "/headline/kld_se",
            Value::Null,
        ),
        (
            "headline-p99",
            "a percentile that isn't the last of the largest",
            "/headline/kld_p99",
            json!(1.5),
        ),
        (
            "baseline-ppl",
            "a worse baseline than its rows give",
            "/baselines/0/headline/ppl_ratio",
            json!(1.01),
        ),
    ] {
        add(id, "RCP-3", comment, &changed(pointer, to), "integrity");
    }
    let mut lacks = receipt();
    lacks["headline"].as_object_mut().expect("an object").remove("ppl");
    add(
        "headline-lacks",
        "RCP-14",
        "a headline without perplexity",
        &canonical(&lacks),
        "integrity",
    );
}
