//! Block-wise dynamic 8-bit numbers (Dettmers et al., "8-bit Optimizers via
//! Block-wise Quantization", ICLR 2022).
//!
//! A block of 256 values is stored as its largest magnitude and one byte a
//! value: the index of the nearest of 256 numbers between -1 (or 0) and 1. Those
//! are dense near zero: seven decades, each with twice as many numbers as the
//! one below it.

use std::sync::LazyLock;

/// Values that share a scale.
pub(super) const BLOCK: usize = 256;

/// Decades of the dynamic map.
const DECADES: u32 = 7;

/// The 256 numbers, ascending, and the 255 points between neighbours.
struct Map {
    numbers: [f32; 256],
    between: [f32; 255],
}

static SIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(true));
static UNSIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(false));

impl Map {
    /// Decade `d` covers `[0.1, 1] 10^(d - 6)` with the centres of `2^d` cells
    /// for each sign, or of `2^(d + 1)` where there is no sign; 0 and 1 are added.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding to f32 is what is wanted"
    )]
    fn new(is_signed: bool) -> Self {
        let mut numbers = vec![0.0_f32, 1.0];
        for decade in 0..DECADES {
            let cells = 1_u32 << (decade + u32::from(!is_signed));
            let unit = libm::pow(10.0, f64::from(decade) - f64::from(DECADES - 1));
            for cell in 0..cells {
                let centre = 0.1 + 0.9 * (f64::from(cell) + 0.5) / f64::from(cells);
                numbers.push((unit * centre) as f32);
                if is_signed {
                    numbers.push(-(unit * centre) as f32);
                }
            }
        }
        numbers.sort_by(f32::total_cmp);
        let numbers: [f32; 256] = numbers
            .try_into()
            .expect("2 + 254 numbers with either sign");
        let between = std::array::from_fn(|i| 0.5 * (numbers[i] + numbers[i + 1]));
        Self { numbers, between }
    }

    /// Index of the number nearest to `x`; of two, the lower.
    fn nearest(&self, x: f32) -> u8 {
        u8::try_from(self.between.partition_point(|b| *b < x))
            .expect("at most as many as there are points between")
    }
}

/// Values in blocks of 8-bit numbers; at first all zero.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Blocks {
    pub(super) codes: Vec<u8>,
    pub(super) scales: Vec<f32>,
    is_signed: bool,
}

impl Blocks {
    /// `n` zeros that may take either sign.
    pub(super) fn signed(n: usize) -> Self {
        Self::new(n, true)
    }

    /// `n` zeros that never become negative.
    pub(super) fn unsigned(n: usize) -> Self {
        Self::new(n, false)
    }

    fn new(n: usize, is_signed: bool) -> Self {
        let zero = if is_signed { &SIGNED } else { &UNSIGNED }.nearest(0.0);
        Self {
            codes: vec![zero; n],
            scales: vec![0.0; n.div_ceil(BLOCK)],
            is_signed,
        }
    }

    fn map(&self) -> &'static Map {
        if self.is_signed { &SIGNED } else { &UNSIGNED }
    }

    pub(super) fn len(&self) -> usize {
        self.codes.len()
    }

    pub(super) fn n_blocks(&self) -> usize {
        self.scales.len()
    }

    /// Bytes that `n` values take.
    pub(super) const fn size_bytes(n: usize) -> usize {
        n + n.div_ceil(BLOCK) * size_of::<f32>()
    }

    /// The values of block `block`, into `out`.
    pub(super) fn read(&self, block: usize, out: &mut Vec<f32>) {
        let (map, scale) = (self.map(), self.scales[block]);
        let codes = self.codes.chunks(BLOCK).nth(block).unwrap_or_default();
        out.clear();
        out.extend(codes.iter().map(|c| scale * map.numbers[usize::from(*c)]));
    }

    /// Replaces block `block`. What is not zero does not become zero without a
    /// sign: a step is divided by these values.
    pub(super) fn write(&mut self, block: usize, values: &[f32]) {
        let map = self.map();
        let scale = values.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
        self.scales[block] = scale;
        let first = block * BLOCK;
        for (code, value) in self.codes[first..first + values.len()]
            .iter_mut()
            .zip(values)
        {
            let x = if scale > 0.0 { value / scale } else { 0.0 };
            *code = map.nearest(x);
            if !self.is_signed && *value > 0.0 {
                // Number 0 is zero, number 1 the smallest above it.
                *code = (*code).max(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_maps_are_those_of_the_paper() {
        for (map, cells) in [(&SIGNED, 64.0), (&UNSIGNED, 128.0)] {
            assert!(map.numbers.windows(2).all(|w| w[0] < w[1]));
            let near = |got: f32, want: f64| {
                assert!((f64::from(got) / want - 1.0).abs() < 1e-6, "{got} {want}");
            };
            near(map.numbers[255], 1.0);
            // The cell below 1 in the densest decade, and its neighbour.
            near(map.numbers[254], 1.0 - 0.45 / cells);
            near(map.numbers[253], 1.0 - 1.35 / cells);
        }
        let least = |map: &Map| *map.numbers.iter().find(|n| **n > 0.0).unwrap();
        assert!((least(&SIGNED) / 0.55e-6 - 1.0).abs() < 1e-6);
        assert!((least(&UNSIGNED) / 0.325e-6 - 1.0).abs() < 1e-6);
        assert!(SIGNED.numbers[0] > -1.0 && UNSIGNED.numbers[0] == 0.0);
    }

    proptest! {
        #[test]
        fn what_is_read_is_near_what_was_written(
            values in prop::collection::vec(-1e3_f32..1e3, 1..600),
        ) {
            let mut signed = Blocks::signed(values.len());
            let mut unsigned = Blocks::unsigned(values.len());
            let mut got = Vec::new();
            for (block, part) in values.chunks(BLOCK).enumerate() {
                let positive: Vec<f32> = part.iter().map(|v| v.abs()).collect();
                let most = positive.iter().copied().fold(0.0, f32::max);
                signed.write(block, part);
                unsigned.write(block, &positive);
                for (blocks, want) in [(&signed, part), (&unsigned, &positive[..])] {
                    blocks.read(block, &mut got);
                    prop_assert_eq!(got.len(), want.len());
                    for (got, want) in got.iter().zip(want) {
                        // Half of the widest cell: the step of the densest decade.
                        prop_assert!((got - want).abs() <= 0.008 * most, "{} {}", got, want);
                        prop_assert!(*want <= 0.0 || *got >= 0.0);
                    }
                }
            }
        }

        #[test]
        fn a_code_is_the_nearest(x in -1.2_f32..1.2) {
            for map in [&SIGNED, &UNSIGNED] {
                let got = map.numbers[usize::from(map.nearest(x))];
                let best = map.numbers.iter().map(|n| (n - x).abs()).fold(f32::INFINITY, f32::min);
                prop_assert!((got - x).abs() <= best * (1.0 + 1e-5) + 1e-9);
            }
        }
    }

    #[test]
    fn zeros_and_small_values_keep_what_they_are() {
        let mut blocks = Blocks::unsigned(3);
        blocks.write(0, &[0.0, 1e-30, 1e6]);
        let mut got = Vec::new();
        blocks.read(0, &mut got);
        assert!(got[0] == 0.0 && got[1] > 0.0 && got[2] == 1e6);
        blocks.write(0, &[0.0; 3]);
        blocks.read(0, &mut got);
        assert_eq!(got, [0.0; 3]);
        assert_eq!(Blocks::size_bytes(257), 257 + 8);
    }
}
