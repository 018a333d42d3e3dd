//! Goal: the contracts, the genesis and the precompiles make the loop: data is
//! registered, an answer is settled, contributors are paid, no wei is made.
//! Method: real transactions on `ol-evm` from the development genesis, with the
//! golden sketch index whose weights a script computed independently.

use crate::chain::Chain;
use alloy_primitives::{Address, B256, Bytes, U256, hex, keccak256};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::{SolError, SolValue};
use ol_contracts::address::{
    DATANET_REGISTRY, DEV_ACCOUNTS, INFERENCE_SETTLEMENT, MODEL_REGISTRY, OPEN, OPEN_TRANSFER,
    SKETCH_STORE, STAKERS_POOL,
};
use ol_contracts::bindings::{
    DatanetRegistry, IOpenTransfer, InferenceSettlement, ModelRegistry, Open, SketchStore,
};
use ol_contracts::settlement::{Credit, Settlement};
use ol_contracts::sketch::chunk_address;
use ol_poa::{DEFAULT_POTS_BPS, Earned, Evidence, Pot, split_pots};
use ol_types::{DEV_CHAIN_ID, DEV_MNEMONIC_KEYS, OPEN_CAP_WEI, Receipt, WEI_PER_OPEN, name_id};
use serde_json::Value;

const PLATFORM: Address = DEV_ACCOUNTS[0];
const OPERATOR: Address = DEV_ACCOUNTS[1];
const OWNER: Address = DEV_ACCOUNTS[2];
const PAYER: Address = DEV_ACCOUNTS[3];
const USER: Address = DEV_ACCOUNTS[4];
const TREASURY: Address = Address::repeat_byte(0x7e);

/// An index of the golden vectors.
struct Golden {
    chunks: Vec<Bytes>,
    root: B256,
    query: Bytes,
    null_threshold: u64,
    weights: Vec<(Address, u64)>,
}

fn golden(name: &str) -> Golden {
    let vectors: Value = serde_json::from_str(include_str!(
        "../../../../contracts/test/vectors/sketch.json"
    ))
    .unwrap();
    let indexes = vectors["indexes"].as_array().unwrap();
    let index = indexes.iter().find(|index| index["name"] == name).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let list = |key: &str| {
        index[key]
            .as_array()
            .unwrap()
            .iter()
            .map(text)
            .collect::<Vec<_>>()
    };
    let bytes = |text: String| Bytes::from(hex::decode(text).unwrap());
    let weights = list("weights")
        .into_iter()
        .map(|weight| weight.parse().unwrap());
    Golden {
        chunks: list("chunks").into_iter().map(bytes).collect(),
        root: text(&index["root"]).parse().unwrap(),
        query: bytes(text(&index["query"])),
        null_threshold: text(&index["nullThreshold"]).parse().unwrap(),
        weights: list("contributors")
            .into_iter()
            .map(|who| who.parse().unwrap())
            .zip(weights)
            .collect(),
    }
}

/// Puts a datanet, an index and a model on chain.
fn publish(chain: &mut Chain, golden: &Golden) {
    let name = "legal".to_owned();
    let create = DatanetRegistry::createCall {
        name,
        treasury: TREASURY,
    };
    chain.must(OWNER, DATANET_REGISTRY, 0, &create);
    let version = DatanetRegistry::publishCall {
        id: name_id("legal"),
        version: 1,
        root: keccak256("root"),
        manifestHash: keccak256("manifest"),
        nRecords: 260,
        nContributors: 7,
    };
    chain.must(OWNER, DATANET_REGISTRY, 0, &version);

    let mut chunks = Vec::new();
    for chunk in &golden.chunks {
        let write = SketchStore::writeCall {
            chunk: chunk.clone(),
        };
        chain.must(OWNER, SKETCH_STORE, 0, &write);
        let at = chunk_address(chunk).unwrap();
        let code = &chain.state.codes[&chain.state.accounts[&at].code_hash];
        assert_eq!(code[0], 0);
        assert_eq!(code[1..], chunk[..]);
        chunks.push(at);
    }
    chain.must(
        OWNER,
        SKETCH_STORE,
        0,
        &SketchStore::sealCall {
            chunks: chunks.clone(),
        },
    );
    let index = chain.view(
        SKETCH_STORE,
        &SketchStore::indexOfCall { root: golden.root },
    );
    assert_eq!(index.chunks, chunks);

    let params = params(golden);
    let register = ModelRegistry::registerCall {
        name: "legal-model".to_owned(),
        params,
    };
    chain.must(OWNER, MODEL_REGISTRY, 0, &register);
}

