//! Goal: no key ever uses more than its limits, and gets back what it did not use.
//! Method: a clock that is moved by hand.

use std::time::Duration;

use ol_runtime::ManualClock;
use proptest::prelude::*;

use super::*;

const NOW_S: u64 = 1_700_000_000;

fn key(limits: KeyLimits) -> Key {
    Key {
        hash: B256::repeat_byte(7),
        account: None,
        label: String::new(),
        scopes: Vec::new(),
        limits,
    }
}

fn cost(tokens: u64) -> Cost {
    Cost {
        tokens,
        wei: u128::from(tokens) * 10,
    }
}

fn meter(dir: &Path) -> (Arc<Meter>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(NOW_S));
    (Meter::open(dir, Arc::clone(&clock) as _).unwrap(), clock)
}

fn used(meter: &Arc<Meter>, key: &Key, reserved: u64, settled: u64) -> Result<(), LimitError> {
    let mut admission = meter.begin(key, cost(reserved))?;
    admission.settle(cost(settled));
    Ok(())
}

#[test]
fn requests_of_a_minute_come_back_evenly() {
    let dir = tempfile::tempdir().unwrap();
    let (meter, clock) = meter(dir.path());
    let key = key(KeyLimits {
        requests_per_minute: Some(6),
        ..KeyLimits::default()
    });
    for _ in 0..6 {
        used(&meter, &key, 1, 1).unwrap();
    }
    assert_eq!(meter.rates(&key).requests, Some((6, 0, 60.0)));
    let limited = LimitError::Rate {
        what: "requests a minute",
        limit: 6,
        retry_after_s: 10,
    };
    assert_eq!(used(&meter, &key, 1, 1), Err(limited));
    clock.advance(Duration::from_secs(10));
    used(&meter, &key, 1, 1).unwrap();
    used(&meter, &key, 1, 1).unwrap_err();
    clock.advance(Duration::from_secs(600));
    assert_eq!(meter.rates(&key).requests, Some((6, 6, 0.0)));
}

#[test]
fn tokens_that_were_not_used_come_back_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (meter, _) = meter(dir.path());
    let key = key(KeyLimits {
        tokens_per_minute: Some(100),
        ..KeyLimits::default()
    });
    let too_large = LimitError::TooLarge {
        tokens: 101,
        limit: 100,
    };
    assert_eq!(used(&meter, &key, 101, 1), Err(too_large));
    let running = meter.begin(&key, cost(90)).unwrap();
    assert!(matches!(
        used(&meter, &key, 20, 1),
        Err(LimitError::Rate {
            retry_after_s: 6,
            ..
        })
    ));
    drop(running);
    used(&meter, &key, 90, 30).unwrap();
    assert_eq!(meter.rates(&key).tokens, Some((100, 70, 18.0)));
}

#[test]
fn only_so_many_run_at_one_time() {
    let dir = tempfile::tempdir().unwrap();
    let (meter, _) = meter(dir.path());
    let key = key(KeyLimits {
        concurrent: Some(2),
        ..KeyLimits::default()
    });
    let first = meter.begin(&key, cost(1)).unwrap();
    let _second = meter.begin(&key, cost(1)).unwrap();
    used(&meter, &key, 1, 1).unwrap_err();
    drop(first);
    used(&meter, &key, 1, 1).unwrap();
}

#[test]
fn budgets_outlast_a_restart_and_days_end() {
    let dir = tempfile::tempdir().unwrap();
    let key = key(KeyLimits {
        tokens_per_day: Some(50),
        tokens_total: Some(80),
        wei_total: Some(790),
        ..KeyLimits::default()
    });
    let (first, _) = meter(dir.path());
    used(&first, &key, 50, 40).unwrap();
    first.write(true);
    let (meter, clock) = meter(dir.path());
    let day = used(&meter, &key, 11, 11).unwrap_err();
    assert!(
        matches!(day, LimitError::Budget { retry_after_s: Some(s), .. } if u64::from(s) == DAY_S - NOW_S % DAY_S)
    );
    used(&meter, &key, 10, 10).unwrap();
    clock.advance(Duration::from_secs(DAY_S));
    used(&meter, &key, 20, 20).unwrap();
    let total = used(&meter, &key, 10, 10).unwrap_err();
    assert_eq!(
        total,
        LimitError::Budget {
            what: "OPEN in total",
            retry_after_s: None
        }
    );
    used(&meter, &key, 9, 9).unwrap();
}

#[test]
fn a_damaged_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for text in [
        "",
        "{}",
        r#"{"format": "openledger-api-usage/9", "keys": {}}"#,
    ] {
        std::fs::write(dir.path().join(FILE), text).unwrap();
        Meter::open(dir.path(), Arc::new(ManualClock::new(0))).unwrap_err();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is asked: never more than the budget is used, and in any minute
    /// never more than twice the limit (what was left and what came back).
    #[test]
    fn limits_hold(asked in prop::collection::vec((0_u64..60, 0_u64..60, 0_u64..20), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let (meter, clock) = meter(dir.path());
        let key = key(KeyLimits {
            tokens_per_minute: Some(100), tokens_total: Some(1_000), ..KeyLimits::default()
        });
        let (mut total, mut now_s, mut recent) = (0, 0, Vec::new());
        for (reserved, share, wait_s) in asked {
            clock.advance(Duration::from_secs(wait_s));
            now_s += wait_s;
            let settled = reserved.min(share);
            if used(&meter, &key, reserved, settled).is_ok() {
                total += settled;
                recent.push((now_s, settled));
            }
            recent.retain(|(at_s, _)| at_s + 60 > now_s);
            let minute: u64 = recent.iter().map(|(_, tokens)| tokens).sum();
            prop_assert!(minute <= 200, "{}", minute);
        }
        prop_assert!(total <= 1_000);
    }
}
