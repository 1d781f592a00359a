//! Training overlays on a tiny trained model: what is kept and why, interruption, every method and
//! objective.
#![cfg(feature = "lm")]

mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ultracompress::edit::OverlayOptions;
use ultracompress::lm::{CalibrateOptions, Method, Objective, TrainOptions, TrainReport};
use ultracompress::source::Model;
use ultracompress::{Check, Error, ErrorKind, NoProgress, Pack, Progress, VerifyOptions};

use support::folder::{Desk, copy_files, repository, tiny_llama};
use support::progress::After;
use tiny::tiny_pack;

/// English text of ours.
fn text() -> Vec<u8> {
    ["README.md", "spec/container.md"]
        .iter()
        .flat_map(|name| read(&repository().join(name)))
        .take(12_000)
        .collect()
}

/// Other text of ours.
fn held_out() -> Vec<u8> {
    read(&repository().join("spec/codec.md")).into_iter().take(3000).collect()
}

fn packed(desk: &Desk) -> PathBuf {
    desk.write("base.uc", tiny_pack());
    desk.path("base.uc")
}

/// Statistics of the model, made once.
fn calibration() -> PathBuf {
    static FILE: OnceLock<(Desk, PathBuf)> = OnceLock::new();
    let make = || {
        let desk = Desk::new();
        let file = desk.path("calibration");
        let model = Model::open(&tiny_llama()).expect("opens");
        let options = CalibrateOptions::new().with_seq_len(64).with_max_tokens(Some(1536));
        let prepared = options.prepare(&model, &text()).expect("a text");
        prepared.run(&file, &NoProgress).expect("calibrates");
        (desk, file)
    };
    FILE.get_or_init(make).1.clone()
}

fn options(method: Method) -> TrainOptions {
    let mut options = TrainOptions::new();
    options.calibration = Some(calibration());
    options.method = method;
    options.seq_len = 64;
    options.max_tokens = Some(1536);
    (options.steps, options.round, options.batch) = (4, 2, 4);
    options.frozen_base = true;
    options.held_out = Some(held_out());
    options.min_gain = -1.0;
    options
}

fn train(
    options: &TrainOptions,
    pack: &Path,
    output: &Path,
    progress: &dyn Progress,
) -> Result<TrainReport, Error> {
    let pack = Model::open(pack).expect("opens");
    let source = Model::open(&tiny_llama()).expect("opens");
    options.train(&pack, &source, &text(), output, progress)
}

fn kld(report: &TrainReport) -> (f64, f64) {
    let of = |r: &ultracompress::EvalRecord| r.figure("kld_mean").expect("a divergence");
    (of(&report.before), of(&report.after))
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("readable")
}

fn state_of(output: &Path) -> PathBuf {
    let mut name = output.file_name().expect("a name").to_owned();
    name.push(".train-state");
    output.with_file_name(name)
}

#[test]
fn whitening_beats_plain_vectors_and_training_beats_both() {
    let desk = Desk::new();
    let base = packed(&desk);
    let mut found = vec![];
    for method in [Method::Svd, Method::Whitened, Method::Gradient] {
        let output = desk.path(method.name());
        let mut options = options(method);
        (options.steps, options.round) = (12, 6);
        let report = train(&options, &base, &output, &NoProgress).expect("trains");
        let (before, after) = kld(&report);
        assert!(report.bpw_after <= report.bpw_before + 0.5);
        assert!(report.bpw_after > report.bpw_before + 0.4, "{}", report.bpw_after);
        assert_eq!(report.table.len(), 2, "the base alone is compared");
        found.push((after, before, report.kept));
        if report.kept {
            let pack = Pack::open_path(&output).expect("opens");
            let verified = VerifyOptions::new().verify_pack(&pack).expect("readable");
            assert!(verified.is_ok() && verified.effective == Check::Ok);
            assert_eq!(pack.effective_root(), report.effective_root);
            let without = desk.path("without.uc");
            let remove = OverlayOptions::new().with_force(true);
            remove.remove(&pack, "trained", &without, &NoProgress).expect("removes");
            assert!(read(&without) == read(&base));
        } else {
            assert!(read(&output) == read(&base));
        }
        assert!(!state_of(&output).exists());
    }
    let [(svd, base, _), (whitened, _, kept), (trained, ..)] = found[..] else { panic!("three") };
    assert!(whitened < svd && trained < whitened && whitened < 0.8 * base, "{found:?}");
    assert!(kept);
}

