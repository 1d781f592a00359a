//! What runs the model: `eval` and receipts, `calibrate` and what is packed by it, `train` and
//! overlays.

use std::collections::BTreeMap;
use std::fs;
use std::sync::OnceLock;

use serde_json::Value;

use crate::is_digest;
use crate::support::checkpoint::f32s;
use crate::support::folder::{Desk, models};
use crate::support::uc::source;

#[test]
fn eval_records_and_receipts_by_the_contract() {
    let desk = Desk::with_pack();
    let line = "The people came to hear the law, and it was good. A single man must be in want of a wife.\n";
    desk.write("text.txt", line.repeat(40));
    let source = source();
    let eval = |more: &[&str]| {
        let all =
            ["eval", "model.uc", "--against", &source, "--text", "text.txt", "--seq-len", "64"];
        desk.run(&[&all[..], more].concat())
    };
    let record = ["--record", "eval.json", "--baseline", "q8_0,q5_0", "--json", "-q"];
    let found = eval(&record).expect(0).json();
    let keys: Vec<&str> =
        "tokens sequences seq_len ppl ppl_reference ppl_ratio ppl_ratio_se kld_mean kld_se \
                           kld_p99 top1_agreement body_bpw file_bpw"
            .split_whitespace()
            .collect();
    for key in keys {
        assert!(found[key].is_number(), "{key}: {found}");
    }
    let baselines = found["baselines"].as_array().expect("an array");
    assert_eq!(baselines.len(), 2);
    for key in ["body_bpw", "ppl_ratio", "ppl_ratio_se", "kld_mean", "kld_se"] {
        assert!(baselines[1][key].is_number(), "{key}: {}", baselines[1]);
    }
    assert_eq!(baselines[1]["name"], "q5_0");
    // Once more: nothing is replaced, and nothing is computed before that is known.
    eval(&record).expect(1).says("--force");
    eval(&["--record", "eval.json", "-q", "--force", "--max-tokens", "200"]).expect(0).prints("KL");
    eval(&["--rung", "4", "-q"]).expect(0).prints("model, rung 4");
    eval(&["--seq-len", "4000"]).expect(2);
    eval(&["--max-tokens", "10"]).expect(1).says("too short");
    eval(&["--baseline", "q5_0,q5_0"]).expect(2).says("twice");

    desk.run(&["receipt", "check", "model.uc"]).expect(1).says("no receipt");
    desk.run(&["receipt", "add", "model.uc", "eval.json", "-o", "with.uc"])
        .expect(0)
        .prints("eval-");
    desk.run(&["receipt", "add", "model.uc", "eval.json", "-o", "with.uc"])
        .expect(1)
        .says("--force");
    desk.run(&["receipt", "add", "with.uc", "eval.json", "-o", "twice.uc"]).expect(2);
    desk.run(&["receipt", "add", "model.uc", "text.txt", "-o", "not.uc"])
        .expect(1)
        .says("UC-RCP-1");
    desk.run(&["same", "model.uc", "with.uc"]).expect(0);
    desk.run(&["verify", "with.uc", "-q"]).expect(0);
    let checked = desk.run(&["receipt", "check", "with.uc", "--json"]).expect(0).json();
    assert_eq!(checked["receipts"][0]["headline"], "ok");
    let info = desk.run(&["info", "with.uc", "--json"]).expect(0).json();
    assert!(info["receipts"][0]["headline"]["kld_mean"].is_number(), "{info}");
    let before = desk.run(&["info", "model.uc", "--json"]).expect(0).json();
    assert_eq!(before["stored_root"], info["stored_root"]);
    desk.run(&["info", "with.uc"]).expect(0).prints("kld_mean");

    // A headline that the rows don't give, or of another pack, is a mismatch.
    let text = fs::read_to_string(desk.path("eval.json")).expect("written");
    let better = text.replacen("\"kld_mean\":", "\"kld_mean\":1", 1);
    desk.write("better.json", better);
    desk.run(&["receipt", "add", "model.uc", "better.json", "-o", "b.uc"])
        .expect(3)
        .says("kld_mean");
    desk.run(&["pack", &source, "-o", "six.uc", "--bits", "6", "-q"]).expect(0);
    desk.run(&["receipt", "add", "six.uc", "eval.json", "-o", "b.uc"])
        .expect(3)
        .says("another pack");
    assert!(desk.names().iter().all(|n| !n.starts_with('.') && n != "b.uc" && n != "twice.uc"));
}

