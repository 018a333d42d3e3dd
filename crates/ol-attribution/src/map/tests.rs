//! Goal: sketches are right and the same everywhere; no file can do harm.
//! Method: a floating-point oracle; a golden file from `make_map.py`; every
//! truncation and many mutations of a file.

use ol_poa::{K, QuerySketch};
use proptest::prelude::*;
use serde::Deserialize;

use super::{CONTEXT_SIZE_BYTES_MAX, DIM_MAX, MapError, RecordSketch, SketchError, SketchMap};
use crate::random::SplitMix;

#[derive(Deserialize)]
struct Golden {
    hash: String,
    gradients: Vec<Vec<u32>>,
    sketches: Vec<Vec<i8>>,
    /// Scale, then codes.
    records: Vec<Vec<i32>>,
}

const FILE: &[u8] = include_bytes!("../../../../fixtures/attribution/map.bin");
const GOLDEN: &str = include_str!("../../../../fixtures/attribution/map.json");

fn random_rows(d: usize, seed: u64) -> Vec<[f64; K]> {
    let mut generator = SplitMix::new(seed);
    let mut next = || {
        let bits = u32::try_from(generator.next() >> 40).unwrap();
        f64::from(bits) / 8_388_608.0 - 1.0
    };
    (0..d)
        .map(|row| std::array::from_fn(|_| next() * (1.0 + row as f64)))
        .collect()
}

fn of_rows(rows: &[[f64; K]]) -> SketchMap {
    let mut map = SketchMap::new(b"test".to_vec(), rows.len());
    rows.iter().for_each(|row| map.push(row));
    map
}

/// With codes of two bits, however few rows there are.
fn narrow(rows: &[[f64; K]]) -> SketchMap {
    let mut map = SketchMap::new(b"test".to_vec(), 1 << 20);
    rows.iter().for_each(|row| map.push(row));
    map
}

fn sample(d: usize, seed: u64) -> SketchMap {
    of_rows(&random_rows(d, seed))
}

#[test]
fn a_file_of_another_implementation_gives_its_sketches() {
    let golden: Golden = serde_json::from_str(GOLDEN).unwrap();
    let map = SketchMap::from_bytes(FILE).unwrap();
    assert_eq!(map.context(), b"golden");
    assert_eq!(map.to_bytes(), FILE);
    assert_eq!(map.size_bytes(), FILE.len());
    assert_eq!(map.hash().to_string(), golden.hash);
    assert!(!golden.gradients.is_empty());
    let records = golden.sketches.iter().zip(&golden.records);
    for (gradient, (codes, record)) in golden.gradients.iter().zip(records) {
        let gradient: Vec<f32> = gradient.iter().map(|&bits| f32::from_bits(bits)).collect();
        assert_eq!(map.sketch(&gradient).unwrap().codes(), codes.as_slice());
        let RecordSketch { scale, codes } = map.record(&gradient).unwrap();
        let codes = codes.map(i32::from);
        assert_eq!([&[scale.into()], &codes[..]].concat(), *record);
    }
}

#[test]
fn a_zero_gradient_has_a_zero_sketch() {
    let zero = QuerySketch::new([0; K]).unwrap();
    assert_eq!(sample(5, 1).sketch(&[0.0; 5]), Ok(zero));
    let of_zeros = of_rows(&[[0.0; K]; 3]);
    assert_eq!(of_zeros.sketch(&[1.0; 3]), Ok(zero));
}

#[test]
fn gradients_are_checked() {
    let map = sample(3, 1);
    assert_eq!(
        map.sketch(&[0.0; 4]),
        Err(SketchError::Length {
            expected: 3,
            found: 4
        })
    );
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(
            map.sketch(&[1.0, bad, 0.0]),
            Err(SketchError::NotFinite { position: 1 })
        );
    }
}

#[test]
fn the_ends_of_the_float_range_work() {
    let map = sample(300, 2);
    let direction: Vec<f32> = (0..300_u16).map(|i| f32::from(i % 7) - 3.0).collect();
    let expected = map.sketch(&direction).unwrap();
    for factor in [1e-36_f32, 1e-30, 1e30, 5e37] {
        let scaled: Vec<f32> = direction.iter().map(|x| x * factor).collect();
        let sketch = map.sketch(&scaled).unwrap();
        for (a, b) in sketch.codes().iter().zip(expected.codes()) {
            assert!((a - b).abs() <= 1, "{factor}: {a} and {b}");
        }
    }
}

