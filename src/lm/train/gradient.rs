//! Training factors against a teacher: AdamW (Loshchilov and Hutter, 2017, arXiv:1711.05101) on the
//! outputs of blocks or on logits, with a probe set that undoes what makes things worse.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use candle_core::{D, Device, Result as CandleResult, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use serde::{Deserialize, Serialize};

use super::closed::Product;
use crate::error::{Error, Result};
use crate::lm::architecture::Network;
use crate::lm::failed;
use crate::lm::linear::{Observer, Pass};
use crate::lm::states::States;
use crate::lm::weights::Weights;
use crate::par;
use crate::progress::{Progress, step};

/// What training makes small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objective {
    /// Squared differences of hidden states behind each block, block by block.
    Hidden,
    /// KL divergence of the next-token distributions.
    Kl,
    /// Both: the divergence, and the mean over blocks of their relative squared differences.
    Hybrid,
}

impl Objective {
    /// Its name on the command line and in recipes: `hidden`, `kl` or `hybrid`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hidden => "hidden",
            Self::Kl => "kl",
            Self::Hybrid => "hybrid",
        }
    }
}

/// Share of hidden states in the hybrid objective.
const HYBRID_SHARE: f64 = 0.1;
/// Sequences that run together on a thread.
const MICRO: usize = 2;
/// Memory for what runs at a time.
const RUNNING_BYTES: u64 = 4 << 30;

/// How the gradient is followed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    pub objective: Objective,
    /// Optimizer steps of all rounds; of each block's, when blocks are trained one by one.
    pub steps: usize,
    /// Steps between two looks at the probe set.
    pub round: usize,
    /// Sequences of a step.
    pub batch: usize,
    /// Step size at the start, relative to the root mean square of a factor.
    pub lr: f64,
    pub seed: u64,
    /// Rounds that may be undone before training stops.
    pub max_rescues: usize,
    /// Least relative gain of a round on the probe set; training stops below it.
    pub min_gain: f64,
    /// Blocks get the states that the trained blocks before them give; else those of the teacher.
    pub refreshed: bool,
}

/// Why training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stopped {
    Steps,
    Rescues,
    Gain,
}

impl Stopped {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Steps => "steps",
            Self::Rescues => "rescues",
            Self::Gain => "gain",
        }
    }
}

/// One look at the probe set.
#[derive(Debug, Clone)]
pub(super) struct Look {
    /// The block that was trained, when they are one by one.
    pub block: Option<usize>,
    /// The objective on the probe set.
    pub probe: f64,
    /// The round before was undone.
    pub rescued: bool,
}

/// Factors under training, of about size 1; what they were scaled by comes back in the product.
struct Trained {
    rows: usize,
    cols: usize,
    a: Var,
    b: Var,
    by: Scales,
}

/// What the factors of a layer are divided by while they are trained: powers of two, so that
/// nothing is rounded.
pub(super) type Scales = [f64; 2];

/// Products by layer, on top of its output.
pub(super) struct Factors(BTreeMap<String, Trained>);

/// The power of two next to the root mean square.
fn size(values: &[f32]) -> f64 {
    let sum: f64 = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    #[allow(clippy::cast_precision_loss, reason = "a mean")]
    let mean = sum / values.len().max(1) as f64;
    if mean > 0.0 { mean.sqrt().log2().round().exp2() } else { 1.0 }
}

impl Factors {
    /// Of products by layer; those of rank 0 are left out. `scales` are those of training that goes
    /// on.
    pub(super) fn new(
        products: &BTreeMap<String, Product>,
        scales: &BTreeMap<String, Scales>,
    ) -> Result<Self> {
        let mut all = BTreeMap::new();
        for (name, p) in products.iter().filter(|(_, p)| p.rank > 0) {
            let by = scales.get(name).copied().unwrap_or_else(|| [size(&p.a), size(&p.b)]);
            let var = |values: &[f32], shape: (usize, usize), by: f64| {
                let scaled = (Tensor::from_slice(values, shape, &Device::Cpu)? / by)?;
                Var::from_tensor(&scaled)
            };
            let trained = Trained {
                rows: p.rows,
                cols: p.cols,
                a: var(&p.a, (p.rows, p.rank), by[0]).map_err(failed)?,
                b: var(&p.b, (p.rank, p.cols), by[1]).map_err(failed)?,
                by,
            };
            all.insert(name.clone(), trained);
        }
        Ok(Self(all))
    }

