//! `pack` and `info`.

use std::fs;
use std::process::Stdio;

use serde_json::Value;

use crate::support::folder::{Desk, tiny_llama};
use crate::support::uc::source;
use crate::{has_keys, is_digest};

#[test]
fn pack_reports_rates_and_roots() {
    let desk = Desk::new();
    let ran = desk.run(&["pack", &source(), "-o", "out.uc", "--json"]).expect(0);
    let json = ran.json();
    has_keys(
        &json,
        &[
            "output",
            "files",
            "tensors",
            "weights",
            "body_bpw",
            "file_bpw",
            "stored_root",
            "decoded_root",
        ],
    );
    assert_eq!(json["output"], "out.uc");
    let len = fs::metadata(desk.path("out.uc")).expect("packed").len();
    assert_eq!(json["files"], serde_json::json!([{ "path": "out.uc", "bytes": len }]));
    assert!(is_digest(&json["stored_root"]) && is_digest(&json["decoded_root"]));
    let body = json["body_bpw"].as_f64().expect("a number");
    let file = json["file_bpw"].as_f64().expect("a number");
    // Five planes, four bits a group of 32, two bytes a row, padding.
    assert!((5.125..5.6).contains(&body), "{body}");
    let weights = json["weights"].as_f64().expect("a number");
    #[allow(clippy::cast_precision_loss, reason = "a small file")]
    let expected = len as f64 * 8.0 / weights;
    assert!((file - expected).abs() < 1e-9, "{file} is not {expected}");
    assert_eq!(desk.names(), ["out.uc"]);

    // The same bytes again, whatever the number of threads, and roots in the human output too.
    let again = desk.run(&["pack", &source(), "-o", "again.uc", "-j", "1"]).expect(0);
    assert!(desk.read("again.uc") == desk.read("out.uc"));
    again
        .prints(json["stored_root"].as_str().expect("a digest"))
        .prints(json["decoded_root"].as_str().expect("a digest"))
        .prints("again.uc: ");
}

#[test]
fn pack_never_overwrites_without_force() {
    let desk = Desk::new();
    desk.write("out.uc", b"precious");
    desk.run(&["pack", &source(), "-o", "out.uc"]).expect(1).says("out.uc: already exists");
    assert_eq!(desk.read("out.uc"), b"precious");
    assert_eq!(desk.names(), ["out.uc"]);
    desk.run(&["pack", &source(), "-o", "out.uc", "--force"]).expect(0);
    desk.run(&["verify", "out.uc", "--fast"]).expect(0);
    assert_eq!(desk.names(), ["out.uc"]);
}

#[test]
fn pack_refuses_to_replace_its_own_source() {
    let desk = Desk::new();
    let weights = tiny_llama().join("model.safetensors");
    fs::copy(&weights, desk.path("m.safetensors")).expect("can copy");
    let args = ["pack", "m.safetensors", "-o", "./m.safetensors", "--force"];
    desk.run(&args).expect(1).says("output is the input");
    assert!(desk.read("m.safetensors") == fs::read(weights).unwrap());
}

