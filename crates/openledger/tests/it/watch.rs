//! Goal: a watcher finds a lie on a running chain by itself, has it refuted and
//! is paid; it goes on where it ended, and says by its status what it found.
//! Method: a node without models, claims of an operator written by the test,
//! the objects in the folder, and the binary as `watch --once`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use alloy_consensus::{SignableTransaction as _, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718 as _;
use alloy_primitives::{Address, B256, TxKind, U256, hex, keccak256};
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::SolCall;
use ol_contracts::address::{
    ATTRIBUTION_COURT, DATANET_REGISTRY, INFERENCE_SETTLEMENT, MODEL_REGISTRY,
};
use ol_contracts::bindings::{
    AttributionCourt, DatanetRegistry, InferenceSettlement, ModelRegistry,
};
use ol_contracts::court::{commit_call, posted_call};
use ol_poa::court::{Claim, CommittedIndex};
use ol_poa::{Entry, Evidence, Index, K, QuerySketch};
use ol_runtime::DataDir;
use ol_types::{DEV_CHAIN_ID, DEV_MNEMONIC_KEYS, Receipt, WEI_PER_OPEN, name_id};
use serde_json::{Value, json};

use crate::harness::{NodeAlone, openledger};

pub(crate) const OPERATOR: usize = 1;
const OWNER: usize = 2;
pub(crate) const PAYER: usize = 3;
pub(crate) const WATCHER: usize = 4;

const FEE_WEI: u128 = WEI_PER_OPEN + 10;
const POT_WEI: u128 = FEE_WEI / 2;

pub(crate) fn signer(account: usize) -> PrivateKeySigner {
    DEV_MNEMONIC_KEYS[account].parse().unwrap()
}

fn send<C: SolCall>(node: &NodeAlone, account: usize, to: Address, value_wei: u128, call: &C) {
    let rpc = |method: &str, params: Value| node.rpc(method, params);
    send_by(&rpc, account, to, value_wei, call);
}

/// Sends a call of a development account, which must succeed.
pub(crate) fn send_by<C: SolCall>(
    rpc: &dyn Fn(&str, Value) -> Value,
    account: usize,
    to: Address,
    value_wei: u128,
    call: &C,
) {
    let signer = signer(account);
    let nonce = rpc(
        "eth_getTransactionCount",
        json!([signer.address(), "latest"]),
    );
    let nonce = u64::from_str_radix(&nonce.as_str().unwrap()[2..], 16).unwrap();
    let transaction = TxEip1559 {
        chain_id: DEV_CHAIN_ID,
        nonce,
        gas_limit: 5_000_000,
        max_fee_per_gas: 4_000_000_000,
        max_priority_fee_per_gas: 0,
        to: TxKind::Call(to),
        value: U256::from(value_wei),
        access_list: Default::default(),
        input: call.abi_encode().into(),
    };
    let signature = signer
        .sign_hash_sync(&transaction.signature_hash())
        .unwrap();
    let envelope = TxEnvelope::from(transaction.into_signed(signature));
    let raw = hex::encode_prefixed(envelope.encoded_2718());
    let hash = rpc("eth_sendRawTransaction", json!([raw]));
    let receipt = rpc("eth_getTransactionReceipt", json!([hash]));
    assert_eq!(receipt["status"], "0x1", "{}: {receipt}", C::SIGNATURE);
}

fn codes(seed: u32) -> [i8; K] {
    std::array::from_fn(|at| {
        let hash = keccak256([&seed.to_be_bytes()[..], &at.to_be_bytes()].concat());
        hash[0].cast_signed().max(-127)
    })
}

fn index() -> CommittedIndex {
    let entry = |cluster: u32| Entry {
        contributor: Address::left_padding_from(&(cluster % 5 + 1).to_be_bytes()),
        record: keccak256(cluster.to_be_bytes()),
        cluster,
        scale: 2,
        codes: codes(cluster).map(|code| code % 8),
    };
    let index = Index::new((0..40).map(entry).collect()).unwrap();
    CommittedIndex::from_bytes(index.as_bytes().to_vec()).unwrap()
}

