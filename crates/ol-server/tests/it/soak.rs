//! The server under mixed traffic with faults, for some seconds; `cargo xtask
//! bench soak` runs it for minutes.

pub(crate) mod world;

use std::sync::atomic::Ordering;

use self::world::Length;

#[test]
fn mixed_traffic_with_faults_gives_no_wrong_token_and_leaves_nothing_behind() {
    let counts = world::run(Length {
        n_exchanges: 3_000,
        seconds: 0.0,
    });
    let seen = [
        &counts.answered,
        &counts.streamed,
        &counts.slow,
        &counts.left,
        &counts.half_sent,
        &counts.oversize,
        &counts.senseless,
        &counts.replaced,
        &counts.sabotaged,
    ];
    // The traffic is what it says it is.
    let is_seen = seen.iter().all(|n| n.load(Ordering::Relaxed) > 0);
    assert!(is_seen, "{counts:?}");
}