    /// The products as they are now.
    pub(super) fn products(&self) -> Result<BTreeMap<String, Product>> {
        let of = |t: &Trained| -> CandleResult<Product> {
            let values = |v: &Var, by: f64| (v.as_tensor() * by)?.flatten_all()?.to_vec1::<f32>();
            let rank = t.a.dim(1)?;
            let (a, b) = (values(&t.a, t.by[0])?, values(&t.b, t.by[1])?);
            Ok(Product { rows: t.rows, cols: t.cols, rank, a, b })
        };
        self.0.iter().map(|(n, t)| Ok((n.clone(), of(t).map_err(failed)?))).collect()
    }

    /// What factors are scaled by, by layer.
    pub(super) fn scales(&self) -> BTreeMap<String, Scales> {
        self.0.iter().map(|(name, t)| (name.clone(), t.by)).collect()
    }

    fn vars(&self, layers: Option<&BTreeSet<String>>) -> Vec<Var> {
        let own = self.0.iter().filter(|(name, _)| layers.is_none_or(|l| l.contains(*name)));
        own.flat_map(|(_, t)| [t.a.clone(), t.b.clone()]).collect()
    }
}

impl Observer for Factors {
    fn linear(&self, name: &str, input: &Tensor, output: Tensor) -> CandleResult<Tensor> {
        let Some(t) = self.0.get(name) else { return Ok(output) };
        let flat = input.reshape(((), t.cols))?;
        let thin = (flat.matmul(&t.b.as_tensor().t()?)? * (t.by[0] * t.by[1]))?;
        let product = thin.matmul(&t.a.as_tensor().t()?)?;
        output.broadcast_add(&product.reshape(output.shape())?)
    }
}

/// Names of the linear layers of a block.
#[derive(Default)]
struct Met(Mutex<BTreeSet<String>>);

impl Observer for Met {
    fn linear(&self, name: &str, _: &Tensor, output: Tensor) -> CandleResult<Tensor> {
        self.0.lock().expect("no panic before").insert(name.to_owned());
        Ok(output)
    }
}

/// Model and teacher, with all that they are compared on.
pub(super) struct Training<'a> {
    pub student: &'a mut dyn Network,
    pub student_weights: &'a Weights<'a>,
    pub teacher: &'a mut dyn Network,
    pub teacher_weights: &'a Weights<'a>,
    pub sequences: &'a [Vec<u32>],
    pub probe: &'a [Vec<u32>],
    pub schedule: Schedule,
    pub progress: &'a dyn Progress,
}

/// Where training is, so that it can go on from there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Position {
    /// The block that is trained, when they are one by one.
    pub block: usize,
    /// Steps done, of the block.
    pub steps: usize,
    /// Rounds undone, of the block.
    pub rescues: usize,
    /// Of all.
    pub all_rescues: usize,
    /// The objective on the probe set, when it was looked at.
    pub best: Option<f64>,
    /// Products of the step size.
    pub lr_scale: f64,
    /// Steps done, of all blocks.
    pub done: usize,
    /// Why training of the block ended, when it did.
    pub stopped: Option<Stopped>,
}

impl Position {
    /// Where training of a block starts: here if it is the one that is trained, else at the block's
    /// own start.
    fn at_block(&self, block: usize) -> Self {
        match block == self.block {
            true => self.clone(),
            false => {
                Self { block, all_rescues: self.all_rescues, done: self.done, ..Self::default() }
            }
        }
    }
}