fn register(node: &NodeAlone, index: &CommittedIndex) {
    send(node, OWNER, ATTRIBUTION_COURT, 0, &commit_call(index));
    let treasury = Address::repeat_byte(0x7e);
    let create = DatanetRegistry::createCall {
        name: "legal".to_owned(),
        treasury,
    };
    send(node, OWNER, DATANET_REGISTRY, 0, &create);
    let register = ModelRegistry::registerCall {
        name: "legal-model".to_owned(),
        params: ModelRegistry::Params {
            baseHash: keccak256("base"),
            adapterHash: keccak256("adapter"),
            manifestHash: keccak256("manifest"),
            sketchRoot: index.id(),
            datanetIds: vec![name_id("legal")],
            treasury,
            nullThreshold: 0,
            priceInPerKTokens: WEI_PER_OPEN,
            priceOutPerKTokens: 0,
            platformFee: 10,
            splitBps: [1000, 2000, 2000, 5000],
            potsBps: [10_000, 0, 0],
        },
    };
    send(node, OWNER, MODEL_REGISTRY, 0, &register);
    let deposit = InferenceSettlement::depositCall {};
    send(
        node,
        PAYER,
        INFERENCE_SETTLEMENT,
        100 * WEI_PER_OPEN,
        &deposit,
    );
    let bond = AttributionCourt::addBondCall {};
    send(node, OPERATOR, ATTRIBUTION_COURT, 100 * WEI_PER_OPEN, &bond);
}

fn claim(node: &NodeAlone, index: &CommittedIndex, number: u8, claim: &Claim, data: B256) -> B256 {
    let query = codes(1_000).map(i8::cast_unsigned);
    let receipt = Receipt {
        chain_id: DEV_CHAIN_ID,
        settlement: INFERENCE_SETTLEMENT,
        payer: signer(PAYER).address(),
        request_id: keccak256([number]),
        model_id: name_id("legal-model"),
        base_hash: keccak256("base"),
        adapter_hash: keccak256("adapter"),
        manifest_hash: keccak256("manifest"),
        sketch_root: index.id(),
        prompt_hash: keccak256("prompt"),
        response_hash: keccak256("response"),
        query_hash: keccak256(query),
        evidence_hash: Evidence::default().hash(),
        tokens_in: 1000,
        tokens_out: 0,
        fee_wei: FEE_WEI,
        answered_at_s: 1,
    };
    let call = AttributionCourt::claimCall {
        receipt: (&receipt).into(),
        query: query.to_vec().into(),
        posted: posted_call(&claim.posted()),
        version: 1,
        data,
    };
    send(node, OPERATOR, ATTRIBUTION_COURT, 0, &call);
    receipt.id()
}

/// The lines and the status of one look.
pub(crate) fn watch(dir: &Path, args: &[&str]) -> (Vec<Value>, Option<i32>) {
    let output = openledger(dir, &["watch", "--once", "--json"])
        .args(args)
        .output()
        .expect("the binary starts");
    let text = String::from_utf8(output.stdout).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    (lines.collect(), output.status.code())
}

fn verdicts(lines: &[Value]) -> Vec<(B256, String)> {
    let verdict = |line: &Value| {
        let id = line["claim"].as_str().unwrap().parse().unwrap();
        (id, line["verdict"].as_str().unwrap().to_owned())
    };
    let mut found: Vec<_> = lines.iter().map(verdict).collect();
    found.sort();
    found
}

fn sorted<const N: usize>(expected: [(B256, &str); N]) -> Vec<(B256, String)> {
    let mut expected = expected
        .map(|(id, verdict)| (id, verdict.to_owned()))
        .to_vec();
    expected.sort();
    expected
}

