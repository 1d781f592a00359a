//! Training from its inputs to the pack that is written.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::closed::{Product, Spectrum, spectrum};
use super::gate;
use super::gradient::{Factors, Look, Objective, Position, Schedule, Training};
use super::options::{Method, Probe, TrainOptions, TrainReport};
use super::ranks::{Offer, allocate};
use super::state::{Saved, StateFile};
use crate::audit::decoded_root;
use crate::calibration::Calibration;
use crate::codec::read_f32;
use crate::container::{DecodeOptions, TensorView};
use crate::edit::{NewBlock, NewFactors, NewOverlay, OverlayOptions};
use crate::encoder::Metric;
use crate::error::{Error, Result};
use crate::format::{Digest, Dtype, Encoding, Role, TreeHasher, check_name, elements, tensor_leaf};
use crate::lm::calibrate::CalibrateOptions;
use crate::lm::config::Config;
use crate::lm::eval::EvalOptions;
use crate::lm::network::{SPARE, check_positions, config_of, load_ends};
use crate::lm::states::States;
use crate::lm::text::{cut, tokenizer_of};
use crate::lm::weights::Weights;
use crate::manifest::Pack;
use crate::manifest::PackStats;
use crate::memory::to_usize;
use crate::par;
use crate::progress::{Progress, Silent, step};
use crate::source::{Model, Source};
use crate::storage::Input;

/// One part of the text in so many is the probe set.
const PROBE_PART: usize = 8;
/// What the budget is above the pack's own, unless it is given.
const MORE_BPW: f64 = 0.5;
/// Ranks that a layer may get, over what an even distribution gives.
const RANK_RANGE: usize = 4;

/// Highest rank of a layer: its singular vectors are found by rotations in all pairs.
const MOST_RANK: usize = 256;
/// Seeds are part of the record, whose numbers are safe integers.
const MOST_SEED: u64 = (1 << 53) - 1;

/// A layer that may get ranks.
struct TargetLayer {
    tensor: String,
    /// The tensor's name without `.weight`.
    name: String,
    rows: usize,
    cols: usize,
}

/// The models, the texts, and where the result goes.
struct Task<'a> {
    pack: &'a Model,
    /// The same pack.
    base: &'a Pack<Input>,
    source: &'a Model,
    train_text: &'a [u8],
    probe_text: &'a [u8],
    held_out: &'a [u8],
    output: &'a Path,
    progress: &'a dyn Progress,
}

/// What an overlay may take.
struct Budget {
    /// Bits of a weight of the body as it is.
    before: f64,
    /// With the overlay.
    target: f64,
    /// Bytes of the overlay.
    bytes: u64,
}

impl TrainOptions {
    /// Steps that [`TrainOptions::train`] reports to its progress, unless training ends early.
    ///
    /// # Errors
    /// As reading the source's configuration.
    pub fn work(&self, source: &Model) -> Result<u64> {
        let each = match (self.method, self.objective) {
            (Method::Gradient, Objective::Hidden) => config_of(source)?.layers(),
            (Method::Gradient, _) => 1,
            _ => 0,
        };
        Ok((self.steps * each) as u64)
    }

