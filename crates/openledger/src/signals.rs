//! The user's wish to stop.

use tokio::signal::unix::{SignalKind, signal};

/// Completes on SIGINT or SIGTERM, from now on.
///
/// # Errors
/// If signals cannot be listened to.
pub(crate) fn stop_signals() -> anyhow::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