fn params(golden: &Golden) -> ModelRegistry::Params {
    ModelRegistry::Params {
        baseHash: keccak256("base"),
        adapterHash: keccak256("adapter"),
        manifestHash: keccak256("training manifest"),
        sketchRoot: golden.root,
        datanetIds: vec![name_id("legal")],
        treasury: TREASURY,
        nullThreshold: golden.null_threshold,
        priceInPerKTokens: WEI_PER_OPEN,
        priceOutPerKTokens: 2 * WEI_PER_OPEN,
        platformFee: 7,
        splitBps: [1000, 2000, 2000, 5000],
        potsBps: DEFAULT_POTS_BPS,
    }
}

fn receipt(golden: &Golden, request: &str) -> Receipt {
    let params = params(golden);
    Receipt {
        chain_id: DEV_CHAIN_ID,
        settlement: INFERENCE_SETTLEMENT,
        payer: PAYER,
        request_id: keccak256(request),
        model_id: name_id("legal-model"),
        base_hash: params.baseHash,
        adapter_hash: params.adapterHash,
        manifest_hash: params.manifestHash,
        sketch_root: params.sketchRoot,
        prompt_hash: keccak256("prompt"),
        response_hash: keccak256("response"),
        query_hash: keccak256(&golden.query),
        evidence_hash: Evidence::default().hash(),
        tokens_in: 123,
        tokens_out: 45,
        fee_wei: params.fee_wei(123, 45).unwrap(),
        answered_at_s: 1_800_000_000,
    }
}

fn settle(receipt: &Receipt, query: &Bytes) -> InferenceSettlement::settleCall {
    InferenceSettlement::settleCall {
        receipt: receipt.into(),
        query: query.clone(),
        evidence: (&Evidence::default()).into(),
    }
}

fn deposit(chain: &mut Chain, open: u128) {
    let call = InferenceSettlement::depositCall {};
    chain.must(PAYER, INFERENCE_SETTLEMENT, open * WEI_PER_OPEN, &call);
}

fn credit_wei(chain: &Chain, account: Address) -> u128 {
    let question = InferenceSettlement::creditCall { account };
    chain
        .view(INFERENCE_SETTLEMENT, &question)
        .try_into()
        .unwrap()
}

#[test]
fn an_answer_pays_those_whose_data_moved_it() {
    let golden = golden("chunks");
    let mut chain = Chain::new();
    publish(&mut chain, &golden);
    deposit(&mut chain, 10);

    let receipt = receipt(&golden, "request");
    let quote = InferenceSettlement::quoteCall {
        modelId: receipt.model_id,
        tokensIn: 123,
        tokensOut: 45,
    };
    assert_eq!(
        chain.view(INFERENCE_SETTLEMENT, &quote),
        U256::from(receipt.fee_wei)
    );
    let outcome = chain.must(
        OPERATOR,
        INFERENCE_SETTLEMENT,
        0,
        &settle(&receipt, &golden.query),
    );
    println!(
        "settle, {} contributors paid for the first time: {} gas",
        golden.weights.len(),
        outcome.gas_used
    );

    let settlements = Settlement::from_logs(&outcome.logs).unwrap();
    let [settlement] = settlements.as_slice() else {
        panic!("one receipt")
    };
    assert_eq!(settlement.receipt_id, receipt.id());
    assert_eq!(settlement.payer, PAYER);
    assert_eq!(settlement.fee_wei, receipt.fee_wei);
    let training = &settlement.pots[Pot::Training as usize];
    let weights: Vec<_> = training
        .credits
        .iter()
        .map(|credit| (credit.contributor, credit.weight))
        .collect();
    assert_eq!(weights, golden.weights);
    assert_eq!(settlement.treasury, None);

    let mut expected = vec![
        (PLATFORM, settlement.platform_wei),
        (OWNER, settlement.model_wei),
        (STAKERS_POOL, settlement.stakers_wei),
    ];
    expected.extend(
        training
            .credits
            .iter()
            .map(|credit| (credit.contributor, credit.amount_wei)),
    );
    for (account, amount_wei) in expected {
        assert_eq!(credit_wei(&chain, account), amount_wei, "{account}");
        if amount_wei == 0 {
            continue;
        }
        let before_wei = chain.balance_wei(account);
        chain.must(
            USER,
            INFERENCE_SETTLEMENT,
            0,
            &InferenceSettlement::claimForCall { account },
        );
        assert_eq!(
            chain.balance_wei(account),
            before_wei + amount_wei,
            "{account}"
        );
        assert_eq!(credit_wei(&chain, account), 0, "{account}");
    }
    assert_eq!(
        chain.balance_wei(INFERENCE_SETTLEMENT),
        10 * WEI_PER_OPEN - receipt.fee_wei
    );
    let withdraw = InferenceSettlement::withdrawCall {
        amount: U256::from(10 * WEI_PER_OPEN - receipt.fee_wei),
    };
    chain.must(PAYER, INFERENCE_SETTLEMENT, 0, &withdraw);
    assert_eq!(chain.balance_wei(INFERENCE_SETTLEMENT), 0);
    assert_eq!(chain.state.supply_wei(), U256::from(OPEN_CAP_WEI));
}

