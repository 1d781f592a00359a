//! The gate: an overlay must earn its bits on held-out text, against spending them on the base.

use std::path::Path;

use super::options::{GateRow, TrainOptions};
use crate::calibration::Calibration;
use crate::edit::{NewOverlay, OverlayOptions};
use crate::error::{Error, Result};
use crate::lm::eval::EvalOptions;
use crate::manifest::Pack;
use crate::manifest::PackStats;
use crate::pack::{Bpw, CalibratedRecipe, PackOptions, Recipe};
use crate::progress::{Progress, Silent};
use crate::receipt::EvalRecord;
use crate::source::{Model, Source};
use crate::storage::Input;

/// What is compared.
pub(super) struct Gate<'a> {
    pub options: &'a TrainOptions,
    pub pack: &'a Model,
    pub source: &'a Model,
    pub checkpoint: &'a Source,
    pub calibration: Option<&'a Calibration>,
    pub folder: &'a Path,
    pub held_out: &'a [u8],
    pub target: f64,
}

/// What the comparison came to.
pub(super) struct Verdict {
    pub kept: bool,
    pub reason: String,
    pub bpw_after: f64,
    pub before: EvalRecord,
    pub after: EvalRecord,
    pub table: Vec<GateRow>,
}

/// Something that the overlay is compared with: its name, its bits of a weight of the body, its
/// evaluation.
type Contestant = (String, f64, EvalRecord);

/// Sequences below which standard errors say too little.
const LEAST_SEQUENCES: u64 = 8;
/// Standard errors that the overlay must be better by than the base without it.
const LEAST_ERRORS: f64 = 2.0;

impl Gate<'_> {
    pub(super) fn compare(
        &self,
        base: &Pack<Input>,
        overlay: &NewOverlay,
        progress: &dyn Progress,
    ) -> Result<Verdict> {
        let silent = Silent(progress);
        let with = self.folder.join("overlay.uc");
        let options = OverlayOptions::new().with_max_ram(self.options.max_ram);
        options.add(base, std::slice::from_ref(overlay), &with, &silent)?;
        let with = Model::open(&with)?;
        let before = self.eval(self.pack, progress)?;
        let after = self.eval(&with, progress)?;
        let bpw_after = body_bpw(&with).unwrap_or(self.target);
        let (others, missing) = self.contestants(&before, bpw_after, progress)?;
        let table = table_of(bpw_after, &after, others)?;
        let sequences = after.protocol.sequences;
        let (kept, reason) = self.judge(&table, sequences, missing);
        Ok(Verdict { kept, reason, bpw_after, before, after, table })
    }

    /// What the overlay is compared with: the base, and unless that is frozen, the source packed
    /// again at the overlay's bits. Gives also why groups of 16 are missing, if they are.
    fn contestants(
        &self,
        before: &EvalRecord,
        bpw: f64,
        progress: &dyn Progress,
    ) -> Result<(Vec<Contestant>, Option<String>)> {
        let mut found =
            vec![("base".to_owned(), body_bpw(self.pack).unwrap_or(0.0), before.clone())];
        let mut missing = None;
        if self.options.frozen_base {
            return Ok((found, missing));
        }
        for (name, group) in [("calibrated", None), ("calibrated, groups of 16", Some(16))] {
            match self.alternative(name, group, bpw, progress) {
                Ok(other) => found.push(other),
                // A budget that groups of 16 can't keep; everything else is an error.
                Err(e) if group.is_some() && *e.kind() == crate::ErrorKind::Source => {
                    missing = Some(e.message().to_owned());
                }
                Err(e) => return Err(e),
            }
        }
        Ok((found, missing))
    }

    /// Whether the overlay, whose row is the first, is kept, and why.
    fn judge(&self, table: &[GateRow], sequences: u64, missing: Option<String>) -> (bool, String) {
        // It must be clearly better than nothing, and no worse than the base at its own bits.
        let gains = |row: &GateRow| {
            let least = LEAST_ERRORS * row.difference_se.unwrap_or(f64::INFINITY);
            row.name != "base" || row.difference > least
        };
        let useless = table[1..].iter().find(|row| !gains(row));
        let better = table[1..].iter().filter(|row| row.kld_mean < table[0].kld_mean);
        let better = better.min_by(|a, b| a.kld_mean.total_cmp(&b.kld_mean));
        let few = sequences < LEAST_SEQUENCES;
        let reason = match (useless, better) {
            _ if few => format!(
                "{sequences} sequences are too few to tell: {LEAST_SEQUENCES} are the least"
            ),
            (Some(_), _) => "it is not clearly better than the base without it".to_owned(),
            (None, Some(row)) => format!(
                "the same bits do more in the base: {} has a KL divergence of {:.6} at {:.4} bpw, the overlay {:.6}",
                row.name, row.kld_mean, row.body_bpw, table[0].kld_mean
            ),
            (None, None) if self.options.frozen_base => {
                "it is better than the base, which may not change".to_owned()
            }
            (None, None) => match missing {
                Some(text) => format!("nothing at its bits is better (groups of 16: {text})"),
                None => "nothing at its bits is better".to_owned(),
            },
        };
        (!few && useless.is_none() && better.is_none(), reason)
    }

    fn eval(&self, model: &Model, progress: &dyn Progress) -> Result<EvalRecord> {
        let options = EvalOptions::new().with_seq_len(self.options.seq_len);
        let silent = Silent(progress);
        options.prepare(model, self.source, self.held_out)?.run(&silent)
    }

    /// The source packed again, with all bits in the base.
    fn alternative(
        &self,
        name: &str,
        group: Option<u32>,
        bpw: f64,
        progress: &dyn Progress,
    ) -> Result<Contestant> {
        let calibration = self.calibration.ok_or_else(|| Error::argument("no calibration"))?;
        // No more bits than the overlay has.
        let bpw = budget(bpw)?;
        let mut recipe = Recipe::default();
        let mut calibrated = CalibratedRecipe { bpw: Some(bpw), ..CalibratedRecipe::default() };
        if let Some(group) = group {
            recipe.group = group;
            calibrated.choose_group = false;
        }
        recipe.calibrated = Some(calibrated);
        let path = self.folder.join(format!("alternative-{}.uc", group.unwrap_or(0)));
        let options = PackOptions::new()
            .with_recipe(recipe)
            .with_calibration(Some(calibration.path().into()))
            .with_max_ram(self.options.max_ram);
        let silent = Silent(progress);
        options.pack_with(self.checkpoint, &path, &silent)?;
        let model = Model::open(&path)?;
        let record = self.eval(&model, progress)?;
        Ok((name.to_owned(), body_bpw(&model).unwrap_or(0.0), record))
    }
}