#[test]
fn bits_in_the_base_win_and_the_overlay_is_left_out() {
    let desk = Desk::new();
    let base = packed(&desk);
    let output = desk.path("o.uc");
    let mut options = options(Method::Whitened);
    options.frozen_base = false;
    let report = train(&options, &base, &output, &NoProgress).expect("trains");
    let names: Vec<_> = report.table.iter().map(|r| r.name.as_str()).collect();
    assert!(names.contains(&"overlay") && names.contains(&"calibrated"), "{names:?}");
    let of = |name: &str| report.table.iter().find(|r| r.name == name).expect("compared");
    assert!(of("calibrated").body_bpw <= of("overlay").body_bpw, "no more bits than the overlay");
    let wins = report.table.iter().all(|r| r.kld_mean >= of("overlay").kld_mean);
    assert_eq!(report.kept, wins);
    assert!(!report.kept && report.reason.contains("the same bits"), "{}", report.reason);
    assert!(read(&output) == read(&base), "the pack as it was");
}

#[test]
fn interrupted_training_goes_on_to_the_same_bytes() {
    let desk = Desk::new();
    let base = packed(&desk);
    for objective in [Objective::Kl, Objective::Hidden, Objective::Hybrid] {
        let at = |name: &str| desk.path(format!("{}-{name}", objective.name()));
        let mut options = options(Method::Gradient);
        options.objective = objective;
        options.keep = true;
        let whole = train(&options, &base, &at("whole.uc"), &NoProgress).expect("trains");
        assert!(whole.steps >= options.steps && whole.probes.len() >= 3, "{:?}", whole.probes);
        let stops: &[u64] = match objective {
            Objective::Kl => &[1, 3],
            Objective::Hidden => &[7],
            Objective::Hybrid => &[],
        };
        for &after in stops {
            let output = at("parts.uc");
            options.force = true;
            let stop = After::stop(after);
            let stopped = train(&options, &base, &output, &stop).expect_err("stopped");
            assert_eq!(*stopped.kind(), ErrorKind::Cancelled);
            assert!(state_of(&output).exists());
            // Another recipe doesn't go on from there.
            let mut other = options.clone();
            (other.resume, other.seed) = (true, 7);
            let refused = train(&other, &base, &output, &NoProgress).expect_err("another run");
            assert!(refused.to_string().contains("another run"), "{refused}");
            options.resume = true;
            train(&options, &base, &output, &NoProgress).expect("goes on");
            options.resume = false;
            assert!(read(&output) == read(&at("whole.uc")), "after {after}");
            assert!(!state_of(&output).exists());
        }
    }
}

#[test]
fn training_that_has_ended_is_not_gone_on_with() {
    let desk = Desk::new();
    let base = packed(&desk);
    let (whole, parts) = (desk.path("whole.uc"), desk.path("parts.uc"));
    let mut options = options(Method::Gradient);
    // The first round doesn't gain everything there is.
    (options.min_gain, options.keep) = (0.99, true);
    let report = train(&options, &base, &whole, &NoProgress).expect("trains");
    assert_eq!((report.stopped, report.steps), ("gain", 2));
    // Stopped while what was trained is compared.
    let stop = After::stop(2);
    assert!(train(&options, &base, &parts, &stop).is_err());
    options.resume = true;
    let report = train(&options, &base, &parts, &NoProgress).expect("goes on");
    assert_eq!((report.stopped, report.steps), ("gain", 2));
    assert!(read(&whole) == read(&parts));
}