#[test]
fn the_treasury_gets_what_nobody_earned() {
    let mut golden = golden("three");
    // Above any net there can be.
    golden.null_threshold = i64::MAX.unsigned_abs();
    let mut chain = Chain::new();
    publish(&mut chain, &golden);
    deposit(&mut chain, 1);
    let outcome = chain.must(
        OPERATOR,
        INFERENCE_SETTLEMENT,
        0,
        &settle(&receipt(&golden, "request"), &golden.query),
    );
    let settlements = Settlement::from_logs(&outcome.logs).unwrap();
    assert_eq!(settlements[0].treasury, Some(TREASURY));
    assert_eq!(
        credit_wei(&chain, TREASURY),
        settlements[0].contributors_wei()
    );
}

#[test]
fn evidence_opens_the_pots_of_spans_and_context() {
    let golden = golden("chunks");
    let mut chain = Chain::new();
    publish(&mut chain, &golden);
    deposit(&mut chain, 10);
    let who = |n: u8| Address::repeat_byte(n);
    let spans: Vec<_> = (1..=200)
        .map(|n| (who(n), u64::from(n) * 1_000_003))
        .collect();
    let mut context = vec![(who(3), u64::MAX >> 1), (golden.weights[0].0, 1)];
    context.sort_unstable();
    let [spans, context] =
        [(spans, 1 << 40), (context, u64::MAX)].map(|(w, total)| Earned::new(w, total));
    let evidence = Evidence::new(spans, context, keccak256("object")).unwrap();
    let receipt = Receipt {
        evidence_hash: evidence.hash(),
        ..receipt(&golden, "request")
    };
    let call = InferenceSettlement::settleCall {
        evidence: (&evidence).into(),
        ..settle(&receipt, &golden.query)
    };
    let outcome = chain.must(OPERATOR, INFERENCE_SETTLEMENT, 0, &call);
    println!(
        "settle, 202 of evidence for the first time: {} gas",
        outcome.gas_used
    );
    let settlement = Settlement::from_logs(&outcome.logs).unwrap().remove(0);

    let part_wei = ol_poa::split_fee(receipt.fee_wei, [1000, 2000, 2000, 5000]).unwrap()[3];
    let pots = split_pots(part_wei, DEFAULT_POTS_BPS, &evidence).unwrap();
    let training = &golden.weights;
    let mut expected = std::collections::BTreeMap::<Address, u128>::new();
    for (pot, weights) in [
        training,
        &evidence.spans().weights,
        &evidence.context().weights,
    ]
    .into_iter()
    .enumerate()
    {
        let amounts: Vec<u64> = weights.iter().map(|&(_, weight)| weight).collect();
        let amounts = ol_poa::shares(pots[pot], &amounts).unwrap();
        let credits: Vec<Credit> = weights
            .iter()
            .zip(&amounts)
            .map(|(&(contributor, weight), &amount_wei)| Credit {
                contributor,
                weight,
                amount_wei,
            })
            .collect();
        assert_eq!(settlement.pots[pot].amount_wei, pots[pot]);
        assert_eq!(settlement.pots[pot].credits, credits);
        for credit in credits {
            *expected.entry(credit.contributor).or_default() += credit.amount_wei;
        }
    }
    assert_eq!(expected.values().sum::<u128>(), part_wei);
    for (contributor, amount_wei) in expected {
        assert_eq!(credit_wei(&chain, contributor), amount_wei);
    }
}

