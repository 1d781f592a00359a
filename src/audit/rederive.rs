//! Making a pack again from its source, its calibration and its recipe, and comparing the bytes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::calibration::Calibration;
use crate::container::Container;
use crate::edit::{CopyOptions, copy_pack};
use crate::error::{Error, Result};
use crate::format::{CHUNK_BYTES, Encoding, PREAMBLE_BYTES};
use crate::manifest::{Failure, Manifest, Pack};
use crate::memory::to_usize;
use crate::output::NewPack;
use crate::pack::CALIBRATED_ENCODER_ID;
use crate::pack::Recipe;
use crate::pack::{ENCODER_ID, Exact, PackOptions};
use crate::progress::{Progress, step};
use crate::receipt::Rederived;
use crate::rule::Rule;
use crate::source::Source;
use crate::storage::{Input, ReadAt};

/// What is needed to make a pack again.
pub(crate) struct Rederive<'a> {
    pub source: &'a Source,
    pub calibration: Option<&'a Path>,
    /// Folder for the pack that is made.
    pub work_dir: &'a Path,
    pub max_ram: u64,
}

impl Rederive<'_> {
    /// Makes the pack again, and compares. Gives what differs, too.
    ///
    /// # Errors
    /// As [`PackOptions::pack`] and reading the pack.
    pub(crate) fn run(
        &self,
        pack: &Pack<Input>,
        manifest: &Manifest,
        options: &PackOptions,
        progress: &dyn Progress,
    ) -> Result<(Rederived, Vec<Failure>)> {
        let mut failures = vec![];
        if let (Some(expected), Some(path)) = (&manifest.calibration, self.calibration) {
            let found = Calibration::open(path)?.sha256().to_string();
            if found != *expected {
                let text =
                    format!("the calibration's SHA-256 is {found}, the manifest says {expected}");
                failures.push(Failure::from(&Error::integrity(text)));
            }
        }
        let again = self.work_dir.join("again.uc");
        let report = options.pack_with(self.source, &again, progress)?;
        let encoder = if self.calibration.is_some() { CALIBRATED_ENCODER_ID } else { ENCODER_ID };
        let mut rederived = Rederived {
            encoder: encoder.to_owned(),
            same_encoder: encoder == manifest.encoder,
            bytes_compared: 0,
            tensors_equal: 0,
            tensors_different: 0,
            stored_root: report.stored_root.to_string(),
            decoded_root: report.decoded_root.to_string(),
        };
        let made = Container::open_path(&again)?;
        let theirs: BTreeMap<&str, _> =
            pack.tensors().map(|t| (t.name(), t.entry().decoded_sha256)).collect();
        for t in made.tensors() {
            if theirs.get(t.name()) == Some(&t.entry().decoded_sha256) {
                rederived.tensors_equal += 1;
                continue;
            }
            rederived.tensors_different += 1;
            if rederived.same_encoder && rederived.tensors_different == 1 {
                let text = "made again from the source, it decodes to other values";
                failures.push(Failure::from(&Error::integrity(text).in_tensor(t.name())));
            }
        }
        if rederived.same_encoder {
            let joined = self.joined(pack, progress)?;
            let base = joined.as_ref().map_or(&pack.containers()[0], |(c, _)| c);
            compare(base, &made, &mut rederived, &mut failures, progress)?;
        }
        Ok((rederived, failures))
    }

    /// The options that the manifest records.
    ///
    /// # Errors
    /// `Malformed` for a recipe that this program doesn't have.
    pub(crate) fn options(&self, pack: &Pack<Input>, manifest: &Manifest) -> Result<PackOptions> {
        let no_recipe = |e: String| {
            Error::malformed(Rule::MAN_2, format!("the recipe isn't one of this program: {e}"))
        };
        let recipe: Recipe = serde_json::from_value(manifest.recipe.clone())
            .map_err(|e| no_recipe(e.to_string().escape_debug().to_string()))?;
        recipe.check().map_err(|e| no_recipe(e.message().to_owned()))?;
        let budget = recipe.calibrated.as_ref().is_some_and(|c| c.bpw.is_some());
        if budget && manifest.calibration.is_none() {
            return Err(no_recipe("a budget of bits without a calibration".into()));
        }
        let index = pack.containers()[0].index();
        let coded = pack.tensors().any(|t| matches!(t.entry().encoding, Encoding::Coded { .. }));
        let exact = match (!index.heads.is_empty() || coded, recipe.raw_all) {
            (false, _) => Exact::No,
            (true, false) => Exact::Residual,
            (true, true) => Exact::Only,
        };
        let rungs = manifest.rungs.keys().filter_map(|r| r.parse().ok()).collect();
        Ok(PackOptions::new()
            .with_recipe(recipe)
            .with_calibration(self.calibration.map(Path::to_owned))
            .with_exact(exact)
            .with_rungs(rungs)
            .with_max_ram(self.max_ram))
    }

    /// The pack as one file without overlays, where it isn't that.
    fn joined(
        &self,
        pack: &Pack<Input>,
        progress: &dyn Progress,
    ) -> Result<Option<(Container<Input>, PathBuf)>> {
        if pack.containers().len() == 1
            && pack.shard_index().is_none()
            && pack.overlays().is_empty()
        {
            return Ok(None);
        }
        let path = self.work_dir.join("joined.uc");
        let shards = vec![0; pack.tensors().len()];
        let manifest = pack.containers()[0].manifest_bytes()?;
        let options = CopyOptions { overlays: Some(vec![]), ..CopyOptions::default() };
        let mut new = NewPack::create(&path, false, 1)?;
        let written = copy_pack(pack, &shards, &mut new, &manifest, &options, progress)?;
        new.commit(&written)?;
        let container = Container::open(Input::open(&path)?)?;
        Ok(Some((container, path)))
    }
}

/// Compares two cores byte by byte. Attachments aren't part of it.
fn compare(
    a: &Container<impl ReadAt>,
    b: &Container<impl ReadAt>,
    rederived: &mut Rederived,
    failures: &mut Vec<Failure>,
    progress: &dyn Progress,
) -> Result<()> {
    let mut fail = |at: u64, text: String| {
        failures.push(Failure::from(&Error::integrity(text).at(at)));
    };
    let heads = (a.preamble().rooted_bytes(), b.preamble().rooted_bytes());
    if let Some(at) = heads.0.iter().zip(&heads.1).position(|(x, y)| x != y) {
        fail(at as u64, "made again from the source, the preamble differs".into());
    }
    let end = a.preamble().core_len.min(b.preamble().core_len);
    let mut at = PREAMBLE_BYTES as u64;
    let mut bytes = (vec![], vec![]);
    while at < end {
        let len = to_usize((end - at).min(CHUNK_BYTES))?;
        bytes.0.resize(len, 0);
        bytes.1.resize(len, 0);
        a.reader().read_exact_at(at, &mut bytes.0)?;
        b.reader().read_exact_at(at, &mut bytes.1)?;
        if let Some(i) = bytes.0.iter().zip(&bytes.1).position(|(x, y)| x != y) {
            let text = "made again from the source, the bytes differ from here on";
            fail(at + i as u64, text.into());
            return Ok(());
        }
        rederived.bytes_compared += len as u64;
        at += len as u64;
        step(progress, 0)?;
    }
    Ok(())
}
