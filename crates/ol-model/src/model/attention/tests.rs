use super::*;
use crate::random::Random;

const WIDTH: usize = 10;

fn draw(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..n * WIDTH).map(|_| random.normal()).collect()
}

fn rows(data: &[f32]) -> Rows<'_> {
    Rows {
        data,
        rows: data.len() / WIDTH,
        width: WIDTH,
        stride: WIDTH,
    }
}

/// Outputs, and the gradients of queries, keys and values, written plainly.
fn reference(q: &[f32], k: &[f32], v: &[f32], d_out: &[f32], window: usize) -> [Vec<f64>; 4] {
    let n = q.len() / WIDTH;
    let at = |x: &[f32], i: usize, c: usize| f64::from(x[i * WIDTH + c]);
    let mut result = [(); 4].map(|()| vec![0.0; n * WIDTH]);
    let scale = 1.0 / (WIDTH as f64).sqrt();
    for i in 0..n {
        let seen = (i + 1).saturating_sub(window)..i + 1;
        let e: Vec<f64> = seen
            .clone()
            .map(|j| (scale * (0..WIDTH).map(|c| at(q, i, c) * at(k, j, c)).sum::<f64>()).exp())
            .collect();
        let total: f64 = e.iter().sum();
        let p: Vec<f64> = e.iter().map(|e| e / total).collect();
        let d_p: Vec<f64> = seen
            .clone()
            .map(|j| (0..WIDTH).map(|c| at(d_out, i, c) * at(v, j, c)).sum())
            .collect();
        let shift: f64 = p.iter().zip(&d_p).map(|(p, d)| p * d).sum();
        for ((j, p), d_p) in seen.zip(p).zip(d_p) {
            let ds = p * (d_p - shift) * scale;
            for c in 0..WIDTH {
                result[0][i * WIDTH + c] += p * at(v, j, c);
                result[1][i * WIDTH + c] += ds * at(k, j, c);
                result[2][j * WIDTH + c] += ds * at(q, i, c);
                result[3][j * WIDTH + c] += p * at(d_out, i, c);
            }
        }
    }
    result
}

fn sight(first: usize, window: usize) -> Sight {
    Sight {
        first,
        step: 1,
        window: (window < usize::MAX).then_some(window),
    }
}

fn forward(q: &[f32], k: &[f32], v: &[f32], first: usize, window: usize, isa: Isa) -> Vec<f32> {
    let sight = sight(first, window);
    let panels = HeadPanels::new(&rows(k), &rows(v));
    let (from, to) = (sight.from(), k.len() / WIDTH);
    let mut out = vec![0.0; q.len()];
    attend(
        isa,
        &rows(q),
        panels.keys.view().columns(from..to),
        panels.values.view().rows(from..to),
        from,
        sight,
        MatMut::new(&mut out, q.len() / WIDTH, WIDTH),
    );
    out
}

fn assert_close(got: &[f32], want: &[f64], what: &str) {
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(
            (f64::from(*got) - want).abs() < 2e-5,
            "{what}, element {i}: {got}, expected {want}"
        );
    }
}

#[test]
fn outputs_and_gradients_are_those_of_the_formula() {
    for n in [1, 5, 16, 33, 61, 130] {
        for window in [1, 2, 7, 16, 17, 40, usize::MAX] {
            let (q, k, v, d_out) = (draw(n, 1), draw(n, 2), draw(n, 3), draw(n, 4));
            let want = reference(&q, &k, &v, &d_out, window);
            let out = forward(&q, &k, &v, 0, window, Isa::detect());
            assert_close(&out, &want[0], &format!("{n} tokens, window {window}"));
            let heads = [HeadGradient {
                queries: rows(&q),
                out: rows(&out),
                d_out: rows(&d_out),
            }];
            let (mut d_q, mut d_k, mut d_v) = ([Vec::new()], Vec::new(), Vec::new());
            attend_backward(
                Isa::detect(),
                &heads,
                &rows(&k),
                &rows(&v),
                sight(0, window),
                &mut d_q,
                &mut d_k,
                &mut d_v,
            );
            for (got, (want, name)) in [&d_q[0], &d_k, &d_v]
                .into_iter()
                .zip(want[1..].iter().zip(["queries", "keys", "values"]))
            {
                assert_close(got, want, &format!("{name} of {n} tokens, window {window}"));
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_block_and_on_every_instruction_set() {
    let n = 130;
    let (q, k, v) = (draw(n, 5), draw(n, 6), draw(n, 7));
    let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    for window in [1, 9, 16, 50, usize::MAX] {
        let want = bits(&forward(&q, &k, &v, 0, window, Isa::SCALAR));
        for isa in Isa::available() {
            for first in [0, 1, 15, 16, 47, 48, 70, 129] {
                for rows in [1, 2, 13, 49] {
                    let last = (first + rows).min(n);
                    let part = first * WIDTH..last * WIDTH;
                    let got = forward(
                        &q[part.clone()],
                        &k[..part.end],
                        &v[..part.end],
                        first,
                        window,
                        isa,
                    );
                    assert!(
                        bits(&got) == want[part],
                        "{first}..{last}, window {window}, {isa:?}"
                    );
                }
            }
        }
    }
}
