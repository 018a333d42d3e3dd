//! Goal: the records that the project ships are a datanet each, as their README
//! says: none is rejected, and everything verifies.

#![expect(clippy::unwrap_used, reason = "a test outside of `cfg(test)`")]

mod demo;

use ol_datanet::{DuplicateRules, NEAR_DUPLICATES_PERCENT, cluster_owners};

#[track_caller]
fn check(name: &'static str, n_records: u64, n_contributors: u64, n_clusters: u64) {
    let committed = demo::commit(name, DuplicateRules::EXACT);
    let added = &committed.added;
    assert_eq!(added.rejected, []);
    assert_eq!((added.accepted, added.repeated), (n_records, 0));
    let version = added.new_version.as_ref().unwrap();
    let verified = committed.datanets.verify(name).unwrap();
    assert_eq!(version.n_contributors, n_contributors);
    assert_eq!(version.n_clusters, n_clusters);
    assert_eq!(
        (verified.n_records, verified.root),
        (n_records, version.root)
    );
}

/// What the rules for duplicates would leave out of the honest records: those
/// of another contributor than the owner, and the owner's own.
#[track_caller]
fn check_left_out(name: &'static str, expected: [(DuplicateRules, [usize; 2]); 4]) {
    let found = expected.map(|(rules, _)| {
        let records = demo::commit(name, rules).records();
        let owners = cluster_owners(&records);
        let mut left_out = [0; 2];
        for record in &records {
            let owner = owners[record.cluster as usize];
            if owner.record_hash != record.record_hash {
                let is_own = owner.record.contributor == record.record.contributor;
                left_out[usize::from(is_own)] += 1;
            }
        }
        (rules, left_out)
    });
    assert_eq!(found, expected, "{name}");
}

#[test]
fn rules_for_duplicates_leave_out_what_the_documentation_says() {
    // `docs/attribution.md`, "Near duplicates" and "Recombined records".
    let exact = DuplicateRules::EXACT;
    let near = exact.and_near(NEAR_DUPLICATES_PERCENT);
    let kinds = [exact, exact.and_recombined(), near, near.and_recombined()];
    let with = |left_out: [[usize; 2]; 4]| std::array::from_fn(|at| (kinds[at], left_out[at]));
    check_left_out("defi-exploits", with([[0, 0], [0, 0], [30, 20], [31, 21]]));
    check_left_out("healthcare", with([[0, 0], [0, 0], [0, 21], [0, 22]]));
    check_left_out("legal", with([[12, 0], [25, 0], [60, 31], [73, 31]]));
}

/// Of copies of all records in which so many per cent of the words are others,
/// how many near duplicates find.
#[track_caller]
fn check_copies_found(name: &'static str, expected: [(u64, usize); 4]) {
    let rules = DuplicateRules::EXACT.and_near(NEAR_DUPLICATES_PERCENT);
    let found = expected.map(|(percent, _)| {
        let committed = demo::commit(name, rules);
        (percent, committed.add_copies(&committed.copies(percent)))
    });
    assert_eq!(found, expected, "{name}");
}

#[test]
fn near_duplicates_find_what_the_documentation_says() {
    // `docs/attribution.md`, "Near duplicates".
    check_copies_found("defi-exploits", [(5, 814), (15, 804), (25, 766), (40, 535)]);
    check_copies_found("healthcare", [(5, 600), (15, 600), (25, 599), (40, 439)]);
    check_copies_found("legal", [(5, 465), (15, 464), (25, 465), (40, 450)]);
}

#[test]
fn healthcare() {
    check("healthcare", 600, 7, 600);
}

#[test]
fn legal() {
    check("legal", 466, 97, 454);
}

#[test]
fn defi_exploits() {
    check("defi-exploits", 814, 103, 814);
}