/// A text that gives the fixture enough to see.
fn text() -> String {
    let lines = [
        "The people came to hear the law, and it was good. A single man must be in want of a wife.\n",
        "And the Lord spake unto Moses, saying, Speak unto the children of Israel.\n",
        "The whale rose slowly from the sea; call me what you will, he said, and went below.\n",
        "Fellow citizens of the Senate and House of Representatives, the state of the Union is strong.\n",
    ];
    (0..56).map(|i| lines[(i * i + i / 3) % 4]).collect()
}

/// A folder with a calibration of the fixture as `model.cal`.
fn with_calibration() -> Desk {
    static STATS: OnceLock<Vec<u8>> = OnceLock::new();
    let desk = Desk::new();
    desk.write("text.txt", text());
    let stats = STATS.get_or_init(|| {
        let args =
            ["calibrate", &source(), "--text", "text.txt", "-o", "model.cal", "--seq-len", "64"];
        let found = desk.run(&[&args[..], &["--json", "-q"]].concat()).expect(0).json();
        assert_eq!(found["layers"], 2 * 7 + 1, "{found}");
        assert!(found["tokens"].as_u64().is_some_and(|n| n > 1000) && is_digest(&found["sha256"]));
        desk.run(&args).expect(1).says("--force");
        let again = desk.run(&[&args[..], &["--force", "--json", "-q", "-j1"]].concat());
        assert_eq!(again.expect(0).json(), found, "threads make no difference");
        desk.read("model.cal")
    });
    desk.write("model.cal", stats);
    desk
}

#[test]
fn calibrated_packs_keep_their_budget_and_are_better() {
    let desk = with_calibration();
    let source = source();
    let pack = |out: &str, more: &[&str]| {
        let args = ["pack", &source, "--calibration", "model.cal", "-o", out, "--json", "-q"];
        desk.run(&[&args[..], more].concat())
    };
    let kld = |pack: &str| {
        let args = ["eval", pack, "--against", &source, "--text", "text.txt", "--seq-len", "64"];
        let found = desk.run(&[&args[..], &["--json", "-q"]].concat()).expect(0).json();
        found["kld_mean"].as_f64().expect("a number")
    };
    let found = pack("a.uc", &["--bpw", "5.3"]).expect(0).json();
    let bpw = found["body_bpw"].as_f64().expect("a number");
    assert!(bpw <= 5.3 && bpw > 5.25, "{bpw}");
    desk.run(&["verify", "a.uc", "-q"]).expect(0);
    desk.run(&["pack", &source, "-o", "plain.uc", "-q"]).expect(0);
    let plain = desk.run(&["info", "plain.uc", "--json"]).expect(0).json();
    // A tenth of a bit is worth 13 percent.
    assert!(
        plain["body_bpw"].as_f64().is_some_and(|plain| plain > bpw - 0.1),
        "about as many bits"
    );
    assert!(kld("a.uc") < 0.5 * kld("plain.uc"), "worse by far");

    // The same bytes from one thread and from scalar code.
    let args = ["pack", &source, "--calibration", "model.cal", "-o", "c.uc", "--bpw", "5.3", "-q"];
    let args = [&args[..], &["-j1"]].concat();
    let scalar = desk.command(&args).env("UC_KERNEL", "scalar").status().expect("starts");
    assert!(scalar.success());
    let bytes = |name: &str| desk.read(name);
    assert!(bytes("a.uc") == bytes("c.uc"));

    // Every switch the other way, and a tensor that is forced.
    let lines = "[calibrated]\nbpw = 5.3\noutput_feedback = false\ndescent_passes = 1\n\
                 allocation = \"tensor\"\nchoose_group = false\ntable_group = 64\nfit_levels = false\n";
    desk.write("r.toml", lines);
    let other = ["--recipe", "r.toml", "--tensor", "v_proj=8", "--shard-size", "1M"];
    let other = pack("o.uc", &other).expect(0).json();
    assert!(other["body_bpw"].as_f64().is_some_and(|b| b <= 5.3 && b > 4.5), "{other}");
    let info = desk.run(&["info", "o.uc", "--json"]).expect(0).json();
    let tensors = info["tensors"].as_array().expect("an array");
    let all_named = |part: &str, check: &dyn Fn(&Value) -> bool| {
        let mut named =
            tensors.iter().filter(|t| t["name"].as_str().is_some_and(|n| n.contains(part)));
        assert!(named.all(check), "{part}: {info}");
    };
    all_named("v_proj", &|t| t["planes"] == 8);
    all_named("_proj", &|t| t["group"] == 32);
    all_named("head", &|t| t["group"] == 64);
    // Without a budget: so many planes everywhere.
    let recipe = "[calibrated]\ninput_feedback = false\ndescent_passes = 0\n";
    desk.write("r.toml", recipe);
    let uniform = pack("u.uc", &["--bits", "4", "--recipe", "r.toml"]).expect(0).json();
    assert!(uniform["body_bpw"].as_f64().is_some_and(|b| b > 4.0 && b < 4.5), "{uniform}");
    let plan = desk.run(&[
        "pack",
        &source,
        "--calibration",
        "model.cal",
        "--bpw",
        "5",
        "-o",
        "n.uc",
        "--dry-run",
    ]);
    plan.expect(0).prints("calibrated: ");
    assert!(!desk.names().contains(&"n.uc".to_owned()));
}