    fn check(&self) -> Result<()> {
        let fail = |text: &str| Err(Error::argument(text));
        if self.method == Method::Gradient
            && (self.steps == 0 || self.round == 0 || self.batch == 0)
        {
            return fail("steps, rounds and batches have one step or sequence at least");
        }
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            return fail("the learning rate is a positive number");
        }
        if self.seq_len < 2 {
            return fail("sequences have 2 tokens at least");
        }
        if !self.min_gain.is_finite() {
            return fail("the least gain is a number");
        }
        if !self.batch.is_multiple_of(2) {
            return fail("a batch has an even number of sequences: they run two by two");
        }
        if self.seed > MOST_SEED {
            return fail("seeds are below 2^53");
        }
        check_name(&self.name)
    }

    /// What would stop the work only at its end.
    fn check_ends(&self, task: &Task<'_>, target: f64) -> Result<()> {
        OverlayOptions::new().with_force(self.force).check(task.base, task.output)?;
        if matches!(config_of(task.source)?, Config::Bert(_)) {
            return Err(Error::argument("an encoder doesn't predict tokens: it can't be trained"));
        }
        if !self.frozen_base {
            gate::budget(target)?;
        }
        let options = EvalOptions::new().with_seq_len(self.seq_len);
        options.prepare(task.pack, task.source, task.held_out).map(drop)
    }

    /// Trains an overlay for `pack` against `source`, the model that it was made from, compares,
    /// and writes `output`: the pack with the overlay if it is kept, else as it was.
    ///
    /// # Errors
    /// `InvalidArgument` for options that make no sense, an encoder, or a budget that leaves
    /// nothing to an overlay; `Source` for a text that is too short, a pack of another model, a
    /// calibration of another model; as reading both; `Cancelled`; `Io`.
    pub fn train(
        &self,
        pack: &Model,
        source: &Model,
        text: &[u8],
        output: &Path,
        progress: &dyn Progress,
    ) -> Result<TrainReport> {
        self.check()?;
        let (base, checkpoint) = self.base_and_checkpoint(pack, source)?;
        let budget = self.budget(base)?;
        let (train_text, probe_text) = split(text);
        let held_out = self.held_out.as_deref().unwrap_or(probe_text);
        if held_out == text {
            let text = "the held-out text is the one that is trained on: nothing would be held out";
            return Err(Error::argument(text));
        }
        let task = Task { pack, base, source, train_text, probe_text, held_out, output, progress };
        self.check_ends(&task, budget.target)?;
        let source_root = check_source(base, source, progress)?;
        let folder = work_folder(output)?;
        let calibration = self.calibration(&task, folder.path())?;
        if let Some(calibration) = &calibration {
            check_calibration(calibration, source_root)?;
        }
        let digest = calibration.as_ref().map(Calibration::sha256);
        let recipe = self.recipe(base, source_root, text, digest, budget.target);

        let products = self.closed_form(&task, calibration.as_ref(), budget.bytes)?;
        let trained = match self.method {
            Method::Gradient => self.gradient(&task, products, &recipe)?,
            Method::Svd | Method::Whitened => Trained::in_closed_form(products),
        };
        let overlay = self.overlay(&recipe, &trained)?;

        let gate = gate::Gate {
            options: self,
            pack,
            source,
            checkpoint,
            calibration: calibration.as_ref(),
            folder: folder.path(),
            held_out,
            target: budget.target,
        };
        let verdict = gate.compare(base, &overlay, progress)?;
        self.write(&task, overlay, trained, verdict, budget)
    }

    /// What the two models must be to be trained and to be trained against.
    fn base_and_checkpoint<'a>(
        &self,
        pack: &'a Model,
        source: &'a Model,
    ) -> Result<(&'a Pack<Input>, &'a Source)> {
        let Model::Pack(base) = pack else {
            return Err(Error::argument("overlays are for packs, not for checkpoints"));
        };
        let Model::Checkpoint(checkpoint) = source else {
            return Err(Error::argument("the source is a checkpoint, not a pack"));
        };
        if base.overlays().iter().any(|o| o.name == self.name) {
            let text = "the pack has an overlay of this name: choose another with --name";
            return Err(Error::argument(text).in_tensor(&self.name));
        }
        Ok((base, checkpoint))
    }

    fn budget(&self, base: &Pack<Input>) -> Result<Budget> {
        let stats = PackStats::of(base);
        let before =
            stats.body_bpw.ok_or_else(|| Error::argument("the pack has no body to correct"))?;
        let target = self.bpw.unwrap_or(before + MORE_BPW);
        #[allow(clippy::cast_precision_loss, reason = "a budget")]
        let bytes = (target - before) * stats.body_weights as f64 / 8.0;
        if !(bytes.is_finite() && bytes >= 1.0) {
            return Err(Error::argument(format!(
                "a budget of {target} bpw leaves nothing to an overlay: the body has {before:.4}"
            )));
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive")]
        Ok(Budget { before, target, bytes: bytes as u64 })
    }

    /// Writes the pack, with the overlay if it is kept, and removes the state of training.
    fn write(
        &self,
        task: &Task<'_>,
        overlay: NewOverlay,
        trained: Trained,
        verdict: gate::Verdict,
        budget: Budget,
    ) -> Result<TrainReport> {
        let factors_sha256 = digest_of(&overlay);
        let options = OverlayOptions::new().with_force(self.force).with_max_ram(self.max_ram);
        let kept = verdict.kept || self.keep;
        let overlays =
            if kept { vec![self.with_outcome(overlay, &trained, &verdict)] } else { vec![] };
        let written = options.add(task.base, &overlays, task.output, &Silent(task.progress))?;
        StateFile::new(task.output).remove()?;
        let reason = match (verdict.kept, self.keep) {
            (false, true) => format!("{} (kept as asked for)", verdict.reason),
            _ => verdict.reason,
        };
        Ok(TrainReport {
            kept,
            reason,
            ranks: trained.products.iter().map(|(n, p)| (format!("{n}.weight"), p.rank)).collect(),
            bpw_before: budget.before,
            bpw_after: verdict.bpw_after,
            before: verdict.before,
            after: verdict.after,
            table: verdict.table,
            steps: trained.steps,
            rescues: trained.rescues,
            stopped: trained.stopped,
            probes: trained.probes,
            threads: par::threads(),
            held_out: self.held_out.is_some(),
            factors_sha256,
            files: written.files,
            stored_root: written.stored_root,
            effective_root: written.effective_root,
        })
    }

    /// Statistics of the source: those that are given, or new ones; none for the plain SVD.
    fn calibration(&self, task: &Task<'_>, folder: &Path) -> Result<Option<Calibration>> {
        if let Some(path) = &self.calibration {
            return Calibration::open(path).map(Some);
        }
        if self.method == Method::Svd && self.frozen_base {
            return Ok(None);
        }
        let path = folder.join("calibration");
        let options =
            CalibrateOptions::new().with_seq_len(self.seq_len).with_max_tokens(self.max_tokens);
        let prepared = options.prepare(task.source, task.train_text)?;
        prepared.run(&path, &Silent(task.progress))?;
        Calibration::open(&path).map(Some)
    }

    /// What steers training, for the overlay's record: strings and integers.
    fn recipe(
        &self,
        pack: &Pack<Input>,
        source_root: Digest,
        text: &[u8],
        calibration: Option<Digest>,
        target: f64,
    ) -> Map<String, Value> {
        let mut all = Map::new();
        let mut put = |key: &str, value: Value| all.insert(key.to_owned(), value);
        put("method", json!(self.method.name()));
        put("bpw", json!(format!("{target:.6}")));
        put("seq_len", json!(self.seq_len));
        put("max_tokens", json!(self.max_tokens));
        put("text_sha256", json!(Digest::of(text).to_string()));
        put("calibration_sha256", json!(calibration.map(|c| c.to_string())));
        put("base_root", json!(pack.decoded_root().to_string()));
        put("beneath", json!(pack.effective_root().map(|r| r.to_string())));
        put("source_root", json!(source_root.to_string()));
        if self.method == Method::Gradient {
            put("objective", json!(self.objective.name()));
            put("steps", json!(self.steps));
            put("round", json!(self.round));
            put("batch", json!(self.batch));
            put("learning_rate", json!(self.learning_rate.to_string()));
            put("seed", json!(self.seed));
            put("max_rescues", json!(self.max_rescues));
            put("min_gain", json!(self.min_gain.to_string()));
            put("refreshed", json!(self.refreshed));
        }
        all
    }

    /// Factors of all layers under a budget of so many bytes.
    fn closed_form(
        &self,
        task: &Task<'_>,
        calibration: Option<&Calibration>,
        budget: u64,
    ) -> Result<BTreeMap<String, Product>> {
        let layers = layers_of(task.base)?;
        if layers.is_empty() {
            return Err(Error::argument("the pack has no matrices of the body in planes"));
        }
        let spectra = self.spectra(task, &layers, calibration, budget)?;
        let offers: Vec<Offer<'_>> =
            spectra.iter().map(|s| Offer { rows: s.rows, cols: s.cols, gains: &s.gains }).collect();
        let ranks = allocate(&offers, budget);
        let all = layers.iter().zip(&spectra).zip(ranks);
        let products: BTreeMap<String, Product> = all
            .filter(|(_, rank)| *rank > 0)
            .map(|((layer, spectrum), rank)| (layer.name.clone(), spectrum.product(rank)))
            .collect();
        if products.is_empty() {
            return Err(Error::argument("the budget is too small for one rank of any layer"));
        }
        Ok(products)
    }

    /// The largest parts of each layer's error, as many as it may get ranks.
    fn spectra(
        &self,
        task: &Task<'_>,
        layers: &[TargetLayer],
        calibration: Option<&Calibration>,
        budget: u64,
    ) -> Result<Vec<Spectrum>> {
        let sides: u64 = layers.iter().map(|l| (l.rows + l.cols) as u64).sum();
        let even = to_usize(budget / sides.max(1))?.max(1);
        let mut spectra: Vec<Spectrum> = vec![];
        for layer in layers {
            step(task.progress, 0)?;
            let locate = |e: Error| e.in_tensor(&layer.tensor);
            let error = error_of(task.base, task.source, layer).map_err(locate)?;
            let metric = match (self.method, calibration) {
                (Method::Svd, _) | (_, None) => Metric::plain(layer.rows, layer.cols),
                (_, Some(calibration)) => {
                    let statistics = calibration.statistics(&layer.tensor)?;
                    Metric::new(layer.rows, layer.cols, &statistics).map_err(locate)?
                }
            };
            let most = (RANK_RANGE * even).min(layer.rows.min(layer.cols)).min(MOST_RANK);
            let found = spectrum(&error, layer.rows, layer.cols, &metric, most);
            spectra.push(found.map_err(locate)?);
        }
        Ok(spectra)
    }

    /// Trains the products, from where an earlier run was stopped if that is asked for.
    fn gradient(
        &self,
        task: &Task<'_>,
        products: BTreeMap<String, Product>,
        recipe: &Map<String, Value>,
    ) -> Result<Trained> {
        let &Task { pack, source, output, progress, .. } = task;
        let config = config_of(source)?;
        let [train, probe] = self.sequences(task, &config)?;
        let student_weights = Weights::new(pack).with_progress(progress);
        let teacher_weights = Weights::new(source).with_progress(progress);
        let mut student = load_ends(config.clone(), &student_weights, self.seq_len)?;
        let mut teacher = load_ends(config, &teacher_weights, self.seq_len)?;
        let state_file = StateFile::new(output);
        let saved = if self.resume { state_file.read(recipe)? } else { None };
        let Saved { products, scales, position, mut probes } = saved.unwrap_or_else(|| Saved {
            products,
            scales: BTreeMap::new(),
            position: Position::default(),
            probes: vec![],
        });
        let factors = Factors::new(&products, &scales)?;
        let states = States::new(output)?;
        let mut training = Training {
            student: student.as_mut(),
            student_weights: &student_weights,
            teacher: teacher.as_mut(),
            teacher_weights: &teacher_weights,
            sequences: &train,
            probe: &probe,
            schedule: self.schedule(),
            progress,
        };
        let mut after = |factors: &Factors, position: &Position, look: &Look| {
            probes.push(Probe { block: look.block, loss: look.probe, undone: look.rescued });
            state_file.write(recipe, factors, position, &probes)
        };
        let (stopped, position) = training.run(&factors, position, &states, &mut after)?;
        teacher_weights.check_all_used(SPARE)?;
        Ok(Trained {
            products: factors.products()?,
            steps: position.done,
            rescues: position.all_rescues,
            stopped: stopped.name(),
            probes,
        })
    }

    /// Tokens to train on, and those of the probe set.
    fn sequences(&self, task: &Task<'_>, config: &Config) -> Result<[Vec<Vec<u32>>; 2]> {
        if config_of(task.pack)? != *config {
            return Err(Error::source_file("config.json of pack and source differ"));
        }
        check_positions(config, self.seq_len)?;
        let (tokenizer, _) = tokenizer_of(task.pack, task.source)?;
        let train = cut(config, &tokenizer, task.train_text, self.seq_len, self.max_tokens)?;
        let probe = cut(config, &tokenizer, task.probe_text, self.seq_len, None)?;
        Ok([train.sequences, probe.sequences])
    }

    fn schedule(&self) -> Schedule {
        Schedule {
            objective: self.objective,
            steps: self.steps,
            round: self.round,
            batch: self.batch,
            lr: self.learning_rate,
            seed: self.seed,
            max_rescues: self.max_rescues,
            min_gain: self.min_gain,
            refreshed: self.refreshed,
        }
    }

    fn overlay(&self, recipe: &Map<String, Value>, trained: &Trained) -> Result<NewOverlay> {
        let block = |(name, p): (&String, &Product)| {
            let factors = quantize(p).map_err(|e| e.in_tensor(name))?;
            Ok(NewBlock {
                tensor: format!("{name}.weight"),
                rank: p.rank,
                rows: p.rows,
                cols: p.cols,
                factors,
            })
        };
        let blocks = trained.products.iter().map(block).collect::<Result<_>>()?;
        let mut info = Map::new();
        info.insert("kind".into(), json!("trained"));
        info.insert("tool".into(), json!(concat!("ultracompress ", env!("CARGO_PKG_VERSION"))));
        info.insert("recipe".into(), Value::Object(recipe.clone()));
        let mut overlay = NewOverlay { name: self.name.clone(), info, blocks };
        let digest = digest_of(&overlay).to_string();
        overlay.info.insert("factors_sha256".into(), digest.into());
        Ok(overlay)
    }

    /// Adds to what an overlay says of itself how training and comparison went.
    fn with_outcome(
        &self,
        mut overlay: NewOverlay,
        trained: &Trained,
        verdict: &gate::Verdict,
    ) -> NewOverlay {
        let number = |x: f64| json!(format!("{x:.9}"));
        let outcome = json!({
            "steps": trained.steps,
            "rescues": trained.rescues,
            "stopped": trained.stopped,
            "probes": trained.probes.iter().map(|p| number(p.loss)).collect::<Vec<_>>(),
            "kld_before": number(verdict.before.figure("kld_mean").unwrap_or(f64::NAN)),
            "kld_after": number(verdict.after.figure("kld_mean").unwrap_or(f64::NAN)),
            "won": verdict.kept,
            "held_out_sha256": verdict.after.text.sha256,
        });
        overlay.info.insert("outcome".into(), outcome);
        overlay
    }
}

