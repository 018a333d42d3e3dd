//! The dense product by itself, so that a benchmark can say what share of its
//! own peak the engine reaches.

use crate::kernels::{Mat, MatMut, Panels, matmul};
use crate::pool::Pool;
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