/// What calls back after each round, with the factors and where training is.
pub(super) type AfterRound<'a> = dyn FnMut(&Factors, &Position, &Look) -> Result<()> + 'a;

/// The loss of sequences, with gradients or without: as a tensor and as a number.
type Loss<'a, T> = dyn Fn(&[&T], bool) -> CandleResult<(Tensor, f64)> + Sync + 'a;

/// What rounds make small, and by which factors.
struct Goal<'a, T> {
    /// The block that is trained, when they are one by one.
    block: Option<usize>,
    vars: Vec<Var>,
    /// What a step draws from.
    train: Vec<&'a T>,
    probe: Vec<&'a T>,
    loss: &'a Loss<'a, T>,
}

/// A loss and its gradients.
type Found = (f64, Vec<Tensor>);

fn ids_of(sequences: &[&Vec<u32>]) -> CandleResult<Tensor> {
    let n = sequences.first().map_or(0, |s| s.len());
    let all: Vec<u32> = sequences.iter().flat_map(|s| s.iter().copied()).collect();
    Tensor::from_vec(all, (sequences.len(), n), &Device::Cpu)
}

/// Mean squared difference over the mean square of what is expected.
fn relative(found: &Tensor, expected: &Tensor) -> CandleResult<Tensor> {
    let scale = f64::from(expected.sqr()?.mean_all()?.to_scalar::<f32>()?).max(1e-20);
    (found - expected)?.sqr()?.mean_all()? / scale
}

/// KL divergence of the predictions, mean over positions.
fn divergence(teacher: &Tensor, student: &Tensor) -> CandleResult<Tensor> {
    let log_p = candle_nn::ops::log_softmax(teacher, D::Minus1)?;
    let log_q = candle_nn::ops::log_softmax(student, D::Minus1)?;
    let kl = (log_p.exp()? * (log_p - log_q)?)?.sum(D::Minus1)?;
    kl.mean_all()
}

