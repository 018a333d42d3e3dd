//! NF4: sixteen values at the quantiles of a normal distribution.
//!
//! # Source
//! Dettmers et al., "QLoRA", arXiv:2305.14314, section 3 and appendix E; the
//! table and the eight-bit map of the double quantisation (Dettmers, "8-bit
//! approximations", arXiv:1511.04561) as bitsandbytes has them, so that the
//! same weights get the same codes.
#![expect(
    clippy::cast_possible_truncation,
    reason = "rounding is what is wanted, and codes fit a byte"
)]

use std::sync::OnceLock;

/// Weights that share a scale.
pub(super) const BLOCK: usize = 64;

/// Scales that share a scale, when they are quantised too.
const GROUP: usize = 256;

/// The values that codes 0 to 15 stand for, times the scale.
pub(crate) const TABLE: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Index of the nearest of ascending `values`; of two as near, the lower.
fn nearest(values: &[f32], x: f32) -> u8 {
    let above = values.partition_point(|v| *v < x).min(values.len() - 1);
    let below = above.saturating_sub(1);
    // Midpoints decide, as in the reference.
    let index = if x > (values[below] + values[above]) * 0.5 {
        above
    } else {
        below
    };
    index as u8
}

/// Codes and scale of one block.
pub(super) fn encode(x: &[f32], codes: &mut [u8]) -> f32 {
    let peak = x.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let inverse = if peak > 0.0 { 1.0 / peak } else { 0.0 };
    for (code, x) in codes.iter_mut().zip(x) {
        *code = nearest(&TABLE, x * inverse);
    }
    peak
}

/// The signed eight-bit map: 0, 1, and for each of seven decades down to 1e-6
/// the midpoints of 1, 2, 4, .., 64 equal steps from a tenth to the whole.
fn dynamic_map() -> &'static [f32; 256] {
    static MAP: OnceLock<[f32; 256]> = OnceLock::new();
    MAP.get_or_init(|| {
        let mut map = [0.0_f32; 256];
        let mut at = 0;
        for decade in 0..7 {
            let steps = 1_u32 << decade;
            let unit = libm::pow(10.0, f64::from(decade) - 6.0);
            for i in 0..steps {
                let middle = 0.1 + 0.9 * (f64::from(i) + 0.5) / f64::from(steps);
                map[at] = (unit * middle) as f32;
                map[at + 1] = -map[at];
                at += 2;
            }
        }
        map[at] = 1.0;
        map.sort_by(f32::total_cmp);
        map
    })
}

/// One scale for each block of a matrix, row by row.
#[derive(Debug, Clone)]
pub(super) enum Scales {
    /// As they are.
    Plain(Vec<f32>),
    /// `map[code] * group + offset`.
    Double {
        codes: Vec<u8>,
        groups: Vec<f32>,
        offset: f32,
    },
}

impl Scales {
    /// Rounds scales to eight bits.
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    pub(super) fn double(scales: &[f32]) -> Self {
        let sum: f64 = scales.iter().map(|s| f64::from(*s)).sum();
        let offset = (sum / scales.len().max(1) as f64) as f32;
        let mut groups = Vec::with_capacity(scales.len().div_ceil(GROUP));
        let mut codes = Vec::with_capacity(scales.len());
        for group in scales.chunks(GROUP) {
            let peak = group.iter().fold(0.0_f32, |m, s| m.max((s - offset).abs()));
            let inverse = if peak > 0.0 { 1.0 / peak } else { 0.0 };
            codes.extend(
                group
                    .iter()
                    .map(|s| nearest(dynamic_map(), (s - offset) * inverse)),
            );
            groups.push(peak);
        }
        Self::Double {
            codes,
            groups,
            offset,
        }
    }

    /// Scale of block `i` of the matrix.
    pub(super) fn at(&self, i: usize) -> f32 {
        match self {
            Self::Plain(scales) => scales[i],
            Self::Double {
                codes,
                groups,
                offset,
            } => dynamic_map()[usize::from(codes[i])] * groups[i / GROUP] + offset,
        }
    }

    /// Bytes in memory.
    pub(super) fn size_bytes(&self) -> usize {
        match self {
            Self::Plain(scales) => 4 * scales.len(),
            Self::Double { codes, groups, .. } => codes.len() + 4 * groups.len() + 4,
        }
    }

    /// Stored form of the scales of blocks `range`, without what is shared.
    pub(super) fn stored(&self, range: std::ops::Range<usize>, out: &mut Vec<u8>) {
        match self {
            Self::Plain(scales) => out.extend(scales[range].iter().flat_map(|s| s.to_le_bytes())),
            Self::Double { codes, .. } => out.extend(&codes[range]),
        }
    }

    /// Stored form of what all rows share.
    pub(super) fn stored_shared(&self, out: &mut Vec<u8>) {
        if let Self::Double { groups, offset, .. } = self {
            out.extend(groups.iter().chain([offset]).flat_map(|s| s.to_le_bytes()));
        }
    }
}
