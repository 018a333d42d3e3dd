//! The sparse linear model of ContextCite, in a fixed order of operations.

/// Sweeps of coordinate descent: the columns are few and nearly uncorrelated,
/// so that it has converged long before.
const SWEEPS: usize = 200;

/// Weight of the absolute values, in nats for each token of the answer; the
/// authors' value.
const ALPHA: f64 = 0.01;

/// Coefficients in milli-nats of `found[i] ≈ c + Σ_j w_j masks[i][j]`, by
/// coordinate descent (Friedman, Hastie and Tibshirani, 2010) on
/// `Σ (y - ŷ)² / 2n + α Σ |w_j| d_j`, with columns scaled to deviation 1 and `y`
/// divided by the tokens of the answer.
///
/// Every operation is one of IEEE 754 in a fixed order; so the coefficients are
/// the same on every machine.
pub(super) fn fit(masks: &[Vec<bool>], found: &[i64], n_tokens: usize) -> Vec<i64> {
    let (n, width) = (masks.len(), masks.first().map_or(0, Vec::len));
    let scale = 1_000.0 * float(n_tokens.max(1));
    #[expect(
        clippy::cast_precision_loss,
        reason = "milli-nats of an answer are far below 2⁵³"
    )]
    let y: Vec<f64> = found
        .iter()
        .map(|&millinats| millinats as f64 / scale)
        .collect();
    let mean = y.iter().sum::<f64>() / float(n.max(1));
    let mut rest: Vec<f64> = y.iter().map(|y| y - mean).collect();

    let columns: Vec<Column> = (0..width).map(|j| Column::new(masks, j)).collect();
    let mut weights = vec![0.0_f64; width];
    for _ in 0..SWEEPS {
        for (weight, column) in weights.iter_mut().zip(&columns) {
            if column.deviation == 0.0 {
                continue;
            }
            let of_rest: f64 = column.values.iter().zip(&rest).map(|(x, r)| x * r).sum();
            let wanted = of_rest / float(n) + *weight;
            let new = if wanted > ALPHA {
                wanted - ALPHA
            } else if wanted < -ALPHA {
                wanted + ALPHA
            } else {
                0.0
            };
            let change = new - *weight;
            *weight = new;
            for (r, x) in rest.iter_mut().zip(&column.values) {
                *r -= change * x;
            }
        }
    }
    let coefficient = |(weight, column): (f64, &Column)| {
        if column.deviation == 0.0 {
            0
        } else {
            // Milli-nats of the whole answer again.
            super::millinats(weight / column.deviation * float(n_tokens.max(1)))
        }
    };
    weights.into_iter().zip(&columns).map(coefficient).collect()
}

/// A column of masks, centred and scaled to deviation 1.
struct Column {
    values: Vec<f64>,
    deviation: f64,
}

impl Column {
    fn new(masks: &[Vec<bool>], j: usize) -> Self {
        let n = float(masks.len().max(1));
        let there = masks.iter().filter(|mask| mask[j]).count();
        let mean = float(there) / n;
        let deviation = (mean * (1.0 - mean)).sqrt();
        let value = |mask: &Vec<bool>| {
            let x = if mask[j] { 1.0 } else { 0.0 };
            if deviation == 0.0 {
                0.0
            } else {
                (x - mean) / deviation
            }
        };
        Self {
            values: masks.iter().map(value).collect(),
            deviation,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "tokens and passages are few")]
const fn float(n: usize) -> f64 {
    n as f64
}
