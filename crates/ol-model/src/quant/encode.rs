//! Choosing codes and scales for given weights.
//!
//! Q8_0 and Q4_0 are the reference's rounding, bit for bit. For Q4_K and Q6_K
//! many roundings are valid; ours tries a few scales around the obvious one for
//! each sub-block, solves for the best scale (and minimum) by least squares
//! with the codes held fixed, and keeps the pair with the smallest error.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "rounding to a clamped range is what is wanted"
)]

use half::f16;

use super::Format;
use super::codes::Codes;

/// Rounds to the nearest integer in the range.
fn round(x: f32, least: f32, most: f32) -> f32 {
    x.round_ties_even().clamp(least, most)
}

/// The largest magnitude and the signed value that has it first.
fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(
        0.0,
        |best: f32, v| if v.abs() > best.abs() { *v } else { best },
    )
}

/// Codes for one block of `format` (integer codes only).
pub(super) fn encode(format: Format, x: &[f32]) -> Codes {
    match format {
        Format::Q8_0 => q8_0(x),
        Format::Q4_0 => q4_0(x),
        Format::Q4K => q4_k(x),
        Format::Q6K => q6_k(x),
        _ => unreachable!("not a format of integer codes"),
    }
}

fn q8_0(x: &[f32]) -> Codes {
    let mut c = Codes::ZERO;
    let d = extreme(x).abs() / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    c.d = f16::from_f32(d).to_bits();
    for (q, x) in c.q.iter_mut().zip(x) {
        *q = ((x * inverse).round() as i8).cast_unsigned();
    }
    c
}

fn q4_0(x: &[f32]) -> Codes {
    let mut c = Codes::ZERO;
    let d = extreme(x) / -8.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    c.d = f16::from_f32(d).to_bits();
    for (q, x) in c.q.iter_mut().zip(x) {
        *q = ((x * inverse + 8.5) as u8).min(15);
    }
    c
}

/// `x ~ scale q - min` for codes 0 to 15: scale and minimum, neither negative.
fn fit_with_min(x: &[f32]) -> (f32, f32) {
    const TOP: f32 = 15.0;
    let n = x.len() as f32;
    let mean_square = x.iter().map(|v| v * v).sum::<f32>() / n;
    // Large weights matter more: they meet the activations' outliers as well.
    let weight = |v: f32| mean_square.sqrt() + v.abs();
    let low = x.iter().copied().fold(0.0, f32::min);
    let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if high <= low {
        return (0.0, -low);
    }
    let error = |scale: f32, min: f32| -> f32 {
        x.iter()
            .map(|&v| {
                let e = scale * round((v + min) / scale, 0.0, TOP) - min - v;
                weight(v) * e * e
            })
            .sum()
    };
    let mut best = ((high - low) / TOP, -low);
    let mut least = error(best.0, best.1);
    for step in 0..=20 {
        let inverse = (TOP - 1.0 + 0.1 * step as f32) / (high - low);
        // Sums of the weighted normal equations for these codes.
        let (mut w, mut wq, mut wqq, mut wx, mut wqx) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for &v in x {
            let (q, a) = (round(inverse * (v - low), 0.0, TOP), weight(v));
            w += a;
            wq += a * q;
            wqq += a * q * q;
            wx += a * v;
            wqx += a * q * v;
        }
        let determinant = w * wqq - wq * wq;
        if determinant <= 0.0 {
            continue;
        }
        let mut scale = (w * wqx - wx * wq) / determinant;
        let mut min = (wq * wqx - wqq * wx) / determinant;
        if min < 0.0 {
            min = 0.0;
            scale = wqx / wqq;
        }
        if scale > 0.0 && scale.is_finite() && min.is_finite() {
            let e = error(scale, min);
            if e < least {
                least = e;
                best = (scale, min);
            }
        }
    }
    best
}

fn q4_k(x: &[f32]) -> Codes {
    let mut c = Codes::ZERO;
    let mut fits = [(0.0_f32, 0.0_f32); 8];
    for (fit, x) in fits.iter_mut().zip(x.as_chunks::<32>().0) {
        *fit = fit_with_min(x);
    }
    let (most, most_min) = fits
        .iter()
        .fold((0.0_f32, 0.0_f32), |m, f| (m.0.max(f.0), m.1.max(f.1)));
    let (d, dmin) = (f16::from_f32(most / 63.0), f16::from_f32(most_min / 63.0));
    (c.d, c.dmin) = (d.to_bits(), dmin.to_bits());
    let (d, dmin) = (d.to_f32(), dmin.to_f32());
    let sixth = |v: f32, unit: f32| {
        if unit > 0.0 {
            round(v / unit, 0.0, 63.0) as u8
        } else {
            0
        }
    };
    for (j, x) in x.as_chunks::<32>().0.iter().enumerate() {
        c.scales[j] = sixth(fits[j].0, d);
        c.mins[j] = sixth(fits[j].1, dmin);
        let (scale, min) = (d * f32::from(c.scales[j]), dmin * f32::from(c.mins[j]));
        if scale > 0.0 {
            for (q, x) in c.q[32 * j..].iter_mut().zip(x) {
                *q = round((x + min) / scale, 0.0, 15.0) as u8;
            }
        }
    }
    c
}

/// `x ~ scale q` for codes -32 to 31.
fn fit_symmetric(x: &[f32]) -> f32 {
    let peak = extreme(x);
    if peak == 0.0 {
        return 0.0;
    }
    let (mut best, mut most) = (0.0_f32, f32::NEG_INFINITY);
    for step in -9..=9_i8 {
        let inverse = -(32.0 + 0.1 * f32::from(step)) / peak;
        let (mut qx, mut qq) = (0.0_f32, 0.0_f32);
        for &v in x {
            let q = round(inverse * v, -32.0, 31.0);
            // The weight v^2 of the reference.
            let w = v * v;
            qx += w * q * v;
            qq += w * q * q;
        }
        // What the best scale for these codes removes of the error.
        if qq > 0.0 && qx * qx / qq > most {
            most = qx * qx / qq;
            best = qx / qq;
        }
    }
    if best.is_finite() { best } else { 0.0 }
}

fn q6_k(x: &[f32]) -> Codes {
    let mut c = Codes::ZERO;
    let mut fits = [0.0_f32; 16];
    for (fit, x) in fits.iter_mut().zip(x.as_chunks::<16>().0) {
        *fit = fit_symmetric(x);
    }
    // The peak becomes -128, the end of the range that reaches further.
    let d = f16::from_f32(extreme(&fits) / -128.0);
    c.d = d.to_bits();
    let d = d.to_f32();
    c.q = [32; 256];
    for (j, x) in x.as_chunks::<16>().0.iter().enumerate() {
        if d == 0.0 {
            continue;
        }
        let scale = round(fits[j] / d, -128.0, 127.0);
        c.scales[j] = (scale as i8).cast_unsigned();
        let scale = d * scale;
        if scale != 0.0 {
            for (q, x) in c.q[16 * j..].iter_mut().zip(x) {
                *q = (round(x / scale, -32.0, 31.0) + 32.0) as u8;
            }
        }
    }
    c
}
