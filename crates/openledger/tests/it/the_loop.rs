//! Goal: real records in, contributors paid out, and anyone can check it.
//! Method: one instance through its whole life, as a user would use it: first
//! start, questions, receipts, stop, checks without it, second start, SIGKILL.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Up, check_refusal, refused, run, run_json, wei};

const MODELS: [&str; 3] = ["healthcare", "legal", "defi-exploits"];

/// The accounts of the well-known development keys.
const DEV_ACCOUNTS: [&str; 5] = [
    "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
    "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
    "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC",
    "0x90F79bf6EB2c4f870365E785982E1f101E93b906",
    "0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65",
];

#[test]
fn the_loop_pays_contributors_and_anyone_can_check_it() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("data");
    let up = Up::start(&dir);
    check_key_is_private(&dir);

    let models = run_json(&dir, &["datanet", "list"]);
    let n_records: u64 = models
        .as_array()
        .unwrap()
        .iter()
        .map(|net| net["n_records"].as_u64().unwrap())
        .sum();
    assert!(n_records >= 1_500, "{n_records} records");

    let payer = payer_prepaid_wei(&up);
    let mut receipts = Vec::new();
    let mut fees_wei = 0;
    for (model, question) in [
        ("defi-exploits", "How was Euler exploited?"),
        ("healthcare", "What are the symptoms of anemia ?"),
        ("legal", "Is this clause about governing law?"),
    ] {
        let reply = up.ask(model, question);
        let paid = &reply["openledger"];
        assert_eq!(paid["status"], "settled", "{reply}");
        let id = paid["receipt_id"].as_str().unwrap().to_owned();
        let receipt = run_json(&dir, &["receipt", "show", &id]);
        check_receipt(&receipt, model);
        assert_eq!(receipt["tokens_in"], reply["usage"]["prompt_tokens"]);
        assert_eq!(receipt["tokens_out"], reply["usage"]["completion_tokens"]);
        fees_wei += wei(&receipt["fee_wei"]);
        // Another process answers again and gets the same tokens and sketch.
        let again = run_json(&dir, &["receipt", "verify", &id, "--question", question]);
        assert_eq!(again["verdict"], "match");
        let answer = &reply["choices"][0]["message"]["content"];
        assert_eq!(&again["answer"], answer);
        refused(
            &dir,
            &["receipt", "verify", &id, "--question", "Another?"],
            "prompt differs",
        );
        receipts.push(id);
    }
    assert_eq!(
        payer - payer_prepaid_wei(&up),
        fees_wei,
        "exactly the fees left the prepaid balance"
    );
    check_supply(&up);
    up.stop();

    // Without the instance, from the folder alone.
    for id in &receipts {
        assert_eq!(
            run_json(&dir, &["receipt", "verify", id])["verdict"],
            "match"
        );
    }
    for model in MODELS {
        assert_eq!(
            run_json(&dir, &["datanet", "verify", model])[0]["verdict"],
            "match"
        );
    }
    check_tampering_is_found(&dir, &receipts[0]);

    // Again, and with a power cut.
    let up = Up::start(&dir);
    assert_eq!(
        run_json(&dir, &["receipt", "verify", &receipts[1]])["verdict"],
        "match"
    );
    let reply = up.ask("legal", "Does the text mention arbitration?");
    let id = reply["openledger"]["receipt_id"]
        .as_str()
        .unwrap()
        .to_owned();
    up.kill();
    let up = Up::start(&dir);
    assert_eq!(
        run_json(&dir, &["receipt", "verify", &id])["verdict"],
        "match"
    );
    check_supply(&up);
    up.stop();
}

#[cfg(unix)]
fn check_key_is_private(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(dir.join("dev-api-key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// The parts of the fee add up, at each of the two levels.
fn check_receipt(receipt: &Value, model: &str) {
    assert_eq!(receipt["model"], model);
    let split = &receipt["split"];
    let parts: Vec<u128> = ["platform", "model", "stakers", "contributors"]
        .map(|part| wei(&split[part]))
        .into();
    assert_eq!(parts.iter().sum::<u128>(), wei(&receipt["fee_wei"]));
    let training = receipt["pots"]["training"]["contributors"].as_array();
    assert!(!training.unwrap().is_empty(), "nobody was paid");
    let shares: Vec<&Value> = ["training", "spans", "context"]
        .iter()
        .flat_map(|pot| receipt["pots"][pot]["contributors"].as_array().unwrap())
        .collect();
    let paid: u128 = shares.iter().map(|share| wei(&share["paid_wei"])).sum();
    assert_eq!(paid, parts[3], "shares add up to the contributors' part");
    assert!(
        shares
            .iter()
            .all(|share| share["contributor"].is_string() && share["records"].is_array())
    );
    for field in [
        "id",
        "base_hash",
        "adapter_hash",
        "manifest_hash",
        "prompt_hash",
        "response_hash",
        "tx_hash",
    ] {
        assert_eq!(receipt[field].as_str().map(str::len), Some(66), "{field}");
    }
}

/// What the development payer has left in the settlement contract.
fn payer_prepaid_wei(up: &Up) -> u128 {
    let settlement = "0x4F50454E00000000000000000000000000000005";
    let payer = "00000000000000000000000090f79bf6eb2c4f870365e785982e1f101e93b906";
    // prepaid(address)
    let data = format!("0x{}{payer}", selector("prepaid(address)"));
    let word = up.rpc(
        "eth_call",
        json!([{"to": settlement, "data": data}, "latest"]),
    );
    u128::from_str_radix(&word.as_str().unwrap()[34..], 16).unwrap()
}

fn selector(signature: &str) -> String {
    let hash = ol_types::keccak256(signature);
    hash[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every OPEN is still there: the genesis holders, the settlement contract and
/// the fee vaults are all that the demo can have moved any to.
#[track_caller]
fn check_supply(up: &Up) {
    let treasuries =
        (0xC0..=0xC4).map(|n| format!("0x4F50454E000000000000000000000000000000{n:02X}"));
    let contracts = (1..=5).map(|n| format!("0x4F50454E000000000000000000000000000000{n:02X}"));
    let vaults =
        ["11", "19", "1a", "1b"].map(|n| format!("0x42000000000000000000000000000000000000{n}"));
    let dev = DEV_ACCOUNTS.map(str::to_owned);
    let holders = treasuries.chain(contracts).chain(vaults).chain(dev);
    let total_wei: u128 = holders.map(|holder| up.balance_wei(&holder)).sum();
    assert_eq!(total_wei, ol_types::OPEN_CAP_WEI);
}

/// A changed byte in any object that the receipt rests on is found.
fn check_tampering_is_found(dir: &Path, id: &str) {
    let hex = id.trim_start_matches("0x");
    let path = dir.join("objects").join(&hex[..2]).join(&hex[2..]);
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[100] ^= 1;
    fs::write(&path, &bad).unwrap();
    check_refusal(&run(dir, &["receipt", "verify", id]), "is damaged");
    fs::write(&path, &good).unwrap();
}
