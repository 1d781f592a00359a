//! The command line as scripts see it: exit codes, JSON keys, messages, and what is left on disk.
//! Help and usage errors are snapshots under `tests/cmd/`; everything with digests is asserted
//! here.

mod packing;
mod running_models;
#[path = "../support/mod.rs"]
mod support;
mod unpacking;
mod verifying;

use std::fs;

use serde_json::Value;

use support::folder::{Desk, tiny_llama};

#[track_caller]
fn has_keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "no {key} in {value:#}");
    }
}

fn is_digest(value: &Value) -> bool {
    value.as_str().is_some_and(|s| {
        s.len() == 64 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

fn verdicts(json: &Value) -> [&str; 4] {
    ["structure", "stored", "decoded", "compared_with"]
        .map(|key| json[key].as_str().unwrap_or_else(|| panic!("no {key} in {json:#}")))
}

#[test]
fn help_usage_errors_and_messages_are_as_recorded() {
    trycmd::TestCases::new().env("COLUMNS", "100").env("NO_COLOR", "1").case("tests/cmd/*.toml");
}

#[test]
fn json_alone_is_on_stdout_and_quiet_is_quiet() {
    let desk = Desk::with_pack();
    desk.folder("src");
    fs::copy(tiny_llama().join("model.safetensors"), desk.path("src/model.safetensors"))
        .expect("copy");
    desk.write("src/model.onnx", b"x");
    let ran = desk.run(&["pack", "src", "-o", "a.uc", "--json"]).expect(0);
    assert_eq!(ran.json()["left_out"], serde_json::json!(["model.onnx"]));
    ran.says("left out: model.onnx");
    let ran = desk.run(&["pack", "src", "-o", "b.uc", "--json", "-q"]).expect(0);
    assert_eq!(ran.stderr, "");
    for args in [&["verify", "a.uc", "-q"][..], &["same", "-q", "a.uc", "b.uc"]] {
        assert_eq!(desk.run(args).expect(0).stderr, "");
    }
}

#[test]
fn completions_know_every_command() {
    let desk = Desk::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let ran = desk.run(&["completions", shell]).expect(0);
        for command in ["pack", "info", "verify", "unpack", "same", "diff"] {
            assert!(ran.stdout.contains(command), "{shell} completions lack {command}");
        }
        assert!(ran.stdout.contains("dry-run"), "{shell} completions lack flags");
    }
}
