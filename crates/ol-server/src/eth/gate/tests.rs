//! Goal: slow methods neither pile up nor keep others from running.
//! Method: methods that run until they are let go.

use std::pin::pin;
use std::sync::mpsc;

use serde_json::json;

use super::super::Reply;
use super::*;

fn limits() -> Limits {
    Limits {
        reads_max: 1,
        calls_max: 1,
        waiting_max: 1,
        ..Limits::default()
    }
}

/// A method that runs until it is let go, and says when it has begun.
fn slow() -> (
    impl FnOnce() -> Reply + Send,
    mpsc::Sender<()>,
    mpsc::Receiver<()>,
) {
    let (let_go, go) = mpsc::channel();
    let (begin, begun) = mpsc::channel();
    let work = move || {
        begin.send(()).unwrap();
        // Let go by a message, or by nobody being there.
        let _ = go.recv();
        Ok(json!("done"))
    };
    (work, let_go, begun)
}

fn code(reply: &Reply) -> i32 {
    reply.as_ref().unwrap_err().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_places_to_wait_methods_are_refused() {
    let gate = Gate::new(&limits());
    let (work, let_go, begun) = slow();
    let late = || Ok(json!("late"));
    let (mut first, mut second) = (
        pin!(gate.run(Weight::Call, work)),
        pin!(gate.run(Weight::Call, late)),
    );
    // Asked in this order: one runs, one waits, and there is no place for more.
    let refused = tokio::select! {
        biased;
        reply = &mut first => panic!("{reply:?}"),
        reply = &mut second => panic!("{reply:?}"),
        reply = gate.run(Weight::Call, late) => reply,
    };
    assert_eq!(code(&refused), -32_005);
    begun.recv().unwrap();
    // Reads have threads of their own, and what needs none always runs.
    assert_eq!(gate.run(Weight::Read, late).await.unwrap(), "late");
    assert_eq!(gate.run(Weight::Free, late).await.unwrap(), "late");
    let_go.send(()).unwrap();
    assert_eq!(first.await.unwrap(), "done");
    assert_eq!(second.await.unwrap(), "late");
    assert_eq!(gate.run(Weight::Call, late).await.unwrap(), "late");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_takes_too_long_keeps_its_thread_and_nobody_waiting() {
    let gate = Gate::new(&Limits {
        request_timeout_s: 0,
        ..limits()
    });
    let (work, let_go, begun) = slow();
    let reply = gate.run(Weight::Call, work).await;
    assert_eq!(code(&reply), -32_002);
    drop(let_go);
    // Whether it had begun or not, it ends.
    let _ = begun.recv();
}
