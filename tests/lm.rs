//! Language models: outputs of small models of every known architecture against those of
//! transformers, and evaluation of a pack against its source. `tests/models/make_models.py` made
//! the models.
#![cfg(feature = "lm")]

mod support;
#[path = "support/tiny.rs"]
mod tiny;

use std::path::{Path, PathBuf};

use ultracompress::lm::{ARCHITECTURES, Baseline, EvalOptions, LanguageModel};
use ultracompress::pack::PackOptions;
use ultracompress::receipt::{EvalRecord, Metric};
use ultracompress::source::{Model, Source};
use ultracompress::unpack::UnpackOptions;
use ultracompress::{Container, ErrorKind, NoProgress, Pack};

use support::checkpoint::header_of;
use support::folder::{Desk, copy_files, models, tiny_llama};
use support::in_pool;
use support::random::size;
use tiny::tiny_pack;

/// A tensor of a safetensors file: shape, and values of little-endian `N` bytes.
fn values<T, const N: usize>(
    file: &Path,
    name: &str,
    read: fn([u8; N]) -> T,
) -> (Vec<usize>, Vec<T>) {
    let bytes = std::fs::read(file).expect("the fixture is there");
    let all = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let view = all.tensor(name).expect("the fixture has it");
    let found = view.data().as_chunks().0.iter().map(|b| read(*b)).collect();
    (view.shape().to_vec(), found)
}

fn furthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0f32, |m, (a, b)| if (a - b).abs() <= m { m } else { (a - b).abs() })
}

#[test]
fn every_architecture_gives_the_outputs_of_transformers() {
    let mut seen = std::collections::BTreeSet::new();
    let mut folders: Vec<PathBuf> = std::fs::read_dir(models())
        .expect("the fixtures are there")
        .map(|e| e.expect("readable").path())
        .filter(|p| p.is_dir() && p.join("config.json").is_file())
        .collect();
    folders.sort();
    for folder in folders {
        let name = folder.file_name().expect("a folder").to_string_lossy().into_owned();
        let expected = folder.join("expected.safetensors");
        let (shape, ids) = values(&expected, "input_ids", i64::from_le_bytes);
        let n = shape[1];
        let model = Model::open(&folder).expect(&name);
        let model = LanguageModel::load(&model, n).expect(&name);
        seen.insert(model.architecture());
        let ids: Vec<u32> = ids.iter().map(|&id| u32::try_from(id).expect("small")).collect();
        if name == "bert" {
            let (_, mask) = values(&expected, "attention_mask", i64::from_le_bytes);
            let (shape, states) = values(&expected, "hidden_states", f32::from_le_bytes);
            let row = n * shape[3];
            for (s, (ids, mask)) in ids.chunks(n).zip(mask.chunks(n)).enumerate() {
                let mask: Vec<f32> = mask.iter().map(|&m| m as f32).collect();
                let found = model.states(ids, Some(&mask)).expect(&name);
                assert_eq!(found.len(), shape[0]);
                for (layer, found) in found.iter().enumerate() {
                    let expected = &states[(layer * shape[1] + s) * row..][..row];
                    let worst = furthest(found, expected);
                    assert!(worst < 1e-4, "{name}, states {layer} of sequence {s}: {worst}");
                }
            }
            assert!(model.logits(&ids[..n]).is_err(), "an encoder has no logits");
            continue;
        }
        let (_, logits) = values(&expected, "logits", f32::from_le_bytes);
        let row = n * model.vocab();
        for (s, (ids, expected)) in ids.chunks(n).zip(logits.chunks(row)).enumerate() {
            let found = model.logits(ids).expect(&name);
            let worst = furthest(&found, expected);
            assert!(worst < 1e-4, "{name}, sequence {s}: {worst}");
        }
        assert!(model.states(&ids[..n], None).is_err(), "only encoders have states");
        let too_many = vec![0; n + 1];
        let kind = |ids: &[u32]| model.logits(ids).expect_err(&name).kind().clone();
        assert_eq!(kind(&too_many), ErrorKind::InvalidArgument);
        assert_eq!(kind(&[u32::MAX]), ErrorKind::InvalidArgument);
        assert_eq!(kind(&[]), ErrorKind::InvalidArgument);
    }
    assert_eq!(seen.len(), ARCHITECTURES.len(), "each architecture has a fixture: {seen:?}");
}

