//! Checkpoints: packed and unpacked, by every recipe.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as StDtype, TensorView as StView};
use ultracompress::audit::{against, diff, same};
use ultracompress::pack::{Decision, PackOptions, PackReport, Recipe, RecipeRule};
use ultracompress::source::{Model, Source};
use ultracompress::unpack::UnpackOptions;
use ultracompress::{
    Check, DecodeOptions, Dtype, Encoding, ErrorKind, Input, NoProgress, Pack, VerifyOptions,
};

use crate::support::checkpoint::{number, shard_name, write_index};
use crate::support::folder::Desk;
use crate::support::in_pool;
use crate::support::random::Rng;

type Tensors = BTreeMap<String, (StDtype, Vec<usize>, Vec<u8>)>;

fn floats(dtype: StDtype, n: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng(seed);
    let to = Dtype::from_name(&dtype.to_string()).expect("one of ours");
    (0..n).flat_map(|_| number(0.05 * rng.signed() * rng.signed(), to)).collect()
}

/// Every kind of tensor that the default rule tells apart.
fn tensors() -> Tensors {
    let mut all = Tensors::new();
    let mut add = |name: &str, dtype: StDtype, shape: &[usize], bytes: Vec<u8>| {
        assert!(all.insert(name.to_owned(), (dtype, shape.to_vec(), bytes)).is_none());
    };
    let embedding = floats(StDtype::BF16, 32 * 64, 1);
    add("model.embed_tokens.weight", StDtype::BF16, &[32, 64], embedding.clone());
    add("lm_head.weight", StDtype::BF16, &[32, 64], embedding);
    let q = "model.layers.0.self_attn.q_proj.weight";
    add(q, StDtype::BF16, &[64, 64], floats(StDtype::BF16, 64 * 64, 2));
    let v = "model.layers.0.self_attn.v_proj.weight";
    add(v, StDtype::F16, &[16, 64], floats(StDtype::F16, 16 * 64, 3));
    let up = "model.layers.0.mlp.up_proj.weight";
    add(up, StDtype::F32, &[24, 65], floats(StDtype::F32, 24 * 65, 4));
    let wide = "model.layers.0.mlp.wide.weight";
    add(wide, StDtype::F64, &[3, 70], floats(StDtype::F64, 3 * 70, 5));
    let experts = "model.layers.0.experts.w1";
    add(experts, StDtype::BF16, &[2, 5, 64], floats(StDtype::BF16, 640, 6));
    add("model.conv.weight", StDtype::F32, &[4, 20, 4], floats(StDtype::F32, 320, 7));
    let gate = "model.layers.0.mlp.gate.weight";
    add(gate, StDtype::BF16, &[4, 64], floats(StDtype::BF16, 256, 8));
    add("model.norm.weight", StDtype::BF16, &[64], floats(StDtype::BF16, 64, 9));
    add("model.narrow.weight", StDtype::F32, &[64, 8], floats(StDtype::F32, 512, 10));
    add("model.scalar", StDtype::F32, &[], floats(StDtype::F32, 1, 11));
    add("model.empty", StDtype::F32, &[0, 64], vec![]);
    add("model.ids", StDtype::I64, &[3, 65], Rng(12).bytes(3 * 65 * 8));
    add("model.mask", StDtype::BOOL, &[5], vec![0, 1, 1, 0, 1]);
    add("model.fp4", StDtype::F4, &[2, 3, 2], Rng(13).bytes(6));
    let mut nan = floats(StDtype::F32, 2 * 64, 14);
    nan[4 * 77..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    add("model.nan.weight", StDtype::F32, &[2, 64], nan);
    let mut infinite = floats(StDtype::BF16, 2 * 64, 15);
    infinite[2 * 3..][..2].copy_from_slice(&half::bf16::NEG_INFINITY.to_le_bytes());
    add("model.inf.weight", StDtype::BF16, &[2, 64], infinite);
    let huge: Vec<u8> = (0..128).flat_map(|i| (1e299 * f64::from(i)).to_le_bytes()).collect();
    add("model.huge.weight", StDtype::F64, &[2, 64], huge);
    all
}

const ODD: [&str; 3] = ["model.huge.weight", "model.inf.weight", "model.nan.weight"];

fn write_safetensors(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, StView::new(*dtype, shape.clone(), bytes).expect("sizes fit"))
    });
    let metadata: HashMap<_, _> =
        [("format".to_owned(), "pt".to_owned()), ("a".to_owned(), "ü".to_owned())].into();
    safetensors::serialize_to_file(views, Some(metadata), path).expect("can write");
}