#[test]
fn a_lie_is_found_refuted_and_paid_for() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let node = NodeAlone::start(&dir, &["--dev", "--block-time", "on-demand"]);
    let index = index();
    register(&node, &index);
    let objects = DataDir::open_or_create(&dir).unwrap().objects().unwrap();
    let put = |bytes: &[u8]| objects.put(bytes.to_vec()).unwrap();

    let query = QuerySketch::new(codes(1_000)).unwrap();
    let honest = Claim::compute(&index, &query, 0, POT_WEI);
    // Two scores of one contributor: nobody is paid more or less by it, yet it is a lie.
    let mut bytes = honest.to_bytes(&index);
    bytes[7] ^= 1;
    let change = honest.scores.node(0, 0).unwrap().value & 1;
    let other = honest.scores.node(0, 1).unwrap().value + if change == 0 { -1 } else { 1 };
    bytes[8..16].copy_from_slice(&other.to_be_bytes());
    let lying = Claim::from_bytes(&index, 0, honest.cutoff, &bytes).unwrap();

    let right = claim(&node, &index, 1, &honest, B256::ZERO);
    let published = claim(&node, &index, 2, &lying, put(&bytes));
    let withheld = claim(&node, &index, 3, &lying, B256::ZERO);

    // Without the index nothing can be said.
    let (lines, code) = watch(&dir, &[]);
    assert_eq!(code, Some(0));
    let unknown = [right, published, withheld].map(|id| (id, "unknown"));
    assert_eq!(verdicts(&lines), sorted(unknown));

    put(index.as_bytes());
    let (lines, code) = watch(&dir, &["--dry-run"]);
    assert_eq!(code, Some(3));
    let found = [(right, "right"), (published, "lie"), (withheld, "lie")];
    assert_eq!(verdicts(&lines), sorted(found));

    // With a key it acts; what it called right it has let go of.
    let key = folder.path().join("key");
    std::fs::write(&key, DEV_MNEMONIC_KEYS[WATCHER]).unwrap();
    let shared = watch(&dir, &["--key", key.to_str().unwrap()]);
    assert_eq!(shared.1, Some(1), "a key that others may read is refused");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (lines, code) = watch(&dir, &["--key", key.to_str().unwrap()]);
    assert_eq!(code, Some(3));
    assert_eq!(
        verdicts(&lines),
        sorted([(published, "lie"), (withheld, "waiting")])
    );

    let credit = AttributionCourt::creditCall {
        account: signer(WATCHER).address(),
    };
    let call = json!([{"to": ATTRIBUTION_COURT, "data": hex::encode_prefixed(credit.abi_encode())}, "latest"]);
    let credit: U256 = node
        .rpc("eth_call", call)
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let bond_wei = FEE_WEI + WEI_PER_OPEN / 10;
    assert_eq!(
        credit,
        U256::from(bond_wei - bond_wei / 4 + WEI_PER_OPEN / 100)
    );

    // The operator reveals nothing yet; the watcher neither forgets nor asks twice.
    let (lines, code) = watch(&dir, &["--key", key.to_str().unwrap()]);
    assert_eq!(code, Some(0));
    let found = [(published, "over"), (withheld, "waiting")];
    assert_eq!(verdicts(&lines), sorted(found));

    // It does, and that refutes it.
    let reveal = AttributionCourt::answerRevealCall {
        id: withheld,
        challenger: signer(WATCHER).address(),
        row: lying
            .scores
            .row_below(lying.scores.depth(), 0)
            .unwrap()
            .iter()
            .flat_map(ol_poa::court::Node::encode)
            .collect::<Vec<u8>>()
            .into(),
    };
    send(&node, OPERATOR, ATTRIBUTION_COURT, 0, &reveal);
    let (lines, _) = watch(&dir, &["--key", key.to_str().unwrap()]);
    assert_eq!(verdicts(&lines), sorted([(withheld, "waiting")]));
    let deeper = AttributionCourt::answerRevealCall {
        row: lying
            .scores
            .row_below(2, 0)
            .unwrap()
            .iter()
            .flat_map(ol_poa::court::Node::encode)
            .collect::<Vec<u8>>()
            .into(),
        ..reveal
    };
    send(&node, OPERATOR, ATTRIBUTION_COURT, 0, &deeper);
    let (lines, code) = watch(&dir, &["--key", key.to_str().unwrap()]);
    assert_eq!(code, Some(3));
    assert_eq!(verdicts(&lines), sorted([(withheld, "lie")]));

    let (lines, code) = watch(&dir, &[]);
    assert_eq!(code, Some(0));
    assert_eq!(verdicts(&lines), sorted([(withheld, "over")]));
    let (lines, code) = watch(&dir, &[]);
    assert_eq!((lines.len(), code), (0, Some(0)));
    node.stop();
}