fn text() -> Vec<u8> {
    let line = "It is a truth universally acknowledged, that a single man in possession of a good fortune, must \
                be in want of a wife. The law was given, and the people came to hear it.\n";
    line.repeat(24).into_bytes()
}

fn packed(desk: &Desk, name: &str) -> PathBuf {
    desk.write(name, tiny_pack());
    desk.path(name)
}

fn options() -> EvalOptions {
    let baselines = ["q8_0", "q5_0"].map(|name| name.parse::<Baseline>().expect("known"));
    EvalOptions::new().with_seq_len(64).with_max_tokens(Some(1000)).with_baselines(baselines.into())
}

fn eval(options: &EvalOptions, model: &Path) -> Result<EvalRecord, ultracompress::Error> {
    let (model, source) = (Model::open(model)?, Model::open(&tiny_llama())?);
    options.eval(&model, &source, &text(), &NoProgress)
}

#[test]
fn a_pack_is_close_to_its_source_and_the_source_to_itself() {
    let desk = Desk::new();
    let pack = packed(&desk, "tiny.uc");
    let found = eval(&options(), &pack).expect("evaluates");
    assert_eq!(found.metric, Metric::Kld);
    assert_eq!(found.protocol.tokens, found.protocol.sequences * 63);
    assert!(found.protocol.sequences >= 8 && found.text.tokens > 1000);
    let figure = |name| found.figure(name).expect("many sequences");
    assert!(figure("kld_mean") > 0.0 && figure("kld_mean") < 0.05, "{}", figure("kld_mean"));
    assert!(figure("kld_p99") > figure("kld_mean") && figure("kld_se") > 0.0);
    assert!((figure("ppl_ratio") - 1.0).abs() < 0.05 && figure("top1_agreement") > 0.8);
    let kld = |i: usize| found.baselines[i].headline["kld_mean"].expect("many sequences");
    assert_eq!(found.baselines[0].name, "q8_0");
    assert!(kld(0) < kld(1), "8 bits are better than 5");
    assert!(found.baselines[0].body_bpw.is_some_and(|b| (b - 8.5).abs() < 1e-9));
    assert!(found.baselines[1].body_bpw.is_some_and(|b| (b - 5.5).abs() < 1e-9));
    // What was unpacked is the pack.
    let folder = desk.path("unpacked");
    UnpackOptions::new().unpack(&Pack::open_path(&pack).expect("opens"), &folder).expect("unpacks");
    let again = eval(&options(), &folder).expect("evaluates");
    assert_eq!(again.rows, found.rows);
    assert_eq!(again.model.decoded_root, found.model.decoded_root);
    assert_eq!(again.baselines, found.baselines);
    // The source itself.
    let source = eval(&EvalOptions::new().with_seq_len(64), &tiny_llama()).expect("evaluates");
    assert!(source.rows["kld"].iter().all(|k| k.abs() < 1e-9), "{:?}", source.rows["kld"]);
    assert_eq!(source.figure("top1_agreement"), Some(1.0));
    assert_eq!(source.model.decoded_root, source.reference_root);
}

#[test]
fn fewer_planes_cost_more() {
    let desk = Desk::new();
    let pack = packed(&desk, "tiny.uc");
    let at = |rung| {
        let options =
            EvalOptions::new().with_seq_len(64).with_max_tokens(Some(500)).with_rung(rung);
        eval(&options, &pack).expect("evaluates")
    };
    let [three, four, all] = [Some(3), Some(4), None].map(at);
    let kld = |r: &EvalRecord| r.figure("kld_mean").expect("many sequences");
    let bpw = |r: &EvalRecord| r.model.body_bpw.expect("a body");
    assert!(kld(&three) > kld(&four) && kld(&four) > kld(&all));
    assert!(
        (bpw(&all) - bpw(&four) - 1.0).abs() < 0.02
            && (bpw(&four) - bpw(&three) - 1.0).abs() < 0.02
    );
    assert_eq!(three.model.decoded_root, all.model.decoded_root);
}