fn carried() -> BTreeMap<&'static str, Vec<u8>> {
    [
        ("config.json", br#"{"architectures": ["LlamaForCausalLM"]}"#.to_vec()),
        ("tokenizer.json", vec![b' '; 5000]),
        ("README.md", b"---\nlicense: apache-2.0\n---\n# A model\n".to_vec()),
        ("empty.txt", vec![]),
        ("1_Pooling/deep/config.json", b"\x00\xff not JSON".to_vec()),
    ]
    .into()
}

fn write_folder(folder: &Path, shards: usize) {
    for (path, bytes) in carried() {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().expect("below the folder")).expect("can write");
        fs::write(path, bytes).expect("can write");
    }
    // Left out: other formats of the same weights, hidden files.
    fs::write(folder.join("pytorch_model.bin"), b"pickle").expect("can write");
    fs::write(folder.join(".gitattributes"), b"x").expect("can write");
    let tensors = tensors();
    if shards == 1 {
        return write_safetensors(&folder.join("model.safetensors"), &tensors);
    }
    for shard in 0..shards {
        let own: Tensors = tensors
            .iter()
            .enumerate()
            .filter(|(i, _)| i % shards == shard)
            .map(|(_, (name, t))| (name.clone(), t.clone()))
            .collect();
        write_safetensors(&folder.join(shard_name(shard, shards)), &own);
    }
    let place = |(i, name): (usize, &String)| (name.clone(), shard_name(i % shards, shards));
    write_index(folder, tensors.keys().enumerate().map(place));
}

struct Packed {
    desk: Desk,
    report: PackReport,
}

impl Packed {
    fn source(&self) -> PathBuf {
        self.desk.path("source")
    }

    fn file(&self) -> PathBuf {
        self.desk.path("model.uc")
    }

    fn open(&self) -> Pack<Input> {
        Pack::open_path(self.file()).expect("valid")
    }

    fn unpack(&self, options: &UnpackOptions) -> PathBuf {
        let folder = self.desk.path("unpacked");
        options.unpack(&self.open(), &folder).expect("valid");
        folder
    }
}

fn packed(shards: usize, recipe: Recipe) -> Packed {
    let desk = Desk::new();
    let source = desk.path("source");
    write_folder(&source, shards);
    let source = Source::open(&source).expect("valid");
    let options = PackOptions::new().with_recipe(recipe);
    let report = options.pack(&source, &desk.path("model.uc")).expect("valid");
    Packed { desk, report }
}

fn decision<'a>(report: &'a PackReport, name: &str) -> &'a Decision {
    let planned = report.plan.tensors.iter().find(|t| t.name == name);
    &planned.unwrap_or_else(|| panic!("{name} is in the plan")).decision
}

/// Every tensor of the safetensors files of a folder.
fn read_folder(folder: &Path) -> Tensors {
    let mut all = Tensors::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("readable").path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            let bytes = fs::read(&path).expect("readable");
            let file = SafeTensors::deserialize(&bytes).expect("what we wrote is valid");
            for (name, t) in file.tensors() {
                let t = (t.dtype(), t.shape().to_vec(), t.data().to_vec());
                assert!(all.insert(name, t).is_none());
            }
        }
    }
    all
}

fn is_raw(pack: &Pack<Input>, name: &str) -> bool {
    pack.tensor(name).expect("packed").entry().encoding == Encoding::Raw
}