#[test]
fn unusable_calibrations_exit_with_one_and_leave_nothing() {
    use std::collections::HashMap;

    use safetensors::SafeTensors;
    use safetensors::tensor::TensorView;

    let desk = with_calibration();
    let source = source();
    let names = desk.names();
    let refuse = |calibration: &str, bpw: &str, says: &str| {
        let args =
            ["pack", &source, "--calibration", calibration, "--bpw", bpw, "-o", "x.uc", "-q"];
        desk.run(&args).expect(1).says(says);
        assert!(desk.names().iter().all(|n| n != "x.uc" && !n.starts_with('.')), "{says}");
    };
    refuse("none.cal", "5", "none.cal");
    refuse("text.txt", "5", "safetensors");
    refuse(&format!("{source}/model.safetensors"), "5", "not a calibration");
    refuse("model.cal", "3", "can't be kept");
    desk.run(&["pack", &source, "--bpw", "5", "-o", "x.uc"]).expect(2);
    let args = ["pack", &source, "--calibration", "model.cal", "-o", "x.uc"];
    for wrong in ["0x5", "-1", "nan", "5.00001", ""] {
        desk.run(&[&args[..], &["--bpw", wrong]].concat()).expect(2);
    }
    desk.run(&[&args[..], &["--bpw", "5", "--bits", "5"]].concat()).expect(2);
    desk.write("r.toml", "[calibrated]\nbpw = 5\n");
    desk.run(&["pack", &source, "--recipe", "r.toml", "-o", "x.uc"]).expect(2).says("calibration");
    desk.write("r.toml", "[calibrated]\nfeedback = 5\n");
    desk.run(&[&args[..], &["--recipe", "r.toml"]].concat()).expect(2).says("feedback");
    fs::remove_file(desk.path("r.toml")).expect("was there");
    let other = models().join("llama3");
    let other = other.to_str().expect("UTF-8");
    desk.run(&["pack", other, "--calibration", "model.cal", "--bpw", "6", "-o", "x.uc"])
        .expect(1)
        .says("another model");

    // Damage, one piece at a time.
    let bytes = desk.read("model.cal");
    desk.write("cut.cal", &bytes[..bytes.len() - 5]);
    refuse("cut.cal", "5", "cut off");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("safetensors");
    let metadata = header.metadata().clone().expect("has a record");
    let record: Value = serde_json::from_str(&metadata["ultracompress_calibration"]).expect("JSON");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    type Tensors = BTreeMap<String, Vec<f32>>;
    let tensors: Tensors =
        tensors.tensors().into_iter().map(|(name, t)| (name, f32s(t.data()))).collect();
    let write = |name: &str, change: &dyn Fn(&mut Value, &mut Tensors)| {
        let (mut record, mut tensors) = (record.clone(), tensors.clone());
        change(&mut record, &mut tensors);
        let bytes: BTreeMap<String, Vec<u8>> = tensors
            .into_iter()
            .map(|(name, v)| (name, v.iter().flat_map(|x| x.to_le_bytes()).collect()))
            .collect();
        let views = bytes.iter().map(|(name, b)| {
            let shape = vec![b.len() / 4];
            (name.clone(), TensorView::new(safetensors::Dtype::F32, shape, b).expect("fits"))
        });
        let metadata =
            HashMap::from([("ultracompress_calibration".to_owned(), record.to_string())]);
        let path = desk.path(name);
        safetensors::serialize_to_file(views, Some(metadata), &path).expect("writes");
    };
    const DOWN: &str = "model.layers.1.mlp.down_proj";
    write("root.cal", &|r, _| r["model_root"] = "0".repeat(64).into());
    refuse("root.cal", "5", "another model");
    write("missing.cal", &|r, t| {
        r["layers"].as_object_mut().expect("an object").remove(DOWN);
        t.remove(&format!("{DOWN}.input"));
        t.remove(&format!("{DOWN}.output"));
    });
    refuse("missing.cal", "5", "lacks");
    write("no-tensor.cal", &|_, t| drop(t.remove(&format!("{DOWN}.output"))));
    refuse("no-tensor.cal", "5", "lacks");
    write("extra.cal", &|_, t| drop(t.insert("x".into(), vec![1.0])));
    refuse("extra.cal", "5", "doesn't speak of");
    write("nan.cal", &|_, t| t.get_mut(&format!("{DOWN}.input")).expect("there")[7] = f32::NAN);
    refuse("nan.cal", "5", "NaN");
    write("zero.cal", &|_, t| t.get_mut(&format!("{DOWN}.output")).expect("there").fill(0.0));
    refuse("zero.cal", "5", "zero");
    write("indefinite.cal", &|_, t| t.get_mut(&format!("{DOWN}.input")).expect("there")[1] = 1e9);
    refuse("indefinite.cal", "5", "positive definite");
    write("shape.cal", &|r, t| {
        r["layers"][DOWN]["rows"] = 64.into();
        t.get_mut(&format!("{DOWN}.output")).expect("there").truncate(64 * 65 / 2);
    });
    refuse("shape.cal", "5", "64 x 256");
    for (name, member, value) in [
        ("v.cal", "format_version", Value::from(2)),
        ("b.cal", "output_block", 65.into()),
        ("l.cal", "layers", Value::Null),
        ("m.cal", "more", 1.into()),
    ] {
        write(name, &|r, _| r[member] = value.clone());
        refuse(name, "5", "calibration");
    }
    write("cycle.cal", &|r, _| r["layers"][DOWN]["input"] = "nowhere".into());
    refuse("cycle.cal", "5", "inputs");
    write("wide.cal", &|r, _| r["layers"][DOWN]["cols"] = u64::MAX.into());
    refuse("wide.cal", "5", "columns");
    assert!(names.iter().all(|n| desk.names().contains(n)));

    // The text and the model it is made from.
    let calibrate = |model: &str, more: &[&str]| {
        let args = ["calibrate", model, "--text", "text.txt", "-o", "z.cal"];
        desk.run(&[&args[..], more].concat())
    };
    calibrate(&source, &["--seq-len", "64", "--max-tokens", "10"]).expect(1).says("too short");
    calibrate(&source, &["--seq-len", "64", "--output-block", "65"]).expect(2).says("64");
    calibrate(&source, &["--seq-len", "1"]).expect(2);
    let bert = models().join("bert");
    calibrate(bert.to_str().expect("UTF-8"), &[]).expect(2).says("encoder");
    let inside = format!("{source}/config.json");
    desk.run(&["calibrate", &source, "--text", "text.txt", "-o", &inside, "--force"])
        .expect(1)
        .says("source");
    assert!(!desk.names().contains(&"z.cal".to_owned()));
}

