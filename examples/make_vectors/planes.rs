//! Tensors of planes: deterministic codes, scales and steps, and what they decode to.

use ultracompress::Dtype;
use ultracompress::codec::reference::{StoredPlanes, decode_weight};
use ultracompress::codec::{LevelSet, Levels, PlaneCounts, PlaneLayout, STEPS};

use super::file::{Record, plain, tensor};

#[derive(Clone)]
pub struct Planes {
    pub name: &'static str,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub row_dims: u8,
    pub group: u32,
    pub counts: Vec<u8>,
    pub level_ids: [u16; 6],
    pub custom: Option<(u8, Vec<i8>)>,
    /// bfloat16 bits of every row scale.
    pub scale: u16,
}

pub struct Stored {
    pub layout: PlaneLayout,
    pub counts: PlaneCounts,
    pub scales: Vec<u8>,
    pub steps: Vec<u8>,
    pub planes: Vec<Vec<u8>>,
}

impl Planes {
    pub fn new(name: &'static str, dtype: Dtype, shape: &[u64], group: u32, counts: &[u8]) -> Self {
        Self {
            name,
            dtype,
            shape: shape.to_vec(),
            row_dims: 1,
            group,
            counts: counts.to_vec(),
            level_ids: [0; 6],
            custom: None,
            scale: 0x3a12,
        }
    }

    /// Code of a weight: every code occurs when the row is long enough.
    pub fn code(count: u8, row: usize, col: usize) -> u8 {
        let all = 1usize << count;
        u8::try_from((col * 37 + row * 11 + col / all) % all).expect("below 2^8")
    }

    pub fn stored(&self) -> Stored {
        let layout = PlaneLayout::new(&self.shape, self.row_dims, self.group).expect("valid");
        let cols = usize::try_from(layout.cols).expect("small");
        let uniform = self.counts.windows(2).all(|w| w[0] == w[1]);
        let counts = if uniform {
            PlaneCounts::Uniform(self.counts[0])
        } else {
            PlaneCounts::PerRow(self.counts.clone())
        };
        let mut order: Vec<usize> = (0..self.counts.len()).collect();
        order.sort_by_key(|&r| std::cmp::Reverse(self.counts[r]));
        let n_groups = if self.group == 0 { 0 } else { cols.div_ceil(self.group as usize) };
        let highest = *self.counts.iter().max().expect("a row");
        let mut stored = Stored {
            layout,
            counts,
            scales: vec![],
            steps: vec![],
            planes: vec![vec![]; usize::from(highest)],
        };
        for &row in &order {
            let scale = self.scale + u16::try_from(row % 64).expect("small");
            stored.scales.extend(scale.to_le_bytes());
            let mut steps = vec![0u8; n_groups.div_ceil(2)];
            for g in 0..n_groups {
                steps[g / 2] |=
                    u8::try_from((g * 7 + row * 3) % 16).expect("a nibble") << (4 * (g % 2));
            }
            stored.steps.extend(steps);
            let count = self.counts[row];
            for (p, plane) in (0u8..count).zip(&mut stored.planes) {
                let mut bits = vec![0u8; cols.div_ceil(8)];
                for col in 0..cols {
                    bits[col / 8] |=
                        ((Self::code(count, row, col) >> (count - 1 - p)) & 1) << (col % 8);
                }
                plane.extend(bits);
            }
        }
        stored
    }