#[test]
fn a_folder_comes_back_with_raw_tensors_and_files_bit_equal() {
    for shards in [1, 3] {
        let packed = packed(shards, Recipe::default());
        let pack = packed.open();
        let report = VerifyOptions::new().verify_pack(&pack).expect("readable");
        assert!(report.is_ok(), "{:?}", report.failures);
        assert_eq!(report.tensors_checked, tensors().len());

        let folder = packed.unpack(&UnpackOptions::new());
        let (before, after) = (tensors(), read_folder(&folder));
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        for (name, (dtype, shape, bytes)) in &before {
            let found = &after[name];
            assert_eq!((dtype, shape), (&found.0, &found.1), "{name}");
            let raw = is_raw(&pack, name);
            assert_eq!(raw, bytes == &found.2, "{name}: raw {raw}");
            let view = pack.tensor(name).expect("packed");
            assert_eq!(found.2, view.decode().expect("valid"), "{name}");
        }
        for (path, bytes) in carried() {
            assert_eq!(fs::read(folder.join(path)).expect("carried"), bytes, "{path}");
        }
        for path in ["pytorch_model.bin", ".gitattributes"] {
            assert!(!folder.join(path).exists(), "{path}");
            assert!(packed.report.left_out.iter().any(|p| p == path), "{path}");
        }
        // The same files hold the same tensors, and the index still fits.
        let index = "model.safetensors.index.json";
        if shards > 1 {
            assert_eq!(
                fs::read(folder.join(index)).expect("carried"),
                fs::read(packed.source().join(index)).expect("written")
            );
        }
        let again = Source::open(&folder).expect("what we wrote is valid");
        let source = Source::open(&packed.source()).expect("valid");
        for t in source.tensors() {
            assert_eq!(again.tensor(&t.name).map(|t| &t.file), Some(&t.file), "{}", t.name);
        }

        let (a, b) = (Model::open(&packed.file()), Model::open(&folder));
        let (a, b) = (a.expect("valid"), b.expect("valid"));
        let result = same(&a, &b, &NoProgress).expect("readable");
        assert!(result.same, "{:?}", result.first_difference);
        assert_eq!(result.a, packed.report.decoded_root);
        assert_eq!(result.b, packed.report.decoded_root);

        let original = Model::open(&packed.source()).expect("valid");
        let result = same(&a, &original, &NoProgress).expect("readable");
        assert!(!result.same, "quantized weights differ from their source");
        assert_eq!(result.first_difference.as_deref(), Some("lm_head.weight: values differ"));
    }
}

#[test]
fn a_pack_does_not_depend_on_sharding_times_or_threads() {
    let packed = packed(1, Recipe::default());
    let copy = packed.desk.path("copy");
    // Another order of creation, other times.
    let mut paths: Vec<_> = carried().into_keys().rev().collect();
    paths.extend(["model.safetensors", "pytorch_model.bin", ".gitattributes"]);
    for (i, path) in (1u64..).zip(paths) {
        let to = copy.join(path);
        fs::create_dir_all(to.parent().expect("below the folder")).expect("can write");
        fs::copy(packed.source().join(path), &to).expect("can copy");
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400 * 365 * i);
        File::options()
            .append(true)
            .open(&to)
            .and_then(|f| f.set_modified(time))
            .expect("can set times");
    }
    let first = fs::read(packed.file()).expect("written");
    for threads in [1, 4] {
        let out = packed.desk.path(format!("again-{threads}.uc"));
        let pack = || {
            let source = Source::open(&copy).expect("valid");
            PackOptions::new().pack(&source, &out).expect("valid");
        };
        in_pool(threads, pack);
        assert!(fs::read(&out).expect("written") == first, "{threads} threads");
    }

    let sharded = self::packed(2, Recipe::default());
    let (a, b) = (&packed.report, &sharded.report);
    assert_eq!(a.decoded_root, b.decoded_root);
    assert_ne!(a.stored_root, b.stored_root);
}

#[test]
fn tensors_that_are_not_finite_are_stored_raw_and_reported() {
    let packed = packed(1, Recipe::default());
    let mut odd = packed.report.odd.clone();
    odd.sort();
    assert_eq!(odd, ODD);
    let pack = packed.open();
    for name in ODD {
        assert!(is_raw(&pack, name), "{name}");
        let view = pack.tensor(name).expect("packed");
        assert_eq!(view.decode().expect("valid"), tensors()[name].2, "{name}");
    }
}

