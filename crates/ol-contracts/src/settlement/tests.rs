//! Goal: logs of settled receipts are read exactly, and nothing else passes
//! for one. Method: events encoded by the bindings, then spoiled one by one.

use alloy_primitives::LogData;
use proptest::prelude::*;

use super::*;

const RECEIPT: B256 = B256::repeat_byte(0x11);
const OTHER: B256 = B256::repeat_byte(0x12);
const ALICE: Address = Address::repeat_byte(0xa1);
const BOB: Address = Address::repeat_byte(0xb0);
const TREASURY: Address = Address::repeat_byte(0xcc);

fn log(data: LogData) -> Log {
    Log {
        address: INFERENCE_SETTLEMENT,
        data,
    }
}

fn settled(receipt_id: B256) -> Settled {
    Settled {
        receiptId: receipt_id,
        modelId: B256::repeat_byte(0x22),
        payer: Address::repeat_byte(0x33),
        fee: U256::from(10),
        platform: U256::from(1),
        model: U256::from(2),
        stakers: U256::from(2),
        training: U256::from(5),
        spans: U256::ZERO,
        context: U256::ZERO,
    }
}

/// The same fee, its last five wei in three pots.
fn potted(receipt_id: B256) -> Settled {
    Settled {
        training: U256::from(2),
        spans: U256::from(2),
        context: U256::from(1),
        ..settled(receipt_id)
    }
}

fn credited_of(pot: Pot, receipt_id: B256, amounts: &[(Address, u64)]) -> Credited {
    Credited {
        pot: pot as u8,
        ..credited(receipt_id, amounts)
    }
}

fn credited(receipt_id: B256, amounts: &[(Address, u64)]) -> Credited {
    Credited {
        receiptId: receipt_id,
        pot: Pot::Training as u8,
        contributors: amounts.iter().map(|&(who, _)| who).collect(),
        weights: amounts.iter().map(|&(_, amount)| amount * 100).collect(),
        amounts: amounts
            .iter()
            .map(|&(_, amount)| U256::from(amount))
            .collect(),
    }
}

fn treasury(receipt_id: B256, amount: u64) -> TreasuryCredited {
    TreasuryCredited {
        receiptId: receipt_id,
        treasury: TREASURY,
        amount: U256::from(amount),
    }
}

fn encode(events: &[&dyn Fn() -> LogData]) -> Vec<Log> {
    events.iter().map(|event| log(event())).collect()
}

#[test]
fn contributors_are_listed_with_weights_and_amounts() {
    let logs = encode(&[&|| settled(RECEIPT).encode_log_data(), &|| {
        credited(RECEIPT, &[(ALICE, 2), (BOB, 3)]).encode_log_data()
    }]);
    let found = Settlement::from_logs(&logs).unwrap();
    let credit = |contributor, amount: u64| Credit {
        contributor,
        weight: amount * 100,
        amount_wei: amount.into(),
    };
    let expected = Settlement {
        receipt_id: RECEIPT,
        model_id: B256::repeat_byte(0x22),
        payer: Address::repeat_byte(0x33),
        fee_wei: 10,
        platform_wei: 1,
        model_wei: 2,
        stakers_wei: 2,
        pots: [
            PotCredits {
                amount_wei: 5,
                credits: vec![credit(ALICE, 2), credit(BOB, 3)],
            },
            PotCredits::default(),
            PotCredits::default(),
        ],
        treasury: None,
    };
    assert_eq!(found, [expected]);
}

#[test]
fn treasury_takes_what_nobody_earned() {
    let logs = encode(&[
        &|| settled(RECEIPT).encode_log_data(),
        &|| treasury(RECEIPT, 5).encode_log_data(),
        &|| credited(RECEIPT, &[]).encode_log_data(),
    ]);
    let found = Settlement::from_logs(&logs).unwrap();
    assert_eq!(found[0].treasury, Some(TREASURY));
    assert_eq!(found[0].pots[0].credits, []);
    assert_eq!(found[0].contributors_wei(), 5);
}

#[test]
fn pots_are_told_apart() {
    let spans = credited_of(Pot::Spans, RECEIPT, &[(ALICE, 1), (BOB, 1)]);
    let context = credited_of(Pot::Context, RECEIPT, &[(BOB, 1)]);
    let training = credited(RECEIPT, &[(ALICE, 2)]);
    let logs = encode(&[
        &|| potted(RECEIPT).encode_log_data(),
        &|| spans.encode_log_data(),
        &|| context.encode_log_data(),
        &|| training.encode_log_data(),
    ]);
    let found = Settlement::from_logs(&logs).unwrap().remove(0);
    let amounts: Vec<Vec<(Address, u128)>> = found
        .pots
        .iter()
        .map(|pot| {
            let credits = pot.credits.iter();
            credits.map(|c| (c.contributor, c.amount_wei)).collect()
        })
        .collect();
    let expected = [vec![(ALICE, 2)], vec![(ALICE, 1), (BOB, 1)], vec![(BOB, 1)]];
    assert_eq!(amounts, expected);

    let amounts = Err(LogError::Amounts {
        receipt_id: RECEIPT,
    });
    // A pot with money and nobody to get it.
    for missing in [1, 2] {
        let mut logs = logs.clone();
        logs.remove(missing);
        assert_eq!(Settlement::from_logs(&logs), amounts);
    }
    let mut twice = logs.clone();
    twice.insert(2, logs[1].clone());
    assert_eq!(
        Settlement::from_logs(&twice),
        Err(LogError::Order { index: 2 })
    );
    let unknown = Credited { pot: 3, ..training };
    let mut other = logs;
    other[3] = log(unknown.encode_log_data());
    assert_eq!(
        Settlement::from_logs(&other),
        Err(LogError::Order { index: 3 })
    );
}

