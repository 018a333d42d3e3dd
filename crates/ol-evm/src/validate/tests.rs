//! Goal: a block that follows the rules passes, and each defect is named.
//! Method: valid blocks of both rule sets, then one change at a time. The
//! public tests of Ethereum check the rules themselves (`ol-conformance`).

use alloy_consensus::{SignableTransaction, TxEip4844, TxLegacy};
use alloy_genesis::ChainConfig;
use alloy_primitives::{Bloom, Bytes, Signature};
use op_alloy_consensus::TxDeposit;

use super::*;
use crate::{BlockContext, MemoryState, execute_block};

fn ours() -> (Header, Header, Execution) {
    let parent = header::genesis(100, 0, None, Bytes::new(), B256::repeat_byte(1));
    let context = BlockContext::after(&parent, parent.hash_slow(), 7, 101, &Rules::OpenLedger);
    let execution = execute_block(&MemoryState::default(), &context, &[]).unwrap();
    let header = header::seal(&context, &[], &execution, B256::repeat_byte(2));
    (parent, header, execution)
}

/// Every fork up to Cancun from genesis on, but for proof of work.
fn cancun() -> Rules {
    let config = ChainConfig {
        homestead_block: Some(0),
        eip150_block: Some(0),
        eip155_block: Some(0),
        eip158_block: Some(0),
        byzantium_block: Some(0),
        constantinople_block: Some(0),
        istanbul_block: Some(0),
        berlin_block: Some(0),
        london_block: Some(0),
        terminal_total_difficulty: Some(U256::ZERO),
        shanghai_time: Some(0),
        cancun_time: Some(0),
        ..ChainConfig::default()
    };
    Rules::of_genesis(&config).unwrap()
}

fn of_cancun() -> (Header, Header) {
    let (parent, header, _) = ours();
    let parent = Header {
        requests_hash: None,
        ..parent
    };
    let header = Header {
        requests_hash: None,
        parent_hash: parent.hash_slow(),
        ..header
    };
    (parent, header)
}

type Change = fn(&mut Header);

#[track_caller]
fn check(parent: &Header, header: &Header, rules: &Rules, defects: &[(Change, &str)]) {
    assert_eq!(validate_header(parent, header, rules), Ok(()));
    for (change, named) in defects {
        let mut header = header.clone();
        change(&mut header);
        let error = validate_header(parent, &header, rules).expect_err(named);
        assert!(error.to_string().contains(named), "{error} names {named}");
    }
}

/// Defects that both rule sets refuse.
const DEFECTS: [(Change, &str); 16] = [
    (|h| h.parent_hash = B256::ZERO, "parent hash"),
    (|h| h.number = 7, "number"),
    (|h| h.timestamp = 99, "timestamp"),
    (|h| h.gas_used = h.gas_limit + 1, "gas used"),
    (|h| h.gas_limit *= 2, "gas"),
    (|h| h.extra_data = vec![0; 33].into(), "extra data"),
    (|h| h.base_fee_per_gas = None, "baseFeePerGas"),
    (|h| h.base_fee_per_gas = Some(1), "baseFeePerGas"),
    (|h| h.difficulty = U256::from(1), "difficulty"),
    (|h| h.nonce = B64::repeat_byte(1), "nonce"),
    (|h| h.ommers_hash = B256::ZERO, "sha3Uncles"),
    (|h| h.withdrawals_root = None, "withdrawalsRoot"),
    (|h| h.blob_gas_used = None, "blobGasUsed"),
    (|h| h.excess_blob_gas = Some(131_072), "excessBlobGas"),
    (
        |h| h.parent_beacon_block_root = None,
        "parentBeaconBlockRoot",
    ),
    (|h| h.slot_number = Some(1), "slotNumber"),
];

#[test]
fn our_headers_have_one_form() {
    let (parent, header, _) = ours();
    let mut defects = DEFECTS.to_vec();
    let more: [(Change, &str); 6] = [
        (|h| h.gas_limit += 1, "gasLimit"),
        (|h| h.beneficiary = Address::ZERO, "miner"),
        (|h| h.extra_data = vec![0].into(), "extra data"),
        (|h| h.mix_hash = B256::repeat_byte(1), "mixHash"),
        (|h| h.blob_gas_used = Some(131_072), "blobGasUsed"),
        (|h| h.requests_hash = None, "requestsHash"),
    ];
    defects.extend(more);
    check(&parent, &header, &Rules::OpenLedger, &defects);
    let twin = Header {
        timestamp: parent.timestamp,
        ..header
    };
    assert_eq!(validate_header(&parent, &twin, &Rules::OpenLedger), Ok(()));
}

