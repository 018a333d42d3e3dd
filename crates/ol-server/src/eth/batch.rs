//! Batches of transactions, made into few blocks instead of one block each.
//!
//! A batch is answered call by call, in order, because a later call may depend
//! on an earlier one. `eth_sendRawTransaction` waits until its block is on
//! disk, so a batch of them would make a block of each. Here, transactions that
//! stand next to each other in a batch are handed to the node together, in
//! order, and then waited for.

use futures::future::join_all;
use jsonrpsee::Methods;
use jsonrpsee::core::middleware::{Batch, BatchEntry, Notification};
use jsonrpsee::core::server::{BatchResponseBuilder, MethodResponse};
use jsonrpsee::server::middleware::rpc::RpcServiceT;
use jsonrpsee::types::error::METHOD_NOT_FOUND_CODE;
use jsonrpsee::types::{ErrorObject, Request};

/// The service below, with transactions of a batch sent together.
#[derive(Debug, Clone)]
pub(super) struct SendTogether<S> {
    pub(super) service: S,
    pub(super) methods: Methods,
    pub(super) response_max_size_bytes: u32,
}

impl<S> RpcServiceT for SendTogether<S>
where
    S: RpcServiceT<
            MethodResponse = MethodResponse,
            BatchResponse = MethodResponse,
            NotificationResponse = MethodResponse,
        > + Clone
        + Send
        + Sync
        + 'static,
{
    type MethodResponse = MethodResponse;
    type BatchResponse = MethodResponse;
    type NotificationResponse = MethodResponse;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let service = self.service.clone();
        let methods = self.methods.clone();
        async move { call(&service, &methods, request).await }
    }

    fn batch<'a>(&self, batch: Batch<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let service = self.service.clone();
        let methods = self.methods.clone();
        let max_size_bytes = usize::try_from(self.response_max_size_bytes).unwrap_or(usize::MAX);
        async move {
            answer(&service, &methods, batch, max_size_bytes)
                .await
                .unwrap_or_else(|error| error)
        }
    }

    fn notification<'a>(
        &self,
        notification: Notification<'a>,
    ) -> impl Future<Output = MethodResponse> + Send + 'a {
        self.service.notification(notification)
    }
}

/// Characters of an unknown name that are said back.
const NAME_MAX: usize = 64;

/// One call; of a method that there is not, with geth's words.
async fn call<S>(service: &S, methods: &Methods, request: Request<'_>) -> MethodResponse
where
    S: RpcServiceT<MethodResponse = MethodResponse> + Send + Sync,
{
    if methods.method(&request.method).is_some() {
        return service.call(request).await;
    }
    let name: String = request.method.chars().take(NAME_MAX).collect();
    let message = format!("the method {name} does not exist/is not available");
    let error = ErrorObject::owned(METHOD_NOT_FOUND_CODE, message, None::<()>);
    MethodResponse::error(request.id, error)
}

/// The answer to a batch; an error if it is too large.
async fn answer<S>(
    service: &S,
    methods: &Methods,
    batch: Batch<'_>,
    max_size_bytes: usize,
) -> Result<MethodResponse, MethodResponse>
where
    S: RpcServiceT<MethodResponse = MethodResponse, NotificationResponse = MethodResponse>
        + Send
        + Sync,
{
    let mut answers = BatchResponseBuilder::new_with_limit(max_size_bytes);
    let mut sends = Vec::new();
    let mut has_notification = false;
    for entry in batch.into_iter() {
        match entry {
            Ok(BatchEntry::Call(request)) if request.method == "eth_sendRawTransaction" => {
                sends.push(call(service, methods, request));
            }
            Ok(BatchEntry::Call(request)) => {
                append_all(&mut answers, join_all(sends.drain(..)).await)?;
                answers.append(call(service, methods, request).await)?;
            }
            Ok(BatchEntry::Notification(notification)) => {
                has_notification = true;
                service.notification(notification).await;
            }
            Err(error) => {
                append_all(&mut answers, join_all(sends.drain(..)).await)?;
                let (error, id) = error.into_parts();
                answers.append(MethodResponse::error(id, error))?;
            }
        }
    }
    append_all(&mut answers, join_all(sends).await)?;
    // Nothing but notifications is answered with nothing; an empty batch with an error.
    if answers.is_empty() && has_notification {
        return Ok(MethodResponse::notification());
    }
    Ok(MethodResponse::from_batch(answers.finish()))
}

fn append_all(
    answers: &mut BatchResponseBuilder,
    replies: Vec<MethodResponse>,
) -> Result<(), MethodResponse> {
    replies
        .into_iter()
        .try_for_each(|reply| answers.append(reply))
}