#[test]
fn records_do_not_depend_on_threads() {
    let desk = Desk::new();
    let pack = packed(&desk, "tiny.uc");
    let with = |threads| {
        let record = in_pool(threads, || eval(&options(), &pack)).expect("evaluates");
        record.to_bytes().expect("finite")
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn receipts_travel_with_the_pack() {
    use ultracompress::edit::add_receipt;
    use ultracompress::receipt::check;

    let desk = Desk::new();
    let pack = packed(&desk, "tiny.uc");
    let record = eval(&options(), &pack).expect("evaluates").to_bytes().expect("finite");
    let open = |path: &Path| Pack::open_path(path).expect("opens");
    let add = |from: &Path, record: &[u8], to: &str| {
        let to = desk.path(to);
        add_receipt(&open(from), record, &to, false, &NoProgress).map(|_| to)
    };
    let with = add(&pack, &record, "with.uc").expect("its own record");
    let (before, after) = (open(&pack), open(&with));
    assert_eq!(before.stored_root(), after.stored_root());
    assert_eq!(before.decoded_root(), after.decoded_root());
    let found =
        check(&after.attachments().expect("readable"), after.stored_root(), after.decoded_root());
    assert!(found.len() == 1 && found[0].record.is_ok(), "{found:?}");
    let file = Container::open_path(&with).expect("opens");
    assert!(ultracompress::VerifyOptions::new().verify(&file).expect("readable").is_ok());
    // Twice, over a file that exists, of another pack, with a headline that isn't so.
    let kind = |r: Result<PathBuf, ultracompress::Error>| r.expect_err("refused").kind().clone();
    assert_eq!(kind(add(&with, &record, "twice.uc")), ErrorKind::InvalidArgument);
    assert_eq!(kind(add(&pack, &record, "with.uc")), ErrorKind::Io);
    let other = desk.path("other.uc");
    let source = Source::open(&tiny_llama()).expect("the example");
    let mut recipe = ultracompress::pack::Recipe::default();
    recipe.bits = 6;
    PackOptions::new().with_recipe(recipe).pack(&source, &other).expect("packs");
    assert_eq!(kind(add(&other, &record, "wrong.uc")), ErrorKind::Integrity);
    let mut parsed = EvalRecord::parse(&record).expect("canonical");
    parsed.headline.insert("kld_mean".into(), Some(0.0));
    assert_eq!(
        kind(add(&pack, &parsed.to_bytes().expect("finite"), "better.uc")),
        ErrorKind::Integrity
    );
    for name in ["twice.uc", "wrong.uc", "better.uc"] {
        assert!(!desk.path(name).exists(), "{name}");
    }
    // A pack whose stored bytes are damaged gets no receipt.
    let damaged = desk.path("damaged.uc");
    std::fs::copy(&pack, &damaged).expect("copies");
    desk.flip("damaged.uc", 600, 1);
    assert_eq!(kind(add(&damaged, &record, "copy.uc")), ErrorKind::Integrity);
    assert!(!desk.path("copy.uc").exists());
}

/// A copy of the example, changed.
fn copy(desk: &Desk, name: &str, change: impl Fn(&Path)) -> PathBuf {
    let to = desk.path(name);
    copy_files(&tiny_llama(), &["config.json", "model.safetensors", "tokenizer.json"], &to);
    change(&to);
    to
}

fn edit(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).expect("readable");
    assert!(text.contains(from), "{}: {from}", file.display());
    std::fs::write(file, text.replacen(from, to, 1)).expect("writable");
}

#[test]
fn what_cannot_be_evaluated_is_refused_with_the_reason() {
    let desk = Desk::new();
    let config = |name: &str, from: &'static str, to: &'static str| {
        copy(&desk, name, |folder| edit(&folder.join("config.json"), from, to))
    };
    let short = EvalOptions::new().with_seq_len(64);
    let run = |options: &EvalOptions, model: &Path, source: &Path, text: &[u8]| {
        let (model, source) =
            (Model::open(model).expect("opens"), Model::open(source).expect("opens"));
        options
            .eval(&model, &source, text, &NoProgress)
            .map(|_| ())
            .expect_err("refused")
            .to_string()
    };
    let tiny = tiny_llama();
    let says = |text: &str, part: &str| assert!(text.contains(part), "{text:?} lacks {part:?}");

    says(&run(&short, &tiny, &tiny, b"Too short."), "the text is too short");
    says(&run(&short, &tiny, &tiny, b"\xff\xfe"), "not UTF-8");
    says(&run(&EvalOptions::new().with_seq_len(1), &tiny, &tiny, &text()), "2 tokens");
    says(&run(&EvalOptions::new().with_seq_len(1 << 20), &tiny, &tiny, &text()), "at most");
    says(
        &run(&EvalOptions::new().with_seq_len(64).with_rung(Some(4)), &tiny, &tiny, &text()),
        "rungs",
    );

    let bare = copy(&desk, "no-tokenizer", |f| {
        std::fs::remove_file(f.join("tokenizer.json")).expect("there");
    });
    says(&run(&short, &tiny, &bare, &text()), "no tokenizer.json");
    let other = copy(&desk, "other-tokenizer", |f| {
        edit(&f.join("tokenizer.json"), "\"version\"", " \"version\"");
    });
    says(&run(&short, &other, &tiny, &text()), "not the reference's");
    let unknown = config("unknown", "LlamaForCausalLM", "GPT2LMHeadModel");
    says(&run(&short, &unknown, &unknown, &text()), "MambaForCausalLM");
    let another = config("another", "LlamaForCausalLM", "MistralForCausalLM");
    says(&run(&short, &another, &tiny, &text()), "the model is a MistralForCausalLM");
    let smaller = config("vocabulary", "\"vocab_size\": ", "\"vocab_size\": 1");
    says(&run(&short, &smaller, &tiny, &text()), "vocabulary");
    let deeper = config("deeper", "\"num_hidden_layers\": ", "\"num_hidden_layers\": 1");
    says(&run(&short, &deeper, &deeper, &text()), "the model lacks it");
    let flatter =
        config("flatter", "\"num_hidden_layers\": ", "\"num_hidden_layers\": 1 , \"was\": ");
    says(&run(&short, &flatter, &flatter, &text()), "has no place for it");
    let none = copy(&desk, "no-config", |f| {
        std::fs::remove_file(f.join("config.json")).expect("there");
    });
    says(&run(&short, &none, &none, &text()), "no config.json");

    // A norm of NaN: all logits are.
    let nan = copy(&desk, "nan", |f| {
        let file = f.join("model.safetensors");
        let mut bytes = std::fs::read(&file).expect("readable");
        let (header, data) = header_of(&bytes);
        let at = header["model.norm.weight"]["data_offsets"][0].as_u64().expect("an offset");
        let at = data + size(at);
        bytes[at..at + 2].copy_from_slice(&[0xc0, 0x7f]);
        std::fs::write(&file, &bytes).expect("writable");
    });
    says(&run(&short, &nan, &tiny, &text()), "not finite");
    says(&run(&short, &tiny, &nan, &text()), "the source: sequence 0: logits are not finite");

    // Tokenizers that the library panics on, or that make it reserve gigabytes.
    let normalizer = |map: &str| {
        format!(
            "\"normalizer\": {{\"type\": \"Precompiled\", \"precompiled_charsmap\": \"{map}\"}}"
        )
    };
    for (name, from, to) in [
        ("charsmap", "\"normalizer\": null", normalizer("/P///w==")),
        ("no-trie", "\"normalizer\": null", normalizer("AAAAAA==")),
        (
            "prefix",
            "\"continuing_subword_prefix\": null",
            "\"continuing_subword_prefix\": \"longer than any token\"".to_owned(),
        ),
    ] {
        let damaged = copy(&desk, name, |f| edit(&f.join("tokenizer.json"), from, &to));
        says(&run(&short, &damaged, &damaged, &text()), "tokenizer.json: ");
    }
    let scaled =
        config("scaling", "\"rope_parameters\": ", "\"rope_parameters\": \"linear\", \"was\": ");
    says(&run(&short, &scaled, &scaled, &text()), "an object is expected");
    // A head that config.json ties to the embedding, and that is another.
    let untied = copy(&desk, "untied", |f| {
        let file = f.join("model.safetensors");
        let bytes = std::fs::read(&file).expect("readable");
        let all = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let mut tensors = all.tensors();
        let embedding = all.tensor("model.embed_tokens.weight").expect("there");
        let (dtype, shape) = (embedding.dtype(), embedding.shape().to_vec());
        let mut head = embedding.data().to_vec();
        tensors.retain(|(name, _)| name != "lm_head.weight");
        head[100] ^= 1;
        let head = safetensors::tensor::TensorView::new(dtype, shape, &head);
        tensors.push(("lm_head.weight".into(), head.expect("of its size")));
        let written = safetensors::serialize(tensors, None).expect("fits");
        std::fs::write(&file, written).expect("writable");
    });
    says(&run(&short, &untied, &untied, &text()), "it is another matrix");
}

/// The encoder of the fixtures with a tokenizer of single letters.
fn encoder(desk: &Desk) -> PathBuf {
    let to = desk.path("bert");
    copy_files(&models().join("bert"), &["config.json", "model.safetensors"], &to);
    let special = ["[UNK]", "[CLS]", "[SEP]"].map(str::to_owned);
    let letters = ('a'..='z').flat_map(|c| [c.to_string(), format!("##{c}")]);
    let vocab: serde_json::Map<_, _> =
        special.into_iter().chain(letters).enumerate().map(|(i, t)| (t, i.into())).collect();
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "truncation": { "max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right" },
        "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": { "type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1] },
        "decoder": null,
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab,
        },
    });
    std::fs::write(to.join("tokenizer.json"), tokenizer.to_string()).expect("writable");
    to
}