    /// What the first row's scale gives with groups of so many columns, one multiplication after
    /// the other: also for what no file may hold. Groups beyond those that are stored have the
    /// first step.
    pub fn multiplied(&self, scale: f32, group: u32) -> Vec<u8> {
        let cols = usize::try_from(self.shape[1]).expect("small");
        let stored = cols.div_ceil(self.group as usize);
        let mut out = vec![];
        for (row, &count) in self.counts.iter().enumerate() {
            let own =
                f32::from_bits(u32::from(self.scale + u16::try_from(row).expect("small")) << 16);
            let scale = if row == 0 { scale } else { own };
            for col in 0..cols {
                let g = col / group as usize;
                let step = STEPS[if g < stored { (g * 7 + row * 3) % 16 } else { 0 }];
                let code = usize::from(Self::code(count, row, col));
                let level = LevelSet::default_for(count).table(count)[code];
                let value = scale * f32::from(step) * f32::from(level);
                let value = if value == 0.0 { 0.0 } else { value };
                match self.dtype {
                    Dtype::F16 => out.extend(half::f16::from_f32(value).to_le_bytes()),
                    _ => out.extend(half::bf16::from_f32(value).to_le_bytes()),
                }
            }
        }
        out
    }

    pub fn decode(&self, stored: &Stored, rung: u8, target: Dtype) -> Vec<u8> {
        let records: Vec<_> = self
            .custom
            .iter()
            .map(|(native, levels)| ultracompress::format::LevelsEntry {
                name: "custom".into(),
                native: *native,
                levels: levels.clone(),
            })
            .collect();
        let whole = StoredPlanes {
            layout: stored.layout,
            counts: &stored.counts,
            levels: Levels::resolve(&self.level_ids, &records).expect("valid"),
            scales: &stored.scales,
            steps: &stored.steps,
            planes: &stored.planes,
        };
        let (rows, cols) = (self.counts.len(), usize::try_from(stored.layout.cols).expect("small"));
        let bytes = usize::try_from(target.bits() / 8).expect("small");
        let mut out = vec![];
        for row in 0..rows {
            for col in 0..cols {
                let bits = decode_weight(&whole, row, col, rung, target);
                out.extend_from_slice(&bits.to_le_bytes()[..bytes]);
            }
        }
        out
    }

    pub fn record(&self) -> Record {
        let stored = self.stored();
        let decoded = self.decode(&stored, 8, self.dtype);
        let mut parts = vec![];
        if let Some(counts) = stored.counts.to_part() {
            parts.push(plain(2, 0, &counts));
        }
        parts.push(plain(3, 0, &stored.scales));
        if !stored.steps.is_empty() {
            parts.push(plain(4, 0, &stored.steps));
        }
        parts.extend((0u8..).zip(&stored.planes).map(|(p, plane)| plain(5, p, plane)));
        let mut tail: Vec<u8> = self.level_ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        tail.extend([0; 4]);
        let group_log2 =
            if self.group == 0 { 0 } else { u8::try_from(self.group.ilog2()).expect("small") };
        let planes = match stored.counts {
            PlaneCounts::Uniform(n) => n,
            PlaneCounts::PerRow(_) => 0,
        };
        let mut record = tensor(
            self.name,
            self.dtype,
            &self.shape,
            &decoded,
            [2, 1, self.row_dims, group_log2, planes],
            &tail,
            parts,
        );
        if decoded.len() <= 2048 {
            let rungs = (3..8u8).map(|n| (n, self.decode(&stored, n, self.dtype)));
            record.tensor.as_mut().expect("a tensor").rungs = rungs.collect();
        }
        record
    }
}

/// The tables for 3 planes that the vectors of custom levels use.
pub fn custom3() -> Vec<i8> {
    vec![-128, -90, -40, -1, 0, 1, 60, 127]
}

/// Tables for 5 planes, read as 5, 4 and 3.
pub fn custom5() -> Vec<i8> {
    let table = |read: u32| {
        let n = 1i16 << read;
        (0..n).map(move |i| i8::try_from(-120 + i * (240 / n) + i % 2).expect("within -120 to 121"))
    };
    table(5).chain(table(4)).chain(table(3)).collect()
}

pub fn weights() -> Planes {
    Planes::new("w", Dtype::Bf16, &[2, 40], 16, &[5, 5])
}

pub fn mixed() -> Planes {
    Planes::new("w", Dtype::F32, &[7, 33], 32, &[4, 8, 3, 5, 7, 6, 3])
}
