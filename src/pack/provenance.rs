//! The manifest of a new pack: where its tensors come from and how they were made.

use std::io::Read;
use std::path::Path;

use super::plan::Plan;
use super::work::Work;
use crate::encoder::{CALIBRATED_ENCODER_ID, ENCODER_ID};
use crate::error::{Error, Result};
use crate::manifest::{Manifest, SourceFile, TensorSource};
use crate::source::Scans;

impl Work<'_> {
    /// # Errors
    /// `Io`.
    pub(super) fn manifest(&self, plan: &Plan, scans: &Scans) -> Result<Manifest> {
        let source = self.source;
        let encoder = if self.calibration.is_some() { CALIBRATED_ENCODER_ID } else { ENCODER_ID };
        let mut manifest = Manifest::new(encoder);
        manifest.calibration = self.calibration.map(|c| c.sha256().to_string());
        manifest.recipe = self.recipe.to_json()?;
        for (file, scan) in source.files.iter().zip(&scans.files) {
            // What stays behind must not change the bytes of the pack; the report lists it.
            let Some(scan) = scan else { continue };
            if file.path == "README.md" {
                manifest.licence = declared_licence(&file.on_disk)
                    .map_err(|e| Error::io("can't read", e).in_file(&file.path))?;
            }
            manifest.files.push(SourceFile {
                path: file.path.clone(),
                bytes: file.bytes,
                role: file.role,
                sha256: Some(scan.sha256.to_string()),
                metadata: source.metadata.get(&file.path).cloned(),
            });
        }
        for ((t, planned), scan) in source.tensors().iter().zip(&plan.tensors).zip(&scans.tensors) {
            manifest.tensors.insert(
                t.name.clone(),
                TensorSource {
                    sha256: scan.sha256.to_string(),
                    file: Some(t.file.clone()),
                    reason: planned.reason.clone(),
                },
            );
        }
        Ok(manifest)
    }
}

/// The `license` of a model card's front matter.
fn declared_licence(readme: &Path) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    std::fs::File::open(readme)?.take(1 << 20).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let value = text
        .strip_prefix("---")
        .and_then(|t| t.split("\n---").next())
        .and_then(|front| front.lines().find_map(|l| l.strip_prefix("license:")))
        .map(|value| value.trim().trim_matches(['"', '\'']));
    Ok(value.filter(|v| !v.is_empty()).map(str::to_owned))
}