#[test]
fn the_default_rule_decides_by_role_type_and_shape() {
    let report = packed(1, Recipe::default()).report;
    let planes = |planes, row_dims| Decision::Planes { planes, row_dims };
    // The first of two equal tensors by name is the one that is stored.
    assert_eq!(decision(&report, "lm_head.weight"), &planes(8, 1));
    assert_eq!(
        decision(&report, "model.embed_tokens.weight"),
        &Decision::Alias("lm_head.weight".into())
    );
    for (name, expected) in [
        ("model.layers.0.self_attn.q_proj.weight", planes(5, 1)),
        ("model.layers.0.self_attn.v_proj.weight", planes(5, 1)),
        ("model.layers.0.mlp.up_proj.weight", planes(5, 1)),
        ("model.layers.0.mlp.wide.weight", planes(5, 1)),
        ("model.layers.0.experts.w1", planes(5, 2)),
        ("model.conv.weight", planes(5, 1)),
        ("model.layers.0.mlp.gate.weight", Decision::Raw),
        ("model.norm.weight", Decision::Raw),
        ("model.narrow.weight", Decision::Raw),
        ("model.scalar", Decision::Raw),
        ("model.empty", Decision::Raw),
        ("model.ids", Decision::Raw),
    ] {
        assert_eq!(decision(&report, name), &expected, "{name}");
    }
    let stats = &report.stats;
    assert_eq!(stats.tensors, tensors().len() as u64);
    let elements = |(_, (_, shape, _)): (&String, &(StDtype, Vec<usize>, Vec<u8>))| {
        shape.iter().product::<usize>() as u64
    };
    let all: u64 = tensors().iter().map(elements).sum();
    assert_eq!(stats.weights, all - 32 * 64, "an alias is counted once");
}

#[test]
fn quantization_stays_close_to_the_source() {
    let packed = packed(1, Recipe::default());
    let (a, b) = (Model::open(&packed.source()), Model::open(&packed.file()));
    let report = diff(&a.expect("valid"), &b.expect("valid"), &NoProgress).expect("readable");
    assert!(report.unmatched.is_empty());
    let pack = packed.open();
    for t in &report.tensors {
        if is_raw(&pack, &t.name) {
            assert!(t.max_abs == 0.0 && t.sqnr_db == f64::INFINITY, "{}", t.name);
        } else {
            let expected =
                if t.name.contains("layers") || t.name.contains("conv") { 22.0 } else { 38.0 };
            assert!(t.sqnr_db > expected && t.sqnr_db < 80.0, "{}: {} dB", t.name, t.sqnr_db);
        }
    }
    let worst = report.worst.expect("something was quantized");
    let lowest = report.tensors.iter().min_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
    assert_eq!(Some(&worst), lowest.map(|t| &t.name));
}

#[test]
fn unpacking_converts_types_reads_rungs_and_selects_tensors() {
    let packed = packed(3, Recipe::default());
    let pack = packed.open();
    for target in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        let folder = packed.desk.path(target.name());
        let options = UnpackOptions::new().with_dtype(Some(target));
        let report = options.unpack(&pack, &folder).expect("valid");
        assert_ne!(report.decoded_root, packed.report.decoded_root);
        let after = read_folder(&folder);
        assert_eq!(after.len(), tensors().len());
        for (name, (dtype, _, bytes)) in &after {
            let view = pack.tensor(name).expect("packed");
            let expected = if view.dtype().has_planes() { target } else { view.dtype() };
            assert_eq!(dtype.to_string(), expected.name(), "{name}");
            let values = DecodeOptions::new().with_dtype(target).decode(&view);
            assert_eq!(bytes, &values.expect("valid"), "{name}");
        }
    }
    let folder = packed.desk.path("rung");
    let options = UnpackOptions::new().with_planes(Some(4));
    options.unpack(&pack, &folder).expect("valid");
    let full = read_folder(&packed.unpack(&UnpackOptions::new()));
    let mut coarser = 0;
    for (name, (_, _, bytes)) in read_folder(&folder) {
        let view = pack.tensor(&name).expect("packed");
        let values = DecodeOptions::new().with_planes(4).decode(&view).expect("valid");
        assert_eq!(bytes, values, "{name}");
        coarser += usize::from(bytes != full[&name].2);
    }
    assert!(coarser >= 8, "{coarser} tensors changed");

    let folder = packed.desk.path("some");
    let options = UnpackOptions::new().with_tensors(Some("(q|v)_proj".into()));
    let report = options.unpack(&pack, &folder).expect("valid");
    assert_eq!(report.tensors, 2);
    let some = read_folder(&folder);
    assert_eq!(some.len(), 2);
    assert!(some.iter().all(|(name, t)| t == &full[name]));
    assert!(!folder.join("config.json").exists());

    let options = UnpackOptions::new().with_tensors(Some("no such tensor".into()));
    let e = options.unpack(&pack, &packed.desk.path("none")).expect_err("no match");
    assert_eq!(e.kind(), &ErrorKind::InvalidArgument);
    assert!(!packed.desk.path("none").exists());
}

