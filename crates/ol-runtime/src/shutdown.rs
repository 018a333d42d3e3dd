//! The wish to stop.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// Tells every part of a program that it should finish and return.
///
/// Clones share one signal. It is triggered once and stays triggered. Async
/// code awaits [`Shutdown::triggered`]; threads poll [`Shutdown::is_triggered`]
/// or rest in [`Shutdown::wait_timeout`], which ends early when the signal comes.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    triggered: Mutex<bool>,
    changed: Condvar,
    sender: watch::Sender<bool>,
}

impl Shutdown {
    /// A signal that nobody has triggered yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A signal that SIGINT and SIGTERM trigger from now on, for programs
    /// without an async runtime.
    ///
    /// # Errors
    /// If signals cannot be listened to.
    #[cfg(unix)]
    pub fn on_signals() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let (mut interrupt, mut terminate) = {
            let _entered = runtime.enter();
            (
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
            )
        };
        let shutdown = Self::new();
        let trigger = shutdown.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                    }
                });
                trigger.trigger();
            })?;
        Ok(shutdown)
    }

    /// Asks everybody to stop. Later calls do nothing.
    pub fn trigger(&self) {
        *self.lock() = true;
        self.inner.changed.notify_all();
        self.inner.sender.send_replace(true);
    }

    /// Whether somebody has asked to stop.
    #[must_use]
    pub fn is_triggered(&self) -> bool {
        *self.lock()
    }

    /// Completes when somebody has asked to stop; at once if that has happened.
    pub async fn triggered(&self) {
        let mut receiver = self.inner.sender.subscribe();
        // Fails only when the sender is gone, and `self` holds it.
        let _ = receiver.wait_for(|&triggered| triggered).await;
    }

    /// Blocks this thread for `span`, or until somebody asks to stop. Returns
    /// whether somebody has.
    #[must_use]
    pub fn wait_timeout(&self, span: Duration) -> bool {
        let guard = self.lock();
        let waited = self
            .inner
            .changed
            .wait_timeout_while(guard, span, |triggered| !*triggered);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, bool> {
        self.inner
            .triggered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
