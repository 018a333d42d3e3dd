//! Goal: what was added is found after a restart, whole, or the damage is named.

use ol_poa::Earned;
use ol_types::Address;
use proptest::prelude::*;

use super::*;

fn pending(seed: u8, answered_at_s: u64) -> PendingReceipt {
    let hash = |salt: u8| keccak256([seed, salt]);
    let query = QuerySketch::new([i8::try_from(seed % 100).unwrap(); ol_poa::K]).unwrap();
    let object = Bytes::copy_from_slice(&[seed; 9]);
    let spans = Earned::new(vec![(Address::repeat_byte(seed), 7)], 9);
    let gathered = Gathered {
        evidence: Evidence::new(spans, Earned::default(), keccak256(&object)).unwrap(),
        object,
    };
    let receipt = Receipt {
        chain_id: 161_200,
        settlement: Address::repeat_byte(5),
        payer: Address::repeat_byte(seed),
        request_id: hash(0),
        model_id: hash(1),
        base_hash: hash(2),
        adapter_hash: hash(3),
        manifest_hash: hash(4),
        sketch_root: hash(5),
        prompt_hash: hash(6),
        response_hash: hash(7),
        query_hash: query.hash(),
        evidence_hash: gathered.evidence.hash(),
        tokens_in: 3,
        tokens_out: 4,
        fee_wei: 5,
        answered_at_s,
    };
    PendingReceipt {
        receipt,
        query,
        gathered,
    }
}

#[test]
fn receipts_survive_a_restart_and_go_when_settled() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(&dir.path().join("pending")).unwrap();
    let (old, new) = (pending(1, 10), pending(2, 20));
    journal.add(&new).unwrap();
    journal.add(&old).unwrap();
    journal.add(&old).unwrap();

    let journal = Journal::open(&dir.path().join("pending")).unwrap();
    assert_eq!(journal.all().unwrap(), [old.clone(), new.clone()]);
    assert_eq!(journal.get(new.receipt.id()).unwrap(), Some(new.clone()));
    journal.remove(old.receipt.id()).unwrap();
    journal.remove(old.receipt.id()).unwrap();
    assert_eq!(journal.get(old.receipt.id()).unwrap(), None);
    assert_eq!(journal.all().unwrap(), [new]);
}

#[test]
fn a_refused_receipt_is_kept_aside() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let pending = pending(3, 1);
    let id = pending.receipt.id();
    journal.add(&pending).unwrap();
    journal.refuse(id).unwrap();
    journal.refuse(id).unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.all().unwrap(), []);
    assert_eq!(journal.get(id).unwrap(), None);
    assert_eq!(journal.get_refused(id).unwrap(), Some(pending));
    assert_eq!(journal.get_refused(B256::ZERO).unwrap(), None);
}

#[test]
fn a_half_written_file_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let name = format!("{}{}", durable::TEMPORARY_PREFIX, file_name(B256::ZERO));
    fs::write(dir.path().join(&name), b"half").unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.all().unwrap(), []);
    assert!(!dir.path().join(name).exists());
}

#[test]
fn a_file_under_another_name_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    fs::write(
        dir.path().join(file_name(B256::ZERO)),
        pending(1, 1).encode(),
    )
    .unwrap();
    assert!(matches!(journal.all(), Err(JournalError::Damaged { .. })));
    assert!(matches!(
        journal.get(B256::ZERO),
        Err(JournalError::Damaged { .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_changed_byte_is_damage(at: prop::sample::Index, mask in 1..=u8::MAX) {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let pending = pending(7, 1);
        let mut bytes = pending.encode();
        let at = at.index(bytes.len());
        bytes[at] ^= mask;
        fs::write(dir.path().join(file_name(pending.receipt.id())), bytes).unwrap();
        let found = journal.all();
        let is_damaged = matches!(found, Err(JournalError::Damaged { .. }));
        prop_assert!(is_damaged);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
        let _ = PendingReceipt::decode(&bytes);
    }
}