#[test]
fn dry_run_shows_every_decision_and_writes_nothing() {
    let desk = Desk::new();
    let ran = desk.run(&["pack", &source(), "--dry-run", "--json"]).expect(0);
    let json = ran.json();
    has_keys(&json, &["tensors", "carried", "left_out"]);
    let tensors = json["tensors"].as_array().expect("a list");
    for t in tensors {
        has_keys(t, &["name", "dtype", "shape", "role", "encoding", "planes", "reason"]);
        assert_ne!(t["reason"], "", "{t}");
    }
    let find = |name: &str| {
        tensors.iter().find(|t| t["name"] == name).unwrap_or_else(|| panic!("{name} is there"))
    };
    assert_eq!(find("model.layers.0.mlp.up_proj.weight")["planes"], 5);
    assert_eq!(find("model.norm.weight")["encoding"], "raw");
    assert_eq!(find("model.embed_tokens.weight")["encoding"], "alias");
    assert!(json["carried"].as_array().expect("a list").contains(&"config.json".into()));
    assert_eq!(desk.names(), [""; 0]);

    let ran = desk.run(&["pack", &source(), "-o", "out.uc", "--dry-run"]).expect(0);
    ran.prints("default: body").prints("same bytes as lm_head.weight").prints("carried: ");
    assert_eq!(desk.names(), [""; 0], "--dry-run writes nothing even with -o");

    // What was announced is what happens.
    let desk = Desk::with_pack();
    let info = desk.run(&["info", "model.uc", "--json"]).expect(0).json();
    let packed = info["tensors"].as_array().expect("a list");
    assert_eq!(packed.len(), tensors.len());
    for (plan, found) in tensors.iter().zip(packed) {
        for key in ["name", "dtype", "shape", "role", "encoding", "planes", "reason"] {
            assert_eq!(plan[key], found[key], "{key} of {}", plan["name"]);
        }
    }
}

#[test]
fn pack_flags_and_recipes_steer_the_encoder() {
    let desk = Desk::new();
    fs::write(
        desk.path("recipe.toml"),
        "bits = 4\ngroup = 64\n[[tensor]]\nmatch = 'k_proj'\nbits = 'raw'\n",
    )
    .expect("can write");
    let plan = |args: &[&str]| {
        let source = source();
        let all: Vec<&str> = ["pack", &source, "--dry-run", "--json"]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        let json = desk.run(&all).expect(0).json();
        let tensors = json["tensors"].as_array().expect("a list").clone();
        move |part: &str| {
            let t = tensors.iter().find(|t| t["name"].as_str().is_some_and(|n| n.contains(part)));
            t.expect("there")["planes"].clone()
        }
    };
    let planes =
        plan(&["--bits", "6", "--tensor", "v_proj=8", "--tensor", r"layers\.0\.self.*=raw"]);
    assert_eq!(planes("up_proj"), 6);
    assert_eq!(planes("layers.1.self_attn.v_proj"), 8);
    assert_eq!(planes("layers.0.self_attn.v_proj"), Value::Null);
    let planes = plan(&["--recipe", "recipe.toml"]);
    assert_eq!(planes("up_proj"), 4);
    assert_eq!(planes("k_proj"), Value::Null);
    let planes = plan(&["--recipe", "recipe.toml", "--bits", "7", "--tensor", "k_proj=3"]);
    assert_eq!((planes("up_proj"), planes("k_proj")), (7.into(), 3.into()));
    let planes = plan(&["--raw-all"]);
    assert_eq!((planes("up_proj"), planes("lm_head")), (Value::Null, Value::Null));
}

#[test]
fn impossible_settings_are_usage_errors() {
    let desk = Desk::new();
    let recipe = |text: &str| {
        desk.write("recipe.toml", text);
        ["--recipe", "recipe.toml"].map(str::to_owned).to_vec()
    };
    for (args, says) in [
        (vec!["--bits".into(), "9".into()], "9 bits"),
        (vec!["--bits".into(), "2".into()], "2 bits"),
        (vec!["--tensor".into(), "(=5".into()], "pattern \"(\""),
        (vec!["--tensor".into(), "v_proj=9".into()], "9 bits"),
        (vec!["--tensor".into(), "v_proj".into()], "is not REGEX=BITS or REGEX=raw"),
        (vec!["--tensor".into(), "v_proj=five".into()], "is not REGEX=BITS or REGEX=raw"),
        (recipe("bits = 'many'"), "recipe.toml: not a recipe"),
    ] {
        let source = source();
        let mut all = vec!["pack", &source, "-o", "out.uc"];
        all.extend(args.iter().map(String::as_str));
        desk.run(&all).expect(2).says(says);
        assert!(!desk.path("out.uc").exists());
    }
    for text in ["bit = 5", "group = 33", "zstd_level = 40", "[[tensor]]\nmatch = 'a'", "bits ="] {
        let args = recipe(text);
        let source = source();
        desk.run(&["pack", &source, "-o", "out.uc", &args[0], &args[1]]).expect(2).says("error: ");
    }
    desk.run(&["pack", &source(), "-o", "out.uc", "--recipe", "none.toml"]).expect(1);
    assert_eq!(desk.names(), ["recipe.toml"]);
}

