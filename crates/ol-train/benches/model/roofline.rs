//! What the machine can do at most, measured in the same run.

use ol_model::{Pool, roofline};

use crate::peer::Peer;
use crate::{row, timed};

const ROUNDS: usize = 7;
const GEMM: usize = 1024;

/// Rates of one number of threads.
pub(crate) struct Roofline {
    threads: usize,
    read_size_bytes: usize,
    ours: Vec<f64>,
    torch: Option<(String, Vec<f64>)>,
    read: Vec<f64>,
}

impl Roofline {
    /// Reads `read_size_bytes` at a time: as many as the model's weights have,
    /// part of which may stay in a cache.
    pub(crate) fn measure(
        pool: &Pool,
        read_size_bytes: usize,
        mut torch: Option<&mut Peer>,
    ) -> Self {
        let threads = pool.threads();
        let mut product = roofline::product(GEMM, GEMM, GEMM);
        let flops = 2.0 * crate::float(GEMM * GEMM * GEMM);
        let mut reading = roofline::reading(read_size_bytes);
        let (mut ours, mut theirs, mut read) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let gemm = timed(|| product(pool));
            let peer = torch
                .as_mut()
                .map(|t| t.ask(&format!("gemm {threads} {GEMM} {GEMM} {GEMM}")).0);
            let stream = timed(|| reading(pool));
            if round > 0 {
                ours.push(flops / gemm / 1e9);
                theirs.extend(peer.map(|s| flops / s / 1e9));
                read.push(crate::float(read_size_bytes) / stream / 1e9);
            }
        }
        Self {
            threads,
            read_size_bytes,
            ours,
            torch: torch.map(|t| (t.name.clone(), theirs)),
            read,
        }
    }

    /// Share of the best GEMM that `flops` a second are.
    pub(crate) fn of_gemm(&self, flops: f64) -> String {
        let torch = self.torch.as_ref().map_or(0.0, |(_, rates)| best(rates));
        let peak = best(&self.ours).max(torch);
        format!("{:.0} % of GEMM peak", flops / 1e9 / peak * 100.0)
    }

    /// Share of the read bandwidth that `bytes` a second are.
    pub(crate) fn of_memory(&self, bytes: f64) -> String {
        format!(
            "{:.0} % of memory bandwidth",
            bytes / 1e9 / best(&self.read) * 100.0
        )
    }

    pub(crate) fn rows(&self, wanted: &dyn Fn(&str) -> bool) -> Vec<serde_json::Value> {
        let threads = match self.threads {
            1 => "one thread".to_owned(),
            n => format!("{n} threads"),
        };
        let work = format!("product {GEMM}x{GEMM}x{GEMM}, {threads}");
        let mut rows = Vec::new();
        if let Some((name, rates)) = &self.torch
            && wanted(&work)
        {
            rows.push(row(
                &work,
                "GFLOP/s",
                &self.ours,
                rates,
                name,
                "the GEMM peak: the better of the two",
            ));
        }
        let work = format!("reading {} MiB, {threads}", self.read_size_bytes >> 20);
        if wanted(&work) {
            rows.push(row(
                &work,
                "GB/s",
                &self.read,
                &[],
                "",
                "the memory bandwidth",
            ));
        }
        for row in &rows {
            eprintln!("{row}");
        }
        rows
    }
}

/// A peak is what was reached once, however busy the machine was otherwise.
fn best(rates: &[f64]) -> f64 {
    rates.iter().copied().fold(0.0, f64::max)
}
