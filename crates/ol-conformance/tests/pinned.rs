//! Goal: our execution and our node follow Ethereum's rules.
//! Method: the pinned part of Ethereum's public tests, which has files of
//! every folder. `cargo xtask test --full DIR` runs all of them.

use ol_conformance::{run_all, subset};

#[test]
fn the_pinned_tests_of_ethereum_pass() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/ethereum-tests/subset.jsonl.xz"
    );
    let files = subset::read(&std::fs::read(path).unwrap()).unwrap();
    let read = |file: &subset::PinnedFile| Ok(file.content.clone());
    let report = run_all(&files, read, |_| {});
    let total = report.total();
    assert!(total.n_passed > 10_000, "{report}");
    assert_eq!(total.n_failed, 0, "{report}");
}