#[test]
fn recipes_override_the_default_rule() {
    let mut recipe = Recipe::default();
    recipe.bits = 4;
    recipe.head_bits = 6;
    recipe.group = 64;
    recipe.zstd_level = 0;
    for rule in ["proj=8", "v_proj=raw", "narrow=3", "norm=8", "embed_tokens=7"] {
        recipe.tensors.push(RecipeRule::parse(rule).expect("valid"));
    }
    let packed = packed(1, recipe);
    let pack = packed.open();
    let expected = |name: &str, planes| {
        let found = match &pack.tensor(name).expect("packed").entry().encoding {
            Encoding::Planes { planes, group, .. } => {
                assert_eq!(*group, 64, "{name}");
                *planes
            }
            _ => None,
        };
        assert_eq!(found, planes, "{name}");
    };
    expected("lm_head.weight", Some(6));
    expected("model.embed_tokens.weight", Some(7));
    expected("model.layers.0.self_attn.q_proj.weight", Some(8));
    expected("model.layers.0.mlp.up_proj.weight", Some(8));
    expected("model.layers.0.self_attn.v_proj.weight", None);
    expected("model.narrow.weight", Some(3));
    expected("model.conv.weight", Some(4));
    expected("model.norm.weight", None);
    let manifest = pack.manifest().expect("valid");
    assert_eq!(manifest.recipe["bits"], 4);
    assert_eq!(manifest.recipe["tensor"][1]["bits"], "raw");
    assert_eq!(manifest.licence.as_deref(), Some("apache-2.0"));
    let report = VerifyOptions::new().verify_pack(&pack).expect("readable");
    assert!(report.is_ok(), "{:?}", report.failures);

    let mut recipe = Recipe::default();
    recipe.raw_all = true;
    let packed = self::packed(1, recipe);
    let (a, b) = (Model::open(&packed.source()), Model::open(&packed.file()));
    let result = same(&a.expect("valid"), &b.expect("valid"), &NoProgress).expect("readable");
    assert!(result.same, "raw_all loses nothing: {:?}", result.first_difference);
}

#[test]
fn impossible_recipes_are_refused_and_write_nothing() {
    let desk = Desk::new();
    let folder = desk.path("source");
    write_folder(&folder, 1);
    let source = Source::open(&folder).expect("valid");
    let change = |f: &dyn Fn(&mut Recipe)| {
        let mut recipe = Recipe::default();
        f(&mut recipe);
        recipe
    };
    for recipe in [
        change(&|r| r.bits = 2),
        change(&|r| r.head_bits = 9),
        change(&|r| r.embedding_bits = 0),
        change(&|r| r.group = 33),
        change(&|r| r.zstd_level = 20),
        change(&|r| r.tensors.push(RecipeRule::parse("a=9").expect("parses"))),
        change(&|r| r.tensors.push(RecipeRule::parse("(=5").expect("parses"))),
    ] {
        let out = desk.path("out.uc");
        let options = PackOptions::new().with_recipe(recipe.clone());
        let e = options.pack(&source, &out).expect_err("impossible");
        assert_eq!(e.kind(), &ErrorKind::InvalidArgument, "{recipe:?}");
    }
    for text in ["no setting", "a=", "a=five", "a=RAW", "a=300"] {
        assert!(RecipeRule::parse(text).is_err(), "{text}");
    }
    assert_eq!(desk.names(), ["source"], "only the source");
}