impl Training<'_> {
    /// Trains `factors` in place. Returns why it ended, and where training is.
    ///
    /// # Errors
    /// `Source` for losses that are not finite; as reading the models; `Cancelled`; what `after`
    /// returns.
    pub(super) fn run(
        &mut self,
        factors: &Factors,
        position: Position,
        states: &States,
        after: &mut AfterRound<'_>,
    ) -> Result<(Stopped, Position)> {
        match self.schedule.objective {
            Objective::Hidden => self.blocks(factors, position, states, after),
            Objective::Kl | Objective::Hybrid => {
                for i in 0..self.student.blocks() {
                    self.student.hold(i, Some(self.student_weights))?;
                    self.teacher.hold(i, Some(self.teacher_weights))?;
                }
                let (student, teacher) = (&*self.student, &*self.teacher);
                let hybrid = self.schedule.objective == Objective::Hybrid;
                let loss = |sequences: &[&Vec<u32>], gradients: bool| {
                    whole_loss(student, teacher, factors, sequences, hybrid, gradients)
                };
                let goal = Goal {
                    block: None,
                    vars: factors.vars(None),
                    train: self.sequences.iter().collect(),
                    probe: self.probe.iter().collect(),
                    loss: &loss,
                };
                self.rounds(factors, &goal, position, after)
            }
        }
    }

    /// Rounds of steps, each with a look at the probe set behind it.
    fn rounds<T: Sync>(
        &self,
        factors: &Factors,
        goal: &Goal<'_, T>,
        mut position: Position,
        after: &mut AfterRound<'_>,
    ) -> Result<(Stopped, Position)> {
        let block = goal.block;
        if position.lr_scale == 0.0 {
            position.lr_scale = 1.0;
        }
        let mut best = match position.best {
            Some(best) => best,
            None => {
                let best = self.probe_loss(goal)?;
                let look = Look { block, probe: best, rescued: false };
                position.best = Some(best);
                after(factors, &position, &look)?;
                best
            }
        };
        if goal.vars.is_empty() {
            position.stopped = Some(Stopped::Steps);
        }
        loop {
            if let Some(stopped) = position.stopped {
                return Ok((stopped, position));
            }
            let copies = goal.vars.iter().map(|v| v.as_tensor().copy());
            let kept = copies.collect::<CandleResult<Vec<_>>>().map_err(failed)?;
            let found = self.round(goal, &mut position)?;
            let rescued = found > best;
            if rescued {
                for (var, kept) in goal.vars.iter().zip(&kept) {
                    var.set(kept).map_err(failed)?;
                }
                position.rescues += 1;
                position.all_rescues += 1;
                position.lr_scale /= 2.0;
            }
            let gain = (!rescued).then(|| 1.0 - found / best);
            best = best.min(found);
            position.best = Some(best);
            position.stopped = self.ended(&position, gain);
            after(factors, &position, &Look { block, probe: found, rescued })?;
        }
    }

    /// One round; gives the objective on the probe set after it. What isn't a number is worse than
    /// anything.
    fn round<T: Sync>(&self, goal: &Goal<'_, T>, position: &mut Position) -> Result<f64> {
        let s = self.schedule;
        let params =
            ParamsAdamW { lr: s.lr, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.0 };
        let mut adam = AdamW::new(goal.vars.clone(), params).map_err(failed)?;
        let end = s.steps.min(position.steps + s.round);
        let mut finite = true;
        for at in position.steps..end {
            #[allow(clippy::cast_precision_loss, reason = "a share")]
            let left = 1.0 - at as f64 / s.steps as f64;
            // Each round warms up: its optimizer knows nothing yet.
            #[allow(clippy::cast_precision_loss, reason = "a share")]
            let warm = ((at - position.steps + 1) as f64 / 5.0).min(1.0);
            adam.set_learning_rate(s.lr * position.lr_scale * warm * (0.1 + 0.9 * left));
            let number = at as u64 + ((goal.block.unwrap_or(0) as u64) << 32);
            finite = finite && self.step(&mut adam, goal, number)?;
        }
        let found = if finite { self.probe_loss(goal)? } else { f64::MAX };
        position.done += end - position.steps;
        position.steps = end;
        Ok(if found.is_finite() { found } else { f64::MAX })
    }

    /// Why training ends after a round, if it does. `gain` is what the round brought, unless it was
    /// undone.
    fn ended(&self, position: &Position, gain: Option<f64>) -> Option<Stopped> {
        let s = self.schedule;
        if position.rescues > s.max_rescues {
            Some(Stopped::Rescues)
        } else if gain.is_some_and(|gain| gain < s.min_gain) {
            Some(Stopped::Gain)
        } else if position.steps >= s.steps {
            Some(Stopped::Steps)
        } else {
            None
        }
    }

    /// One step of the optimizer; whether its loss was a number.
    fn step<T: Sync>(&self, adam: &mut AdamW, goal: &Goal<'_, T>, at: u64) -> Result<bool> {
        let s = self.schedule;
        let Goal { vars, train, loss, .. } = goal;
        let chosen: Vec<&T> = (0..s.batch as u64)
            .map(|i| train[draw(s.seed, at * s.batch as u64 + i, train.len())])
            .collect();
        let parts: Vec<&[&T]> = chosen.chunks(MICRO).collect();
        let found = par::map_within(
            parts.len(),
            RUNNING_BYTES,
            |_| 1,
            |i| -> Result<Found> {
                step(self.progress, 0)?;
                let run = || {
                    let (loss, value) = loss(parts[i], true)?;
                    let gradients = loss.backward()?;
                    let of = |v: &Var| match gradients.get(v.as_tensor()) {
                        Some(g) => Ok(g.clone()),
                        None => v.zeros_like(),
                    };
                    Ok((value, vars.iter().map(of).collect::<CandleResult<Vec<_>>>()?))
                };
                run().map_err(failed)
            },
        )?;
        let value: f64 = found.iter().map(|(value, _)| value).sum();
        if !value.is_finite() {
            step(self.progress, 1)?;
            return Ok(false);
        }
        let mut run = || -> CandleResult<()> {
            // A store for the optimizer; what it holds is replaced.
            let mut store = (vars[0].as_tensor().sum_all()? * 0.0)?.backward()?;
            for (i, var) in vars.iter().enumerate() {
                let mut sum = found[0].1[i].clone();
                for (_, gradients) in &found[1..] {
                    sum = (sum + &gradients[i])?;
                }
                store.insert(var.as_tensor(), sum);
            }
            adam.step(&store)
        };
        run().map_err(failed)?;
        step(self.progress, 1)?;
        Ok(true)
    }

    /// The objective on the probe set.
    fn probe_loss<T: Sync>(&self, goal: &Goal<'_, T>) -> Result<f64> {
        let Goal { probe, loss, .. } = goal;
        let parts: Vec<&[&T]> = probe.chunks(MICRO).collect();
        let found = par::map_within(
            parts.len(),
            RUNNING_BYTES,
            |_| 1,
            |i| -> Result<f64> {
                step(self.progress, 0)?;
                #[allow(clippy::cast_precision_loss, reason = "few")]
                let n = parts[i].len() as f64;
                loss(parts[i], false).map(|(_, value)| value * n).map_err(failed)
            },
        )?;
        #[allow(clippy::cast_precision_loss, reason = "few")]
        let n = probe.len().max(1) as f64;
        Ok(found.iter().sum::<f64>() / n)
    }

    /// Block by block, on hidden states.
    fn blocks(
        &mut self,
        factors: &Factors,
        mut position: Position,
        states: &States,
        after: &mut AfterRound<'_>,
    ) -> Result<(Stopped, Position)> {
        let hidden = self.embed(states)?;
        let mut stopped = Stopped::Steps;
        for block in 0..self.student.blocks() {
            self.teacher.hold(block, Some(self.teacher_weights))?;
            self.student.hold(block, Some(self.student_weights))?;
            let teacher = &*self.teacher;
            self.pass(&hidden, [TEACHER, TEACHER_NEXT], teacher, block, Pass::default())?;
            // What has been trained before an interruption is only run again.
            if block >= position.block {
                let start = position.at_block(block);
                (stopped, position) = self.block(factors, start, &hidden, after)?;
                position.block = block;
            }
            let pass = Pass { observer: Some(factors), gradients: false };
            self.pass(&hidden, [STUDENT, STUDENT_NEXT], &*self.student, block, pass)?;
            hidden.advance()?;
            self.teacher.hold(block, None)?;
            self.student.hold(block, None)?;
        }
        Ok((stopped, position))
    }

    /// States of all sequences, the probe set's last, before the first block.
    fn embed<'s>(&self, states: &'s States) -> Result<Hidden<'s>> {
        let all: Vec<&Vec<u32>> = self.sequences.iter().chain(self.probe).collect();
        let seq_len = all.first().map_or(0, |s| s.len());
        let mut hidden = Hidden { states, sequences: all.len(), seq_len, width: 0 };
        for (i, sequence) in all.iter().enumerate() {
            let ids = ids_of(&[sequence]).map_err(failed)?;
            for (slot, network) in [(TEACHER, &*self.teacher), (STUDENT, &*self.student)] {
                let x = network.embed(&ids).map_err(failed)?;
                hidden.width = x.dim(D::Minus1).map_err(failed)?;
                if i == 0 && slot == TEACHER {
                    states.layout(SLOTS, all.len(), seq_len * hidden.width);
                }
                hidden.keep(slot, i, &x)?;
            }
        }
        Ok(hidden)
    }

    /// Runs a block on the states of all sequences.
    fn pass(
        &self,
        hidden: &Hidden<'_>,
        [from, to]: [usize; 2],
        network: &dyn Network,
        block: usize,
        pass: Pass<'_>,
    ) -> Result<()> {
        let run = |i: usize| -> Result<()> {
            step(self.progress, 0)?;
            let y = hidden.read(from, i).and_then(|x| network.block(block, &x, pass));
            hidden.keep(to, i, &y.map_err(failed)?)
        };
        par::map_within(hidden.sequences, RUNNING_BYTES, |_| 1, run).map(drop)
    }

    /// Trains the factors of the block that `start` names, to give the teacher's states behind it.
    fn block(
        &self,
        factors: &Factors,
        start: Position,
        hidden: &Hidden<'_>,
        after: &mut AfterRound<'_>,
    ) -> Result<(Stopped, Position)> {
        let (student, block) = (&*self.student, start.block);
        let from = if self.schedule.refreshed { STUDENT } else { TEACHER };
        let loss = |chosen: &[&usize], gradients: bool| {
            let together = |slot: usize| {
                let all = chosen.iter().map(|&&i| hidden.read(slot, i));
                Tensor::cat(&all.collect::<CandleResult<Vec<_>>>()?, 0)
            };
            let pass = Pass { observer: Some(factors), gradients };
            let y = student.block(block, &together(from)?, pass)?;
            let loss = relative(&y, &together(TEACHER_NEXT)?)?;
            let value = f64::from(loss.to_scalar::<f32>()?);
            Ok((loss, value))
        };
        let indices: Vec<usize> = (0..hidden.sequences).collect();
        let (train, probe) = indices.split_at(self.sequences.len());
        let goal = Goal {
            block: Some(block),
            vars: factors.vars(Some(&self.layers_of(block, hidden)?)),
            train: train.iter().collect(),
            probe: probe.iter().collect(),
            loss: &loss,
        };
        self.rounds(factors, &goal, start, after)
    }

    /// Names of the linear layers that a block runs.
    fn layers_of(&self, block: usize, hidden: &Hidden<'_>) -> Result<BTreeSet<String>> {
        let met = Met::default();
        let pass = Pass { observer: Some(&met), gradients: false };
        for i in 0..hidden.sequences {
            let x = hidden.read(STUDENT, i).map_err(failed)?;
            self.student.block(block, &x, pass).map_err(failed)?;
        }
        Ok(met.0.into_inner().expect("no panic before"))
    }
}