#[test]
fn unusable_sources_exit_with_one() {
    let desk = Desk::new();
    desk.run(&["pack", "nothing", "-o", "out.uc"]).expect(1).says("nothing: can't open");
    desk.folder("empty");
    desk.run(&["pack", "empty", "-o", "out.uc"]).expect(1).says("no .safetensors file");
    desk.write("bad.safetensors", b"\xff\xff\xff\xff\xff\xff\xff\xff{");
    desk.run(&["pack", "bad.safetensors", "-o", "out.uc"]).expect(1).says("not a safetensors file");
    desk.run(&["pack", &source(), "-o", "no/such/folder/out.uc"]).expect(1);
    desk.run(&["pack", &source(), "-o", "empty"]).expect(1).says("is a folder");
    assert_eq!(desk.names(), ["bad.safetensors", "empty"]);
}

#[test]
fn quantized_checkpoints_are_refused_unless_kept_raw() {
    let desk = Desk::new();
    desk.folder("gptq");
    fs::copy(tiny_llama().join("model.safetensors"), desk.path("gptq/model.safetensors"))
        .expect("copy");
    let config = r#"{"quantization_config": {"quant_method": "gptq"}}"#;
    desk.write("gptq/config.json", config);
    desk.run(&["pack", "gptq", "-o", "out.uc"])
        .expect(1)
        .says("already quantized")
        .says("--raw-all");
    desk.run(&["pack", "gptq", "-o", "out.uc", "--raw-all", "-q"]).expect(0);
    desk.run(&["same", "gptq", "out.uc", "-q"]).expect(0);
}

#[test]
fn info_lists_what_the_pack_holds() {
    let desk = Desk::with_pack();
    let json = desk.run(&["info", "model.uc", "--json"]).expect(0).json();
    let keys = ["format_version", "weights", "body_bpw", "file_bpw", "stored_root", "decoded_root"];
    has_keys(&json, &keys);
    assert_eq!(json["format_version"], "1.0");
    for t in json["tensors"].as_array().expect("a list") {
        has_keys(
            t,
            &[
                "name",
                "dtype",
                "shape",
                "encoding",
                "planes",
                "group",
                "stored_bytes",
                "decoded_sha256",
                "exact",
            ],
        );
        assert!(is_digest(&t["decoded_sha256"]), "{t}");
        let alias_of_planes = t["alias_of"] == "lm_head.weight";
        assert_eq!(t["exact"], t["encoding"] == "raw" && !alias_of_planes, "{t}");
        assert_eq!(t["stored_bytes"] == 0, t["encoding"] == "alias", "{t}");
    }
    let human = desk.run(&["info", "model.uc"]).expect(0);
    let human = human.prints("model.uc: UltraCompress format 1.0").prints("planes 5, group 32");
    let human = human.prints("alias of lm_head.weight").prints("carries config.json");
    human.prints(json["decoded_root"].as_str().expect("a digest"));

    desk.run(&["info", "none.uc"]).expect(1).says("none.uc: can't open");
    desk.run(&["info", &source()]).expect(1).says("is a folder");
    let weights = tiny_llama().join("model.safetensors");
    desk.run(&["info", weights.to_str().expect("UTF-8")]).expect(1).says("`uc pack` makes a .uc");
}

#[test]
fn a_closed_pipe_is_no_error() {
    let desk = Desk::with_pack();
    let mut child = desk
        .command(&["info", "model.uc", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    drop(child.stdout.take());
    let out = child.wait_with_output().expect("it ends");
    assert_eq!(out.status.code(), Some(0), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(String::from_utf8_lossy(&out.stderr), "");
}
