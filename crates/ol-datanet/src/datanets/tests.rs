//! Goal: a datanet only grows, everything in it can be recomputed, and what is
//! wrong is named.
//! Method: small datanets in memory; objects forged or removed behind the
//! store's back; storage that fails at each write in turn.

use std::cell::Cell;
use std::io::{BufReader, Read};

use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt as _};
use ol_runtime::fault::{FaultMoment, FaultyHeads, FaultyStore, WriteFaults};
use ol_runtime::{MemoryHeads, object_path};
use proptest::prelude::*;

use super::*;
use crate::limits::SHARD_RECORDS_MAX;
use crate::record::tests::{address_of, record};
use crate::shard::encode_shard;
use crate::{Damage, DamageKind, ObjectRole, Record};

const NAME: &str = "test-net";

/// A datanet store that tests can reach into.
struct Fixture {
    store: Arc<dyn ObjectStore>,
    heads: Arc<dyn Heads>,
    datanets: Datanets,
}

impl Fixture {
    fn new() -> Self {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let heads: Arc<dyn Heads> = Arc::new(MemoryHeads::default());
        let datanets = Datanets::open(Objects::new(Arc::clone(&store)), Arc::clone(&heads));
        datanets.create(NAME).unwrap();
        Self {
            store,
            heads,
            datanets,
        }
    }

    fn with(batches: &[&[Record]]) -> Self {
        let fixture = Self::new();
        for batch in batches {
            fixture.add(batch);
        }
        fixture
    }

    fn add(&self, records: &[Record]) -> AddReport {
        add(&self.datanets, records).unwrap()
    }

    fn head(&self) -> B256 {
        self.datanets.head(NAME).unwrap().unwrap()
    }

    fn objects(&self) -> &Objects {
        &self.datanets.objects
    }

    fn remove(&self, id: B256) {
        futures_block(self.store.delete(&object_path(id))).unwrap();
    }

    fn overwrite(&self, id: B256, bytes: Vec<u8>) {
        futures_block(self.store.put(&object_path(id), bytes.into())).unwrap();
    }

    /// Points the head to a manifest made from the newest one.
    fn forge(&self, change: impl FnOnce(&mut Manifest)) -> B256 {
        let head = self.head();
        let mut manifest = self.datanets.manifest(head).unwrap();
        change(&mut manifest);
        let id = self.objects().put(manifest.encode()).unwrap();
        self.heads.compare_and_swap(NAME, Some(head), id).unwrap();
        id
    }

    /// Replaces the only shard by one with changed records.
    fn forge_shard(&self, change: impl FnOnce(&mut Vec<CommittedRecord>)) -> B256 {
        let mut records = self.datanets.records(self.head()).unwrap();
        change(&mut records);
        let bytes = encode_shard(&records).unwrap();
        let size_bytes = bytes.len() as u64;
        let object = self.objects().put(bytes).unwrap();
        self.forge(|manifest| {
            let n_records = records.len() as u64;
            manifest.shards = vec![crate::ShardRef {
                object,
                size_bytes,
                n_records,
            }];
            manifest.n_records = n_records;
        });
        object
    }

    #[track_caller]
    fn damage(&self) -> Damage {
        match self.datanets.verify(NAME) {
            Err(DatanetError::Damaged(damage)) => damage,
            other => panic!("{other:?}"),
        }
    }
}

/// The in-memory store is ready at once: one poll is enough.
fn futures_block<F: Future>(future: F) -> F::Output {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => panic!("the in-memory store never waits"),
    }
}

fn jsonl(records: &[Record]) -> Vec<u8> {
    records
        .iter()
        .flat_map(|record| [record.canonical_json(), b"\n".to_vec()].concat())
        .collect()
}

fn add(datanets: &Datanets, records: &[Record]) -> Result<AddReport, DatanetError> {
    datanets.add(NAME, &jsonl(records)[..], &AddOptions::new(&address_of))
}

