//! What the benches share: a layer, the machine, records.

#![allow(dead_code, reason = "each bench uses a part")]

#[path = "../../tests/support/pack.rs"]
mod pack;

use ultracompress::codec::{EncodedRows, LevelSet, PlaneCounts, PlaneLayout, RowEncoder, RunBytes};
use ultracompress::{Container, Dtype, EncodedTensor, PlaneParts, Role};

use pack::pack_of_one;

/// Weights around zero with a bell shape: sums of uniform numbers from a linear congruential
/// generator.
pub fn weights(n: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n).map(|_| (uniform() + uniform() + uniform() + uniform()) * 0.02).collect()
}

/// An encoded layer of 5 planes in groups of 32.
pub struct Layer {
    pub layout: PlaneLayout,
    pub rows: usize,
    pub cols: usize,
    pub encoded: EncodedRows,
}

impl Layer {
    pub fn new(rows: usize, cols: usize, source: &[f32]) -> Self {
        let layout = PlaneLayout::new(&[rows as u64, cols as u64], 1, 32).expect("a matrix");
        let encoder = RowEncoder::new(&layout, LevelSet::default_for(5), Dtype::F32);
        let encoded = encoder.expect("a kernel").encode(source).expect("finite");
        Self { layout, rows, cols, encoded }
    }

    pub fn planes(&self) -> Vec<&[u8]> {
        self.encoded.planes.iter().map(Vec::as_slice).collect()
    }

    pub fn run<'a>(&'a self, planes: &'a [&'a [u8]]) -> RunBytes<'a> {
        RunBytes { native: 5, scales: &self.encoded.scales, steps: &self.encoded.steps, planes }
    }

    /// A pack in memory with this layer as tensor `w`.
    pub fn pack(&self) -> Container<Vec<u8>> {
        let parts = PlaneParts {
            row_dims: 1,
            group: 32,
            counts: PlaneCounts::Uniform(5),
            level_ids: [0; 6],
            scales: self.encoded.scales.clone(),
            steps: self.encoded.steps.clone(),
            planes: self.encoded.planes.clone(),
        };
        let shape = [self.layout.rows, self.layout.cols];
        let tensor = EncodedTensor::from_planes("w", Dtype::F32, &shape, Role::Body, parts, &[]);
        Container::open(pack_of_one(tensor.expect("fits"))).expect("valid")
    }
}

/// The processor, as the system describes it.
pub fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |key: &str| {
        let line = info.lines().find(|l| l.starts_with(key))?;
        Some(line.split(':').nth(1)?.trim().to_owned())
    };
    let part = |key| field(key).unwrap_or_else(|| "unknown".into());
    format!("{} (family {}, model {})", part("model name"), part("cpu family"), part("model\t"))
}

/// The commit that a record is of, which the caller names in `UC_COMMIT`.
pub fn commit() -> String {
    std::env::var("UC_COMMIT").unwrap_or_else(|_| "unknown".into())
}
