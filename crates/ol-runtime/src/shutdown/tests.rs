//! Goal: one trigger reaches every clone, whether it polls, blocks or awaits.

use super::*;

#[test]
fn a_trigger_is_seen_by_clones_and_stays() {
    let shutdown = Shutdown::new();
    let clone = shutdown.clone();
    assert!(!clone.is_triggered());
    assert!(!clone.wait_timeout(Duration::ZERO));
    shutdown.trigger();
    shutdown.trigger();
    assert!(clone.is_triggered());
    // Returns at once: with a wait this long the test would be stopped.
    assert!(clone.wait_timeout(Duration::from_secs(3_600)));
}

#[test]
fn a_blocked_thread_is_woken() {
    let shutdown = Shutdown::new();
    let clone = shutdown.clone();
    let thread = std::thread::spawn(move || clone.wait_timeout(Duration::from_secs(3_600)));
    shutdown.trigger();
    assert!(thread.join().unwrap());
}

#[tokio::test]
async fn waiters_from_before_and_after_are_woken() {
    let shutdown = Shutdown::new();
    let clone = shutdown.clone();
    let before = tokio::spawn(async move { clone.triggered().await });
    tokio::task::yield_now().await;
    shutdown.trigger();
    before.await.unwrap();
    shutdown.triggered().await;
}
