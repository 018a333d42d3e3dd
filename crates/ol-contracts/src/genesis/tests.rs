//! Goal: block 0 holds one billion OPEN, the contracts, and nothing by accident.

use alloy_primitives::{address, b256};
use alloy_signer_local::PrivateKeySigner;
use ol_types::{DEV_MNEMONIC_KEYS, OPEN_CAP_WEI};

use super::*;

#[test]
fn allocation_is_all_open_there_is() {
    let total: U256 = dev().alloc.values().map(|account| account.balance).sum();
    assert_eq!(total, U256::from(OPEN_CAP_WEI));
}

#[test]
fn shares_of_the_allocation_are_those_of_the_specification() {
    let alloc = dev().alloc;
    let parts_per_10_000 = [
        (vec![COMMUNITY_TREASURY], 5_171_u64),
        (vec![ECOSYSTEM_TREASURY], 1_000),
        (vec![INVESTORS_TREASURY], 1_829),
        (vec![TEAM_TREASURY], 1_500),
        (
            [&[LIQUIDITY_TREASURY], DEV_ACCOUNTS.as_slice()].concat(),
            500,
        ),
    ];
    for (holders, part) in parts_per_10_000 {
        let held: U256 = holders.iter().map(|holder| alloc[holder].balance).sum();
        let expected = U256::from(OPEN_CAP_WEI) / U256::from(10_000) * U256::from(part);
        assert_eq!(held, expected, "{holders:?}");
    }
}

#[test]
fn dev_accounts_belong_to_the_dev_keys() {
    for (account, key) in DEV_ACCOUNTS.iter().zip(DEV_MNEMONIC_KEYS) {
        let signer: PrivateKeySigner = key.parse().unwrap();
        assert_eq!(signer.address(), *account);
    }
}

#[test]
fn contracts_have_code_and_nonce_one_and_no_money() {
    let alloc = dev().alloc;
    for (at, code) in predeploys() {
        assert!(!code.is_empty(), "{at}");
        // EIP-170: nothing at genesis could not be deployed.
        assert!(code.len() <= 24_576, "{at}: {} bytes", code.len());
        assert_eq!(alloc[&at].code.as_ref(), Some(&code), "{at}");
        assert_eq!(alloc[&at].nonce, Some(1), "{at}");
        assert!(alloc[&at].balance.is_zero(), "{at}");
    }
    assert_eq!(alloc.len(), predeploys().len() + ALLOCATION_OPEN.len());
}

#[test]
fn only_the_settlement_begins_with_storage() {
    let alloc = dev().alloc;
    for (at, account) in &alloc {
        let n_slots = account.storage.as_ref().map_or(0, BTreeMap::len);
        assert_eq!(
            n_slots,
            if *at == INFERENCE_SETTLEMENT { 3 } else { 0 },
            "{at}"
        );
    }
    let storage = alloc[&INFERENCE_SETTLEMENT].storage.as_ref().unwrap();
    assert_eq!(
        storage[&B256::with_last_byte(1)],
        b256!("0x00000000000000000000000070997970c51812dc3a010c7d01b50e0d17dc79c8")
    );
}

#[test]
fn fee_vaults_are_absent() {
    let alloc = dev().alloc;
    for vault in [
        address!("0x4200000000000000000000000000000000000011"),
        address!("0x4200000000000000000000000000000000000019"),
    ] {
        assert!(!alloc.contains_key(&vault), "{vault}");
    }
}

#[test]
fn addresses_in_the_code_are_those_of_this_crate() {
    // Contracts call each other by constant; a wrong one would only show at run time.
    let calls = [
        (&Open::DEPLOYED_BYTECODE, vec![OPEN_TRANSFER]),
        (
            &ModelRegistry::DEPLOYED_BYTECODE,
            vec![DATANET_REGISTRY, SKETCH_STORE, ATTRIBUTION_COURT],
        ),
        (
            &InferenceSettlement::DEPLOYED_BYTECODE,
            vec![
                MODEL_REGISTRY,
                SKETCH_STORE,
                POA_SCORE,
                POA_SHARES,
                ATTRIBUTION_COURT,
            ],
        ),
        (
            &AttributionCourt::DEPLOYED_BYTECODE,
            vec![INFERENCE_SETTLEMENT, MODEL_REGISTRY, POA_SHARES, POA_VERIFY],
        ),
    ];
    for (code, callees) in calls {
        for callee in callees {
            // PUSHn of the address without its leading zeros; PUSH1 is 0x60.
            let bytes = callee.as_slice();
            let significant = &bytes[bytes.iter().position(|&byte| byte != 0).unwrap()..];
            let opcode = 0x5f + u8::try_from(significant.len()).unwrap();
            let push = [&[opcode], significant].concat();
            assert!(
                code.windows(push.len()).any(|part| part == push),
                "{callee}"
            );
        }
    }
}

#[test]
fn genesis_file_round_trips() {
    let genesis = dev();
    let text = serde_json::to_string(&genesis).unwrap();
    assert_eq!(serde_json::from_str::<Genesis>(&text).unwrap(), genesis);
    let file: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(file["config"]["chainId"], 161_200);
    assert_eq!(file["config"]["isthmusTime"], 0);
    assert_eq!(file["config"]["pragueTime"], 0);
    assert_eq!(file["config"]["optimism"]["eip1559Elasticity"], 2);
}