#[test]
fn hostile_files_are_refused() {
    let file = sample(4, 3).to_bytes();
    assert!(SketchMap::from_bytes(&file).is_ok());
    for cut in 0..file.len() {
        assert_eq!(
            SketchMap::from_bytes(&file[..cut]),
            Err(MapError::Truncated)
        );
    }
    let longer = [file.as_slice(), &[0]].concat();
    assert_eq!(SketchMap::from_bytes(&longer), Err(MapError::Truncated));

    let with = |at: usize, bytes: &[u8]| {
        let mut file = file.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        SketchMap::from_bytes(&file)
    };
    assert_eq!(with(7, b"1"), Err(MapError::Format));
    for d in [0, DIM_MAX + 1, u32::MAX as usize] {
        let expected = MapError::TooLarge {
            d,
            context_size_bytes: 4,
        };
        let bytes = u32::try_from(d).unwrap().to_le_bytes();
        assert_eq!(with(8, &bytes), Err(expected));
    }
    let context_size_bytes = CONTEXT_SIZE_BYTES_MAX + 1;
    let bytes = u32::try_from(context_size_bytes).unwrap().to_le_bytes();
    let expected = MapError::TooLarge {
        d: 4,
        context_size_bytes,
    };
    assert_eq!(with(12, &bytes), Err(expected));
    for factor in [-1.0_f32, f32::NAN, f32::INFINITY] {
        let expected = Err(MapError::Value { row: 1 });
        assert_eq!(with(32 + 4, &factor.to_le_bytes()), expected);
    }
    assert_eq!(
        with(32 + 16 + 2 * K + 5, &[0x80]),
        Err(MapError::Value { row: 2 })
    );
    for bits in [0_u8, 1, 4, 16] {
        assert_eq!(with(16, &[bits]), Err(MapError::Format));
    }
    assert_eq!(with(16, &[2]), Err(MapError::Truncated));
    for unit in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-310] {
        assert_eq!(with(20, &unit.to_le_bytes()), Err(MapError::Unit));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn sketches_follow_the_exact_product(d in 1_usize..600, seed: u64) {
        let rows = random_rows(d, seed);
        let map = of_rows(&rows);
        let mut generator = SplitMix::new(!seed);
        let gradient: Vec<f32> = (0..d)
            .map(|_| f32::from(u16::try_from(generator.next() >> 48).unwrap()) - 32_768.0)
            .collect();
        let mut exact = [0.0_f64; K];
        for (x, row) in gradient.iter().zip(&rows) {
            for (sum, p) in exact.iter_mut().zip(row) {
                *sum += f64::from(*x) * p;
            }
        }
        let largest = exact.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
        // Rounding P to a byte moves a sum by about 127/254/√3 · √d of a code
        // before it is divided by the largest; two codes are a wide margin.
        for (code, sum) in map.sketch(&gradient).unwrap().codes().iter().zip(exact) {
            let expected = 127.0 * sum / largest;
            prop_assert!((f64::from(*code) - expected).abs() < 2.0, "{code} for {expected}");
        }
        // Two bits leave a third of each number's size as error, which the sum
        // over d of them makes a third of the sum's own size.
        let mut products = [0.0; 3];
        for (code, sum) in narrow(&rows).sketch(&gradient).unwrap().codes().iter().zip(exact) {
            let (a, b) = (f64::from(*code), sum / largest);
            products[0] += a * b;
            products[1] += a * a;
            products[2] += b * b;
        }
        let cosine = products[0] / (products[1] * products[2]).sqrt();
        prop_assert!(cosine > 0.85, "{cosine}");
    }

    #[test]
    fn files_survive(d in 1_usize..40, seed: u64) {
        let rows = random_rows(d, seed);
        for map in [of_rows(&rows), narrow(&rows)] {
            let file = map.to_bytes();
            prop_assert_eq!(file.len(), map.size_bytes());
            prop_assert_eq!(SketchMap::from_bytes(&file).unwrap(), map);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
        let _ = SketchMap::from_bytes(&bytes);
        let mut with_magic = sample(4, 1).to_bytes();
        let n = bytes.len().min(with_magic.len() - 16);
        with_magic[16..16 + n].copy_from_slice(&bytes[..n]);
        if let Ok(map) = SketchMap::from_bytes(&with_magic) {
            let _ = map.sketch(&[1.0, -1.0, 0.5, 3e38]);
        }
    }
}
