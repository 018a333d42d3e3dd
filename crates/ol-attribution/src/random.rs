//! Seeded signs: the only randomness here, the same on every machine.

/// splitmix64.
///
/// # Source
/// Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
/// OOPSLA 2014.
#[derive(Debug, Clone)]
pub(crate) struct SplitMix(u64);

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl SplitMix {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// +1 or -1.
    pub(crate) const fn sign(&mut self) -> f64 {
        if self.next() >> 63 == 0 { 1.0 } else { -1.0 }
    }
}

/// A well mixed 64-bit word for a counter under a seed and a stream.
pub(crate) const fn word(seed: u64, stream: u64, counter: u64) -> u64 {
    let keyed = mix(seed ^ mix(stream.wrapping_mul(GOLDEN) ^ 0x6f6c_2d73_6b65_7463));
    mix(keyed.wrapping_add(counter.wrapping_mul(GOLDEN)))
}

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