#[test]
fn ethereum_headers_follow_their_fork() {
    let (parent, header) = of_cancun();
    let mut defects = DEFECTS.to_vec();
    let more: [(Change, &str); 5] = [
        (|h| h.timestamp = 100, "timestamp"),
        (|h| h.gas_limit += h.gas_limit / 1_024, "gas limit"),
        (|h| h.blob_gas_used = Some(1), "blob gas"),
        (|h| h.blob_gas_used = Some(131_072 * 7), "blob gas"),
        (|h| h.requests_hash = Some(B256::ZERO), "requestsHash"),
    ];
    defects.extend(more);
    check(&parent, &header, &cancun(), &defects);
    let free: [Change; 4] = [
        |h| h.gas_limit += h.gas_limit / 1_024 - 1,
        |h| h.beneficiary = Address::repeat_byte(1),
        |h| h.mix_hash = B256::repeat_byte(1),
        |h| h.extra_data = vec![0; 32].into(),
    ];
    for change in free {
        let mut header = header.clone();
        change(&mut header);
        assert_eq!(validate_header(&parent, &header, &cancun()), Ok(()));
    }
}

#[test]
fn proof_of_work_ends_at_the_terminal_difficulty() {
    let config = ChainConfig {
        homestead_block: Some(0),
        eip150_block: Some(0),
        eip158_block: Some(0),
        byzantium_block: Some(0),
        constantinople_block: Some(0),
        istanbul_block: Some(0),
        berlin_block: Some(0),
        london_block: Some(0),
        terminal_total_difficulty: Some(U256::from(100)),
        ..ChainConfig::default()
    };
    let rules = Rules::of_genesis(&config).unwrap();
    let of = |difficulty: u64| Header {
        difficulty: U256::from(difficulty),
        ..Header::default()
    };
    let check = |total: u64, difficulty: u64| {
        validate_terminal_difficulty(U256::from(total), &of(difficulty), &rules)
    };
    assert_eq!(check(99, 5), Ok(()));
    assert_eq!(check(100, 0), Ok(()));
    for (total, difficulty, named) in [(100, 5, "proof of work"), (99, 0, "proof of stake")] {
        let error = check(total, difficulty).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn a_body_is_bound_by_its_header() {
    let signature = Signature::test_signature();
    let (_, header) = of_cancun();
    let blob: Transaction = TxEip4844 {
        blob_versioned_hashes: vec![B256::ZERO; 2],
        ..TxEip4844::default()
    }
    .into_signed(signature)
    .into();
    let plain: Transaction = TxLegacy::default().into_signed(signature).into();
    let body = BlockBody {
        transactions: vec![plain, blob],
        ommers: Vec::new(),
        withdrawals: Some(Vec::new().into()),
    };
    let header = Header {
        transactions_root: proofs::calculate_transaction_root(&body.transactions),
        blob_gas_used: Some(2 * DATA_GAS_PER_BLOB),
        ..header
    };
    assert_eq!(validate_body(&header, &body, &cancun()), Ok(()));
    assert_eq!(
        validate_body(&header, &body, &Rules::OpenLedger),
        Err(BlockError::TransactionType { position: 1 })
    );
    type BodyChange = fn(&mut BlockBody<Transaction>);
    let defects: [(BodyChange, &str); 5] = [
        (|b| b.transactions.truncate(1), "transactionsRoot"),
        (|b| b.ommers.push(Header::default()), "sha3Uncles"),
        (|b| b.withdrawals = None, "withdrawals"),
        (
            |b| b.withdrawals = Some(vec![Default::default()].into()),
            "withdrawalsRoot",
        ),
        (
            |b| b.transactions.push(TxDeposit::default().into()),
            "transaction 2",
        ),
    ];
    for (change, named) in defects {
        let mut body = body.clone();
        change(&mut body);
        let error = validate_body(&header, &body, &cancun()).expect_err(named);
        assert!(error.to_string().contains(named), "{error} names {named}");
    }
    let wrong = Header {
        blob_gas_used: Some(0),
        ..header
    };
    assert!(validate_body(&wrong, &body, &cancun()).is_err());
}

#[test]
fn an_execution_is_bound_by_the_header() {
    let (_, header, execution) = ours();
    let rules = Rules::OpenLedger;
    assert_eq!(validate_execution(&header, &execution, &rules), Ok(()));
    let defects: [(Change, &str); 4] = [
        (|h| h.gas_used = 1, "gasUsed"),
        (|h| h.receipts_root = B256::ZERO, "receiptsRoot"),
        (|h| h.logs_bloom = Bloom::repeat_byte(1), "logsBloom"),
        (|h| h.requests_hash = Some(B256::ZERO), "requestsHash"),
    ];
    for (change, named) in defects {
        let mut header = header.clone();
        change(&mut header);
        let error = validate_execution(&header, &execution, &rules).expect_err(named);
        assert!(error.to_string().contains(named), "{error} names {named}");
    }
}
