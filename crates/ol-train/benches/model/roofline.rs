//! What the machine can do at most, measured in the same run.

use std::hint::black_box;

use ol_model::{Pool, roofline};

use crate::peer::Peer;
use crate::{median, row, timed};

const ROUNDS: usize = 7;
/// Well beyond any last-level cache.
const READ_BYTES: usize = 512 << 20;
const GEMM: usize = 1024;

/// Rates of one number of threads.
pub(crate) struct Roofline {
    threads: usize,
    ours: Vec<f64>,
    torch: Option<(String, Vec<f64>)>,
    read: Vec<f64>,
}

impl Roofline {
    pub(crate) fn measure(pool: &Pool, mut torch: Option<&mut Peer>) -> Self {
        let threads = pool.threads();
        let mut product = roofline::product(GEMM, GEMM, GEMM);
        let flops = 2.0 * crate::float(GEMM * GEMM * GEMM);
        let buffer = vec![1_u64; READ_BYTES / 8];
        let (mut ours, mut theirs, mut read) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let gemm = timed(|| product(pool));
            let peer = torch
                .as_mut()
                .map(|t| t.ask(&format!("gemm {threads} {GEMM} {GEMM} {GEMM}")).0);
            let stream = timed(|| sum(pool, &buffer));
            if round > 0 {
                ours.push(flops / gemm / 1e9);
                theirs.extend(peer.map(|s| flops / s / 1e9));
                read.push(crate::float(READ_BYTES) / stream / 1e9);
            }
        }
        Self {
            threads,
            ours,
            torch: torch.map(|t| (t.name.clone(), theirs)),
            read,
        }
    }

    /// Share of the best GEMM that `flops` a second are.
    pub(crate) fn of_gemm(&self, flops: f64) -> String {
        let torch = self.torch.as_ref().map_or(0.0, |(_, rates)| median(rates));
        let peak = median(&self.ours).max(torch);
        format!("{:.0} % of GEMM peak", flops / 1e9 / peak * 100.0)
    }

    /// Share of the read bandwidth that `bytes` a second are.
    pub(crate) fn of_memory(&self, bytes: f64) -> String {
        format!(
            "{:.0} % of memory bandwidth",
            bytes / 1e9 / median(&self.read) * 100.0
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
        let work = format!("reading {} MiB, {threads}", READ_BYTES >> 20);
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

/// Reads the whole buffer.
fn sum(pool: &Pool, buffer: &[u64]) {
    let chunk = 1 << 17;
    pool.run(buffer.len() / chunk, &|i| {
        let mut sums = [0_u64; 32];
        for line in buffer[i * chunk..(i + 1) * chunk].as_chunks::<32>().0 {
            for (sum, value) in sums.iter_mut().zip(line) {
                *sum = sum.wrapping_add(*value);
            }
        }
        black_box(sums);
    });
}
