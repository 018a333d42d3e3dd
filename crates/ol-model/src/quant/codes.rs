//! The numbers of one block of one row, and the two byte orders they live in:
//! that of the file, and panels of eight rows for the kernels.
//!
//! # Panels
//! Eight rows (lanes) side by side. A vector of 32 bytes holds four codes of
//! each lane, `4 lane ..`; so a kernel multiplies it with the same four
//! activations in every lane and each lane sums its own row. `head` holds the
//! half-precision scales of a block, `body` everything else:
//!
//! | format | head (16-bit) | body |
//! |---|---|---|
//! | Q8_0 | `d[8]` | 8 vectors |
//! | Q4_0 | `d[8]` | 4 vectors; the low nibbles are codes 0..16, the high ones 16..32 |
//! | Q4_K | `d[8] dmin[8]` | 4 pairs of sub-blocks, each 8 vectors with the low nibbles of the even sub-block; 4 x 16 scales, 4 x 16 minima, `2 lane + parity` |
//! | Q6_K | `d[8]` | 16 sub-blocks: two vectors of low nibbles, one of four times two high bits; 8 x 16 scales, `2 lane + parity` |

use half::f16;

use super::Format;

/// Rows of a panel.
pub(crate) const LANES: usize = 8;

/// Most weights in a block.
pub(crate) const MAX_BLOCK: usize = 256;

/// Codes and scales of one block, unpacked.
#[derive(Clone)]
pub(crate) struct Codes {
    /// Scale, bits of a half.
    pub(crate) d: u16,
    /// Scale of the minima, bits of a half.
    pub(crate) dmin: u16,
    /// Scales of the sub-blocks; signed in Q6_K.
    pub(crate) scales: [u8; 16],
    /// Minima of the sub-blocks.
    pub(crate) mins: [u8; 8],
    /// Codes as stored: unsigned in Q4_0, Q4_K and Q6_K, signed in Q8_0.
    pub(crate) q: [u8; MAX_BLOCK],
}

impl Codes {
    pub(crate) const ZERO: Self = Self {
        d: 0,
        dmin: 0,
        scales: [0; 16],
        mins: [0; 8],
        q: [0; MAX_BLOCK],
    };

    /// Reads a block of a file.
    pub(crate) fn from_stored(format: Format, b: &[u8]) -> Self {
        let mut c = Self::ZERO;
        let half = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        match format {
            Format::Q8_0 => {
                c.d = half(0);
                c.q[..32].copy_from_slice(&b[2..34]);
            }
            Format::Q4_0 => {
                c.d = half(0);
                for (i, b) in b[2..18].iter().enumerate() {
                    c.q[i] = b & 15;
                    c.q[i + 16] = b >> 4;
                }
            }
            Format::Q4K => {
                c.d = half(0);
                c.dmin = half(2);
                let s = &b[4..16];
                for j in 0..4 {
                    c.scales[j] = s[j] & 63;
                    c.mins[j] = s[j + 4] & 63;
                    c.scales[j + 4] = s[j + 8] & 15 | (s[j] >> 6) << 4;
                    c.mins[j + 4] = s[j + 8] >> 4 | (s[j + 4] >> 6) << 4;
                }
                for (p, part) in b[16..144].chunks_exact(32).enumerate() {
                    for (i, b) in part.iter().enumerate() {
                        c.q[64 * p + i] = b & 15;
                        c.q[64 * p + 32 + i] = b >> 4;
                    }
                }
            }
            Format::Q6K => {
                let (low, high) = (&b[..128], &b[128..192]);
                c.scales.copy_from_slice(&b[192..208]);
                c.d = half(208);
                for (i, q) in c.q.iter_mut().enumerate() {
                    let (n, l) = (i / 128, i % 128);
                    let nibble = low[64 * n + l % 64] >> (l / 64 * 4) & 15;
                    let bits = high[32 * n + l % 32] >> (l / 32 * 2) & 3;
                    *q = nibble | bits << 4;
                }
            }
            _ => unreachable!("not a format of integer codes"),
        }
        c
    }