/// Factors that were trained, or not.
struct Trained {
    products: BTreeMap<String, Product>,
    steps: usize,
    rescues: usize,
    stopped: &'static str,
    probes: Vec<Probe>,
}

impl Trained {
    fn in_closed_form(products: BTreeMap<String, Product>) -> Self {
        Self { products, steps: 0, rescues: 0, stopped: "closed_form", probes: vec![] }
    }
}

fn parent(output: &Path) -> &Path {
    output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A folder beside the output for what is made on the way.
fn work_folder(output: &Path) -> Result<TempDir> {
    let parent = parent(output);
    let made = tempfile::Builder::new().prefix(".uc-train-").tempdir_in(parent);
    made.map_err(|e| Error::io("can't write here", e).in_file(parent.display().to_string()))
}

fn check_calibration(calibration: &Calibration, source_root: Digest) -> Result<()> {
    if calibration.record().model_root != source_root.to_string() {
        let e = Error::source_file("is the calibration of another model than the source");
        return Err(calibration.locate(e));
    }
    Ok(())
}

/// The text for training, and its end, which is looked at only. Cut where a line ends.
fn split(text: &[u8]) -> (&[u8], &[u8]) {
    let from = text.len() - text.len() / PROBE_PART;
    let line = text[from..].iter().position(|&b| b == b'\n').map_or(0, |at| at + 1);
    // Where that leaves little, it is cut between characters.
    let line = if line > (text.len() - from) / 2 { 0 } else { line };
    let at = (from + line..text.len()).find(|&i| text[i] & 0xc0 != 0x80).unwrap_or(text.len());
    text.split_at(at)
}

/// The root of the source; fails when the pack was made from another model.
fn check_source(pack: &Pack<Input>, source: &Model, progress: &dyn Progress) -> Result<Digest> {
    let differs = |name: &str, text: &str| Err(Error::source_file(text).in_tensor(name));
    for view in pack.tensors() {
        match source.tensor(view.name()) {
            Some((dtype, shape)) if (dtype, shape) == (view.dtype(), view.shape()) => {}
            Some(_) => return differs(view.name(), "has another type or shape in the source"),
            None => return differs(view.name(), "the source has no such tensor"),
        }
    }
    let manifest = pack.manifest()?;
    let mut tree = TreeHasher::new();
    for (name, dtype, shape) in source.tensors() {
        let listed = manifest.tensors.get(name).and_then(|t| Digest::from_hex(&t.sha256));
        let Some(listed) = listed else { return differs(name, "the pack has no such tensor") };
        tree.push(tensor_leaf(name, dtype, shape, listed));
    }
    let (found, expected) = (decoded_root(source, &Silent(progress))?, tree.root());
    if found != expected {
        return Err(Error::source_file(format!(
            "the pack was made from another model: its manifest lists tensors with the root {expected}, the source's is {found}"
        )));
    }
    Ok(found)
}

fn is_trainable(view: &TensorView<'_, Input>) -> bool {
    let planes = matches!(view.entry().encoding, Encoding::Planes { .. });
    planes && view.entry().role == Role::Body && view.shape().len() == 2
}

fn layers_of(pack: &Pack<Input>) -> Result<Vec<TargetLayer>> {
    let own = pack.tensors().filter(is_trainable);
    let layer = |view: TensorView<'_, Input>| {
        let name = view.name().strip_suffix(".weight")?.to_owned();
        Some((view.name().to_owned(), name, view.shape()[0], view.shape()[1]))
    };
    own.filter_map(layer)
        .map(|(tensor, name, rows, cols)| {
            Ok(TargetLayer { tensor, name, rows: to_usize(rows)?, cols: to_usize(cols)? })
        })
        .collect()
}

