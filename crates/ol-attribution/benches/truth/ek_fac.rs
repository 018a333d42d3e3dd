//! Curvature in Kronecker eigenbases: EK-FAC whole, and what is left of it
//! when whitened gradients are reduced.

use std::convert::Infallible;

use ol_attribution::kronecker::Kronecker;
use ol_attribution::reduce::{BlockShape, Reducer};

use crate::bank::{Bank, Gradients};
use crate::domain::Domain;
use crate::space::{Curvature, Space};
use crate::stats::count;
use crate::truth::Loss;

/// Damping over the mean eigenvalue of each factor.
pub(crate) const DAMPINGS: [f64; 4] = [1e-3, 1e-2, 1e-1, 1.0];

/// Damping of what is whitened before it is reduced.
const WHITENING: f64 = 1e-1;

/// Seed of the reductions.
const SEED: u64 = 1;

/// Everything in the eigenbases of one checkpoint.
#[derive(Debug)]
pub(crate) struct Rotated<'a> {
    blocks: &'a [BlockShape],
    curvature: Kronecker,
    records: Gradients,
    queries: [Gradients; Loss::ALL.len()],
}

impl<'a> Rotated<'a> {
    pub(crate) fn new(
        domain: &Domain,
        bank: &Bank,
        blocks: &'a [BlockShape],
    ) -> anyhow::Result<Self> {
        let mut samples = |visit: &mut dyn FnMut(&[f32])| {
            bank.fisher.rows().for_each(visit);
            Ok::<(), Infallible>(())
        };
        let curvature = Kronecker::fit(blocks, &mut samples, 1 << 30, &mut |_| {})?;
        let rotate = |rows: &Gradients| rows.map(rows.dim, |row| curvature.rotate(row));
        Ok(Self {
            blocks,
            records: rotate(&bank.records(domain)),
            queries: Loss::ALL.map(|loss| rotate(&bank.queries(domain, loss))),
            curvature,
        })
    }

    /// Numbers of a gradient.
    pub(crate) const fn dim(&self) -> usize {
        self.curvature.dim()
    }

    /// One space for each of [`DAMPINGS`].
    pub(crate) fn spaces(&self) -> Vec<Space> {
        let space = |damping| Space::of(&self.records, &self.queries, Some(&self.weights(damping)));
        DAMPINGS.map(space).into()
    }

    /// Whitened by EK-FAC, then the wide side of each factor projected to
    /// `side` numbers.
    pub(crate) fn reduced(&self, side: usize) -> (usize, Space) {
        let reducer = Reducer::new(self.blocks, side, SEED);
        let weights = self.weights(WHITENING);
        let reduce = |rows: &Gradients| whiten(rows, &weights, &reducer);
        let space = Space::of(
            &reduce(&self.records),
            &self.queries.each_ref().map(reduce),
            None,
        );
        (reducer.output_len(), space)
    }

    /// Whitened by a Kronecker product alone, which a reduction can hold in
    /// itself, then reduced, then the sampled Fisher matrix of what is left.
    pub(crate) fn refitted(&self, bank: &Bank, side: usize) -> (usize, Space, Curvature) {
        let reducer = Reducer::new(self.blocks, side, SEED);
        let weights = self.separable_weights();
        let reduce = |rows: &Gradients| whiten(rows, &weights, &reducer);
        let records = reduce(&self.records);
        let queries = self.queries.each_ref().map(reduce);
        let fisher = bank
            .fisher
            .map(self.curvature.dim(), |row| self.curvature.rotate(row));
        let curvature = Curvature::of(&reduce(&fisher), &records, &queries);
        (
            reducer.output_len(),
            Space::of(&records, &queries, None),
            curvature,
        )
    }

    /// `1 / (eigenvalue + λ)`.
    #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
    fn weights(&self, damping: f64) -> Vec<f32> {
        let mut weights = Vec::with_capacity(self.curvature.dim());
        for range in self.curvature.factors() {
            let values = &self.curvature.eigenvalues()[range];
            let lambda = (damping * mean(values)) as f32;
            weights.extend(values.iter().map(|x| 1.0 / (x + lambda)));
        }
        weights
    }

    /// As [`Self::weights`], the eigenvalues taken to be products of the means
    /// of their rows and columns.
    #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
    fn separable_weights(&self) -> Vec<f32> {
        let mut weights = Vec::with_capacity(self.curvature.dim());
        let widths = self
            .blocks
            .iter()
            .flat_map(|block| [block.d_in, block.rank]);
        for (range, width) in self.curvature.factors().zip(widths) {
            let values = &self.curvature.eigenvalues()[range];
            let middle = mean(values).max(f64::MIN_POSITIVE);
            let rows: Vec<f64> = values.chunks_exact(width).map(mean).collect();
            let columns: Vec<f64> = (0..width)
                .map(|j| {
                    let column: Vec<f32> = values.iter().skip(j).step_by(width).copied().collect();
                    mean(&column)
                })
                .collect();
            let root = WHITENING.sqrt() * middle;
            for row in &rows {
                let weight = |column: &f64| middle / ((row + root) * (column + root));
                weights.extend(columns.iter().map(|column| weight(column) as f32));
            }
        }
        weights
    }
}

fn whiten(rows: &Gradients, weights: &[f32], reducer: &Reducer) -> Gradients {
    rows.map(reducer.output_len(), |row| {
        let pairs = row.iter().zip(weights);
        reducer.reduce(&pairs.map(|(x, w)| x * w.sqrt()).collect::<Vec<_>>())
    })
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x)).sum::<f64>() / count(values.len())
}