    /// Writes the block as a file has it; `b` is zeroed.
    pub(crate) fn to_stored(&self, format: Format, b: &mut [u8]) {
        let d = self.d.to_le_bytes();
        match format {
            Format::Q8_0 => {
                b[..2].copy_from_slice(&d);
                b[2..34].copy_from_slice(&self.q[..32]);
            }
            Format::Q4_0 => {
                b[..2].copy_from_slice(&d);
                for i in 0..16 {
                    b[2 + i] = self.q[i] | self.q[i + 16] << 4;
                }
            }
            Format::Q4K => {
                b[..2].copy_from_slice(&d);
                b[2..4].copy_from_slice(&self.dmin.to_le_bytes());
                for j in 0..4 {
                    b[4 + j] = self.scales[j] | (self.scales[j + 4] >> 4) << 6;
                    b[8 + j] = self.mins[j] | (self.mins[j + 4] >> 4) << 6;
                    b[12 + j] = self.scales[j + 4] & 15 | (self.mins[j + 4] & 15) << 4;
                }
                for i in 0..128 {
                    let (p, i) = (i / 32, i % 32);
                    b[16 + 32 * p + i] = self.q[64 * p + i] | self.q[64 * p + 32 + i] << 4;
                }
            }
            Format::Q6K => {
                for (i, q) in self.q.iter().enumerate() {
                    let (n, l) = (i / 128, i % 128);
                    b[64 * n + l % 64] |= (q & 15) << (l / 64 * 4);
                    b[128 + 32 * n + l % 32] |= (q >> 4) << (l / 32 * 2);
                }
                b[192..208].copy_from_slice(&self.scales);
                b[208..210].copy_from_slice(&d);
            }
            _ => unreachable!("not a format of integer codes"),
        }
    }