#[test]
fn a_pack_is_compared_with_its_source_tensor_by_tensor() {
    let packed = packed(1, Recipe::default());
    let pack = packed.open();
    let manifest = pack.manifest().expect("valid");
    let source = Source::open(&packed.source()).expect("valid");
    let report =
        against(&pack, &manifest, &source, &NoProgress, Check::NotChecked).expect("readable");
    assert!(report.failures.is_empty(), "{report:?}");
    assert_eq!(report.exact + report.claimed, pack.tensors().len() as u64);
    assert!(report.exact > 0 && report.claimed > 0 && report.files > 0, "{report:?}");

    let mut changed = tensors();
    // The least bit of one weight of a quantized tensor, one tensor less, one more.
    let name = "model.layers.0.mlp.up_proj.weight";
    changed.get_mut(name).expect("there").2[0] ^= 1;
    changed.remove("model.mask");
    changed.insert("model.new".into(), (StDtype::U8, vec![1], vec![7]));
    write_safetensors(&packed.desk.path("other.safetensors"), &changed);
    let other = Source::open(&packed.desk.path("other.safetensors")).expect("valid");
    let failures = against(&pack, &manifest, &other, &NoProgress, Check::NotChecked)
        .expect("readable")
        .failures;
    let mut names: Vec<_> = failures.iter().filter_map(|f| f.tensor.as_deref()).collect();
    names.sort_unstable();
    assert_eq!(names, [name, "model.mask", "model.new"]);
    assert!(failures.iter().all(|f| f.kind == ErrorKind::Integrity));

    fs::write(packed.source().join("config.json"), b"{\"other\":1}").expect("can write");
    let source = Source::open(&packed.source()).expect("valid");
    let failures = against(&pack, &manifest, &source, &NoProgress, Check::NotChecked)
        .expect("readable")
        .failures;
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert_eq!(failures[0].tensor.as_deref(), Some("config.json"));
}

#[test]
fn a_pack_never_replaces_a_file_of_its_source() {
    let packed = packed(1, Recipe::default());
    let source = Source::open(&packed.source()).expect("valid");
    for name in ["model.safetensors", "config.json"] {
        let target = packed.source().join(name);
        let before = fs::read(&target).expect("there");
        let options = PackOptions::new().with_force(true);
        let e = options.pack(&source, &target).expect_err("a source file");
        assert_eq!(e.kind(), &ErrorKind::Io, "{e}");
        assert_eq!(fs::read(&target).expect("there"), before, "{name}");
    }
}

#[test]
fn a_pack_in_its_source_folder_can_be_made_again_with_equal_bytes() {
    let packed = packed(1, Recipe::default());
    let target = packed.source().join("model.uc");
    let make = || {
        let source = Source::open(&packed.source()).expect("valid");
        PackOptions::new().with_force(true).pack(&source, &target).expect("packs");
        fs::read(&target).expect("there")
    };
    assert!(make() == make());
}

#[test]
fn existing_output_is_kept_unless_forced() {
    let packed = packed(1, Recipe::default());
    let source = Source::open(&packed.source()).expect("valid");
    let out = packed.desk.path("taken");
    fs::write(&out, b"precious").expect("can write");
    let e = PackOptions::new().pack(&source, &out).expect_err("taken");
    assert_eq!(e.kind(), &ErrorKind::Io);
    assert_eq!(fs::read(&out).expect("still there"), b"precious");
    PackOptions::new().with_force(true).pack(&source, &out).expect("forced");
    let bytes = fs::read(&out).expect("replaced");
    assert!(bytes == fs::read(packed.file()).expect("written"));

    let folder = packed.desk.path("full");
    fs::create_dir(&folder).expect("can write");
    fs::write(folder.join("config.json"), b"old").expect("can write");
    fs::write(folder.join("other"), b"precious").expect("can write");
    let pack = packed.open();
    let e = UnpackOptions::new().unpack(&pack, &folder).expect_err("not empty");
    assert_eq!(e.kind(), &ErrorKind::Io);
    assert_eq!(fs::read(folder.join("config.json")).expect("still there"), b"old");
    UnpackOptions::new().with_force(true).unpack(&pack, &folder).expect("forced");
    assert_eq!(fs::read(folder.join("other")).expect("stays"), b"precious");
    assert_eq!(fs::read(folder.join("config.json")).expect("replaced"), carried()["config.json"]);
    assert_eq!(read_folder(&folder).len(), tensors().len());
}