fn records(range: std::ops::Range<usize>) -> Vec<Record> {
    range.map(record).collect()
}

#[test]
fn names_are_checked_and_taken_once() {
    let fixture = Fixture::new();
    assert!(matches!(
        fixture.datanets.create(NAME),
        Err(DatanetError::Exists { .. })
    ));
    assert!(matches!(
        fixture.datanets.create("../x"),
        Err(DatanetError::Name { .. })
    ));
    assert!(matches!(
        fixture.datanets.head("other"),
        Err(DatanetError::NotFound { .. })
    ));
    assert!(matches!(
        fixture.datanets.show("other"),
        Err(DatanetError::NotFound { .. })
    ));
    assert!(matches!(
        fixture.datanets.verify("A"),
        Err(DatanetError::Name { .. })
    ));
    fixture.datanets.create("another").unwrap();
    assert_eq!(fixture.datanets.list().unwrap(), ["another", NAME]);
}

#[test]
fn a_datanet_without_versions_shows_and_verifies() {
    let fixture = Fixture::new();
    assert_eq!(fixture.datanets.head(NAME).unwrap(), None);
    assert!(fixture.datanets.show(NAME).unwrap().versions.is_empty());
    assert_eq!(fixture.datanets.verify(NAME).unwrap().n_versions, 0);
    let error = fixture.datanets.version(NAME, 1).unwrap_err();
    assert!(matches!(error, DatanetError::NoVersion { newest: 0, .. }));
}

