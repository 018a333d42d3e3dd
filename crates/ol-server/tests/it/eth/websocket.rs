//! A WebSocket client (RFC 6455) that does what these tests need: text frames
//! of one piece, and nothing hidden between it and the socket.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};

/// Kinds of final frames.
pub(crate) const TEXT: u8 = 0x81;
pub(crate) const PING: u8 = 0x89;
pub(crate) const PONG: u8 = 0x8a;

pub(crate) struct WebSocket {
    stream: BufReader<TcpStream>,
    /// Notifications that came while an answer was waited for.
    notified: VecDeque<Value>,
    n_asked: u64,
}

impl WebSocket {
    pub(crate) fn connect(addr: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(addr).unwrap();
        write!(
            stream,
            "GET / HTTP/1.1\r\nhost: {addr}\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
        )
        .unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        assert!(line.starts_with("HTTP/1.1 101"), "{line}");
        while line != "\r\n" {
            line.clear();
            stream.read_line(&mut line).unwrap();
        }
        Self {
            stream,
            notified: VecDeque::new(),
            n_asked: 0,
        }
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.send_frame(TEXT, text.as_bytes());
    }

    /// Sends a whole frame, masked with zeros, which changes nothing.
    pub(crate) fn send_frame(&mut self, kind: u8, payload: &[u8]) {
        let mut frame = vec![kind];
        match payload.len() {
            n @ 0..126 => frame.push(0x80 | u8::try_from(n).unwrap()),
            n @ 126..65_536 => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(n).unwrap().to_be_bytes());
            }
            n => {
                frame.push(0x80 | 127);
                frame.extend((n as u64).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        self.stream.get_mut().write_all(&frame).unwrap();
    }

    /// The next frame: its kind, and what is in it.
    pub(crate) fn next_frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head)?;
        let size = match head[1] {
            126 => {
                let mut size = [0; 2];
                self.stream.read_exact(&mut size)?;
                usize::from(u16::from_be_bytes(size))
            }
            127 => {
                let mut size = [0; 8];
                self.stream.read_exact(&mut size)?;
                usize::try_from(u64::from_be_bytes(size)).unwrap()
            }
            size => usize::from(size),
        };
        let mut payload = vec![0; size];
        self.stream.read_exact(&mut payload)?;
        Ok((head[0], payload))
    }

    /// The next message, whatever it is.
    pub(crate) fn next(&mut self) -> Value {
        loop {
            let (kind, payload) = self.next_frame().unwrap();
            match kind {
                TEXT => return serde_json::from_slice(&payload).unwrap(),
                PING | PONG => {}
                other => panic!("frame of type {other:#x}: {payload:?}"),
            }
        }
    }

    /// The answer to a call.
    pub(crate) fn ask(&mut self, method: &str, params: Value) -> Value {
        self.n_asked += 1;
        let id = self.n_asked;
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.send(&request.to_string());
        loop {
            let message = self.next();
            if message.get("method").is_some() {
                self.notified.push_back(message);
                continue;
            }
            assert_eq!(message["id"], id, "{message}");
            return message;
        }
    }

    #[track_caller]
    pub(crate) fn ok(&mut self, method: &str, params: Value) -> Value {
        let reply = self.ask(method, params);
        assert!(reply.get("error").is_none(), "{method}: {reply}");
        reply["result"].clone()
    }

    /// What a subscription is told next: a result, or an error. Subscriptions
    /// of one connection are told in no order.
    pub(crate) fn told(&mut self, subscription: &Value) -> Value {
        let mine = |message: &Value| {
            assert_eq!(message["method"], "eth_subscription", "{message}");
            message["params"]["subscription"] == *subscription
        };
        let message = match self.notified.iter().position(mine) {
            Some(position) => self.notified.remove(position).unwrap(),
            None => loop {
                let message = self.next();
                if mine(&message) {
                    break message;
                }
                self.notified.push_back(message);
            },
        };
        let params = &message["params"];
        params
            .get("result")
            .or(params.get("error"))
            .unwrap()
            .clone()
    }
}
