//! Element-wise functions and row reductions, compiled once per instruction
//! set from one body, so that the compiler's vector code does the same IEEE
//! operations in the same order everywhere.
#![cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "calls into functions compiled for detected instructions"
    )
)]

use std::ops::Range;

use super::Line;
use crate::isa::{Isa, Level};

/// Partial sums of a reduction.
pub(crate) const LANES: usize = 16;

macro_rules! for_each_isa {
    ($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? => $body:ident) => {
        $(#[$doc])*
        pub(crate) fn $name(isa: Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                $body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512dq,avx512bw")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                $body($($arg),*)
            }
            match isa.0 {
                Level::Scalar => $body($($arg),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` exists only for instructions this CPU has.
                Level::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Level::Avx512 => unsafe { avx512($($arg),*) },
            }
        }
    };
}

pub(crate) use for_each_isa;

/// Adds sixteen partial sums: eight pairs, then four, two, one.
#[inline(always)]
pub(crate) fn tree(mut s: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            s[i] += s[i + width];
        }
        width /= 2;
    }
    s[0]
}

/// e^x to about one unit in the last place, for x in [-87, 88]; outside, the
/// value at the nearer end. 2^n times the Taylor polynomial of degree seven
/// on |r| <= ln(2)/2, whose remainder is below 6e-9.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding it rounds to the nearest integer, which lands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let t = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = t - ROUND;
    let r = n.mul_add(-LN2_HIGH, x);
    let r = n.mul_add(-LN2_LOW, r);
    let mut p = 1.0 / 5040.0_f32;
    p = p.mul_add(r, 1.0 / 720.0);
    p = p.mul_add(r, 1.0 / 120.0);
    p = p.mul_add(r, 1.0 / 24.0);
    p = p.mul_add(r, 1.0 / 6.0);
    p = p.mul_add(r, 0.5);
    p = p.mul_add(r, 1.0);
    p = p.mul_add(r, 1.0);
    p * f32::from_bits(t.to_bits().wrapping_shl(23).wrapping_add(0x3F80_0000))
}

#[inline(always)]
fn dot_body(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; LANES];
    let (a_lines, a_rest) = a.as_chunks::<LANES>();
    let (b_lines, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_lines.iter().zip(b_lines) {
        for j in 0..LANES {
            sums[j] = a[j].mul_add(b[j], sums[j]);
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum = a.mul_add(*b, *sum);
    }
    tree(sums)
}

#[inline(always)]
fn max_body(x: &[f32]) -> f32 {
    let mut best = [f32::NEG_INFINITY; LANES];
    let (lines, rest) = x.as_chunks::<LANES>();
    for line in lines {
        for j in 0..LANES {
            best[j] = if line[j] > best[j] { line[j] } else { best[j] };
        }
    }
    for (best, &x) in best.iter_mut().zip(rest) {
        *best = if x > *best { x } else { *best };
    }
    best.into_iter()
        .fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

#[inline(always)]
fn exp_minus_body(x: &mut [f32], max: f32) -> f32 {
    exp_minus_onto(x, max, [0.0_f32; LANES])
}

#[inline(always)]
fn exp_minus_onto(x: &mut [f32], max: f32, mut sums: [f32; LANES]) -> f32 {
    let (lines, rest) = x.as_chunks_mut::<LANES>();
    for line in lines {
        for j in 0..LANES {
            line[j] = exp(line[j] - max);
            sums[j] += line[j];
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *x = exp(*x - max);
        *sum += *x;
    }
    tree(sums)
}

/// Softmax of `factor x`, whose first element belongs to partial sum `lane`.
#[inline(always)]
fn softmax_body(x: &mut [f32], lane: usize, factor: f32) {
    scale_body(x, factor);
    let top = max_body(x);
    let mut sums = [0.0_f32; LANES];
    let (head, rest) = x.split_at_mut(((LANES - lane) % LANES).min(x.len()));
    for (sum, x) in sums[lane..].iter_mut().zip(head) {
        *x = exp(*x - top);
        *sum += *x;
    }
    let sum = exp_minus_onto(rest, top, sums);
    scale_body(x, 1.0 / sum);
}

#[inline(always)]
fn scale_body(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

#[inline(always)]
fn rms_norm_body(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> f32 {
    let mean = dot_body(x, x) / x.len() as f32;
    let inverse = 1.0 / (mean + eps).sqrt();
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = w * (x * inverse);
    }
    inverse
}

/// `dx += d/dx` of the norm: with g = dy w and r the inverse root,
/// `r g - x r^3 mean(g x)`.
#[inline(always)]
fn rms_norm_backward_body(x: &[f32], weight: &[f32], inverse: f32, dy: &[f32], dx: &mut [f32]) {
    let mut sums = [0.0_f32; LANES];
    for ((x, w), dy) in x
        .chunks(LANES)
        .zip(weight.chunks(LANES))
        .zip(dy.chunks(LANES))
    {
        for (((sum, x), w), dy) in sums.iter_mut().zip(x).zip(w).zip(dy) {
            *sum = (w * dy).mul_add(*x, *sum);
        }
    }
    let mean = tree(sums) / x.len() as f32;
    let back = inverse * inverse * inverse * mean;
    for (((dx, x), w), dy) in dx.iter_mut().zip(x).zip(weight).zip(dy) {
        *dx += inverse * (w * dy) - x * back;
    }
}

#[inline(always)]
fn silu_mul_body(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, g), u) in out.iter_mut().zip(gate).zip(up) {
        *out = g / (1.0 + exp(-g)) * u;
    }
}

/// From gate, up and the gradient of `silu(gate) up` to theirs, in place.
#[inline(always)]
fn silu_mul_backward_body(gate: &mut [f32], up: &mut [f32], d_out: &[f32]) {
    for ((g, u), d) in gate.iter_mut().zip(up).zip(d_out) {
        let sigmoid = 1.0 / (1.0 + exp(-*g));
        let silu = *g * sigmoid;
        let d_gate = d * *u * (sigmoid * (1.0 + *g * (1.0 - sigmoid)));
        *u = d * silu;
        *g = d_gate;
    }
}

/// Rotates the halves of one head by the angles whose cosines and sines are
/// given; `sign` -1 rotates back.
#[inline(always)]
fn rotate_body(head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
    let (low, high) = head.split_at_mut(cos.len());
    for (((low, high), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let s = s * sign;
        let (x, y) = (*low, *high);
        *low = x * c - y * s;
        *high = y * c + x * s;
    }
}

#[inline(always)]
fn add_body(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// `out += x y factor`, the gradient of a norm's weights for one row.
#[inline(always)]
fn add_product_body(out: &mut [f32], x: &[f32], y: &[f32], factor: f32) {
    for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
        *out += x * factor * y;
    }
}

/// `d = p (d - shift) factor`, the backward pass of softmax for one row.
#[inline(always)]
fn softmax_backward_body(p: &[f32], d: &mut [f32], shift: f32, factor: f32) {
    for (d, p) in d.iter_mut().zip(p) {
        *d = p * (*d - shift) * factor;
    }
}

/// Four chains of a vector each, so that memory is what is waited for.
#[inline(always)]
fn sum_lines_body(lines: &[Line]) -> f32 {
    let mut sums = [[0.0_f32; LANES]; 4];
    for four in lines.as_chunks::<4>().0 {
        for (sums, line) in sums.iter_mut().zip(four) {
            for (sum, value) in sums.iter_mut().zip(&line.0) {
                *sum += value;
            }
        }
    }
    sums.into_iter().map(tree).sum()
}

for_each_isa!(
    /// Sum of the whole groups of four lines.
    sum_lines(lines: &[Line]) -> f32 => sum_lines_body
);
for_each_isa!(
    /// Sum of products in sixteen partial sums.
    dot(a: &[f32], b: &[f32]) -> f32 => dot_body
);
for_each_isa!(
    /// The largest element; NaN counts as smallest.
    max(x: &[f32]) -> f32 => max_body
);
for_each_isa!(
    /// `x = e^(x - max)`; returns the sum.
    exp_minus(x: &mut [f32], max: f32) -> f32 => exp_minus_body
);
for_each_isa!(
    /// Softmax of `factor x`; the first element goes to partial sum `lane`.
    softmax(x: &mut [f32], lane: usize, factor: f32) => softmax_body
);
for_each_isa!(
    /// `x *= factor`
    scale(x: &mut [f32], factor: f32) => scale_body
);
for_each_isa!(
    /// Root-mean-square norm of one row (Zhang and Sennrich, 2019); returns
    /// the inverse root.
    rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> f32 => rms_norm_body
);
for_each_isa!(
    /// Adds the norm's gradient to `dx`.
    rms_norm_backward(x: &[f32], weight: &[f32], inverse: f32, dy: &[f32], dx: &mut [f32]) => rms_norm_backward_body
);
for_each_isa!(
    /// `out = silu(gate) up`
    silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) => silu_mul_body
);
for_each_isa!(
    /// Gradients of `gate` and `up`, in place of their values.
    silu_mul_backward(gate: &mut [f32], up: &mut [f32], d_out: &[f32]) => silu_mul_backward_body
);
for_each_isa!(
    /// Rotary position embedding of one head (Su et al., 2021).
    rotate(head: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) => rotate_body
);
for_each_isa!(
    /// `x += y`
    add(x: &mut [f32], y: &[f32]) => add_body
);
for_each_isa!(
    /// `out += x factor y`
    add_product(out: &mut [f32], x: &[f32], y: &[f32], factor: f32) => add_product_body
);
for_each_isa!(
    /// `d = p (d - shift) factor`
    softmax_backward(p: &[f32], d: &mut [f32], shift: f32, factor: f32) => softmax_backward_body
);

/// Softmax of `factor x` over the elements of `range`; the others become 0.
/// Element `j` goes to partial sum `j % 16` wherever the range begins.
pub(crate) fn softmax_range(isa: Isa, x: &mut [f32], range: Range<usize>, factor: f32) {
    let (before, rest) = x.split_at_mut(range.start);
    let (seen, after) = rest.split_at_mut(range.len());
    before.fill(0.0);
    after.fill(0.0);
    softmax(isa, seen, range.start % LANES, factor);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0_f64;
        for i in -86_000..=88_000 {
            let x = i as f32 / 1000.0;
            let want = libm::exp(f64::from(x));
            worst = worst.max((f64::from(exp(x)) - want).abs() / want);
        }
        assert!(
            worst < 2.0 * f64::from(f32::EPSILON) / 2.0 * 1.5,
            "worst relative error {worst}"
        );
        assert!(exp(-1e30) > 0.0 && exp(1e30).is_finite());
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let mut random = Random::new(3);
        for n in [1_usize, 2, 15, 16, 17, 33, 192, 515] {
            let x: Vec<f32> = (0..n).map(|_| random.normal() * 3.0).collect();
            let y: Vec<f32> = (0..n).map(|_| random.normal()).collect();
            let w: Vec<f32> = (0..n).map(|_| random.normal()).collect();
            let all = |isa: Isa| {
                let mut out = vec![dot(isa, &x, &y), max(isa, &x)];
                let mut soft = x.clone();
                softmax_range(isa, &mut soft, n / 5..n.div_ceil(2), 0.3);
                let mut normed = vec![0.0; n];
                let inverse = rms_norm(isa, &x, &w, 1e-5, &mut normed);
                let mut back = y.clone();
                rms_norm_backward(isa, &x, &w, inverse, &y, &mut back);
                let mut act = vec![0.0; n];
                silu_mul(isa, &x, &y, &mut act);
                let (mut gate, mut up) = (x.clone(), y.clone());
                silu_mul_backward(isa, &mut gate, &mut up, &w);
                let mut head = x.clone();
                rotate(isa, &mut head, &y[..n / 2], &w[..n / 2], -1.0);
                let mut d = y.clone();
                softmax_backward(isa, &soft, &mut d, 0.1, 0.7);
                let mut sum = x.clone();
                add(isa, &mut sum, &y);
                add_product(isa, &mut sum, &x, &y, 0.4);
                for v in [soft, normed, back, act, gate, up, head, d, sum] {
                    out.extend(v);
                }
                out.push(inverse);
                out.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
            };
            let want = all(Isa::SCALAR);
            for isa in Isa::available() {
                assert!(all(isa) == want, "{isa:?} at {n}");
            }
        }
    }
}