/// Source less pack, with the overlays that it has.
fn error_of(pack: &Pack<Input>, source: &Model, layer: &TargetLayer) -> Result<Vec<f64>> {
    let tensor = pack.effective_tensor(&layer.tensor, pack.overlays().len())?;
    let mut found = vec![];
    let options = DecodeOptions::new().with_dtype(Dtype::F32);
    tensor.decode_tiles(&options, |bytes| {
        read_f32(bytes, Dtype::F32, &mut found);
        Ok(())
    })?;
    let (dtype, shape) =
        source.tensor(&layer.tensor).ok_or_else(|| Error::source_file("the source lacks it"))?;
    let mut expected = Vec::with_capacity(to_usize(elements(shape).unwrap_or(0))?);
    source.read(&layer.tensor, |bytes| {
        read_f32(bytes, dtype, &mut expected);
        Ok(())
    })?;
    if expected.len() != found.len() {
        return Err(Error::source_file("has another number of weights in the source"));
    }
    Ok(expected.iter().zip(&found).map(|(e, f)| f64::from(*e) - f64::from(*f)).collect())
}

/// int8 factors with bfloat16 scales (UC-OVL-5).
fn quantize(p: &Product) -> Result<NewFactors> {
    const SMALLEST: f32 = 8.673_617e-19; // 2^-60
    let scale = |values: &mut dyn Iterator<Item = f32>| -> Result<u16> {
        let most = values.fold(0f32, |m, v| if v.is_nan() { v } else { m.max(v.abs()) });
        if !most.is_finite() {
            return Err(Error::source_file("a trained factor is not finite"));
        }
        Ok(half::bf16::from_f32((most / 127.0).max(SMALLEST)).to_bits())
    };
    #[allow(clippy::cast_possible_truncation, reason = "clamped")]
    let round = |v: f32, scale: u16| {
        (v / half::bf16::from_bits(scale).to_f32()).round_ties_even().clamp(-127.0, 127.0) as i8
    };
    let rows = p.a.chunks_exact(p.rank);
    let row_scales =
        rows.map(|row| scale(&mut row.iter().copied())).collect::<Result<Vec<u16>>>()?;
    let column = |j: usize| p.b.iter().skip(j).step_by(p.cols).copied();
    let column_scales = (0..p.cols).map(|j| scale(&mut column(j))).collect::<Result<Vec<u16>>>()?;
    let a = p.a.iter().enumerate().map(|(i, v)| round(*v, row_scales[i / p.rank])).collect();
    let b = p.b.iter().enumerate().map(|(i, v)| round(*v, column_scales[i % p.cols])).collect();
    Ok(NewFactors::Int8 { a, b, row_scales, column_scales })
}

