//! JSON-RPC over one keep-alive connection, with as little work as it takes:
//! the client must not be what is measured.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

/// Longest wait for one answer.
const ANSWER_WAIT: Duration = Duration::from_secs(120);

/// A connection to a node.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    head: String,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn open(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).expect("the node listens");
        stream.set_nodelay(true).expect("a connected socket");
        stream
            .set_read_timeout(Some(ANSWER_WAIT))
            .expect("the wait is not 0");
        let head = format!(
            "POST / HTTP/1.1\r\nhost: {addr}\r\ncontent-type: application/json\r\ncontent-length: "
        );
        Self {
            stream,
            head,
            buffer: Vec::new(),
        }
    }

    /// Posts a body and returns the body of the answer.
    pub(crate) fn post(&mut self, body: &[u8]) -> &[u8] {
        let head = format!("{}{}\r\n\r\n", self.head, body.len());
        let request = [head.as_bytes(), body].concat();
        self.stream.write_all(&request).expect("the node reads");
        self.buffer.clear();
        let mut chunk = [0_u8; 1 << 16];
        let (start, end) = loop {
            let n_read = self.stream.read(&mut chunk).expect("the node answers");
            assert!(n_read > 0, "the node closed the connection");
            self.buffer.extend_from_slice(&chunk[..n_read]);
            if let Some(range) = body_range(&self.buffer)
                && self.buffer.len() >= range.1
            {
                break range;
            }
        };
        &self.buffer[start..end]
    }

    /// Calls one method; panics if it is refused.
    pub(crate) fn call(&mut self, method: &str, params: &Value) -> Value {
        let body = request(1, method, params).to_string();
        let mut reply: Value = serde_json::from_slice(self.post(body.as_bytes())).expect("JSON");
        assert!(reply.get("error").is_none(), "{method}: {reply}");
        reply["result"].take()
    }

    /// Posts a batch that was made by [`batch`]; panics if any call is refused.
    pub(crate) fn post_batch(&mut self, body: &[u8], n_calls: usize) {
        let reply = self.post(body);
        let n_results = count(reply, b"\"result\":");
        assert!(
            n_results == n_calls,
            "{n_results} of {n_calls} calls succeeded: {}",
            String::from_utf8_lossy(&reply[..reply.len().min(2_000)])
        );
    }
}

/// A request object.
pub(crate) fn request(id: usize, method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

/// A batch of the same method.
pub(crate) fn batch(method: &str, params: impl Iterator<Item = Value>) -> Vec<u8> {
    let calls: Vec<Value> = params
        .enumerate()
        .map(|(id, params)| request(id, method, &params))
        .collect();
    serde_json::to_vec(&calls).expect("JSON values are encodable")
}

/// Where the body of an answer lies, once its head is complete.
fn body_range(answer: &[u8]) -> Option<(usize, usize)> {
    let head_end = answer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&answer[..head_end]).to_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .expect("both nodes say how long an answer is");
    let n_bytes: usize = length.trim().parse().expect("a length");
    Some((head_end, head_end + n_bytes))
}

fn count(text: &[u8], word: &[u8]) -> usize {
    text.windows(word.len())
        .filter(|part| part == &word)
        .count()
}