#[test]
fn bad_lines_are_rejected_by_number_and_good_ones_stay() {
    let fixture = Fixture::new();
    let mut input = b"\xef\xbb\xbf".to_vec();
    input.extend(jsonl(&records(0..1)));
    input.extend(b"\n  \r\n{}\nnot json\n\xff\n");
    input.extend(vec![b'x'; 300_000]);
    input.extend(b"\n");
    input.extend(jsonl(&records(1..2)));
    input.extend(br#"{"question":"q","answer":"a","contributor":"nobody","license":"l"}"#);
    let address = |name: &str| {
        if name == "nobody" {
            Address::ZERO
        } else {
            address_of(name)
        }
    };
    let report = fixture
        .datanets
        .add(NAME, &input[..], &AddOptions::new(&address))
        .unwrap();
    let found: Vec<_> = report
        .rejected
        .iter()
        .map(|r| (r.line, r.reason.code()))
        .collect();
    let expected = [
        (4, "missing"),
        (5, "json"),
        (6, "encoding"),
        (7, "line-too-long"),
        (9, "no-address"),
    ];
    assert_eq!(found, expected);
    assert_eq!(
        report.rejected[0].to_string(),
        "line 4: field answer is missing or blank"
    );
    assert_eq!((report.accepted, report.n_rejected), (2, 5));
    assert_eq!(fixture.datanets.verify(NAME).unwrap().n_records, 2);
}

#[test]
fn the_list_of_rejections_is_bounded_and_the_count_is_not() {
    let report = Fixture::new()
        .datanets
        .add(
            NAME,
            "{}\n".repeat(2_000).as_bytes(),
            &AddOptions::new(&address_of),
        )
        .unwrap();
    assert_eq!(
        (report.rejected.len(), report.n_rejected),
        (REJECTIONS_MAX, 2_000)
    );
    assert_eq!(report.new_version, None);
}

#[test]
fn adding_nothing_new_makes_no_new_version() {
    let fixture = Fixture::with(&[&records(0..3)]);
    let head = fixture.head();
    let report = fixture.add(&records(0..3));
    assert_eq!(
        (report.accepted, report.repeated, report.new_version),
        (0, 3, None)
    );
    assert_eq!(fixture.add(&[]).new_version, None);
    assert_eq!(fixture.head(), head);
    let twice = [records(3..4), records(3..4)].concat();
    let report = fixture.add(&twice);
    assert_eq!((report.accepted, report.repeated), (1, 1));
    assert_eq!(report.new_version.unwrap().version, 2);
}

#[test]
fn the_first_commit_owns_a_cluster() {
    let mut copy = record(0);
    copy.contributor = "copycat".into();
    copy.question = format!("  {}\n", copy.question.to_uppercase());
    let fixture = Fixture::with(&[&[record(0)], &[copy.clone(), record(1)]]);
    let all = fixture.datanets.records(fixture.head()).unwrap();
    assert_eq!(all.iter().map(|r| r.cluster).collect::<Vec<_>>(), [0, 0, 1]);
    let owners = cluster_owners(&all);
    assert_eq!(owners, [&all[0], &all[2]]);

    let other_order = Fixture::with(&[&[copy], &[record(0)]]);
    let all = other_order.datanets.records(other_order.head()).unwrap();
    assert_eq!(cluster_owners(&all)[0].record.contributor, "copycat");
    let summary = other_order.datanets.show(NAME).unwrap();
    assert_eq!(summary.contributors["copycat"].n_clusters, 1);
    assert_eq!(summary.contributors["contributor 0"].n_clusters, 0);
}

#[test]
fn show_counts_contributors_licences_topics_and_versions() {
    let fixture = Fixture::with(&[&records(0..20), &records(20..30)]);
    let summary = fixture.datanets.show(NAME).unwrap();
    let numbers: Vec<_> = summary
        .versions
        .iter()
        .map(|v| (v.version, v.n_records))
        .collect();
    assert_eq!(numbers, [(2, 30), (1, 20)]);
    assert_eq!(summary.versions[0].n_clusters, 27);
    assert_eq!(summary.contributors.len(), 7);
    assert_eq!(
        summary
            .contributors
            .values()
            .map(|c| c.n_records)
            .sum::<u64>(),
        30
    );
    assert_eq!(
        summary
            .contributors
            .values()
            .map(|c| c.n_clusters)
            .sum::<u64>(),
        27
    );
    assert_eq!(
        summary.licenses,
        BTreeMap::from([("Apache-2.0".into(), 15), ("CC-BY-4.0".into(), 15)])
    );
    assert_eq!(summary.topics["topic 0"], 10);
    let first = fixture.datanets.version(NAME, 1).unwrap();
    assert_eq!(first, summary.versions[1].id);
    assert_eq!(fixture.datanets.records(first).unwrap().len(), 20);
    let error = fixture.datanets.version(NAME, 3).unwrap_err();
    assert!(matches!(error, DatanetError::NoVersion { newest: 2, .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_version_begins_with_the_one_before_however_the_records_come(
        order in prop::collection::vec(0_usize..40, 1..40),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let all: Vec<Record> = order.iter().map(|&i| record(i)).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(all.len())).collect();
        cuts.extend([0, all.len()]);
        cuts.sort_unstable();
        let fixture = Fixture::new();
        let mut before: Vec<CommittedRecord> = Vec::new();
        for pair in cuts.windows(2) {
            if fixture.add(&all[pair[0]..pair[1]]).new_version.is_some() {
                let now = fixture.datanets.records(fixture.head()).unwrap();
                prop_assert!(now.starts_with(&before) && now.len() > before.len());
                before = now;
            }
        }
        let report = fixture.datanets.verify(NAME).unwrap();
        prop_assert_eq!(report.n_records, before.len() as u64);
        // All at once gives the same records, root and shards.
        let at_once = Fixture::with(&[&all]);
        let manifest = at_once.datanets.manifest(at_once.head()).unwrap();
        let last = fixture.datanets.manifest(fixture.head()).unwrap();
        prop_assert_eq!((manifest.root, manifest.shards), (last.root, last.shards));
    }
}

#[test]
fn shards_fill_up_across_versions_and_full_ones_are_shared() {
    let n = SHARD_RECORDS_MAX;
    let fixture = Fixture::with(&[
        &records(0..n - 1),
        &records(n - 1..n),
        &records(n..n + 5),
        &records(n + 5..2 * n + 1),
    ]);
    let shards = |version| {
        let id = fixture.datanets.version(NAME, version).unwrap();
        fixture.datanets.manifest(id).unwrap().shards
    };
    let sizes = |version| {
        shards(version)
            .iter()
            .map(|s| s.n_records)
            .collect::<Vec<_>>()
    };
    let full = n as u64;
    assert_eq!(sizes(1), [full - 1]);
    assert_eq!(sizes(2), [full]);
    assert_eq!(sizes(3), [full, 5]);
    assert_eq!(sizes(4), [full, full, 1]);
    assert_eq!(shards(2)[0], shards(4)[0]);
    let report = fixture.datanets.verify(NAME).unwrap();
    assert_eq!((report.n_versions, report.n_shards), (4, 3));
}

#[test]
fn a_shard_ends_before_its_text_grows_too_large() {
    let long: Vec<Record> = (0..200)
        .map(|i| Record {
            answer: format!("{i}{}", "long ".repeat(36_000)),
            ..record(i)
        })
        .collect();
    let fixture = Fixture::with(&[&long]);
    let manifest = fixture.datanets.manifest(fixture.head()).unwrap();
    let sizes: Vec<u64> = manifest
        .shards
        .iter()
        .map(|shard| shard.n_records)
        .collect();
    assert_eq!(sizes, [186, 14]);
    fixture.datanets.verify(NAME).unwrap();
}

#[test]
fn a_missing_or_changed_object_is_named() {
    let build = || Fixture::with(&[&records(0..3), &records(3..5)]);
    let fixture = build();
    let head = fixture.head();
    let manifest = fixture.datanets.manifest(head).unwrap();
    let parent = manifest.parent.unwrap();
    let old_shard = fixture.datanets.manifest(parent).unwrap().shards[0].object;
    let objects = [
        (head, ObjectRole::Manifest),
        (parent, ObjectRole::Manifest),
        (manifest.shards[0].object, ObjectRole::Shard),
        (old_shard, ObjectRole::Shard),
    ];
    for (object, role) in objects {
        let fixture = build();
        let mut bytes = fixture.objects().get(object, 1 << 20).unwrap().to_vec();
        fixture.remove(object);
        let what = DamageKind::Missing;
        assert_eq!(
            fixture.damage(),
            Damage {
                object,
                role,
                record: None,
                what
            }
        );

        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let what = DamageKind::Changed {
            found: keccak256(&bytes),
        };
        fixture.overwrite(object, bytes);
        assert_eq!(
            fixture.damage(),
            Damage {
                object,
                role,
                record: None,
                what
            }
        );

        fixture.overwrite(object, vec![0; 5 << 20]);
        let damage = fixture.damage();
        assert_eq!((damage.object, damage.role), (object, role));
        assert!(matches!(
            damage.what,
            DamageKind::Size {
                found_bytes: 5_242_880,
                ..
            }
        ));
    }
}

#[test]
fn a_forged_manifest_is_named_with_the_value_that_differs() {
    type Change = fn(&mut Manifest);
    let changes: [(&str, Change); 7] = [
        ("root", |m| m.root = B256::repeat_byte(1)),
        ("n_clusters", |m| m.n_clusters += 1),
        ("n_contributors", |m| m.n_contributors = 1),
        ("licenses", |m| m.licenses.clear()),
        ("name", |m| m.name = "other".into()),
        ("size_bytes", |m| m.shards[0].size_bytes += 1),
        ("version", |m| m.version = 3),
    ];
    for (expected, change) in changes {
        let fixture = Fixture::with(&[&records(0..3), &records(3..5)]);
        fixture.forge(change);
        let damage = fixture.damage();
        let is_expected =
            matches!(damage.what, DamageKind::Differs { field, .. } if field == expected);
        assert!(is_expected, "{expected}: {damage}");
        assert!(add(&fixture.datanets, &records(5..6)).is_err() || expected == "version");
    }
}

#[test]
fn a_manifest_that_is_not_one_is_named() {
    let fixture = Fixture::with(&[&records(0..3)]);
    let junk = fixture.objects().put("junk").unwrap();
    fixture
        .heads
        .compare_and_swap(NAME, Some(fixture.head()), junk)
        .unwrap();
    let damage = fixture.damage();
    assert_eq!((damage.object, damage.role), (junk, ObjectRole::Manifest));
    assert!(matches!(damage.what, DamageKind::Malformed { .. }));
}

#[test]
fn a_shard_that_is_not_one_is_named() {
    let fixture = Fixture::with(&[&records(0..3)]);
    let junk = fixture.objects().put("PAR1junk").unwrap();
    fixture.forge(|m| {
        m.shards[0].object = junk;
        m.shards[0].size_bytes = 8;
    });
    let damage = fixture.damage();
    assert_eq!((damage.object, damage.role), (junk, ObjectRole::Shard));
    assert!(matches!(damage.what, DamageKind::Malformed { .. }));
}

#[test]
fn a_forged_record_is_named_by_its_position() {
    type Change = fn(&mut Vec<CommittedRecord>);
    let changes: [(&str, u64, Change); 6] = [
        ("record_hash", 1, |r| r[1].record.answer.push('!')),
        ("record_hash", 2, |r| r[2].record_hash = B256::ZERO),
        ("cluster", 3, |r| r[3].cluster = 9),
        ("cluster", 0, |r| r.swap(0, 1)),
        ("no address", 4, |r| {
            r[4].contributor_address = Address::ZERO
        }),
        ("stands before", 4, |r| r[4] = r[0].clone()),
    ];
    for (expected, position, change) in changes {
        let fixture = Fixture::with(&[&records(0..5)]);
        let object = fixture.forge_shard(change);
        let damage = fixture.damage();
        assert_eq!(
            (damage.object, damage.record),
            (object, Some(position)),
            "{damage}"
        );
        assert!(damage.to_string().contains(expected), "{damage}");
        assert!(matches!(
            fixture.datanets.records(fixture.head()),
            Err(DatanetError::Damaged(_))
        ));
        assert!(matches!(
            add(&fixture.datanets, &records(7..8)),
            Err(DatanetError::Damaged(_))
        ));
    }
}

#[test]
fn a_forged_payee_shows_in_the_root() {
    let fixture = Fixture::with(&[&records(0..5)]);
    fixture.forge_shard(|r| r[1].contributor_address = address_of("thief"));
    assert!(matches!(
        fixture.damage().what,
        DamageKind::Differs { field: "root", .. }
    ));
}

#[test]
fn a_version_that_drops_records_of_its_parent_is_named() {
    // Version 2 is rebuilt without record 1: right by itself, wrong after
    // version 1.
    let fixture = Fixture::with(&[&records(0..3), &records(3..6)]);
    let parent = fixture.datanets.version(NAME, 1).unwrap();
    let other = Fixture::with(&[&[records(0..1), records(2..6)].concat()]);
    let mut manifest = other.datanets.manifest(other.head()).unwrap();
    let shard = manifest.shards[0].object;
    let bytes = other.objects().get(shard, 1 << 20).unwrap();
    fixture.objects().put(bytes).unwrap();
    manifest.version = 2;
    manifest.parent = Some(parent);
    fixture.forge(|m| *m = manifest);
    let damage = fixture.damage();
    assert_eq!(
        (damage.object, damage.role),
        (parent, ObjectRole::Manifest),
        "{damage}"
    );
}

#[test]
fn records_cut_into_other_shards_are_named() {
    let fixture = Fixture::with(&[&records(0..4)]);
    let all = fixture.datanets.records(fixture.head()).unwrap();
    let shards: Vec<_> = [&all[..2], &all[2..]]
        .map(|part| {
            let bytes = encode_shard(part).unwrap();
            let (size_bytes, n_records) = (bytes.len() as u64, part.len() as u64);
            crate::ShardRef {
                object: fixture.objects().put(bytes).unwrap(),
                size_bytes,
                n_records,
            }
        })
        .into();
    let second = shards[1].object;
    fixture.forge(|m| m.shards = shards);
    let damage = fixture.damage();
    assert_eq!(
        (damage.object, damage.record),
        (second, Some(2)),
        "{damage}"
    );
}

#[test]
fn every_record_has_a_proof_that_fits_only_its_place() {
    let fixture = Fixture::with(&[&records(0..6), &records(6..11)]);
    let head = fixture.head();
    let manifest = fixture.datanets.manifest(head).unwrap();
    let (root, n) = (manifest.root, manifest.n_records);
    for record in fixture.datanets.records(head).unwrap() {
        let proof = fixture
            .datanets
            .proof(head, record.record_hash)
            .unwrap()
            .unwrap();
        assert!(proof.verify(root, n));
        assert!(!proof.verify(B256::ZERO, n));
        assert!(!proof.verify(root, 4));
        let mut other = proof.clone();
        other.position ^= 1;
        assert!(!other.verify(root, n));
        let mut other = proof.clone();
        other.contributor_address = address_of("thief");
        assert!(!other.verify(root, n));
        let mut other = proof;
        other.position = u64::MAX;
        assert!(!other.verify(root, n));
    }
    assert_eq!(fixture.datanets.proof(head, B256::ZERO).unwrap(), None);
}

#[test]
fn an_add_that_was_overtaken_changes_nothing() {
    let fixture = Fixture::with(&[&records(0..2)]);
    let has_overtaken = Cell::new(false);
    let address = |name: &str| {
        if !has_overtaken.replace(true) {
            fixture.add(&records(5..6));
        }
        address_of(name)
    };
    let input = jsonl(&records(2..3));
    let error = fixture
        .datanets
        .add(NAME, &input[..], &AddOptions::new(&address))
        .unwrap_err();
    assert!(matches!(error, DatanetError::Moved { .. }), "{error:?}");
    assert_eq!(fixture.datanets.verify(NAME).unwrap().n_records, 3);
    // Again, as the error says.
    fixture.add(&records(2..3));
    assert_eq!(fixture.datanets.verify(NAME).unwrap().n_records, 4);
}

#[test]
fn an_input_that_breaks_off_adds_nothing() {
    struct BreaksOff(bool);
    impl Read for BreaksOff {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if std::mem::replace(&mut self.0, true) {
                return Err(std::io::Error::other("gone"));
            }
            let line = jsonl(&records(0..1));
            buffer[..line.len()].copy_from_slice(&line);
            Ok(line.len())
        }
    }
    let fixture = Fixture::new();
    let input = BufReader::new(BreaksOff(false));
    let error = fixture
        .datanets
        .add(NAME, input, &AddOptions::new(&address_of))
        .unwrap_err();
    assert!(matches!(error, DatanetError::Input(_)));
    assert_eq!(fixture.datanets.head(NAME).unwrap(), None);
}

#[test]
fn a_datanet_has_a_limited_number_of_licences() {
    let many: Vec<Record> = (0..300)
        .map(|i| Record {
            license: format!("L-{i}"),
            ..record(i)
        })
        .collect();
    let report = Fixture::new().add(&many);
    assert_eq!((report.accepted, report.n_rejected), (256, 44));
    assert_eq!(report.rejected[0].reason.code(), "too-many-licenses");
}

#[test]
fn a_fault_at_any_write_leaves_the_old_version_or_the_new_one() {
    for moment in [FaultMoment::Before, FaultMoment::After] {
        let mut n_good = 0;
        loop {
            let fixture = Fixture::with(&[&records(0..3)]);
            let old_head = fixture.head();
            let faults = WriteFaults::after(n_good, moment);
            let store = FaultyStore::new(Arc::clone(&fixture.store), faults.clone());
            let heads = FaultyHeads::new(Arc::clone(&fixture.heads), faults.clone());
            let faulty = Datanets::open(Objects::new(Arc::new(store)), Arc::new(heads));
            // Enough for two shards: four writes with manifest and head.
            let added = add(&faulty, &records(3..SHARD_RECORDS_MAX + 3));
            assert_eq!(added.is_err(), faults.has_struck());

            let report = fixture.datanets.verify(NAME).unwrap();
            let is_old = fixture.head() == old_head;
            assert_eq!(report.n_records, if is_old { 3 } else { 4_099 });
            assert!(!is_old || added.is_err());
            // Whatever happened, adding once more ends in the same state.
            add(&fixture.datanets, &records(3..SHARD_RECORDS_MAX + 3)).unwrap();
            let report = fixture.datanets.verify(NAME).unwrap();
            assert_eq!((report.version, report.n_records), (2, 4_099));
            if !faults.has_struck() {
                break;
            }
            n_good += 1;
        }
        assert_eq!(n_good, 4, "writes of one add");
    }
}

#[test]
fn rules_for_duplicates_are_fixed_by_the_first_version() {
    let text = |question: usize, answer: usize, last: &str| Record {
        question: record(question).question,
        answer: format!("{}{last}", format!("word{answer} a{answer} ").repeat(9)),
        ..record(0)
    };
    let refused = |result: Result<AddReport, DatanetError>| match result {
        Err(DatanetError::Duplicates { fixed, asked, .. }) => (fixed, asked),
        other => panic!("{other:?}"),
    };
    let exact = DuplicateRules::EXACT;
    let (near, recombined) = (exact.and_near(50), exact.and_recombined());
    let all = near.and_recombined();
    let options = |rules| AddOptions::new(&address_of).duplicates(rules);
    let first = jsonl(&[text(0, 0, "x"), text(1, 1, "x")]);
    // A near duplicate of the first; then the question of one with the answer of
    // the other.
    let second = jsonl(&[text(0, 0, "y"), text(0, 1, "x")]);
    for (fixed, others, n_clusters) in [
        (exact, vec![near, recombined, all], 4),
        (near, vec![exact.and_near(60), recombined, all], 2),
        (recombined, vec![near, all], 3),
        (all, vec![exact.and_near(60)], 2),
    ] {
        let fixture = Fixture::new();
        let datanets = &fixture.datanets;
        for percent in [0, 101] {
            let bad = fixed.and_near(percent);
            let (_, asked) = refused(datanets.add(NAME, &first[..], &options(bad)));
            assert_eq!(asked, bad);
        }
        datanets.add(NAME, &first[..], &options(fixed)).unwrap();
        assert_eq!(datanets.show(NAME).unwrap().duplicates, Some(fixed));
        for asked in others {
            assert_eq!(
                refused(datanets.add(NAME, &second[..], &options(asked))),
                (fixed, asked)
            );
        }
        // Later versions keep the rules without being told.
        let report = datanets.add(NAME, &second[..], &options(exact)).unwrap();
        assert_eq!(report.duplicates, 4 - n_clusters, "{fixed}");
        let report = datanets.verify(NAME).unwrap();
        assert_eq!((report.n_versions, report.n_clusters), (2, n_clusters));
        assert_eq!(report.n_records, 4);
        // A manifest that says otherwise is damaged.
        let others = DuplicateRules {
            recombined: !fixed.recombined,
            ..fixed
        };
        for forged in [exact.and_near(49), others.and_near(100)] {
            let head = fixture.head();
            let id = fixture.forge(|manifest| manifest.duplicates = forged);
            assert!(matches!(fixture.damage().what, DamageKind::Differs { .. }));
            fixture
                .heads
                .compare_and_swap(NAME, Some(id), head)
                .unwrap();
        }
    }
}
