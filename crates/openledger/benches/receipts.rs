//! What payment costs: the same questions to `openledger up`, whose answers are
//! sketched, receipted and settled, and to `openledger serve` on the same base and
//! adapter, in turn.
//!
//! `cargo bench -p openledger --bench receipts -- --json` prints a JSON list.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program that measures and reports"
)]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const COMMAND: &str = "cargo xtask bench receipts";
const ROUNDS: usize = 3;
/// Clients at one time: fewer than there are rows of a pass, and more.
const CLIENTS: [usize; 2] = [4, 32];
const REQUESTS: usize = 192;
const MAX_TOKENS: usize = 32;

const QUESTIONS: [&str; 6] = [
    "What is a contract?",
    "Who may sue for damages?",
    "What is a tort?",
    "How is theft punished?",
    "When does a claim end?",
    "What is negligence?",
];

/// A server of either kind; killed when dropped.
struct Server {
    child: Child,
    address: String,
    key: String,
}

impl Server {
    fn start(dir: &Path, is_paid: bool) -> Self {
        let adapter = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/models/legal");
        let adapter = format!("legal={}", adapter.display());
        let args: &[&str] = if is_paid {
            &["up", "--rpc-port", "0", "--api-port", "0", "--threads", "2"]
        } else {
            &[
                "serve",
                "--port",
                "0",
                "--threads",
                "2",
                "--adapter",
                &adapter,
            ]
        };
        let mut child = Command::new(env!("CARGO_BIN_EXE_openledger"))
            .arg("--dir")
            .arg(dir)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(File::create(dir.with_extension("log")).expect("a log file"))
            .spawn()
            .expect("the binary starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let ready = lines
            .find(|line| line.starts_with("ready"))
            .expect("it becomes ready");
        // Nobody reads on, and it writes no more.
        let api = ready
            .split_once("api http://")
            .expect("the API's address")
            .1;
        let address = api
            .split_once("/v1")
            .expect("the API's address")
            .0
            .to_owned();
        let file = dir.join(if is_paid {
            "dev-api-key"
        } else {
            "serve/admin-key"
        });
        let key = fs::read_to_string(file).expect("its key");
        Self {
            child,
            address,
            key: key.trim().to_owned(),
        }
    }

    fn send(&self, head: &str, body: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(&self.address).expect("the server listens");
        let (key, n) = (&self.key, body.len());
        let request = format!(
            "{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\
             Content-Type: application/json\r\nContent-Length: {n}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).expect("it reads");
        BufReader::new(stream)
    }

    /// Asks once; the time to the first token and, where it is paid, the request's id.
    fn ask(&self, number: usize) -> (Duration, Option<String>) {
        let body = json!({
            "model": "legal", "stream": true, "max_tokens": MAX_TOKENS, "ignore_eos": true,
            "messages": [{"role": "user", "content": QUESTIONS[number % QUESTIONS.len()]}],
            "temperature": 0.9, "seed": number,
        });
        let asked = Instant::now();
        let reply = self.send("POST /v1/chat/completions", &body.to_string());
        let (mut first, mut id, mut is_whole) = (None, None, false);
        let mut n_lines = 0;
        for line in reply.lines() {
            let line = line.expect("a whole reply");
            n_lines += 1;
            if first.is_none() && line.contains("\"content\":\"") && !line.contains("\"role\"") {
                first = Some(asked.elapsed());
            }
            if let Some((_, rest)) = line.split_once("\"request_id\":\"") {
                id = rest.split('"').next().map(str::to_owned);
            }
            is_whole |= line.contains("[DONE]");
        }
        assert!(is_whole, "an answer without an end, after {n_lines} lines");
        (first.expect("an answer has text"), id)
    }

    fn is_settled(&self, id: &str) -> bool {
        let mut reply = String::new();
        let mut stream = self.send(&format!("GET /v1/receipts/{id}"), "");
        stream.read_to_string(&mut reply).expect("a whole reply");
        assert!(!reply.contains("\"refused\""), "{reply}");
        reply.contains("\"settled\"")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What one load came to.
struct Load {
    tokens_per_s: f64,
    /// Sorted.
    first_ms: Vec<f64>,
    /// From the first request to the last settlement, where it is paid.
    receipts_per_s: Option<f64>,
}

fn load(server: &Server, n_clients: usize, round: usize) -> Load {
    let done = Mutex::new(Vec::new());
    let started = Instant::now();
    thread::scope(|scope| {
        for client in 0..n_clients {
            let done = &done;
            scope.spawn(move || {
                for number in (client..REQUESTS).step_by(n_clients) {
                    let answer = server.ask(round * REQUESTS + number);
                    done.lock().expect("no client panics").push(answer);
                }
            });
        }
    });
    let wall_s = started.elapsed().as_secs_f64();
    let done = done.into_inner().expect("no client panics");
    let ids: Vec<String> = done.iter().filter_map(|(_, id)| id.clone()).collect();
    for id in &ids {
        while !server.is_settled(id) {
            thread::sleep(Duration::from_millis(5));
        }
    }
    let settled_s = started.elapsed().as_secs_f64();
    let mut first_ms: Vec<f64> = done
        .iter()
        .map(|(first, _)| first.as_secs_f64() * 1e3)
        .collect();
    first_ms.sort_unstable_by(f64::total_cmp);
    Load {
        tokens_per_s: float(REQUESTS * MAX_TOKENS) / wall_s,
        first_ms,
        receipts_per_s: (!ids.is_empty()).then(|| float(ids.len()) / settled_s),
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark")]
const fn float(n: usize) -> f64 {
    n as f64
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn at(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() - 1) * percent / 100]
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        // `cargo test --benches` checks that it builds.
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let paid = Server::start(&dir.path().join("paid"), true);
    let plain = Server::start(&dir.path().join("plain"), false);
    let mut rows = Vec::new();
    for n_clients in CLIENTS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let (a, b) = (
                load(&paid, n_clients, round),
                load(&plain, n_clients, round),
            );
            // The first one warms up.
            if round > 0 {
                ours.push(a);
                theirs.push(b);
            }
        }
        let work = format!("{n_clients} clients, {MAX_TOKENS} tokens an answer, legal");
        let rate = |loads: &[Load]| median(loads.iter().map(|load| load.tokens_per_s));
        let first =
            |loads: &[Load], percent| median(loads.iter().map(|load| at(&load.first_ms, percent)));
        let mut row = |what: &str, unit: &str, ours: f64, peer: f64, ratio: f64| {
            rows.push(json!({
                "work": format!("{work}: {what}"), "unit": unit, "ours": rounded(ours),
                "peer": rounded(peer), "peer_name": "the same server without payment",
                "ratio": rounded(ratio), "rounds": ROUNDS, "command": COMMAND,
            }));
        };
        let (a, b) = (rate(&ours), rate(&theirs));
        row("paid", "tokens/s", a, b, a / b);
        for (percent, what) in [(50, "first token, median"), (99, "first token, p99")] {
            let (a, b) = (first(&ours, percent), first(&theirs, percent));
            row(what, "ms", a, b, b / a);
        }
        rows.push(json!({
            "work": format!("{work}: receipts settled, from the first question to the last settlement"),
            "unit": "receipts/s", "rounds": ROUNDS, "command": COMMAND,
            "ours": rounded(median(ours.iter().filter_map(|load| load.receipts_per_s))),
        }));
    }
    if arguments.iter().any(|argument| argument == "--json") {
        println!("{:#}", Value::from(rows));
        return;
    }
    for row in rows {
        println!("{row}");
    }
}