/// SHA-256 over the factors of all tensors.
fn digest_of(overlay: &NewOverlay) -> Digest {
    let mut all: Vec<u8> = vec![];
    for block in &overlay.blocks {
        all.extend_from_slice(block.tensor.as_bytes());
        if let NewFactors::Int8 { a, b, row_scales, column_scales } = &block.factors {
            all.extend(row_scales.iter().chain(column_scales).flat_map(|s| s.to_le_bytes()));
            all.extend(a.iter().chain(b).map(|v| v.cast_unsigned()));
        }
    }
    Digest::of(&all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_lines() {
        let text: String = (0..100).map(|i| format!("line {i}\n")).collect();
        let (train, probe) = split(text.as_bytes());
        assert!(train.ends_with(b"\n") && probe.starts_with(b"line "));
        assert!(probe.len() * 7 < train.len() && probe.len() * 9 > train.len());
        let one_line = "ä".repeat(100);
        let (train, probe) = split(one_line.as_bytes());
        assert!(std::str::from_utf8(train).is_ok() && std::str::from_utf8(probe).is_ok());
        assert!(!probe.is_empty());
    }

    #[test]
    fn factors_are_rounded_to_their_scales() {
        let p = Product {
            rows: 2,
            cols: 3,
            rank: 2,
            a: vec![1.0, -0.5, 0.0, 0.0],
            b: vec![0.1, 20.0, -3.0, 0.05, -10.0, 1.5],
        };
        let NewFactors::Int8 { a, b, row_scales, column_scales } = quantize(&p).expect("finite")
        else {
            panic!("int8");
        };
        let value = |bits: u16| half::bf16::from_bits(bits).to_f32();
        for (i, expected) in p.a.iter().enumerate() {
            let scale = value(row_scales[i / 2]);
            assert!((f32::from(a[i]) * scale - expected).abs() <= scale * 0.6, "{i}");
        }
        for (i, expected) in p.b.iter().enumerate() {
            let scale = value(column_scales[i % 3]);
            assert!((f32::from(b[i]) * scale - expected).abs() <= scale * 0.6, "{i}");
        }
        assert!(quantize(&Product { a: vec![f32::NAN; 4], ..p }).is_err());
    }
}
