//! Goal: an overlay over a state reads as the state with the changes applied.
//! Method: random changes, pushed one by one, against a state in memory.

use ol_evm::{AccountChange, MemoryState, StateReader};
use proptest::prelude::*;

use super::*;

const N_KEYS: u8 = 4;

fn address(number: u8) -> Address {
    Address::repeat_byte(number)
}

prop_compose! {
    fn change()(
        is_gone in prop::bool::weighted(0.2),
        is_created in prop::bool::weighted(0.2),
        nonce in 0..3_u64,
        slots in prop::collection::btree_map(0..N_KEYS, 0..3_u8, 0..4),
    ) -> AccountChange {
        let storage = slots
            .into_iter()
            .map(|(slot, value)| (U256::from(slot), U256::from(value)))
            .collect();
        AccountChange {
            account: (!is_gone).then(|| AccountState { nonce, ..AccountState::default() }),
            is_storage_wiped: is_gone || is_created,
            storage: if is_gone { BTreeMap::new() } else { storage },
        }
    }
}

prop_compose! {
    fn diff()(
        accounts in prop::collection::btree_map(0..N_KEYS, change(), 0..4),
        code in prop::option::of(0..N_KEYS),
    ) -> StateDiff {
        StateDiff {
            accounts: accounts.into_iter().map(|(a, change)| (address(a), change)).collect(),
            codes: code
                .map(|byte| (B256::repeat_byte(byte), Bytes::from(vec![byte])))
                .into_iter()
                .collect(),
        }
    }
}

proptest! {
    #[test]
    fn reads_as_the_changed_state(
        base in diff(),
        pushes in prop::collection::vec(prop::collection::vec(diff(), 1..4), 0..12),
    ) {
        let mut below = MemoryState::default();
        below.apply(&base);
        let mut changed = below.clone();
        let mut overlay = Overlay::default();
        for diffs in &pushes {
            overlay.push(diffs);
            diffs.iter().for_each(|diff| changed.apply(diff));
            for number in 0..N_KEYS {
                let address = address(number);
                let account = overlay.account(address);
                prop_assert_eq!(
                    account.unwrap_or_else(|| below.account(address).unwrap()),
                    changed.account(address).unwrap()
                );
                for slot in (0..N_KEYS).map(U256::from) {
                    let value = overlay.storage(address, slot);
                    prop_assert_eq!(
                        value.unwrap_or_else(|| below.storage(address, slot).unwrap()),
                        changed.storage(address, slot).unwrap()
                    );
                }
                let hash = B256::repeat_byte(number);
                let code = overlay.code(hash);
                prop_assert_eq!(
                    code.unwrap_or_else(|| below.code(hash).unwrap()),
                    changed.code(hash).unwrap()
                );
            }
            let sizes: Vec<usize> = overlay.layers.iter().map(|layer| layer.size()).collect();
            prop_assert!(sizes.is_sorted_by(|below, above| *below > 2 * above), "{:?}", sizes);
        }
    }
}