#[test]
fn several_receipts_and_foreign_logs() {
    let mut logs = encode(&[
        &|| settled(RECEIPT).encode_log_data(),
        &|| credited(RECEIPT, &[(ALICE, 5)]).encode_log_data(),
        &|| settled(OTHER).encode_log_data(),
        &|| credited(OTHER, &[(BOB, 5)]).encode_log_data(),
    ]);
    // The same event from another contract, a log without topics, another event.
    logs.insert(
        1,
        Log {
            address: ALICE,
            data: settled(OTHER).encode_log_data(),
        },
    );
    logs.insert(1, log(LogData::default()));
    logs.insert(
        1,
        log(LogData::new_unchecked(vec![B256::ZERO], Default::default())),
    );
    let found = Settlement::from_logs(&logs).unwrap();
    let ids: Vec<_> = found
        .iter()
        .map(|settlement| settlement.receipt_id)
        .collect();
    assert_eq!(ids, [RECEIPT, OTHER]);
    assert_eq!(Settlement::from_logs([]), Ok(vec![]));
}

#[test]
fn events_out_of_order_are_refused() {
    let order = |index| Err(LogError::Order { index });
    let good = || credited(RECEIPT, &[(ALICE, 5)]).encode_log_data();
    let first = || settled(RECEIPT).encode_log_data();
    let cases: [(Vec<Log>, _); 5] = [
        (encode(&[&good]), order(0)),
        (encode(&[&first, &first]), order(1)),
        (
            encode(&[&|| treasury(RECEIPT, 5).encode_log_data()]),
            order(0),
        ),
        (
            encode(&[&first, &|| credited(OTHER, &[(ALICE, 5)]).encode_log_data()]),
            order(1),
        ),
        (
            encode(&[&first]),
            Err(LogError::Unfinished {
                receipt_id: RECEIPT,
            }),
        ),
    ];
    for (logs, expected) in cases {
        assert_eq!(Settlement::from_logs(&logs), expected);
    }
}

#[test]
fn amounts_that_do_not_add_up_are_refused() {
    let first = || settled(RECEIPT).encode_log_data();
    let mut uneven = credited(RECEIPT, &[(ALICE, 5)]);
    uneven.weights.push(1);
    let mut huge = credited(RECEIPT, &[(ALICE, 5)]);
    huge.amounts[0] = U256::MAX;
    let cases = [
        encode(&[&|| {
            Settled {
                fee: U256::from(11),
                ..settled(RECEIPT)
            }
            .encode_log_data()
        }]),
        encode(&[&|| {
            Settled {
                fee: U256::MAX,
                platform: U256::MAX,
                ..settled(RECEIPT)
            }
            .encode_log_data()
        }]),
        encode(&[&first, &|| {
            credited(RECEIPT, &[(ALICE, 4)]).encode_log_data()
        }]),
        encode(&[&first, &|| credited(RECEIPT, &[]).encode_log_data()]),
        encode(&[&first, &|| treasury(RECEIPT, 4).encode_log_data()]),
        encode(&[&first, &|| treasury(RECEIPT, 5).encode_log_data(), &|| {
            credited(RECEIPT, &[(ALICE, 5)]).encode_log_data()
        }]),
        encode(&[&first, &|| uneven.encode_log_data()]),
        encode(&[&first, &|| huge.encode_log_data()]),
    ];
    for logs in cases {
        assert_eq!(
            Settlement::from_logs(&logs),
            Err(LogError::Amounts {
                receipt_id: RECEIPT
            })
        );
    }
}

proptest! {
    /// Bytes from a node never cause a panic, whatever they are.
    #[test]
    fn spoiled_data_is_an_error(cut in 0_usize..700, place in 0_usize..700, byte: u8) {
        let mut logs = encode(&[
            &|| settled(RECEIPT).encode_log_data(),
            &|| credited(RECEIPT, &[(ALICE, 2), (BOB, 3)]).encode_log_data(),
        ]);
        let good = Settlement::from_logs(&logs).unwrap();
        let mut data = logs[1].data.data.to_vec();
        data.truncate(cut);
        if let Some(spoiled) = data.get_mut(place) {
            *spoiled = byte;
        }
        let is_same = data == logs[1].data.data;
        logs[1].data.data = data.into();
        if let Ok(found) = Settlement::from_logs(&logs) {
            // Weights and contributors may be spoiled unseen; amounts may not.
            prop_assert!(is_same || found[0].pots[0].credits.len() == 2);
            prop_assert_eq!(
                found[0].pots[0].credits.iter().map(|credit| credit.amount_wei).sum::<u128>(),
                good[0].contributors_wei()
            );
        }
    }
}
