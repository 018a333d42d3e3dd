//! JSON-RPC, in this process.

use std::sync::OnceLock;

use ol_server::eth::{self, Limits};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::chain::node;

/// What the node says when it fails itself: a panic is among the causes.
const INTERNAL_ERROR_CODE: i64 = -32_603;

/// Capacity for the events of a subscription; nobody reads them.
const EVENTS_MAX: usize = 16;

struct Server {
    runtime: Runtime,
    methods: eth::Methods,
    /// In order, so that a seed means the same method every time.
    names: Vec<&'static str>,
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let guard = runtime.enter();
        let methods = eth::methods_of(node().clone(), Limits::default());
        drop(guard);
        let mut names: Vec<_> = methods.method_names().collect();
        names.sort_unstable();
        Server {
            runtime,
            methods,
            names,
        }
    })
}

fn ask(request: &str) {
    let server = server();
    let answer = server.methods.raw_json_request(request, EVENTS_MAX);
    // Fails only for what is no request.
    let Ok((answer, _events)) = server.runtime.block_on(answer) else {
        return;
    };
    let answer: Value = serde_json::from_str(answer.get()).expect("the answer is JSON");
    let error = &answer["error"];
    assert_ne!(error["code"], INTERNAL_ERROR_CODE, "{request}: {error}");
    if error.is_object() {
        let message = error["message"].as_str().expect("an error has a message");
        assert!(!message.is_empty());
    }
}

/// A whole request.
///
/// # Panics
/// If the answer is no JSON, or an internal error.
pub fn rpc(bytes: &[u8]) {
    if let Ok(request) = std::str::from_utf8(bytes) {
        ask(request);
    }
}

/// A method's name and its parameters: `eth_call[{}]`. What is no name chooses
/// one by its first byte, so that every change of a seed still asks something.
///
/// # Panics
/// As [`rpc`].
pub fn method(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let (name, params) = text.split_at(text.find(['[', '{']).unwrap_or(text.len()));
    let names = &server().names;
    let name = match names.binary_search(&name) {
        Ok(at) => names[at],
        Err(_) => names[usize::from(bytes.first().copied().unwrap_or(0)) % names.len()],
    };
    ask(&format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"{name}","params":{params}}}"#
    ));
}
