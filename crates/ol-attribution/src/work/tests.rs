//! Goal: what an earlier run finished is taken, and nothing else.
//! Method: files written, read back in pieces, cut, changed, and of other jobs.

use super::*;

const KEY: B256 = B256::repeat_byte(7);

fn rows(n: usize, from: usize) -> Vec<Vec<f32>> {
    let row = |i: usize| (0..5).map(|j| (10 * (from + i) + j) as f32).collect();
    (0..n).map(row).collect()
}

#[test]
fn rows_are_read_back_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = RowFiles::new(dir.path(), "a", KEY, 5).unwrap();
    files.append(&rows(3, 0)).unwrap();
    files.append(&rows(2, 3)).unwrap();
    let mut resumed = RowFiles::new(dir.path(), "a", KEY, 5).unwrap();
    assert!(resumed.resume(3).unwrap());
    assert!(resumed.resume(2).unwrap());
    assert!(!resumed.resume(1).unwrap());
    for files in [&mut files, &mut resumed] {
        assert_eq!((files.n_rows(), files.n_columns()), (5, 5));
        for row in [4, 0, 3, 2, 1] {
            let mut part = [0.0; 2];
            files.read(row, 3, &mut part).unwrap();
            assert_eq!(part, [10.0 * row as f32 + 3.0, 10.0 * row as f32 + 4.0]);
        }
    }
}

#[test]
fn what_is_not_whole_or_of_another_job_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let resume = |name, key, n_columns, n_rows| {
        let mut files = RowFiles::new(dir.path(), name, key, n_columns).unwrap();
        files.resume(n_rows).unwrap()
    };
    RowFiles::new(dir.path(), "a", KEY, 5)
        .unwrap()
        .append(&rows(3, 0))
        .unwrap();
    assert!(resume("a", KEY, 5, 3));
    assert!(!resume("b", KEY, 5, 3));
    assert!(!resume("a", B256::ZERO, 5, 3));
    assert!(!resume("a", KEY, 3, 5));
    assert!(!resume("a", KEY, 5, 2));
    let path = dir.path().join("a-00000000.rows");
    let good = std::fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut changed = good.clone();
        changed[at] ^= 1;
        std::fs::write(&path, changed).unwrap();
        assert!(!resume("a", KEY, 5, 3), "byte {at}");
        std::fs::write(&path, &good[..at]).unwrap();
        assert!(!resume("a", KEY, 5, 3), "cut at {at}");
    }
    std::fs::write(&path, &good).unwrap();
    assert!(resume("a", KEY, 5, 3));
}
