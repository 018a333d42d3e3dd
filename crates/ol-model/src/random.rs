//! A small seeded generator for initial weights and sampled labels.

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): one 64-bit state, equal
/// streams on every machine. Not for secrets.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The stream of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in `0..n` for `n > 0` (bias below 2^-32 for the sizes used).
    ///
    /// # Panics
    /// Never: the result is below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from((u128::from(self.next_u64()) * n as u128) >> 64)
            .expect("below n, which is a usize")
    }

    /// Standard normal (Box and Muller, 1958).
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding to f32 is what is wanted"
    )]
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * libm::log(1.0 - self.uniform())).sqrt();
        (radius * libm::cos(std::f64::consts::TAU * self.uniform())) as f32
    }

    /// Puts `items` in random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}