/// The teacher's states before the block.
const TEACHER: usize = 0;
/// The teacher's states behind it.
const TEACHER_NEXT: usize = 1;
/// The student's states before the block.
const STUDENT: usize = 2;
/// The student's states behind it.
const STUDENT_NEXT: usize = 3;
const SLOTS: usize = 4;

/// Hidden states of all sequences around one block.
struct Hidden<'a> {
    states: &'a States,
    sequences: usize,
    seq_len: usize,
    width: usize,
}

impl Hidden<'_> {
    fn read(&self, slot: usize, i: usize) -> CandleResult<Tensor> {
        let values = self.states.read(slot, i).map_err(candle_core::Error::wrap)?;
        Tensor::from_vec(values, (1, self.seq_len, self.width), &Device::Cpu)
    }

    fn keep(&self, slot: usize, i: usize, x: &Tensor) -> Result<()> {
        let values = x.flatten_all().and_then(|x| x.to_vec1::<f32>()).map_err(failed)?;
        if values.iter().any(|v| !v.is_finite()) {
            return Err(Error::source_file("a hidden state is not finite"));
        }
        self.states.write(slot, i, &values)
    }

    /// What was behind the block is before the next one.
    fn advance(&self) -> Result<()> {
        for i in 0..self.sequences {
            for (from, to) in [(TEACHER_NEXT, TEACHER), (STUDENT_NEXT, STUDENT)] {
                self.states.write(to, i, &self.states.read(from, i)?)?;
            }
        }
        Ok(())
    }
}

