//! Goal: what is written is read back the same, and damaged bytes are errors.

use proptest::prelude::*;

use super::*;

fn any_hash(default: B256) -> impl Strategy<Value = B256> {
    prop_oneof![Just(default), any::<[u8; 32]>().prop_map(B256::from)]
}

fn any_value() -> impl Strategy<Value = U256> {
    prop_oneof![
        Just(U256::ZERO),
        Just(U256::MAX),
        any::<u64>().prop_map(U256::from),
        any::<[u8; 32]>().prop_map(U256::from_be_bytes),
    ]
}

fn any_rooted() -> impl Strategy<Value = RootedAccount> {
    let nonce = prop_oneof![Just(0), Just(u64::MAX), any::<u64>()];
    let hashes = (any_hash(KECCAK256_EMPTY), any_hash(EMPTY_ROOT_HASH));
    (nonce, any_value(), hashes).prop_map(|(nonce, balance_wei, (code_hash, storage_root))| {
        RootedAccount {
            account: AccountState {
                nonce,
                balance_wei,
                code_hash,
            },
            storage_root,
        }
    })
}

fn any_changed() -> impl Strategy<Value = ChangedKeys> {
    let account = (
        any::<[u8; 20]>(),
        any::<bool>(),
        prop::collection::vec(any_value(), 0..4),
    );
    let account = account.prop_map(|(address, is_account_changed, slots)| ChangedAccount {
        address: address.into(),
        is_account_changed,
        slots,
    });
    let codes = prop::collection::vec(any::<[u8; 32]>().prop_map(B256::from), 0..3);
    (prop::collection::vec(account, 0..4), codes)
        .prop_map(|(accounts, codes)| ChangedKeys { accounts, codes })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        rooted in any_rooted(),
        value in any_value(),
        changed in any_changed(),
    ) {
        prop_assert_eq!(decode_rooted(&encode_rooted(&rooted)).unwrap(), rooted);
        let account = encode_account(&rooted.account);
        prop_assert_eq!(decode_account(&account).unwrap(), rooted.account);
        prop_assert_eq!(decode_value(&encode_value(value)).unwrap(), value);
        prop_assert_eq!(ChangedKeys::decode(&changed.encode()).unwrap(), changed);
    }

    #[test]
    fn cut_and_extended_bytes_are_errors(rooted in any_rooted(), changed in any_changed(), cut in 1..40_usize) {
        for (bytes, is_error) in [
            (encode_rooted(&rooted), (|bytes| decode_rooted(bytes).is_err()) as fn(&[u8]) -> bool),
            (changed.encode(), |bytes| ChangedKeys::decode(bytes).is_err()),
        ] {
            prop_assert!(is_error(&bytes[..bytes.len().saturating_sub(cut)]));
            let longer = [&bytes[..], &[0; 40][..cut]].concat();
            prop_assert!(is_error(&longer));
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        let _ = decode_rooted(&bytes);
        let _ = decode_value(&bytes);
        let _ = ChangedKeys::decode(&bytes);
    }
}

#[test]
fn an_account_without_code_or_storage_is_small() {
    let account = AccountState {
        nonce: 7,
        balance_wei: U256::from(1_000_000_000_000_000_000_u64),
        ..AccountState::default()
    };
    assert_eq!(encode_account(&account).len(), 2 + 1 + 8);
}
