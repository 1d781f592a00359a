//! The state of training between rounds, so that an interrupted run can go on.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::closed::Product;
use super::gradient::{Factors, Position, Scales};
use super::options::Probe;
use crate::error::{Error, Result};
use crate::output::{ClosedFile, NewFile};

const FORMAT: &str = "ultracompress-train-state-1";
const TOOL: &str = concat!("ultracompress ", env!("CARGO_PKG_VERSION"));

/// What lies beside the output until it is complete.
pub(super) struct StateFile(PathBuf);

/// A state that was read.
pub(super) struct Saved {
    pub products: BTreeMap<String, Product>,
    pub scales: BTreeMap<String, Scales>,
    pub position: Position,
    pub probes: Vec<Probe>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: String,
    tool: String,
    recipe: Map<String, Value>,
    #[serde(rename = "place")]
    position: Position,
    probes: Vec<Probe>,
    products: BTreeMap<String, StoredProduct>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredProduct {
    rows: usize,
    cols: usize,
    rank: usize,
    scales: Scales,
    /// Bits of binary32 numbers.
    a: Vec<u32>,
    b: Vec<u32>,
}

impl StateFile {
    /// Of a run that writes `output`.
    pub(super) fn new(output: &Path) -> Self {
        let mut name = output.file_name().unwrap_or_default().to_owned();
        name.push(".train-state");
        Self(output.with_file_name(name))
    }

    /// # Errors
    /// `Io`.
    pub(super) fn remove(&self) -> Result<()> {
        match std::fs::remove_file(&self.0) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("can't remove", e).in_file(self.0.display().to_string()))
            }
            _ => Ok(()),
        }
    }

    /// Replaces the state.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn write(
        &self,
        recipe: &Map<String, Value>,
        factors: &Factors,
        position: &Position,
        probes: &[Probe],
    ) -> Result<()> {
        let (products, scales) = (factors.products()?, factors.scales());
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect();
        let product = |name: &String, p: &Product| StoredProduct {
            rows: p.rows,
            cols: p.cols,
            rank: p.rank,
            scales: scales.get(name).copied().unwrap_or([1.0; 2]),
            a: bits(&p.a),
            b: bits(&p.b),
        };
        let stored = Stored {
            format: FORMAT.to_owned(),
            tool: TOOL.to_owned(),
            recipe: recipe.clone(),
            position: position.clone(),
            probes: probes.to_vec(),
            products: products.iter().map(|(n, p)| (n.clone(), product(n, p))).collect(),
        };
        let bytes = serde_json::to_vec(&stored)
            .map_err(|e| Error::argument(format!("state: {e}")).with_source(e))?;
        let mut out = NewFile::create(&self.0, true)?;
        out.write_all(&bytes)
            .map_err(|e| Error::io("can't write", e).in_file(self.0.display().to_string()))?;
        ClosedFile::commit(vec![out.close()?])
    }

    /// The state of a run of this recipe; nothing when there is none.
    ///
    /// # Errors
    /// `Source` for a damaged state, or one of another run; `Io`.
    pub(super) fn read(&self, recipe: &Map<String, Value>) -> Result<Option<Saved>> {
        let locate = |e: Error| e.in_file(self.0.display().to_string());
        let bytes = match std::fs::read(&self.0) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(locate(Error::io("can't read", e))),
        };
        let stored: Stored = serde_json::from_slice(&bytes)
            .map_err(|e| locate(Error::source_file(format!("is no state of training: {e}"))))?;
        if stored.format != FORMAT || stored.tool != TOOL || stored.recipe != *recipe {
            let text = "is the state of another run: its recipe differs; remove it to start again";
            return Err(locate(Error::source_file(text)));
        }
        let (mut products, mut scales) = (BTreeMap::new(), BTreeMap::new());
        let floats = |bits: &[u32]| bits.iter().map(|b| f32::from_bits(*b)).collect();
        for (name, p) in stored.products {
            if Some(p.a.len()) != p.rows.checked_mul(p.rank)
                || Some(p.b.len()) != p.rank.checked_mul(p.cols)
                || p.rank == 0
            {
                return Err(locate(Error::source_file("factors of another size").in_tensor(&name)));
            }
            let (a, b) = (floats(&p.a), floats(&p.b));
            scales.insert(name.clone(), p.scales);
            products.insert(name, Product { rows: p.rows, cols: p.cols, rank: p.rank, a, b });
        }
        Ok(Some(Saved { products, scales, position: stored.position, probes: stored.probes }))
    }
}
