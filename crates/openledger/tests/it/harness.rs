//! Starts `openledger up`, waits for `ready`, stops it; runs other commands.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

/// A command of the binary under test on the folder `dir`.
pub(crate) fn openledger(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_openledger"));
    command.arg("--dir").arg(dir).args(args);
    command
        .env_remove("OPENLEDGER_API_KEY")
        .env_remove("OPENLEDGER_DIR")
        .env_remove("OPENLEDGER_LOG");
    command
}

/// Runs a command to its end.
pub(crate) fn run(dir: &Path, args: &[&str]) -> Output {
    openledger(dir, args).output().expect("the binary starts")
}

/// Runs a command that must succeed, and reads its JSON.
#[track_caller]
pub(crate) fn run_json(dir: &Path, args: &[&str]) -> Value {
    let output = openledger(dir, args)
        .arg("--json")
        .output()
        .expect("the binary starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?} failed: {errors}");
    serde_json::from_slice(&output.stdout).expect("--json prints JSON")
}

/// Runs a command that must fail with one clear line that says `expected`.
#[track_caller]
pub(crate) fn refused(dir: &Path, args: &[&str], expected: &str) {
    let output = run(dir, args);
    check_refusal(&output, expected);
}

/// A command failed, and said why in one line.
#[track_caller]
pub(crate) fn check_refusal(output: &Output, expected: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success(),
        "it succeeded; expected: {expected}"
    );
    let lines: Vec<&str> = errors
        .lines()
        .filter(|line| line.starts_with("error: "))
        .collect();
    assert_eq!(lines.len(), 1, "not one error line: {errors}");
    assert!(
        lines[0].contains(expected),
        "`{}` does not say `{expected}`",
        lines[0]
    );
}

/// A running instance; killed hard if a test drops it without stopping it.
#[derive(Debug)]
pub(crate) struct Up {
    child: Child,
    pub(crate) api: String,
    pub(crate) rpc: String,
    pub(crate) key: String,
    log: PathBuf,
}