#[test]
fn encoders_are_compared_by_cosines() {
    let desk = Desk::new();
    let folder = encoder(&desk);
    let source = Model::open(&folder).expect("opens");
    let text = "some words of letters and more of them ".repeat(12);
    let options = EvalOptions::new().with_seq_len(24);
    let same = options.eval(&source, &source, text.as_bytes(), &NoProgress).expect("evaluates");
    assert_eq!(same.metric, Metric::Cosine);
    let p = &same.protocol;
    assert!(p.sequences > 10 && p.tokens == 22 * p.sequences && same.text.tokens >= p.tokens);
    for name in ["cosine_pooled_min", "cosine_hidden_min"] {
        assert!((same.figure(name).expect("many") - 1.0).abs() < 1e-6, "{name}");
    }
    assert_eq!(same.figure("kld_mean"), None);
    // Rows of 32 are kept raw unless a recipe says otherwise.
    let pack = desk.path("bert.uc");
    let mut recipe = ultracompress::pack::Recipe::default();
    let rule = ultracompress::pack::RecipeRule::parse("dense.weight|self=4");
    recipe.tensors.push(rule.expect("a rule"));
    let opened = Source::open(&folder).expect("a checkpoint");
    PackOptions::new().with_recipe(recipe).pack(&opened, &pack).expect("packs");
    let pack = Model::open(&pack).expect("opens");
    let q8_0 = vec!["q8_0".parse::<Baseline>().expect("known")];
    let found = options.clone().with_baselines(q8_0);
    let found = found.eval(&pack, &source, text.as_bytes(), &NoProgress).expect("evaluates");
    let pooled = found.figure("cosine_pooled_mean").expect("many");
    assert!(pooled < 0.99999 && pooled > 0.8, "{pooled}");
    assert!(found.baselines[0].headline["cosine_pooled_mean"].expect("many") > pooled);
    let bytes = found.to_bytes().expect("finite");
    assert_eq!(EvalRecord::parse(&bytes).expect("its own bytes"), found);
    let e = EvalOptions::new().with_seq_len(2).eval(&source, &source, text.as_bytes(), &NoProgress);
    assert_eq!(*e.expect_err("no room for a token").kind(), ErrorKind::InvalidArgument);
}

#[test]
fn a_request_to_stop_ends_an_evaluation() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Wants to stop after it was asked so many times.
    struct After(AtomicUsize);
    impl ultracompress::Progress for After {
        fn cancelled(&self) -> bool {
            self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_err()
        }
    }
    let source = Model::open(&tiny_llama()).expect("opens");
    // While hashing, while loading, while running.
    for asked in [0, 60, 100] {
        let stop = After(AtomicUsize::new(asked));
        let found = EvalOptions::new().with_seq_len(64).eval(&source, &source, &text(), &stop);
        assert_eq!(*found.expect_err("stopped").kind(), ErrorKind::Cancelled, "{asked}");
    }
}
