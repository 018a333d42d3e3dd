use proptest::prelude::*;

use super::super::Output;
use super::*;
use crate::random::Random;

/// One product of a batch: rows, width of the factor, its type.
#[derive(Debug, Clone)]
struct Piece {
    rows: usize,
    n: usize,
    dtype: Dtype,
    scale: f32,
}

fn piece() -> impl Strategy<Value = Piece> {
    let n = prop_oneof![1..=40_usize, 1..=256_usize];
    let dtypes = [Dtype::F32, Dtype::F16, Dtype::Bf16];
    (
        1..=9_usize,
        n,
        prop::sample::select(dtypes.to_vec()),
        0.1..3.0_f32,
    )
        .prop_map(|(rows, n, dtype, scale)| Piece {
            rows,
            n,
            dtype,
            scale,
        })
}

fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    dtype.encode(values, &mut bytes).unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// The chain, written as plainly as it can be, is what every instruction
    /// set computes, whatever else is in the batch.
    #[test]
    fn a_batch_of_ragged_products_gives_the_chains(
        pieces in prop::collection::vec(piece(), 1..7),
        k in 0..70_usize,
        accumulate: bool,
        seed: u64,
    ) {
        let mut random = Random::new(seed);
        let mut draw = |n: usize| -> Vec<f32> { (0..n).map(|_| random.normal()).collect() };
        let mut inputs = Vec::new();
        for p in &pieces {
            let stored = encode(p.dtype, &draw(p.n * k));
            let mut decoded = vec![0.0; p.n * k];
            p.dtype.decode(&stored, &mut decoded);
            let mut bytes = FactorBytes::zeroed(stored.len());
            // What lies behind is read and must not matter.
            bytes.bytes_mut().fill(0xFF);
            Factor::write(p.dtype, &stored, k, bytes.bytes_mut());
            let mut again = vec![0.0; p.n * k];
            Factor::new(p.dtype, bytes.bytes(), k, p.n).read(&mut again);
            prop_assert_eq!(&again, &decoded);
            inputs.push((draw(p.rows * k), decoded, bytes, draw(p.rows * (p.n + 3))));
        }
        let scale = |p: &Piece| if accumulate { 1.0 } else { p.scale };
        let want: Vec<Vec<u32>> = pieces.iter().zip(&inputs).map(|(p, (x, b, _, start))| {
            let mut out = start.clone();
            for row in 0..p.rows {
                for column in 0..p.n {
                    let out = &mut out[row * (p.n + 3) + column];
                    let mut sum = if accumulate { *out } else { 0.0 };
                    for i in 0..k {
                        sum = x[row * k + i].mul_add(b[column * k + i], sum);
                    }
                    *out = sum * scale(p);
                }
            }
            out.iter().map(|v| v.to_bits()).collect()
        }).collect();
        for isa in Isa::available() {
            let mut outs: Vec<Vec<f32>> = inputs.iter().map(|i| i.3.clone()).collect();
            {
                let mut strands = Strands::new(isa, accumulate);
                for ((p, (x, _, bytes, _)), out) in pieces.iter().zip(&inputs).zip(&mut outs) {
                    let out = Output::new(out, p.n + 3).tile(0..p.rows, 0..p.n);
                    let factor = Factor::new(p.dtype, bytes.bytes(), k, p.n);
                    strands.push(Mat::new(x, p.rows, k), factor, scale(p), out);
                }
            }
            for (out, want) in outs.iter().zip(&want) {
                let got: Vec<u32> = out.iter().map(|v| v.to_bits()).collect();
                prop_assert!(&got == want, "{:?}", isa);
            }
        }
    }
}