/// The overlay's row, then one for each other.
fn table_of(bpw: f64, after: &EvalRecord, others: Vec<Contestant>) -> Result<Vec<GateRow>> {
    let own = GateRow {
        name: "overlay".into(),
        body_bpw: bpw,
        kld_mean: kld(after)?,
        kld_se: after.figure("kld_se"),
        difference: 0.0,
        difference_se: None,
    };
    let mut table = vec![own];
    for (name, body_bpw, record) in others {
        let (difference, difference_se) = paired(&record, after);
        table.push(GateRow {
            name,
            body_bpw,
            kld_mean: kld(&record)?,
            kld_se: record.figure("kld_se"),
            difference,
            difference_se,
        });
    }
    Ok(table)
}

/// A budget of so many bits at most.
///
/// # Errors
/// `InvalidArgument` for one that no base can have.
pub(super) fn budget(bpw: f64) -> Result<Bpw> {
    format!("{:.4}", (bpw * 1e4).floor() / 1e4).parse()
}

fn body_bpw(model: &Model) -> Option<f64> {
    match model {
        Model::Pack(pack) => PackStats::of(pack).body_bpw,
        Model::Checkpoint(_) => None,
    }
}

fn kld(record: &EvalRecord) -> Result<f64> {
    record
        .figure("kld_mean")
        .ok_or_else(|| Error::source_file("the evaluation has no KL divergence"))
}

/// Mean and standard error of the differences by sequence.
#[allow(clippy::cast_precision_loss, reason = "counts of sequences")]
fn paired(a: &EvalRecord, b: &EvalRecord) -> (f64, Option<f64>) {
    let column = |r: &EvalRecord| r.rows.get("kld").cloned().unwrap_or_default();
    let differences: Vec<f64> = column(a).iter().zip(column(b)).map(|(a, b)| a - b).collect();
    let n = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / n;
    let square: f64 = differences.iter().map(|d| (d - mean) * (d - mean)).sum();
    let se = (differences.len() > 1).then(|| (square / (n - 1.0) / n).sqrt());
    (mean, se)
}
