//! Goal: whatever is wrong, one clear line says so; nothing is charged, nothing
//! is lost. Method: each mistake a user can make, against one instance.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use serde_json::json;

use crate::harness::{Up, openledger, refused};

/// Starts on free ports.
const UP: [&str; 5] = ["up", "--rpc-port", "0", "--api-port", "0"];

#[test]
fn folders_and_ports_that_cannot_be_used_are_refused() {
    let folder = tempfile::tempdir().unwrap();

    let foreign = folder.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("holiday.jpg"), "not ours").unwrap();
    refused(&foreign, &["up"], "not an OpenLedger data folder");

    let future = folder.path().join("future");
    fs::create_dir(&future).unwrap();
    fs::write(future.join("format"), "openledger-data 99\n").unwrap();
    refused(&future, &["up"], "99");

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    refused(&file.join("below"), &["up"], "could not");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let fresh = folder.path().join("fresh");
    refused(
        &fresh,
        &["up", "--rpc-port", &port, "--api-port", "0"],
        "in use",
    );
    refused(
        &fresh,
        &["up", "--rpc-port", "0", "--api-port", &port],
        "in use",
    );

    refused(
        &fresh,
        &["ask", "--model", "legal", "Anybody there?"],
        "no instance runs",
    );
    let id = format!("0x{}", "11".repeat(32));
    refused(&fresh, &["receipt", "verify", &id], "no receipt");
    refused(
        &fresh,
        &["receipt", "show", "0x12"],
        "64 hexadecimal digits",
    );
}

#[test]
fn bad_requests_are_refused_and_cost_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let up = Up::start(&dir);

    refused(
        &dir,
        &["up", "--rpc-port", "0", "--api-port", "0"],
        "already runs",
    );

    let settlement = "0x4F50454E00000000000000000000000000000005";
    let held = up.balance_wei(settlement);
    let head = up.rpc("eth_blockNumber", json!([]));
    let path = "/v1/chat/completions";
    let question = |model: &str, content: &str| {
        json!({"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 8})
            .to_string()
    };
    let long = question("legal", &"word ".repeat(5_000));
    let huge = question("legal", &"x".repeat(3 << 20));
    let mut no_utf8 = question("legal", "Q").into_bytes();
    let at = no_utf8.iter().rposition(|&byte| byte == b'Q').unwrap();
    no_utf8[at] = 0xff;
    let cases: [(&[u8], u16, &str); 5] = [
        (long.as_bytes(), 400, "context_length_exceeded"),
        (
            question("no-such", "Q").as_bytes().to_vec().leak(),
            404,
            "model_not_found",
        ),
        (&no_utf8, 400, ""),
        (huge.as_bytes(), 413, ""),
        (b"{\"model\":", 400, ""),
    ];
    for (body, status, code) in cases {
        let (found, reply) = up.post(path, body);
        assert_eq!(found, status, "{reply}");
        assert!(
            reply["error"]["message"]
                .as_str()
                .is_some_and(|message| !message.is_empty()),
            "{reply}"
        );
        assert!(code.is_empty() || reply["error"]["code"] == code, "{reply}");
    }
    let good = question("legal", "Q");
    assert_eq!(up.post_as(None, path, good.as_bytes()).0, 401);
    assert_eq!(up.post_as(Some("wrong"), path, good.as_bytes()).0, 401);

    let output = openledger(&dir, &["ask", "--model", "no-such", "Q"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("no-such"));

    assert_eq!(up.balance_wei(settlement), held, "nothing was charged");
    assert_eq!(
        up.rpc("eth_blockNumber", json!([])),
        head,
        "nothing was settled"
    );
    up.stop();

    // Damage to what is kept is named, never served.
    for file in [
        "models/legal/adapter_model.safetensors",
        "models/legal/sketch-map.bin",
        "models/legal/manifest.json",
        "base/model.safetensors",
    ] {
        check_damage_is_named(&dir, file);
    }
    fs::write(dir.join("chain/mdbx.dat"), vec![0xa5; 1 << 16]).unwrap();
    refused(&dir, &UP, "could not open the chain");
}

/// With one byte changed in the middle, a file is refused by its name.
fn check_damage_is_named(dir: &Path, file: &str) {
    let path = dir.join(file);
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 1;
    fs::write(&path, bad).unwrap();
    refused(dir, &UP, file);
    fs::write(&path, good).unwrap();
}
