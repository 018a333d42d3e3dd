//! Correlations and their uncertainty.

use ol_model::Random;

/// Pearson's correlation; 0 if one side does not vary.
pub(crate) fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (x - mean_a, y - mean_b);
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    if aa * bb > 0.0 {
        ab / (aa * bb).sqrt()
    } else {
        0.0
    }
}

/// Spearman's: Pearson's of the ranks.
pub(crate) fn spearman(a: &[f64], b: &[f64]) -> f64 {
    pearson(&ranks(a), &ranks(b))
}

/// Ranks from 0, equal values sharing their mean.
pub(crate) fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let value = values[order[start]];
        let equal = order[start..].iter().take_while(|&&i| values[i] == value);
        let end = start + equal.count().max(1);
        for &i in &order[start..end] {
            ranks[i] = (count(start) + count(end - 1)) / 2.0;
        }
        start = end;
    }
    ranks
}

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / count(values.len().max(1))
}

/// A number of things as a factor.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub(crate) const fn count(n: usize) -> f64 {
    n as f64
}

/// `n` positions below `n`, drawn with replacement.
pub(crate) fn resample(n: usize, random: &mut Random) -> Vec<usize> {
    (0..n).map(|_| random.below(n)).collect()
}

/// The 2.5 % and 97.5 % quantiles.
pub(crate) fn interval(mut draws: Vec<f64>) -> (f64, f64) {
    draws.sort_by(f64::total_cmp);
    let last = draws.len() - 1;
    (draws[last * 25 / 1000], draws[last - last * 25 / 1000])
}
