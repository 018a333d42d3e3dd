//! Counts calls and measures how long they take.

use std::collections::HashSet;
use std::sync::Arc;

use jsonrpsee::Methods;
use jsonrpsee::core::middleware::{Batch, Notification};
use jsonrpsee::core::server::MethodResponse;
use jsonrpsee::server::middleware::rpc::RpcServiceT;
use jsonrpsee::types::Request;
use ol_runtime::{Clock as _, SystemClock};

use crate::metrics;

/// The label of every method that does not exist, so that callers cannot make
/// names of their own.
const UNKNOWN: &str = "unknown";

/// The service below, metered call by call.
#[derive(Debug, Clone)]
pub(super) struct Metered<S> {
    service: S,
    names: Arc<HashSet<&'static str>>,
    clock: SystemClock,
}

impl<S> Metered<S> {
    /// A layer that knows the names of `methods`.
    pub(super) fn layer(methods: &Methods) -> impl Fn(S) -> Self + Clone + use<S> {
        let names: Arc<HashSet<_>> = Arc::new(methods.method_names().collect());
        let clock = SystemClock::new();
        move |service| Self {
            service,
            names: Arc::clone(&names),
            clock: clock.clone(),
        }
    }
}

impl<S> RpcServiceT for Metered<S>
where
    S: RpcServiceT<MethodResponse = MethodResponse> + Clone + Send + Sync + 'static,
{
    type MethodResponse = MethodResponse;
    type BatchResponse = S::BatchResponse;
    type NotificationResponse = S::NotificationResponse;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let name = self.names.get(request.method_name()).copied();
        let (service, clock) = (self.service.clone(), self.clock.clone());
        async move {
            let started_s = clock.monotonic_s();
            let answer = service.call(request).await;
            let spent_s = clock.monotonic_s() - started_s;
            metrics::rpc_answered(name.unwrap_or(UNKNOWN), answer.as_error_code(), spent_s);
            answer
        }
    }

    fn batch<'a>(&self, batch: Batch<'a>) -> impl Future<Output = S::BatchResponse> + Send + 'a {
        self.service.batch(batch)
    }

    fn notification<'a>(
        &self,
        notification: Notification<'a>,
    ) -> impl Future<Output = S::NotificationResponse> + Send + 'a {
        self.service.notification(notification)
    }
}