impl Up {
    /// Starts an instance on free ports and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(dir: &Path) -> Self {
        let log = dir.with_extension("log");
        let mut child = openledger(dir, &["up", "--rpc-port", "0", "--api-port", "0"])
            .args(["--log-level", "info,ol_server=trace,openledger=trace"])
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("a log file"))
            .spawn()
            .expect("the binary starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut lines = BufReader::new(stdout).lines();
        let is_ready = lines.any(|line| line.is_ok_and(|line| line.starts_with("ready")));
        if !is_ready {
            let _ = child.wait();
            let mut text = String::new();
            let _ = File::open(&log).map(|mut log| log.read_to_string(&mut text));
            panic!("the instance ended before it was ready:\n{text}");
        }
        let found = std::fs::read_to_string(dir.join("instance.json")).expect("instance.json");
        let found: Value = serde_json::from_str(&found).expect("JSON");
        let text = |name: &str| found[name].as_str().expect("a string").to_owned();
        let key = std::fs::read_to_string(dir.join("dev-api-key")).expect("the dev key");
        Self {
            child,
            api: text("api"),
            rpc: text("rpc"),
            key: key.trim().to_owned(),
            log,
        }
    }

    /// Sends a signal to the instance alone.
    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill")
            .args([signal, &pid])
            .status()
            .expect("kill runs");
        assert!(status.success());
    }

    /// SIGTERM; the instance must stop cleanly, and its key be in no line of
    /// its log, at any level.
    #[track_caller]
    pub(crate) fn stop(mut self) {
        self.signal("-TERM");
        let status = self.child.wait().expect("it is our child");
        assert!(status.success(), "it did not stop cleanly: {status}");
        let log = std::fs::read_to_string(&self.log).expect("the log");
        assert!(!log.is_empty());
        assert!(!log.contains(&self.key), "the API key is in the log");
    }

    /// SIGKILL: nothing gets a chance to be written.
    pub(crate) fn kill(self) {
        // Dropping it is that.
        drop(self);
    }

    /// One JSON-RPC call.
    #[track_caller]
    pub(crate) fn rpc(&self, method: &str, params: Value) -> Value {
        rpc(&self.rpc, method, params)
    }

    /// Posts raw bytes to the API with the development key.
    pub(crate) fn post(&self, path: &str, body: &[u8]) -> (u16, Value) {
        http(&format!("{}{path}", self.api), Some(&self.key), body)
    }

    /// Posts raw bytes to the API with any key.
    pub(crate) fn post_as(&self, key: Option<&str>, path: &str, body: &[u8]) -> (u16, Value) {
        http(&format!("{}{path}", self.api), key, body)
    }

    /// Asks a question and returns the reply.
    #[track_caller]
    pub(crate) fn ask(&self, model: &str, question: &str) -> Value {
        let body = json!({
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 24,
            "temperature": 0,
        });
        let (status, reply) = self.post("/v1/chat/completions", body.to_string().as_bytes());
        assert_eq!(status, 200, "{reply}");
        reply
    }

    /// What an account holds, in wei.
    #[track_caller]
    pub(crate) fn balance_wei(&self, account: &str) -> u128 {
        let balance = self.rpc("eth_getBalance", json!([account, "latest"]));
        let digits = balance
            .as_str()
            .expect("a quantity")
            .trim_start_matches("0x");
        u128::from_str_radix(digits, 16).expect("fits, the cap is below 2^90")
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running node without models; killed hard if a test drops it.
#[derive(Debug)]
pub(crate) struct NodeAlone {
    child: Child,
    /// The first line it prints.
    pub(crate) ready: Value,
    pub(crate) url: String,
    log: PathBuf,
}

impl NodeAlone {
    /// Starts a node on a free port and waits until it is ready.
    #[track_caller]
    pub(crate) fn start(dir: &Path, more: &[&str]) -> Self {
        let log = dir.with_extension("log");
        let mut child = openledger(dir, &["node", "run", "--port", "0", "--json"])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("a log file"))
            .spawn()
            .expect("the binary starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut line = String::new();
        let n_read = BufReader::new(stdout).read_line(&mut line);
        if !n_read.is_ok_and(|n_read| n_read > 0) {
            let _ = child.wait();
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            panic!("the node ended before it was ready:\n{text}");
        }
        let ready: Value = serde_json::from_str(&line).expect("the ready line is JSON");
        let url = ready["rpc"].as_str().expect("an address").to_owned();
        Self {
            child,
            ready,
            url,
            log,
        }
    }

    /// SIGTERM; the node must stop cleanly. Returns what it logged.
    #[track_caller]
    pub(crate) fn stop(mut self) -> String {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(status.expect("kill runs").success());
        let status = self.child.wait().expect("it is our child");
        let log = std::fs::read_to_string(&self.log).expect("the log");
        assert!(status.success(), "it did not stop cleanly: {status}\n{log}");
        log
    }

    /// SIGKILL: nothing gets a chance to be written.
    pub(crate) fn kill(self) {
        // Dropping it is that.
        drop(self);
    }

    /// One JSON-RPC call.
    #[track_caller]
    pub(crate) fn rpc(&self, method: &str, params: Value) -> Value {
        rpc(&self.url, method, params)
    }
}

impl Drop for NodeAlone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One JSON-RPC call that must succeed.
#[track_caller]
fn rpc(url: &str, method: &str, params: Value) -> Value {
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let (_, reply) = http(url, None, body.to_string().as_bytes());
    assert!(reply["error"].is_null(), "{method}: {reply}");
    reply["result"].clone()
}

/// Posts JSON with some headers and reads the status.
pub(crate) fn http_with(url: &str, headers: &[(&str, &str)], body: &str) -> u16 {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .build();
    let agent: ureq::Agent = config.into();
    let mut request = agent.post(url).header("Content-Type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let reply = request.send(body).expect("the server answers");
    reply.status().as_u16()
}

/// Gets a page with some headers.
pub(crate) fn get_with(url: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .build();
    let agent: ureq::Agent = config.into();
    let mut request = agent.get(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut reply = request.call().expect("the server answers");
    let status = reply.status().as_u16();
    (
        status,
        reply.body_mut().read_to_string().unwrap_or_default(),
    )
}

/// Posts a body and reads status and JSON; null where the reply is not JSON.
pub(crate) fn http(url: &str, key: Option<&str>, body: &[u8]) -> (u16, Value) {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(120)))
        .http_status_as_error(false)
        .build();
    let agent: ureq::Agent = config.into();
    let mut request = agent.post(url).header("Content-Type", "application/json");
    if let Some(key) = key {
        request = request.header("Authorization", &format!("Bearer {key}"));
    }
    let mut reply = request.send(body).expect("the server answers");
    let status = reply.status().as_u16();
    (status, reply.body_mut().read_json().unwrap_or(Value::Null))
}

/// A wei amount in an answer: a decimal string.
#[track_caller]
pub(crate) fn wei(value: &Value) -> u128 {
    match value.as_str().map(str::parse) {
        Some(Ok(wei)) => wei,
        _ => panic!("no wei: {value}"),
    }
}
