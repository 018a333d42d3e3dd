use ol_types::Address;

use super::*;
use crate::embedder::tests::folder;
use crate::passage::tests::committed;
use crate::{CutRule, Passages};

fn passages() -> Passages {
    let owner = |n: u32| u8::try_from(n % 3 + 1).unwrap();
    let record = |n: u32| {
        committed(
            &format!("Question {n}?"),
            &"bridge ".repeat(n as usize + 1),
            owner(n),
            n,
        )
    };
    let records: Vec<_> = (0..9).map(record).collect();
    assert_ne!(records[0].contributor_address, Address::ZERO);
    Passages::cut(&records, CutRule::default()).unwrap()
}

#[test]
fn a_passage_finds_itself_and_scores_are_cosines() {
    let dir = folder();
    let embedder = Embedder::load(dir.path(), 1).unwrap();
    let passages = passages();
    let dense = Dense::open(None, B256::ZERO, &passages, &embedder, &mut |_| ()).unwrap();
    for (n, passage) in passages.iter().enumerate() {
        let hits = dense.search(&embedder, passage.text, 3).unwrap();
        assert_eq!((hits[0].passage as usize, hits[0].score), (n, 1_000_000));
        assert!(hits.len() <= 3 && hits.windows(2).all(|p| p[0].score >= p[1].score));
    }
    let none = Passages::cut(&[], CutRule::default()).unwrap();
    let none = Dense::open(None, B256::ZERO, &none, &embedder, &mut |_| ()).unwrap();
    assert!(none.search(&embedder, "who?", 3).unwrap().is_empty());
}

#[test]
fn cosines_agree_with_floats() {
    let rows: Vec<Vec<f32>> = (0..20_u16)
        .map(|row| {
            (0..48_u16)
                .map(|at| f32::from((row * 31 + at * at * 7) % 97) - 48.0)
                .collect()
        })
        .collect();
    let centre = vec![0.5_f32; 48];
    let all: Vec<i8> = rows.iter().flat_map(|row| codes(row, &centre)).collect();
    let dense = Dense::new(B256::ZERO, centre, all);
    let cosine = |a: &[f32], b: &[f32]| -> f64 {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter()
                .zip(b)
                .map(|(x, y)| f64::from(x - 0.5) * f64::from(y - 0.5))
                .sum()
        };
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    for (a, row_a) in rows.iter().enumerate() {
        for (b, row_b) in rows.iter().enumerate() {
            let (x, y) = (&dense.codes[a * 48..][..48], &dense.codes[b * 48..][..48]);
            let length = (f64::from(dense.squares[a]) * f64::from(dense.squares[b])).sqrt();
            let found = f64::from(dot(x, y)) / length;
            assert!((found - cosine(row_a, row_b)).abs() < 0.01);
        }
    }
}

#[test]
fn what_is_stored_is_read_again_and_nothing_else_is() {
    let dir = folder();
    let embedder = Embedder::load(dir.path(), 1).unwrap();
    let (passages, file) = (passages(), dir.path().join("dense"));
    let version = B256::repeat_byte(7);
    let mut n_embedded = 0;
    let mut open = |version| {
        n_embedded = 0;
        let dense = Dense::open(Some(&file), version, &passages, &embedder, &mut |n| {
            n_embedded = n
        });
        (dense.unwrap(), n_embedded)
    };
    let (made, n) = open(version);
    assert_eq!(n, passages.len());
    assert_eq!(open(version), (made.clone(), 0));
    // Another version, and bytes that were changed or cut, are embedded again.
    assert_eq!(open(B256::repeat_byte(8)).1, passages.len());
    assert_eq!(open(version), (made.clone(), passages.len()));
    let bytes = fs::read(&file).unwrap();
    for at in [0, 20, 50, 60, 70, bytes.len() - 40, bytes.len() - 1] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        fs::write(&file, changed).unwrap();
        assert_eq!(open(version), (made.clone(), passages.len()), "byte {at}");
    }
    fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(open(version), (made, passages.len()));
}

#[test]
fn numbers_that_are_none_become_codes_of_zero() {
    let rows = [
        vec![f32::NAN, 1.0],
        vec![f32::INFINITY, 1.0],
        vec![0.0, 0.0],
    ];
    let centre = [0.0_f32; 2];
    let of = |row: &[f32]| codes(row, &centre).collect::<Vec<i8>>();
    assert_eq!(of(&rows[0]), [0, 127]);
    assert_eq!(of(&rows[2]), [0, 0]);
    assert_eq!(of(&rows[1]), [0, 0]);
}
