use super::*;
use crate::random::Random;

/// The rule itself, written as plainly as it can be.
fn chain(a: Mat<'_>, b: &[f32], n: usize, c: &mut [f32], accumulate: bool) {
    for i in 0..a.rows {
        for j in 0..n {
            let mut sum = if accumulate { c[i * n + j] } else { 0.0 };
            for k in 0..a.cols {
                sum = a.at(i, k).mul_add(b[k * n + j], sum);
            }
            c[i * n + j] = sum;
        }
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn every_instruction_set_and_thread_count_gives_the_chain() {
    let mut random = Random::new(7);
    let sizes = (1..=40).map(|m| (m, 33, 21)).chain([
        (1, 1, 1),
        (3, 16, 0),
        (5, 129, 193),
        (13, 160, 192),
        (97, 47, 400),
        (200, 70, 65),
        (12, 300, 7),
        (2, 515, 31),
    ]);
    for (m, n, k) in sizes {
        let a: Vec<f32> = (0..m * k).map(|_| random.normal()).collect();
        let b: Vec<f32> = (0..n * k).map(|_| random.normal()).collect();
        let start: Vec<f32> = (0..m * n).map(|_| random.normal()).collect();
        let panels = Panels::pack(Mat::new(&b, k, n));
        for accumulate in [false, true] {
            for transposed in [false, true] {
                let a = if transposed {
                    Mat::new(&a, k, m).t()
                } else {
                    Mat::new(&a, m, k)
                };
                let mut want = start.clone();
                chain(a, &b, n, &mut want, accumulate);
                for isa in Isa::available() {
                    for threads in 1..=3 {
                        let pool = Pool::with_isa(threads, isa);
                        let mut got = start.clone();
                        matmul(
                            &pool,
                            a,
                            panels.view(),
                            MatMut::new(&mut got, m, n),
                            accumulate,
                        );
                        assert!(
                            bits(&got) == bits(&want),
                            "{m}x{n}x{k} {isa:?} {threads} threads"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn gaps_between_rows_stay_untouched() {
    let (m, n, k) = (7, 19, 5);
    let a = vec![1.0_f32; m * k];
    let b = vec![2.0_f32; k * n];
    let panels = Panels::pack(Mat::new(&b, k, n));
    let mut c = vec![-1.0_f32; m * 24];
    matmul_here(
        Isa::detect(),
        Mat::new(&a, m, k),
        panels.view(),
        Output::new(&mut c, 24).tile(0..m, 0..n),
        false,
    );
    for row in c.chunks(24) {
        assert!(row[..n].iter().all(|&v| v == 10.0) && row[n..].iter().all(|&v| v == -1.0));
    }
}

#[test]
fn panels_pack_and_unpack() {
    let (k, n) = (9, 35);
    let b: Vec<f32> = (0..k * n).map(|i| i as f32).collect();
    let mut repacked = Panels::default();
    repacked.repack(&Pool::new(2), Mat::new(&b, n, k).t());
    let panels = Panels::pack(Mat::new(&b, n, k).t());
    assert_eq!(panels.lines, repacked.lines);
    let mut written = Panels::zeros(k, n);
    for rows in [0..7, 7..20, 20..n] {
        let from = Mat::new(&b, n, k).rows(&rows);
        written.write_t(&Pool::new(2), rows.start, from);
    }
    assert_eq!(panels.lines, written.lines);
    let mut row = vec![0.0; k];
    for (column, want) in b.chunks(k).enumerate() {
        panels.read_t(column, &mut row);
        assert_eq!(row, want);
    }
    let turned = Panels::pack(Mat::new(&b, n, k));
    let mut out = Panels::default();
    panels.transpose_to(&Pool::new(2), 0..n, &mut out);
    assert_eq!(turned.lines, out.lines);
    panels.transpose_to(&Pool::new(2), 16..n, &mut out);
    let part = Mat::new(&b[16 * k..], n - 16, k);
    assert_eq!(Panels::pack(part).lines, out.lines);
}
