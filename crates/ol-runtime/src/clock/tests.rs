//! Goal: a manual clock shows what it was told, and the system clock is sane.

use super::*;

#[test]
fn manual_clock_moves_only_when_told() {
    let clock = ManualClock::new(1_000);
    assert_eq!((clock.unix_s(), clock.monotonic_s()), (1_000, 0.0));
    clock.advance(Duration::from_millis(1_500));
    assert_eq!((clock.unix_s(), clock.monotonic_s()), (1_001, 1.5));
    clock.advance(Duration::from_millis(500));
    assert_eq!((clock.unix_s(), clock.monotonic_s()), (1_002, 2.0));
}

#[test]
fn manual_clock_saturates() {
    let clock = ManualClock::new(u64::MAX - 1);
    clock.advance(Duration::MAX);
    clock.advance(Duration::MAX);
    assert_eq!(clock.unix_s(), u64::MAX);
}

#[test]
fn system_clock_is_past_2020_and_never_goes_back() {
    let clock = SystemClock::new();
    assert!(clock.unix_s() > 1_577_836_800);
    let readings: Vec<f64> = (0..100).map(|_| clock.monotonic_s()).collect();
    assert!(readings.is_sorted() && readings[0] >= 0.0);
}