#[test]
fn a_refused_receipt_charges_nothing() {
    let golden = golden("three");
    let mut chain = Chain::new();
    publish(&mut chain, &golden);
    deposit(&mut chain, 1);
    let good = receipt(&golden, "request");
    let settle_good = settle(&good, &golden.query);
    chain.must(OPERATOR, INFERENCE_SETTLEMENT, 0, &settle_good);

    let new = receipt(&golden, "another request");
    let short: Bytes = golden.query[..127].to_vec().into();
    let with = |change: &dyn Fn(&mut Receipt)| {
        let mut receipt = new.clone();
        change(&mut receipt);
        settle(&receipt, &golden.query)
    };
    let cases = [
        (
            USER,
            settle(&new, &golden.query),
            InferenceSettlement::NotOperator::SELECTOR,
        ),
        (
            OPERATOR,
            settle_good,
            InferenceSettlement::AlreadySettled::SELECTOR,
        ),
        (
            OPERATOR,
            with(&|r| r.chain_id += 1),
            InferenceSettlement::WrongSettlement::SELECTOR,
        ),
        (
            OPERATOR,
            with(&|r| r.base_hash = B256::ZERO),
            InferenceSettlement::WrongModel::SELECTOR,
        ),
        (
            OPERATOR,
            with(&|r| r.fee_wei += 1),
            InferenceSettlement::WrongFee::SELECTOR,
        ),
        (
            OPERATOR,
            with(&|r| r.query_hash = B256::ZERO),
            InferenceSettlement::WrongQuery::SELECTOR,
        ),
        (
            OPERATOR,
            with(&|r| r.evidence_hash = B256::ZERO),
            InferenceSettlement::WrongEvidence::SELECTOR,
        ),
        (
            OPERATOR,
            with(&|r| r.payer = USER),
            InferenceSettlement::InsufficientPrepaid::SELECTOR,
        ),
        (
            OPERATOR,
            settle(
                &Receipt {
                    query_hash: keccak256(&short),
                    ..new.clone()
                },
                &short,
            ),
            // The precompile's own refusal: `Error(string)`.
            hex!("08c379a0"),
        ),
    ];
    let held_wei = chain.balance_wei(INFERENCE_SETTLEMENT);
    let prepaid = InferenceSettlement::prepaidCall { account: PAYER };
    let prepaid_wei = chain.view(INFERENCE_SETTLEMENT, &prepaid);
    for (from, call, selector) in cases {
        assert_eq!(chain.refusal(from, INFERENCE_SETTLEMENT, &call).0, selector);
        let outcome = chain.send(from, INFERENCE_SETTLEMENT, 0, &call);
        assert!(!outcome.is_success);
        assert!(outcome.logs.is_empty());
        assert_eq!(chain.view(INFERENCE_SETTLEMENT, &prepaid), prepaid_wei);
    }
    assert_eq!(chain.balance_wei(INFERENCE_SETTLEMENT), held_wei);
    assert_eq!(chain.state.supply_wei(), U256::from(OPEN_CAP_WEI));
}

#[test]
fn the_facade_moves_native_balance() {
    let mut chain = Chain::new();
    let to = Address::repeat_byte(0x55);
    let value = U256::from(5 * WEI_PER_OPEN);
    let outcome = chain.must(PAYER, OPEN, 0, &Open::transferCall { to, value });
    println!("OPEN transfer to a new account: {} gas", outcome.gas_used);
    assert_eq!(chain.balance_wei(to), 5 * WEI_PER_OPEN);
    assert_eq!(
        chain.view(OPEN, &Open::balanceOfCall { account: to }),
        value
    );
    assert_eq!(
        chain.view(OPEN, &Open::totalSupplyCall {}),
        U256::from(OPEN_CAP_WEI)
    );

    // Nobody but the façade moves balances.
    let theft = IOpenTransfer::transferCall {
        from: PAYER,
        to: USER,
        amount: value,
    };
    assert!(chain.refusal(USER, OPEN_TRANSFER, &theft).1.is_some());
    assert!(!chain.send(USER, OPEN_TRANSFER, 0, &theft).is_success);
    assert_eq!(chain.state.supply_wei(), U256::from(OPEN_CAP_WEI));
}

#[test]
fn a_permit_lets_another_account_spend() {
    let mut chain = Chain::new();
    let signer: PrivateKeySigner = DEV_MNEMONIC_KEYS[3].parse().unwrap();
    let value = U256::from(WEI_PER_OPEN);
    let deadline = U256::from(u64::MAX);
    let message = keccak256(
        (
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"),
            PAYER,
            USER,
            value,
            U256::ZERO,
            deadline,
        )
            .abi_encode(),
    );
    let domain = chain.view(OPEN, &Open::DOMAIN_SEPARATORCall {});
    let digest = keccak256([&hex!("1901")[..], domain.as_slice(), message.as_slice()].concat());
    let signature = signer.sign_hash_sync(&digest);
    let signature = signature.unwrap();
    let permit = Open::permitCall {
        owner: PAYER,
        spender: USER,
        value,
        deadline,
        v: 27 + u8::from(signature.v()),
        r: signature.r().into(),
        s: signature.s().into(),
    };
    chain.must(OPERATOR, OPEN, 0, &permit);
    let spend = Open::transferFromCall {
        from: PAYER,
        to: OWNER,
        value,
    };
    let before_wei = chain.balance_wei(OWNER);
    chain.must(USER, OPEN, 0, &spend);
    assert_eq!(chain.balance_wei(OWNER), before_wei + WEI_PER_OPEN);
    assert!(
        !chain.send(USER, OPEN, 0, &spend).is_success,
        "the allowance is used up"
    );
}