#[test]
fn rounds_that_make_it_worse_are_undone() {
    let desk = Desk::new();
    let base = packed(&desk);
    let closed = desk.path("closed.uc");
    let mut closed_options = options(Method::Whitened);
    closed_options.keep = true;
    let closed = train(&closed_options, &base, &closed, &NoProgress).expect("trains");
    let mut wild = options(Method::Gradient);
    wild.keep = true;
    // Steps as large as the factors themselves.
    wild.learning_rate = 5.0;
    (wild.steps, wild.round, wild.max_rescues) = (4, 1, 1);
    let output = desk.path("wild.uc");
    let found = train(&wild, &base, &output, &NoProgress).expect("trains");
    assert_eq!((found.rescues, found.stopped, found.steps), (2, "rescues", 2));
    assert!(found.probes[1..].iter().all(|p| p.undone && p.loss > found.probes[0].loss));
    assert_eq!(found.ranks, closed.ranks);
    let pack = Pack::open_path(&output).expect("opens");
    let info = ultracompress::manifest::overlay_info(pack.overlays()[0]).expect("an object");
    assert_eq!(info["recipe"]["learning_rate"], "5");
    assert_eq!(info["outcome"]["stopped"], "rescues");
    // Undone, so it is the closed form, but for the last bits of scaling.
    let (a, b) = (kld(&found).1, kld(&closed).1);
    assert!((a - b).abs() < 0.05 * b, "{a} {b}");
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let desk = Desk::new();
    let base = packed(&desk);
    let output = desk.path("o.uc");
    let refused = |change: &dyn Fn(&mut TrainOptions)| {
        let mut options = options(Method::Svd);
        change(&mut options);
        train(&options, &base, &output, &NoProgress).expect_err("refused").to_string()
    };
    assert!(refused(&|o| o.bpw = Some(4.0)).contains("leaves nothing"));
    assert!(refused(&|o| o.bpw = Some(f64::NAN)).contains("leaves nothing"));
    assert!(refused(&|o| o.bpw = Some(5.2)).contains("too small") || !output.exists());
    assert!(refused(&|o| o.seq_len = 1).contains("2 tokens"));
    assert!(refused(&|o| o.learning_rate = -1.0).contains("positive"));
    assert!(refused(&|o| (o.method, o.steps) = (Method::Gradient, 0)).contains("one step"));
    let source = Model::open(&tiny_llama()).expect("opens");
    let swapped = options(Method::Svd).train(&source, &source, &text(), &output, &NoProgress);
    assert!(swapped.expect_err("no pack").to_string().contains("not for checkpoints"));
    assert!(refused(&|o| o.batch = 3).contains("even"));
    assert!(refused(&|o| o.name = String::new()).contains("name"));
    assert!(refused(&|o| o.seed = u64::MAX).contains("2^53"));
    assert!(refused(&|o| o.held_out = Some(text())).contains("nothing would be held out"));
    assert!(refused(&|o| o.held_out = Some(b"Short.".to_vec())).contains("too short"));
    // Another model of the same shapes.
    let other = desk.path("other");
    let files = ["config.json", "tokenizer.json", "model.safetensors"];
    copy_files(&tiny_llama(), &files, &other);
    let mut bytes = desk.read("other/model.safetensors");
    *bytes.last_mut().expect("weights") ^= 1;
    desk.write("other/model.safetensors", bytes);
    let other = Model::open(&other).expect("opens");
    let pack = Model::open(&base).expect("opens");
    let mixed = options(Method::Svd).train(&pack, &other, &text(), &output, &NoProgress);
    assert!(mixed.expect_err("another").to_string().contains("another model"));
    let short = options(Method::Gradient);
    let pack = Model::open(&base).expect("opens");
    let none = short.train(&pack, &source, b"Too short.", &output, &NoProgress);
    assert!(none.expect_err("no text").to_string().contains("too short"));
    assert!(!output.exists());
}
