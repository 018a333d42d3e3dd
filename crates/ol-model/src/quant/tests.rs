//! Goal: files are read and written bit for bit as others do, and every product
//! is the one chain that the kernels promise.
//! Method: golden bytes from gguf and bitsandbytes (`fixtures/quant/make.py`);
//! products against a plain loop over the stored bytes, on every instruction
//! set, several thread counts and all batch sizes.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "test data"
)]

use half::f16;
use proptest::prelude::*;
use safetensors::SafeTensors;

use super::codes::Codes;
use super::*;
use crate::isa::Isa;
use crate::kernels::{Mat, MatMut, Panels, matmul};
use crate::pool::Pool;
use crate::random::Random;

const INTEGER: [Format; 4] = [Format::Q8_0, Format::Q4_0, Format::Q4K, Format::Q6K];

struct Golden(Vec<u8>);

impl Golden {
    fn open() -> Self {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/fixtures/quant/formats.safetensors"
        );
        Self(std::fs::read(path).unwrap())
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        tensors.tensor(name).unwrap().data().to_vec()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let bytes = self.bytes(name);
        bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect()
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

fn values(matrix: &QuantMatrix) -> Vec<f32> {
    let mut all = vec![0.0; matrix.rows() * matrix.cols()];
    for (i, row) in all.chunks_exact_mut(matrix.cols()).enumerate() {
        matrix.dequantise_row(i, row);
    }
    all
}

fn stored(matrix: &QuantMatrix) -> Vec<u8> {
    let mut all = Vec::new();
    for row in 0..matrix.rows() {
        matrix.stored_row(row, &mut all);
    }
    all
}

fn normal(random: &mut Random, n: usize, deviation: f32) -> Vec<f32> {
    (0..n).map(|_| deviation * random.normal()).collect()
}

#[test]
fn files_are_read_and_written_as_gguf_does() {
    let golden = Golden::open();
    let weights = golden.floats("weights");
    let pool = Pool::new(2);
    for format in [
        Format::Bf16,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4K,
        Format::Q6K,
    ] {
        let name = format.name();
        let bytes = golden.bytes(&format!("{name}.stored"));
        let want = golden.floats(&format!("{name}.values"));
        let matrix = QuantMatrix::from_stored(&pool, format, 3, 512, &bytes).unwrap();
        assert_eq!(bits(&values(&matrix)), bits(&want), "{name}: values");
        assert_eq!(stored(&matrix), bytes, "{name}: bytes");
        let row_size = bytes.len() / 3;
        let mut row = vec![0.0; 512];
        for i in 0..3 {
            dequantise(format, &bytes[i * row_size..(i + 1) * row_size], &mut row).unwrap();
            assert_eq!(bits(&row), bits(&want[512 * i..512 * (i + 1)]), "{name}");
        }
        if !matches!(format, Format::Q4K | Format::Q6K) {
            let ours = QuantMatrix::quantise(&pool, format, 3, 512, &weights).unwrap();
            assert_eq!(stored(&ours), bytes, "{name}: quantised");
            let mut again = Vec::new();
            quantise(format, &weights, &mut again);
            assert_eq!(again, bytes, "{name}: quantised by rows");
        }
    }
}

#[test]
fn nf4_is_that_of_bitsandbytes() {
    let golden = Golden::open();
    let weights: Vec<f32> = golden
        .bytes("nf4.weights")
        .as_chunks::<2>()
        .0
        .iter()
        .map(|b| f16::from_le_bytes(*b).to_f32())
        .collect();
    let pool = Pool::new(1);
    for (format, name) in [(Format::Nf4, "nf4"), (Format::Nf4Double, "nf4_double")] {
        let matrix = QuantMatrix::quantise(&pool, format, 33, 512, &weights).unwrap();
        let mut bytes = Vec::new();
        let mut scales = Vec::new();
        for row in 0..33 {
            matrix.stored_row(row, &mut bytes);
            scales.extend(bytes.drain(256 * (row + 1)..));
        }
        assert_eq!(bytes, golden.bytes("nf4.codes"), "{name}: codes");
        assert_eq!(scales, golden.bytes(&format!("{name}.scales")), "{name}");
        let mut shared = Vec::new();
        matrix.stored_shared(&mut shared);
        if format == Format::Nf4Double {
            // Their mean is summed in another order.
            let want = [
                golden.floats("nf4_double.groups"),
                golden.floats("nf4_double.offset"),
            ]
            .concat();
            for (got, want) in shared.as_chunks::<4>().0.iter().zip(&want) {
                let got = f32::from_le_bytes(*got);
                assert!((got - want).abs() <= 2e-7 * want.abs(), "{got} {want}");
            }
            assert_eq!(shared.len(), 4 * want.len());
        }
        let mut row = vec![0.0; 512];
        matrix.dequantise_row(32, &mut row);
        for (got, want) in row.iter().zip(golden.floats(&format!("{name}.last_row"))) {
            assert!((got - want).abs() <= 1e-6 * want.abs(), "{got} {want}");
        }
    }
}

/// Root mean square of the rounding error over that of the weights.
fn relative_error(format: Format, weights: &[f32], cols: usize) -> f32 {
    let pool = Pool::new(2);
    let rows = weights.len() / cols;
    let matrix = QuantMatrix::quantise(&pool, format, rows, cols, weights).unwrap();
    let squares = |x: &mut dyn Iterator<Item = f32>| x.map(|v| v * v).sum::<f32>();
    let errors = squares(&mut values(&matrix).iter().zip(weights).map(|(a, b)| a - b));
    (errors / squares(&mut weights.iter().copied())).sqrt()
}

#[test]
fn rounding_errors_stay_below_what_docs_models_says() {
    let mut random = Random::new(3);
    let weights = normal(&mut random, 32 * 1024, 0.02);
    for (format, most) in [
        (Format::F16, 0.000_25),
        (Format::Bf16, 0.0020),
        (Format::Q8_0, 0.0060),
        (Format::Q6K, 0.020),
        (Format::Q4K, 0.078),
        (Format::Nf4, 0.097),
        (Format::Nf4Double, 0.098),
        (Format::Q4_0, 0.095),
    ] {
        let error = relative_error(format, &weights, 1024);
        assert!(error < most, "{}: {error}", format.name());
        assert!(error > 0.7 * most, "{}: {error}, say so", format.name());
    }
}

#[test]
fn odd_weights_are_quantised() {
    let pool = Pool::new(1);
    let cases: [Vec<f32>; 5] = [
        vec![0.0; 256],
        vec![-0.125; 256],
        vec![3.0; 256],
        (0..256).map(|i| if i == 77 { 1.0 } else { 0.0 }).collect(),
        (0..256).map(|i| 1e-3 * i as f32).collect(),
    ];
    for x in &cases {
        for format in Format::ALL {
            let matrix = QuantMatrix::quantise(&pool, format, 1, 256, x).unwrap();
            let peak = x.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            for (got, want) in values(&matrix).iter().zip(x) {
                assert!(
                    (got - want).abs() <= 0.14 * peak,
                    "{}: {got} {want}",
                    format.name()
                );
            }
        }
    }
}

/// `y = x W^T` as the kernels promise it, from the stored bytes alone.
fn plain_product(format: Format, bytes: &[u8], rows: usize, cols: usize, x: &[f32]) -> Vec<f32> {
    let block = format.block();
    let row_size = bytes.len() / rows;
    let sub = if format == Format::Q6K { 16 } else { 32 };
    let mut y = Vec::new();
    for x in x.chunks_exact(cols) {
        for row in bytes.chunks_exact(row_size) {
            let mut sum = 0.0_f32;
            let blocks = row.chunks_exact(format.block_size_bytes());
            for (stored, x) in blocks.zip(x.chunks_exact(block)) {
                let peak = x.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
                let d = peak / 127.0;
                let q: Vec<i64> = x
                    .iter()
                    .map(|v| {
                        if peak < 1e-30 {
                            0
                        } else {
                            (v * (127.0 / peak)).round_ties_even() as i64
                        }
                    })
                    .collect();
                let d = if peak < 1e-30 { 0.0 } else { d };
                let c = Codes::from_stored(format, stored);
                let (mut a, mut m) = (0_i64, 0_i64);
                for (j, q) in q.chunks_exact(sub).enumerate() {
                    for (i, x) in q.iter().enumerate() {
                        let code = c.q[j * sub + i];
                        let w = match format {
                            Format::Q8_0 => i64::from(code.cast_signed()),
                            Format::Q4_0 => i64::from(code) - 8,
                            Format::Q4K => i64::from(code) * i64::from(c.scales[j]),
                            _ => (i64::from(code) - 32) * i64::from(c.scales[j].cast_signed()),
                        };
                        a += w * x;
                        if format == Format::Q4K {
                            m += i64::from(c.mins[j]) * x;
                        }
                    }
                }
                let half = |bits| f16::from_bits(bits).to_f32();
                sum = (a as f32).mul_add(half(c.d) * d, sum);
                if format == Format::Q4K {
                    sum = (-(m as f32)).mul_add(half(c.dmin) * d, sum);
                }
            }
            y.push(sum);
        }
    }
    y
}

/// Stored bytes of any codes, with reasonable scales.
fn random_bytes(random: &mut Random, format: Format, rows: usize, cols: usize) -> Vec<u8> {
    let size = format.block_size_bytes();
    let mut bytes: Vec<u8> = (0..format.size_bytes(rows, cols).unwrap())
        .map(|_| random.next_u64() as u8)
        .collect();
    for block in bytes.chunks_exact_mut(size) {
        let scale = |random: &mut Random| f16::from_f32(0.01 * random.normal()).to_le_bytes();
        match format {
            Format::Q6K => block[208..].copy_from_slice(&scale(random)),
            Format::Q4K => {
                block[..2].copy_from_slice(&scale(random));
                block[2..4].copy_from_slice(&scale(random));
            }
            _ => block[..2].copy_from_slice(&scale(random)),
        }
    }
    bytes
}

#[test]
fn integer_products_are_the_plain_chain_everywhere() {
    let mut random = Random::new(5);
    for format in INTEGER {
        let block = format.block();
        for (rows, blocks, n) in [
            (1, 1, 1),
            (8, 2, 3),
            (13, 3, 5),
            (33, 1, 17),
            (70, 2, 70),
            (9, 5, 130),
        ] {
            let cols = blocks * block;
            let bytes = random_bytes(&mut random, format, rows, cols);
            let mut x = normal(&mut random, n * cols, 1.0);
            // A block of zeros, the largest bytes, and one large value.
            x[..block].fill(0.0);
            x[(n - 1) * cols..].fill(-1.0);
            x[n * cols - 1] = 300.0;
            let want = plain_product(format, &bytes, rows, cols, &x);
            for isa in Isa::available() {
                for threads in [1, 2, 3] {
                    let pool = Pool::with_isa(threads, isa);
                    let matrix =
                        QuantMatrix::from_stored(&pool, format, rows, cols, &bytes).unwrap();
                    let mut y = vec![f32::NAN; n * rows];
                    matrix.product(&pool, &x, &mut y);
                    assert!(
                        bits(&y) == bits(&want),
                        "{} {rows}x{cols} by {n}, {} on {threads}",
                        format.name(),
                        isa.name()
                    );
                    // Row by row: no batch changes a bit.
                    let mut row = vec![f32::NAN; rows];
                    for (x, want) in x.chunks_exact(cols).zip(want.chunks_exact(rows)).take(4) {
                        matrix.product(&pool, x, &mut row);
                        assert!(bits(&row) == bits(want), "alone");
                    }
                }
            }
        }
    }
}

#[test]
fn the_largest_codes_do_not_overflow() {
    for format in INTEGER {
        let cols = 512;
        let size = format.block_size_bytes();
        for fill in [0x00, 0x7F, 0x80, 0xFF] {
            let mut bytes = vec![fill; format.size_bytes(8, cols).unwrap()];
            for block in bytes.chunks_exact_mut(size) {
                let one = f16::ONE.to_le_bytes();
                match format {
                    Format::Q6K => block[208..].copy_from_slice(&one),
                    Format::Q4K => block[..4].copy_from_slice(&[one, one].concat()),
                    _ => block[..2].copy_from_slice(&one),
                }
            }
            for sign in [1.0, -1.0] {
                let x = vec![sign; cols];
                let want = plain_product(format, &bytes, 8, cols, &x);
                for isa in Isa::available() {
                    let pool = Pool::with_isa(1, isa);
                    let matrix = QuantMatrix::from_stored(&pool, format, 8, cols, &bytes).unwrap();
                    let mut y = vec![0.0; 8];
                    matrix.product(&pool, &x, &mut y);
                    assert_eq!(bits(&y), bits(&want), "{} {fill}", format.name());
                }
            }
        }
    }
}

#[test]
fn float_and_backward_products_are_those_of_the_expanded_matrix() {
    let mut random = Random::new(9);
    for format in Format::ALL {
        for (rows, blocks, n) in [(1, 1, 1), (21, 1, 3), (16, 2, 9), (150, 3, 5), (300, 1, 66)] {
            let cols = blocks
                * if format.block() == 1 {
                    48
                } else {
                    format.block()
                };
            let weights = normal(&mut random, rows * cols, 0.1);
            let x = normal(&mut random, n * cols, 1.0);
            let dy = normal(&mut random, n * rows, 1.0);
            for isa in Isa::available() {
                for threads in [1, 3] {
                    let pool = Pool::with_isa(threads, isa);
                    let matrix =
                        QuantMatrix::quantise(&pool, format, rows, cols, &weights).unwrap();
                    let dense = values(&matrix);
                    let name = format.name();

                    let (mut want, mut got) = (vec![0.0; n * rows], vec![f32::NAN; n * rows]);
                    let panels = Panels::pack(Mat::new(&dense, rows, cols).t());
                    let c = MatMut::new(&mut want, n, rows);
                    matmul(&pool, Mat::new(&x, n, cols), panels.view(), c, false);
                    matrix.product_f32(&pool, &x, &mut got);
                    assert!(bits(&got) == bits(&want), "{name} {rows}x{cols}: forward");
                    if !format.is_integer() {
                        got.fill(f32::NAN);
                        matrix.product(&pool, &x, &mut got);
                        assert!(bits(&got) == bits(&want), "{name}: product");
                        let mut row = vec![f32::NAN; rows];
                        matrix.product(&pool, &x[..cols], &mut row);
                        assert!(bits(&row) == bits(&want[..rows]), "{name}: alone");
                    }

                    let panels = Panels::pack(Mat::new(&dense, rows, cols));
                    for accumulate in [false, true] {
                        let mut want = x.clone();
                        let mut got = x.clone();
                        let c = MatMut::new(&mut want, n, cols);
                        matmul(&pool, Mat::new(&dy, n, rows), panels.view(), c, accumulate);
                        matrix.product_back(&pool, &dy, &mut got, accumulate);
                        assert!(bits(&got) == bits(&want), "{name} {rows}x{cols}: backward");
                    }
                }
            }
        }
    }
}

#[test]
fn activations_that_are_not_finite_give_nan_and_nothing_else_changes() {
    let pool = Pool::new(2);
    let mut random = Random::new(2);
    for format in INTEGER {
        let cols = 512;
        let bytes = random_bytes(&mut random, format, 20, cols);
        let matrix = QuantMatrix::from_stored(&pool, format, 20, cols, &bytes).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = normal(&mut random, 2 * cols, 1.0);
            let mut want = vec![0.0; 20];
            matrix.product(&pool, &x[cols..], &mut want);
            x[17] = bad;
            let mut y = vec![0.0; 40];
            matrix.product(&pool, &x, &mut y);
            assert!(y[..20].iter().all(|v| v.is_nan()), "{}", format.name());
            assert_eq!(bits(&y[20..]), bits(&want));
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let pool = Pool::new(1);
    for format in Format::ALL {
        let cols = format.block() * 2;
        let mut w = vec![0.5; 2 * cols];
        let check = |rows, cols, w: &[f32], word: &str| {
            let error = QuantMatrix::quantise(&pool, format, rows, cols, w).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        };
        if format.block() > 1 {
            check(2, cols - 1, &w[..2 * cols - 2], "whole");
        }
        check(3, cols, &w, "weights");
        check(usize::MAX, cols, &w, "takes");
        w[cols] = f32::NAN;
        check(2, cols, &w, "row 1");
    }
    for format in [Format::F16, Format::Bf16].into_iter().chain(INTEGER) {
        let cols = format.block();
        let size = format.block_size_bytes();
        let error = |bytes: &[u8]| {
            QuantMatrix::from_stored(&pool, format, 2, cols, bytes)
                .unwrap_err()
                .to_string()
        };
        assert!(error(&vec![0; 2 * size - 1]).contains("bytes"));
        let mut bytes = vec![0; 2 * size];
        let at = if format == Format::Q6K {
            size + 208
        } else {
            size
        };
        bytes[at..at + 2].copy_from_slice(&[0, 0xFF]);
        if format == Format::Bf16 {
            bytes[at..at + 2].copy_from_slice(&[0x80, 0x7F]);
        }
        assert!(error(&bytes).contains("row 1"), "{}", format.name());
        assert!(dequantise(format, &bytes[size..], &mut vec![0.0; cols]).is_err());
        assert!(dequantise(format, &bytes[1..size], &mut vec![0.0; cols]).is_err());
    }
}

proptest! {
    #[test]
    fn any_stored_block_survives_the_panels(seed: u64, rows in 1..20_usize, blocks in 1..4_usize) {
        let pool = Pool::new(1);
        let mut random = Random::new(seed);
        for format in INTEGER {
            let cols = blocks * format.block();
            let bytes = random_bytes(&mut random, format, rows, cols);
            let matrix = QuantMatrix::from_stored(&pool, format, rows, cols, &bytes).unwrap();
            prop_assert_eq!(stored(&matrix), bytes);
            // One row of the identity picks one row of the matrix.
            let all = values(&matrix);
            for isa in Isa::available() {
                let pool = Pool::with_isa(1, isa);
                for (row, want) in all.chunks_exact(cols).enumerate() {
                    let mut dy = vec![0.0; rows];
                    dy[row] = 1.0;
                    let mut dx = vec![f32::NAN; cols];
                    matrix.product_back(&pool, &dy, &mut dx, false);
                    prop_assert_eq!(&dx, want);
                }
            }
        }
    }

    #[test]
    fn batches_of_any_size_give_the_same_rows(
        seed: u64,
        rows in 1..40_usize,
        n in 1..12_usize,
        threads in 1..4_usize,
    ) {
        let mut random = Random::new(seed);
        for format in Format::ALL {
            let cols = format.block().max(32) * 2;
            let weights = normal(&mut random, rows * cols, 0.1);
            let x = normal(&mut random, n * cols, 1.0);
            let scalar = Pool::with_isa(1, Isa::SCALAR);
            let pool = Pool::new(threads);
            let matrix = QuantMatrix::quantise(&pool, format, rows, cols, &weights).unwrap();
            let mut y = vec![0.0; n * rows];
            matrix.product(&pool, &x, &mut y);
            let mut row = vec![0.0; rows];
            for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact(rows)) {
                matrix.product(&scalar, x, &mut row);
                prop_assert_eq!(bits(&row), bits(y));
            }
        }
    }
}
