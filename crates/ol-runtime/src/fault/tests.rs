//! Goal: the N-th write of all that share the faults fails, with or without
//! effect, and everything after it.

use object_store::memory::InMemory;

use super::*;
use crate::{MemoryHeads, Objects};

#[test]
fn the_chosen_write_and_all_later_ones_fail() {
    for moment in [FaultMoment::Before, FaultMoment::After] {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let heads: Arc<dyn Heads> = Arc::new(MemoryHeads::default());
        let faults = WriteFaults::after(1, moment);
        let faulty = Objects::new(Arc::new(FaultyStore::new(
            Arc::clone(&store),
            faults.clone(),
        )));
        let faulty_heads = FaultyHeads::new(Arc::clone(&heads), faults.clone());

        let first = faulty.put("first").unwrap();
        assert!(!faults.has_struck());
        assert!(faulty_heads.compare_and_swap("h", None, first).is_err());
        assert!(faults.has_struck());
        assert!(faulty.put("second").is_err());

        let head = (moment == FaultMoment::After).then_some(first);
        assert_eq!(heads.get("h").unwrap(), head);
        assert_eq!(faulty_heads.get("h").unwrap(), head);
        let objects = Objects::new(store);
        assert!(objects.contains(first).unwrap());
        assert!(!objects.contains(ol_types::keccak256("second")).unwrap());
    }
}

#[test]
fn a_lost_answer_leaves_the_object() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let faults = WriteFaults::after(0, FaultMoment::After);
    let faulty = Objects::new(Arc::new(FaultyStore::new(Arc::clone(&store), faults)));
    assert!(faulty.put("x").is_err());
    assert!(
        Objects::new(store)
            .contains(ol_types::keccak256("x"))
            .unwrap()
    );
}
