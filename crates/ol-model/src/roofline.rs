//! The dense product, and reading memory as weights are read, by themselves: a
//! benchmark can say what share of its own peak the engine reaches.

use crate::kernels::{Line, Mat, MatMut, Panels, math, matmul, memory};
use crate::pool::{Parts, Pool};
use crate::random::Random;

/// A product `m x k` by `k x n` of random matrices; each call computes it.
pub fn product(m: usize, n: usize, k: usize) -> impl FnMut(&Pool) {
    let mut random = Random::new(1);
    let a: Vec<f32> = (0..m * k).map(|_| random.normal()).collect();
    let b: Vec<f32> = (0..k * n).map(|_| random.normal()).collect();
    let b = Panels::pack(Mat::new(&b, k, n));
    let mut c = vec![0.0_f32; m * n];
    move |pool| {
        matmul(
            pool,
            Mat::new(&a, m, k),
            b.view(),
            MatMut::new(&mut c, m, n),
            false,
        );
    }
}

/// Reads `size_bytes` (whole cache lines) of memory for weights; each call reads
/// all of it and returns a sum.
pub fn reading(size_bytes: usize) -> impl FnMut(&Pool) -> f32 {
    /// A quarter of a mebibyte.
    const TASK_LINES: usize = 1 << 12;
    let lines = memory::filled(Line([1.0; 16]), size_bytes / size_of::<Line>());
    move |pool| {
        let tasks = lines.len().div_ceil(TASK_LINES);
        let mut sums = vec![0.0_f32; tasks];
        let parts = Parts::new(&mut sums);
        pool.run(tasks, &|task| {
            let lines = lines.chunks(TASK_LINES).nth(task).unwrap_or_default();
            parts.with(task..task + 1, |out| {
                out[0] = math::sum_lines(pool.isa(), lines)
            });
        });
        sums.iter().sum()
    }
}
