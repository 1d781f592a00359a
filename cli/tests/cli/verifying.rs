//! `verify`.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::folder::Desk;
use crate::support::uc::source;
use crate::{has_keys, verdicts};

/// Flips one bit of `model.uc` at `share` of its length.
fn damage(desk: &Desk, share: f64) {
    let mut bytes = desk.read("model.uc");
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "any place near there will do"
    )]
    let at = (bytes.len() as f64 * share) as usize;
    bytes[at] ^= 4;
    desk.write("model.uc", bytes);
}

#[test]
fn verify_says_what_was_compared_and_what_was_not() {
    let desk = Desk::with_pack();
    let info = desk.run(&["info", "model.uc", "--json"]).expect(0).json();
    let n = info["tensors"].as_array().expect("a list").len();
    let verify = |args: &[&str]| {
        let all: Vec<&str> =
            ["verify", "model.uc", "--json"].into_iter().chain(args.iter().copied()).collect();
        desk.run(&all)
    };
    let json = verify(&[]).expect(0).json();
    assert_eq!(verdicts(&json), ["ok", "ok", "ok", "not_checked"]);
    assert_eq!((&json["tensors_checked"], &json["failures"]), (&n.into(), &Value::Array(vec![])));
    let json = verify(&["--fast"]).expect(0).json();
    assert_eq!(verdicts(&json), ["ok", "ok", "not_checked", "not_checked"]);
    assert_eq!(json["tensors_checked"], 0);

    let stored = info["stored_root"].as_str().expect("a digest");
    let decoded = info["decoded_root"].as_str().expect("a digest");
    for root in [stored, decoded, &stored.to_uppercase()] {
        let json = verify(&["--root", root]).expect(0).json();
        assert_eq!(verdicts(&json), ["ok", "ok", "ok", "ok"]);
    }
    let json = verify(&["--fast", "--root", stored]).expect(0).json();
    assert_eq!(verdicts(&json), ["ok", "ok", "not_checked", "ok"]);
    // Nothing was decoded, so a decoded root can't be confirmed.
    let json = verify(&["--fast", "--root", decoded]).expect(3).json();
    assert_eq!(json["compared_with"], "mismatch");
    let json = verify(&["--root", &"0".repeat(64)]).expect(3).json();
    assert_eq!(verdicts(&json), ["ok", "ok", "ok", "mismatch"]);
    let failure = &json["failures"][0];
    has_keys(failure, &["tensor", "part", "offset", "reason"]);

    desk.run(&["verify", "model.uc"]).expect(0).prints("consistent, not authenticated");
    let ran = desk.run(&["verify", "model.uc", "--root", stored]).expect(0);
    ran.prints("consistent, and in agreement with what was given");
    desk.run(&["verify", "model.uc", "--root", &"0".repeat(64)]).expect(3).prints("NOT OK");
}

#[test]
fn verify_compares_with_the_source() {
    let desk = Desk::with_pack();
    let json = desk.run(&["verify", "model.uc", "--against", &source(), "--json"]).expect(0).json();
    assert_eq!(json["compared_with"], "ok");
    // What was unpacked is not the source: its quantized tensors differ, and each is named.
    desk.run(&["unpack", "model.uc", "-o", "out", "-q"]).expect(0);
    let json = desk.run(&["verify", "model.uc", "--against", "out", "--json"]).expect(3).json();
    assert_eq!(verdicts(&json), ["ok", "ok", "ok", "mismatch"]);
    let failed: BTreeSet<&str> = json["failures"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|f| f["tensor"].as_str())
        .collect();
    assert!(failed.contains("lm_head.weight") && !failed.contains("model.norm.weight"));
    desk.run(&["verify", "model.uc", "--against", "nothing"]).expect(1);
}

#[test]
fn verify_tells_damage_from_malformed_input() {
    // A flipped bit in the data: a checksum that doesn't match.
    let desk = Desk::with_pack();
    damage(&desk, 0.5);
    let json = desk.run(&["verify", "model.uc", "--json"]).expect(3).json();
    assert_eq!(verdicts(&json)[..2], ["mismatch", "mismatch"]);
    let located = json["failures"].as_array().expect("a list").iter();
    assert!(located.clone().any(|f| f["tensor"].is_string() && f["part"].is_string()));
    assert!(located.clone().all(|f| f["reason"].as_str().is_some_and(|r| !r.is_empty())));
    desk.run(&["verify", "model.uc", "--fast"]).expect(3).prints("NOT OK");
    desk.run(&["unpack", "model.uc", "-o", "out"]).expect(3).says("error: model.uc: ");
    assert_eq!(desk.names(), ["model.uc"], "nothing half-written");

    // A flipped bit in the preamble: it doesn't open.
    let desk = Desk::with_pack();
    damage(&desk, 0.0006);
    let json = desk.run(&["verify", "model.uc", "--json"]).expect(3).says("error: ").json();
    assert_eq!(verdicts(&json), ["mismatch", "not_checked", "not_checked", "not_checked"]);
    desk.run(&["info", "model.uc"]).expect(3);

    // Cut off, something else, not there: malformed input or I/O.
    let desk = Desk::with_pack();
    let bytes = desk.read("model.uc");
    desk.write("model.uc", &bytes[..bytes.len() - 1]);
    let json =
        desk.run(&["verify", "model.uc", "--json"]).expect(1).says("the preamble says").json();
    assert_eq!(json["failures"].as_array().map(Vec::len), Some(1));
    desk.write("model.uc", b"");
    desk.run(&["verify", "model.uc"]).expect(1).says("the file is empty");
    desk.run(&["verify", "none.uc"]).expect(1).says("none.uc: can't open");
}