    /// Reads lane `lane` of a block of a panel.
    pub(crate) fn from_panel(format: Format, head: &[u8], body: &[u8], lane: usize) -> Self {
        let mut c = Self::ZERO;
        let half = |at: usize| u16::from_le_bytes([head[2 * at], head[2 * at + 1]]);
        c.d = half(lane);
        match format {
            Format::Q8_0 => {
                for (v, q) in c.q[..32].as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    q.copy_from_slice(&body[32 * v + 4 * lane..][..4]);
                }
            }
            Format::Q4_0 => {
                for v in 0..4 {
                    for (i, b) in body[32 * v + 4 * lane..][..4].iter().enumerate() {
                        c.q[4 * v + i] = b & 15;
                        c.q[16 + 4 * v + i] = b >> 4;
                    }
                }
            }
            Format::Q4K => {
                c.dmin = half(LANES + lane);
                for v in 0..32 {
                    let at = 64 * (v / 8) + 4 * (v % 8);
                    for (i, b) in body[32 * v + 4 * lane..][..4].iter().enumerate() {
                        c.q[at + i] = b & 15;
                        c.q[at + 32 + i] = b >> 4;
                    }
                }
                for j in 0..8 {
                    let at = 1024 + 16 * (j / 2) + 2 * lane + j % 2;
                    c.scales[j] = body[at];
                    c.mins[j] = body[at + 64];
                }
            }
            Format::Q6K => {
                for g in 0..16 {
                    let vectors = &body[96 * g..][..96];
                    for i in 0..4 {
                        let at = 4 * lane + i;
                        let (a, b, high) = (vectors[at], vectors[32 + at], vectors[64 + at]);
                        c.q[16 * g + i] = a & 15 | (high & 3) << 4;
                        c.q[16 * g + 4 + i] = a >> 4 | (high >> 2 & 3) << 4;
                        c.q[16 * g + 8 + i] = b & 15 | (high >> 4 & 3) << 4;
                        c.q[16 * g + 12 + i] = b >> 4 | (high >> 6) << 4;
                    }
                }
                for j in 0..16 {
                    c.scales[j] = body[1536 + 16 * (j / 2) + 2 * lane + j % 2];
                }
            }
            _ => unreachable!("not a format of integer codes"),
        }
        c
    }

    /// Writes lane `lane` of a block of a panel; the panel starts zeroed.
    pub(crate) fn to_panel(&self, format: Format, head: &mut [u8], body: &mut [u8], lane: usize) {
        let mut half = |at: usize, bits: u16| {
            head[2 * at..2 * at + 2].copy_from_slice(&bits.to_le_bytes());
        };
        half(lane, self.d);
        match format {
            Format::Q8_0 => {
                for (v, q) in self.q[..32].as_chunks::<4>().0.iter().enumerate() {
                    body[32 * v + 4 * lane..][..4].copy_from_slice(q);
                }
            }
            Format::Q4_0 => {
                for i in 0..16 {
                    body[32 * (i / 4) + 4 * lane + i % 4] = self.q[i] | self.q[i + 16] << 4;
                }
            }
            Format::Q4K => {
                half(LANES + lane, self.dmin);
                for v in 0..32 {
                    let at = 64 * (v / 8) + 4 * (v % 8);
                    for i in 0..4 {
                        body[32 * v + 4 * lane + i] = self.q[at + i] | self.q[at + 32 + i] << 4;
                    }
                }
                for j in 0..8 {
                    let at = 1024 + 16 * (j / 2) + 2 * lane + j % 2;
                    body[at] = self.scales[j];
                    body[at + 64] = self.mins[j];
                }
            }
            Format::Q6K => {
                for g in 0..16 {
                    let vectors = &mut body[96 * g..][..96];
                    for i in 0..4 {
                        let at = 4 * lane + i;
                        let q = |n: usize| self.q[16 * g + 4 * n + i];
                        vectors[at] = q(0) & 15 | q(1) << 4;
                        vectors[32 + at] = q(2) & 15 | q(3) << 4;
                        vectors[64 + at] =
                            q(0) >> 4 | q(1) >> 4 << 2 | q(2) >> 4 << 4 | q(3) >> 4 << 6;
                    }
                }
                for j in 0..16 {
                    body[1536 + 16 * (j / 2) + 2 * lane + j % 2] = self.scales[j];
                }
            }
            _ => unreachable!("not a format of integer codes"),
        }
    }

    /// The weights: f32 operations in the order of the reference, so that
    /// everyone reads the same bits from a file.
    pub(crate) fn dequantise(&self, format: Format, out: &mut [f32]) {
        let d = f16::from_bits(self.d).to_f32();
        match format {
            Format::Q8_0 => {
                for (out, q) in out.iter_mut().zip(&self.q) {
                    *out = d * f32::from(q.cast_signed());
                }
            }
            Format::Q4_0 => {
                for (out, q) in out.iter_mut().zip(&self.q) {
                    *out = d * (f32::from(*q) - 8.0);
                }
            }
            Format::Q4K => {
                let dmin = f16::from_bits(self.dmin).to_f32();
                let blocks = out.chunks_exact_mut(32).zip(self.q.as_chunks::<32>().0);
                for ((out, q), (scale, min)) in blocks.zip(self.scales.iter().zip(&self.mins)) {
                    let (scale, min) = (d * f32::from(*scale), dmin * f32::from(*min));
                    for (out, q) in out.iter_mut().zip(q) {
                        *out = scale * f32::from(*q) - min;
                    }
                }
            }
            Format::Q6K => {
                let blocks = out.chunks_exact_mut(16).zip(self.q.as_chunks::<16>().0);
                for ((out, q), scale) in blocks.zip(&self.scales) {
                    let scale = d * f32::from(scale.cast_signed());
                    for (out, q) in out.iter_mut().zip(q) {
                        *out = scale * (f32::from(*q) - 32.0);
                    }
                }
            }
            _ => unreachable!("not a format of integer codes"),
        }
    }

    /// Whether all weights of the block are finite.
    pub(crate) fn is_finite(&self) -> bool {
        f16::from_bits(self.d).is_finite() && f16::from_bits(self.dmin).is_finite()
    }
}

/// Bytes of the head and the body of a block of a panel.
pub(crate) const fn panel_block(format: Format) -> (usize, usize) {
    match format {
        Format::Q8_0 => (16, 256),
        Format::Q4_0 => (16, 128),
        Format::Q4K => (32, 1152),
        Format::Q6K => (16, 1664),
        _ => panic!("not a format of integer codes"),
    }
}
