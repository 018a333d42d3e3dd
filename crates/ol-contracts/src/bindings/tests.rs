//! Goal: what Rust encodes, the contracts decode to the same thing.
//! Method: the golden receipt that the Solidity tests read too, selectors
//! against published ones, and properties over random receipts and prices.

use alloy_primitives::{Address, B256, U256, hex, keccak256};
use alloy_sol_types::{SolCall, SolEvent, SolValue};
use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn golden() -> Value {
    serde_json::from_str(include_str!(
        "../../../../contracts/test/vectors/receipt.json"
    ))
    .unwrap()
}

fn field<T: std::str::FromStr>(vector: &Value, name: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    vector["fields"][name].as_str().unwrap().parse().unwrap()
}

fn golden_receipt(vector: &Value) -> ol_types::Receipt {
    ol_types::Receipt {
        chain_id: field(vector, "chainId"),
        settlement: field(vector, "settlement"),
        payer: field(vector, "payer"),
        request_id: field(vector, "requestId"),
        model_id: field(vector, "modelId"),
        base_hash: field(vector, "baseHash"),
        adapter_hash: field(vector, "adapterHash"),
        manifest_hash: field(vector, "manifestHash"),
        sketch_root: field(vector, "sketchRoot"),
        prompt_hash: field(vector, "promptHash"),
        response_hash: field(vector, "responseHash"),
        query_hash: field(vector, "queryHash"),
        evidence_hash: field(vector, "evidenceHash"),
        tokens_in: field(vector, "tokensIn"),
        tokens_out: field(vector, "tokensOut"),
        fee_wei: field(vector, "feeWei"),
        answered_at_s: field(vector, "answeredAt"),
    }
}

#[test]
fn golden_receipt_has_the_same_bytes_and_id_in_rust_and_solidity() {
    let vector = golden();
    let receipt = golden_receipt(&vector);
    let encoding = hex::decode(vector["encoding"].as_str().unwrap()).unwrap();
    let id: B256 = vector["id"].as_str().unwrap().parse().unwrap();

    assert_eq!(receipt.encode().as_slice(), encoding);
    assert_eq!(receipt.id(), id);
    let bound = InferenceSettlement::Receipt::from(&receipt);
    assert_eq!(bound.abi_encode(), encoding);
    assert_eq!(keccak256(bound.abi_encode()), id);
}

#[test]
fn selectors_are_the_published_ones() {
    assert_eq!(Open::transferCall::SELECTOR, hex!("a9059cbb"));
    assert_eq!(Open::permitCall::SELECTOR, hex!("d505accf"));
    assert_eq!(
        Open::Transfer::SIGNATURE_HASH.0,
        hex!("ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef")
    );
    assert_eq!(
        IPoaScore::scoreCall::SIGNATURE,
        "score(address[],uint64,bytes)"
    );
}

#[test]
fn fee_rounds_each_part_down() {
    let params = ModelRegistry::Params {
        priceInPerKTokens: 1_999,
        priceOutPerKTokens: 2_001,
        platformFee: 7,
        ..Default::default()
    };
    assert_eq!(params.fee_wei(0, 0), Some(7));
    assert_eq!(params.fee_wei(1, 1), Some(1 + 2 + 7));
    assert_eq!(params.fee_wei(1_000, 500), Some(1_999 + 1_000 + 7));
}

#[test]
fn fee_of_unregistrable_prices_does_not_wrap() {
    let params = ModelRegistry::Params {
        priceInPerKTokens: u128::MAX,
        ..Default::default()
    };
    assert_eq!(params.fee_wei(2, 0), None);
    let highest = ModelRegistry::Params {
        priceInPerKTokens: ol_types::OPEN_CAP_WEI,
        priceOutPerKTokens: ol_types::OPEN_CAP_WEI,
        platformFee: ol_types::OPEN_CAP_WEI,
        ..Default::default()
    };
    assert!(highest.fee_wei(u32::MAX, u32::MAX).is_some());
}

prop_compose! {
    fn receipts()(
        words in prop::array::uniform9(any::<[u8; 32]>()),
        accounts in prop::array::uniform2(any::<[u8; 20]>()),
        chain_id: u64,
        tokens_in: u32,
        tokens_out: u32,
        fee_wei: u128,
        answered_at_s: u64,
    ) -> ol_types::Receipt {
        ol_types::Receipt {
            chain_id,
            settlement: Address::from(accounts[0]),
            payer: Address::from(accounts[1]),
            request_id: words[0].into(),
            model_id: words[1].into(),
            base_hash: words[2].into(),
            adapter_hash: words[3].into(),
            manifest_hash: words[4].into(),
            sketch_root: words[5].into(),
            prompt_hash: words[6].into(),
            response_hash: words[7].into(),
            query_hash: words[8].into(),
            evidence_hash: words[7].into(),
            tokens_in,
            tokens_out,
            fee_wei,
            answered_at_s,
        }
    }
}

proptest! {
    #[test]
    fn receipt_round_trips_through_the_bindings(receipt in receipts()) {
        let bound = InferenceSettlement::Receipt::from(&receipt);
        prop_assert_eq!(bound.abi_encode(), receipt.encode());
        prop_assert_eq!(ol_types::Receipt::from(&bound), receipt);
    }

    #[test]
    fn fee_is_the_exact_formula(
        price_in in 0..=ol_types::OPEN_CAP_WEI,
        price_out in 0..=ol_types::OPEN_CAP_WEI,
        flat in 0..=ol_types::OPEN_CAP_WEI,
        tokens_in: u32,
        tokens_out: u32,
    ) {
        let params = ModelRegistry::Params {
            priceInPerKTokens: price_in,
            priceOutPerKTokens: price_out,
            platformFee: flat,
            ..Default::default()
        };
        let expected = U256::from(tokens_in) * U256::from(price_in) / U256::from(1000)
            + U256::from(tokens_out) * U256::from(price_out) / U256::from(1000)
            + U256::from(flat);
        prop_assert_eq!(params.fee_wei(tokens_in, tokens_out).map(U256::from), Some(expected));
    }
}