/// The loss of whole sequences, from tokens to logits.
fn whole_loss(
    student: &dyn Network,
    teacher: &dyn Network,
    factors: &Factors,
    sequences: &[&Vec<u32>],
    hybrid: bool,
    gradients: bool,
) -> CandleResult<(Tensor, f64)> {
    let ids = ids_of(sequences)?;
    let (mut x, mut y) = (student.embed(&ids)?, teacher.embed(&ids)?);
    let pass = Pass { observer: Some(factors), gradients };
    let mut hidden: Option<Tensor> = None;
    let blocks = student.blocks();
    for i in 0..blocks {
        x = student.block(i, &x, pass)?;
        y = teacher.block(i, &y, Pass::default())?;
        if hybrid {
            let own = relative(&x, &y)?;
            hidden = Some(match hidden {
                Some(sum) => (sum + own)?,
                None => own,
            });
        }
    }
    let mut loss = divergence(&teacher.head(&y, Pass::default())?, &student.head(&x, pass)?)?;
    if let Some(hidden) = hidden {
        #[allow(clippy::cast_precision_loss, reason = "few")]
        let share = HYBRID_SHARE / blocks as f64;
        loss = (loss + (hidden * share)?)?;
    }
    let value = f64::from(loss.to_scalar::<f32>()?);
    Ok((loss, value))
}