#[test]
fn overlays_are_trained_listed_removed_and_refused_by_the_contract() {
    let desk = Desk::with_pack();
    let line = "The people came to hear the law, and it was good. A single man must be in want of a wife.\n";
    desk.write("text.txt", line.repeat(60));
    let source = source();
    let train = |more: &[&str]| {
        let all =
            ["train", "model.uc", "--model", &source, "--text", "text.txt", "--seq-len", "64"];
        desk.run(&[&all[..], more].concat())
    };
    let svd = ["--method", "svd", "--frozen-base", "--keep", "-o", "o.uc", "--json", "-q"];
    let found = train(&svd).expect(0).json();
    for key in ["rank", "bpw_before", "bpw_after", "kld_before", "kld_after"] {
        assert!(found[key].is_number(), "{key}: {found}");
    }
    assert_eq!((&found["kept"], &found["stopped"]), (&true.into(), &"closed_form".into()));
    assert_eq!(found["table"].as_array().map(Vec::len), Some(2));
    train(&svd).expect(1).says("--force");
    train(&["--bpw", "3", "--frozen-base", "-o", "x.uc"]).expect(2).says("leaves nothing");
    train(&["-o", "model.uc", "--force"]).expect(1).says("output is the input");
    assert!(!desk.path("x.uc").exists());

    let listed = desk.run(&["overlay", "list", "o.uc", "--json"]).expect(0).json();
    let overlay = &listed["overlays"][0];
    assert_eq!(overlay["name"], "trained");
    assert_eq!(overlay["info"]["recipe"]["method"], "svd");
    assert_eq!(overlay["effective_root"], found["effective_root"]);
    assert_eq!(overlay["info"]["factors_sha256"], found["factors_sha256"]);
    let info = desk.run(&["info", "o.uc", "--json"]).expect(0).json();
    assert_eq!(info["effective_root"], found["effective_root"]);
    assert!(info["overlay_bpw"].as_f64().is_some_and(|b| b > 0.3), "{}", info["overlay_bpw"]);
    desk.run(&["overlay", "list", "model.uc"]).expect(0).prints("no overlays");
    let verified = desk.run(&["verify", "o.uc", "--json"]).expect(0).json();
    assert_eq!(verified["effective"], "ok");
    let root = found["effective_root"].as_str().expect("a root");
    desk.run(&["verify", "o.uc", "--root", root]).expect(0).prints("in agreement");
    desk.run(&["same", "o.uc", "model.uc"]).expect(0);

    let unpacked = desk.run(&["unpack", "o.uc", "-o", "with", "--json"]).expect(0).json();
    assert_eq!(
        (&unpacked["decoded_root"], &unpacked["overlays"]),
        (&found["effective_root"], &1.into())
    );
    let base =
        desk.run(&["unpack", "o.uc", "-o", "base", "--no-overlays", "--json"]).expect(0).json();
    assert_eq!(base["decoded_root"], info["decoded_root"]);

    let eval = |more: &[&str]| {
        let all = [
            "eval",
            "o.uc",
            "--against",
            &source,
            "--text",
            "text.txt",
            "--seq-len",
            "64",
            "-q",
            "--json",
        ];
        desk.run(&[&all[..], more].concat()).expect(0).json()
    };
    let with = eval(&["--record", "eval.json"]);
    let without = eval(&["--no-overlays"]);
    assert_eq!(with["effective_root"], found["effective_root"]);
    assert_eq!(without["effective_root"], Value::Null);
    assert!(with["body_bpw"].as_f64() > without["body_bpw"].as_f64());
    assert!(with["kld_mean"] != without["kld_mean"]);
    desk.run(&["receipt", "add", "o.uc", "eval.json", "-o", "receipt.uc"]).expect(0);
    desk.run(&["info", "receipt.uc"]).expect(0).prints("with overlays, ");
    desk.run(&["receipt", "add", "model.uc", "eval.json", "-o", "x.uc"]).expect(3);

    desk.run(&["overlay", "export", "o.uc", "trained", "-o", "file.uc"]).expect(0);
    desk.run(&["overlay", "add", "model.uc", "file.uc", "-o", "again.uc", "-q"]).expect(0);
    assert!(desk.read("again.uc") == desk.read("o.uc"));
    desk.run(&["overlay", "remove", "o.uc", "trained", "-o", "plain.uc", "-q"]).expect(0);
    assert!(desk.read("plain.uc") == desk.read("model.uc"));
    desk.run(&["overlay", "remove", "model.uc", "trained", "-o", "x.uc"]).expect(2);
    desk.run(&["pack", &source, "--bits", "6", "-o", "six.uc", "-q"]).expect(0);
    desk.run(&["overlay", "add", "six.uc", "file.uc", "-o", "x.uc"]).expect(3).says("is for");
    desk.run(&["overlay", "add", "model.uc", "-o", "x.uc"]).expect(2);
    desk.run(&["overlay", "add", "model.uc", "--lora", "with", "-o", "x.uc"]).expect(1);
    assert!(!desk.path("x.uc").exists());
}
