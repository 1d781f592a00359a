//! Rotary position embeddings and the ways to stretch them, as transformers computes them
//! (`modeling_rope_utils.py`).

use std::f64::consts::PI;

use serde_json::Value;

/// How far each pair of a head's columns turns from one position to the next.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rope {
    theta: f64,
    head_dim: usize,
    scaling: Scaling,
}

#[derive(Debug, Clone, PartialEq)]
enum Scaling {
    None,
    Linear { factor: f64 },
    Llama3 { factor: f64, low: f64, high: f64, original: f64 },
    Yarn { factor: f64, original: f64, fast: f64, slow: f64, attention: f64, truncate: bool },
}

impl Rope {
    /// Reads `rope_parameters` (transformers 5) or `rope_scaling`, with `rope_theta` beside it.
    pub(super) fn parse(
        parameters: Option<&Value>,
        theta: Option<f64>,
        head_dim: usize,
        max_positions: usize,
    ) -> Result<Self, String> {
        if let Some(other) = parameters.filter(|p| !p.is_null() && !p.is_object()) {
            return Err(format!("the rope scaling is {other}, an object is expected"));
        }
        let field = |name: &str| parameters.and_then(|p| p.get(name)).filter(|v| !v.is_null());
        let number = |name: &str| match field(name) {
            None => Ok(None),
            Some(v) => match v.as_f64() {
                Some(n) if n.is_finite() && n > 0.0 => Ok(Some(n)),
                _ => Err(format!("{name} of the rope scaling is {v}")),
            },
        };
        let needed =
            |name: &str| number(name)?.ok_or(format!("{name} of the rope scaling is missing"));
        let theta = number("rope_theta")?.or(theta).unwrap_or(10_000.0);
        if !(theta.is_finite() && theta > 1.0) {
            return Err(format!("rope_theta is {theta}"));
        }
        if number("partial_rotary_factor")?.is_some_and(|f| f != 1.0) {
            return Err("partial_rotary_factor is not 1".into());
        }
        let kind = field("rope_type").or(field("type"));
        let scaling = match kind.map(|k| k.as_str().unwrap_or("")) {
            // Grows the base beyond the positions that the model was trained on, which the runtime
            // refuses.
            Some("dynamic") => Scaling::None,
            None | Some("default") => Scaling::None,
            Some("linear") => Scaling::Linear { factor: needed("factor")? },
            Some("llama3") => {
                let (low, high) = (needed("low_freq_factor")?, needed("high_freq_factor")?);
                if high <= low {
                    return Err(format!("high_freq_factor {high} is not above {low}"));
                }
                let original = needed("original_max_position_embeddings")?;
                Scaling::Llama3 { factor: needed("factor")?, low, high, original }
            }
            Some("yarn") => {
                let factor = needed("factor")?;
                let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
                let attention = match (number("mscale")?, number("mscale_all_dim")?) {
                    (Some(m), Some(all)) => scale(m) / scale(all),
                    _ => scale(1.0),
                };
                Scaling::Yarn {
                    factor,
                    #[allow(clippy::cast_precision_loss, reason = "at most 2^28")]
                    original: number("original_max_position_embeddings")?
                        .unwrap_or(max_positions as f64),
                    fast: number("beta_fast")?.unwrap_or(32.0),
                    slow: number("beta_slow")?.unwrap_or(1.0),
                    attention: number("attention_factor")?.unwrap_or(attention),
                    truncate: field("truncate").and_then(Value::as_bool).unwrap_or(true),
                }
            }
            Some(other) => {
                let known = "default, linear, dynamic, llama3, yarn";
                return Err(format!(
                    "rope type \"{}\" is not known; {known} are",
                    other.escape_debug()
                ));
            }
        };
        Ok(Self { theta, head_dim, scaling })
    }

    /// Cosines and sines of the turns at positions `0..n`, `[n, head_dim / 2]` each.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "positions are small, and binary32 is what the model computes in"
    )]
    pub(super) fn turns(&self, n: usize) -> (Vec<f32>, Vec<f32>) {
        let (turns, factor) = self.frequencies();
        let angles = (0..n).flat_map(|p| turns.iter().map(move |t| (p as f32) * t));
        angles
            .map(|angle| {
                let (sin, cos) = f64::from(angle).sin_cos();
                ((cos * factor) as f32, (sin * factor) as f32)
            })
            .unzip()
    }

    /// Radians a position, and what cosines and sines are multiplied with. In binary32, as
    /// transformers has them.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "as above")]
    fn frequencies(&self) -> (Vec<f32>, f64) {
        let (half, dim) = (self.head_dim / 2, self.head_dim as f64);
        let plain = |theta: f64| {
            (0..half).map(move |i| theta.powf(2.0 * i as f64 / dim).recip()).collect::<Vec<f64>>()
        };
        let (turns, attention) = match self.scaling {
            Scaling::None => (plain(self.theta), 1.0),
            Scaling::Linear { factor } => {
                (plain(self.theta).into_iter().map(|t| t / factor).collect(), 1.0)
            }
            Scaling::Llama3 { factor, low, high, original } => {
                let turn = |t: f64| {
                    let wave = 2.0 * PI / t;
                    if wave < original / high {
                        t
                    } else if wave > original / low {
                        t / factor
                    } else {
                        let smooth = (original / wave - low) / (high - low);
                        (1.0 - smooth) * t / factor + smooth * t
                    }
                };
                (plain(self.theta).into_iter().map(turn).collect(), 1.0)
            }
            Scaling::Yarn { factor, original, fast, slow, attention, truncate } => {
                let at = |rotations: f64| {
                    dim * (original / (rotations * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (at(fast), at(slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, high) = (low.max(0.0), high.min(dim - 1.0));
                let span = if high == low { 0.001 } else { high - low };
                let turn = |(i, t): (usize, f64)| {
                    let ramp = ((i as f64 - low) / span).clamp(0.0, 1.0);
                    t / factor * ramp + t * (1.0 - ramp)
                };
                (plain(self.theta).into_iter().enumerate().map(turn).collect(), attention)
            }
        };
        (turns.into_iter().map(|t| t as f32).collect(), attention)
    }
}