/// The sequence of a place of a step.
fn draw(seed: u64, position: u64, n: usize) -> usize {
    // Each pass over the sequences has an order of its own.
    let (pass, at) = (position / n as u64, position % n as u64);
    let mut order: Vec<usize> = (0..n).collect();
    let mut state = seed ^ pass.wrapping_mul(0xd134_2543_de82_ef95);
    for i in (1..n).rev() {
        let share = (super::closed::noise(&mut state) + 1.0) / 2.0;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        order.swap(i, ((share * (i + 1) as f64) as usize).min(i));
    }
    order.get(usize::try_from(at).unwrap_or(0)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pass_draws_every_sequence_once() {
        for pass in 0..3u64 {
            let mut drawn: Vec<usize> = (0..7).map(|i| draw(5, pass * 7 + i, 7)).collect();
            drawn.sort_unstable();
            assert_eq!(drawn, [0, 1, 2, 3, 4, 5, 6]);
        }
        let order = |seed: u64| (0..14).map(|i| draw(seed, i, 14)).collect::<Vec<_>>();
        assert!(order(1) != order(2) && order(1) == order(1));
    }

    #[test]
    fn products_survive_their_scales() {
        let p = Product {
            rows: 3,
            cols: 2,
            rank: 2,
            a: vec![1.0, 2.0, 0.5, -4.0, 0.25, 8.0],
            b: vec![0.001, 0.002, -0.004, 0.003],
        };
        let products = BTreeMap::from([("x".to_owned(), p.clone())]);
        let factors = Factors::new(&products, &BTreeMap::new()).expect("fits");
        assert_eq!(factors.products().expect("fits"), products, "bit for bit");
        let near = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6 * (1.0 + b.abs()))
        };
        // x B^T A^T.
        let x = Tensor::new(&[[1f32, 10.0]], &Device::Cpu).expect("fits");
        let zeros = Tensor::zeros((1, 3), candle_core::DType::F32, &Device::Cpu).expect("fits");
        let y = factors.linear("x", &x, zeros.clone()).expect("computes");
        let y = y.to_vec2::<f32>().expect("floats").remove(0);
        let thin = [0.021f32, 0.026];
        let expected = [
            thin[0] + 2.0 * thin[1],
            0.5 * thin[0] - 4.0 * thin[1],
            0.25 * thin[0] + 8.0 * thin[1],
        ];
        assert!(near(&y, &expected), "{y:?}");
        let other = factors.linear("other", &x, zeros).expect("computes");
        assert_eq!(other.to_vec2::<f32>().expect("floats"), [[0.0; 3]]);
    }
}
