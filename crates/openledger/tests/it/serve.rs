//! Goal: a server without chain, and a gateway over two of them, as an operator
//! runs them: started, asked, drained, killed and stopped.
//! Method: processes on free ports with the base and an adapter that come with
//! the program; the answer of one server alone is the oracle of the fleet.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{http, openledger, refused, run_json};

struct Serve {
    child: Child,
    dir: PathBuf,
    url: String,
    key: String,
}

impl Serve {
    fn start(dir: &Path, more: &[&str]) -> Self {
        let log = dir.with_extension("log");
        let mut child = openledger(dir, &["serve", "--json", "--port", "0"])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let Some(line) = stdout.lines().next() else {
            panic!("it is not ready: {}", fs::read_to_string(&log).unwrap());
        };
        let ready: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let url = ready["api"].as_str().unwrap().trim_end_matches("/v1");
        let key = fs::read_to_string(dir.join("serve/admin-key")).unwrap();
        Self {
            child,
            dir: dir.to_owned(),
            url: url.to_owned(),
            key: key.trim().to_owned(),
        }
    }

    fn ask(&self, model: &str, question: &str) -> (u16, Value) {
        let body = json!({
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 16, "temperature": 0.8, "seed": 7,
        });
        let url = format!("{}/v1/chat/completions", self.url);
        http(&url, Some(&self.key), body.to_string().as_bytes())
    }

    fn answer(&self, model: &str, question: &str) -> Value {
        let (status, reply) = self.ask(model, question);
        assert_eq!(status, 200, "{reply}");
        json!([reply["choices"], reply["usage"]["completion_tokens"]])
    }

    fn fleet(&self) -> Vec<Value> {
        let status = run_json(&self.dir, &["fleet", "status", "--url", &self.url]);
        status["workers"].as_array().unwrap().clone()
    }

    fn stop(mut self) {
        let pid = self.child.id().to_string();
        let killed = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        assert!(killed.success());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "it did not stop cleanly: {status}");
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn shipped(model: &str) -> String {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/models");
    assets.join(model).to_string_lossy().into_owned()
}

#[test]
fn a_fleet_answers_as_one_server_does() {
    let root = tempfile::tempdir().unwrap();
    let dir = |name: &str| root.path().join(name);
    let adapters = format!("legal={}", shipped("legal"));
    let alone = Serve::start(&dir("alone"), &["--adapter", &adapters]);
    let questions = ["What is a contract?", "Who may sue?", "What is a tort?"];
    let models = ["legal", "openledger-base"];
    let asked = || {
        models
            .iter()
            .flat_map(|m| questions.iter().map(move |q| (*m, *q)))
    };
    let expected: Vec<Value> = asked().map(|(m, q)| alone.answer(m, q)).collect();
    let (status, _) = http(
        &format!("{}/v1/chat/completions", alone.url),
        None,
        br#"{"model":"legal","messages":[{"role":"user","content":"?"}]}"#,
    );
    assert_eq!(status, 401);
    let (status, reply) = alone.ask("nobody", "?");
    assert_eq!(status, 404, "{reply}");
    alone.stop();

    // Workers load what the gateway puts into this folder, and nothing else; they
    // make it, if they come first.
    let published = dir("gateway").join("fleet-adapters");
    let published = published.to_string_lossy().into_owned();
    let mut workers: Vec<Serve> = ["one", "two"]
        .iter()
        .map(|name| Serve::start(&dir(name), &["--adapter-root", &published]))
        .collect();
    let flags: Vec<String> = workers
        .iter()
        .zip(["one", "two"])
        .map(|(worker, name)| format!("{},name={name},key={}", worker.url, worker.key))
        .collect();
    let gateway = Serve::start(
        &dir("gateway"),
        &[
            "--adapter",
            &adapters,
            "--worker",
            &flags[0],
            "--worker",
            &flags[1],
        ],
    );
    let given: Vec<Value> = asked().map(|(m, q)| gateway.answer(m, q)).collect();
    assert_eq!(given, expected, "the same tokens as of one server");
    keys_of_a_running_server_are_edited(&gateway);
    let url = format!("{}/fleet/workers/one/drain", workers[0].url);
    let (status, said) = http(&url, Some(&workers[0].key), b"");
    assert_eq!((status, &said["error"]["code"]), (404, &json!("no_fleet")));
    let answered = |worker: &Value| worker["n_answered"].as_u64().unwrap();
    assert_eq!(gateway.fleet().iter().map(answered).sum::<u64>(), 6);

    // Drained, one gets nothing more; killed, nobody notices.
    let drained = openledger(&dir("gateway"), &["fleet", "drain", "one"])
        .args(["--url", &gateway.url])
        .output()
        .unwrap();
    assert!(drained.status.success(), "{drained:?}");
    let before = answered(&gateway.fleet()[0]);
    drop(workers.remove(0));
    let given: Vec<Value> = asked().map(|(m, q)| gateway.answer(m, q)).collect();
    assert_eq!(given, expected);
    assert_eq!(answered(&gateway.fleet()[0]), before);
    let (status, _) = http(
        &format!("{}/fleet/workers/one/undrain", gateway.url),
        None,
        b"{}",
    );
    assert_eq!(status, 401, "operators have a key");
    gateway.stop();
    workers.remove(0).stop();
}

fn keys_of_a_running_server_are_edited(server: &Serve) {
    let url = format!("{}/tokenize", server.url);
    let ask = |key: &str| http(&url, Some(key), br#"{"model": "legal", "prompt": "law"}"#).0;
    let made = run_json(&server.dir, &["key", "--serve", "add", "--label", "guest"]);
    let key = made["key"].as_str().unwrap();
    assert_eq!(ask(key), 200);
    let listed = run_json(&server.dir, &["key", "list", "--serve"]);
    let guest = listed
        .as_array()
        .unwrap()
        .iter()
        .find(|key| key["label"] == "guest");
    let id = guest.unwrap()["id"].as_str().unwrap();
    run_json(&server.dir, &["key", "--serve", "revoke", id]);
    assert_eq!(ask(key), 401);
}

#[test]
fn what_cannot_be_served_is_refused_in_one_line() {
    let root = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &str); 6] = [
        (&["--base", "./nowhere"], "there is no ./nowhere"),
        (&["--adapter", "legal"], "is not NAME=PATH"),
        (&["--adapter", "legal=/nowhere"], "--adapter legal=/nowhere"),
        (&["--weight-format", "int3"], "int3 is not known; give f32"),
        (&["--worker", "https://a:1"], "there is no TLS"),
        (&["--worker", "http://a:1,slot=4"], "is not understood"),
    ];
    for (args, expected) in cases {
        let args: Vec<&str> = ["serve", "--port", "0"]
            .iter()
            .chain(args)
            .copied()
            .collect();
        refused(root.path(), &args, expected);
    }
    refused(root.path(), &["fleet", "status"], "no admin key");
}
