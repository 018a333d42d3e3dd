//! Good requests: the forms of replies, streams, receipts, and that anybody can
//! recompute them.

use std::sync::Arc;

use ol_poa::Earned;
use ol_poa::spans::SpanRule;
use ol_runtime::Shutdown;
use ol_server::Access;
use ol_server::api::{self, ApiState};
use ol_server::evidence::Gathered;
use ol_server::verify::{self, Evidence};
use ol_types::{Address, B256, Receipt};
use serde_json::{Value, json};

use crate::support::{
    Disk, MODELS, QUOTED_QUESTION, QUOTING, World, events, question, quoted_answer, spans, wei,
};

const CHAT: &str = "/v1/chat/completions";

#[test]
fn health_is_503_until_ready() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
        .unwrap();
    let address = listener.local_addr().unwrap();
    let server = runtime.spawn(api::serve_on(
        ApiState::new(),
        Access::default(),
        None,
        listener,
        Shutdown::new(),
    ));
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .build()
        .into();
    for path in ["/health", "/v1/models"] {
        let reply = agent.get(format!("http://{address}{path}")).call().unwrap();
        assert_eq!(reply.status(), 503);
    }
    server.abort();

    let disk = Disk::new();
    let world = disk.start();
    let reply = world.get("/health");
    assert_eq!(
        (reply.status, reply.json()["status"].as_str()),
        (200, Some("ready"))
    );
    world.stop();
}

#[test]
fn models_are_listed() {
    let disk = Disk::new();
    let world = disk.start();
    let list = world.get("/v1/models").json();
    let names: Vec<&str> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|m| m["id"].as_str())
        .collect();
    assert_eq!(names, MODELS);
    assert_eq!(world.get("/v1/models/legal").json()["object"], "model");
    world.stop();
}

fn contributors<'a>(receipt: &'a Value, pot: &str) -> &'a [Value] {
    receipt["pots"][pot]["contributors"].as_array().unwrap()
}

/// The parts of a fee add up, and the receipt is the one of the reply.
pub(crate) fn check_payment(world: &World, payment: &Value) -> Value {
    let split = &payment["split"];
    let parts = ["platform", "model", "stakers", "contributors"].map(|part| wei(&split[part]));
    assert_eq!(parts.iter().sum::<u128>(), wei(&payment["fee_wei"]));
    assert_eq!(payment["status"], "settled");
    assert!(
        payment["tx_hash"].is_string() && payment["block"].is_u64(),
        "{payment}"
    );

    let id = payment["receipt_id"].as_str().unwrap();
    let receipt = world.get(&format!("/v1/receipts/{id}")).json();
    for field in [
        "fee_wei",
        "split",
        "tx_hash",
        "block",
        "status",
        "treasury_wei",
        "request_id",
    ] {
        assert_eq!(receipt[field], payment[field], "{field}");
    }
    let mut of_pots = 0;
    for pot in ["training", "spans", "context"] {
        let pot_wei = wei(&receipt["pots"][pot]["paid_wei"]);
        assert_eq!(
            receipt["pots"][pot]["paid_wei"],
            payment["pots"][pot]["paid_wei"]
        );
        let shares = contributors(&receipt, pot);
        assert_eq!(receipt["pots"][pot]["n_contributors"], shares.len());
        let paid: u128 = shares.iter().map(|share| wei(&share["paid_wei"])).sum();
        let treasury_wei = if pot == "training" {
            wei(&receipt["treasury_wei"])
        } else {
            0
        };
        assert_eq!(paid + treasury_wei, pot_wei, "{pot}");
        of_pots += pot_wei;
    }
    assert_eq!(of_pots, parts[3]);
    receipt
}

/// Recomputes a receipt as a stranger would: objects and chain alone.
pub(crate) fn check_publicly(world: &World, id: &str) {
    let id: B256 = id.parse().unwrap();
    let encoded = world.objects.get(id, 1_000).unwrap();
    let receipt = Receipt::decode(&encoded).unwrap();
    let query = world.objects.get(receipt.query_hash, 1_000).unwrap();
    let gathered = Gathered::load(&world.objects, receipt.evidence_hash);
    let gathered = gathered.unwrap().unwrap();
    let spans = spans(&world.dir);
    let chain = ol_server::gateway::Chain::new(world.node.clone(), crate::support::signer(4));
    let model = chain.model_of(&receipt).unwrap().unwrap();
    let index = chain.index(receipt.sketch_root).unwrap();
    let settled = chain.settled(id).unwrap().unwrap();
    let honest = Evidence {
        id,
        receipt: &encoded,
        query: &query,
        evidence: &gathered.evidence.to_bytes(),
        shown: &gathered.object,
        spans: Some(&spans),
        chunks: &index.chunks(),
        params: &model.params,
        settled: &settled.settlement,
    };
    let payout = verify::verify(&honest);
    assert_eq!(payout.unwrap().fee_wei, receipt.fee_wei);
    let mut tampered = query.to_vec();
    tampered[0] ^= 1;
    let difference = verify::verify(&Evidence {
        query: &tampered,
        ..honest
    });
    assert_eq!(difference.unwrap_err().part, "query");
}

#[test]
fn an_answer_comes_with_a_receipt_that_anybody_can_recompute() {
    let disk = Disk::new();
    let world = disk.start();
    let reply = world.chat(&question("defi-exploits", "who hacked the bridge", 7));
    assert_eq!(reply["object"], "chat.completion");
    assert_eq!(reply["model"], "defi-exploits");
    let choice = &reply["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(reply["usage"]["completion_tokens"], 20);
    let usage = &reply["usage"];
    let total = usage["prompt_tokens"].as_u64().unwrap() + 20;
    assert_eq!(usage["total_tokens"], total);

    let receipt = check_payment(&world, &reply["openledger"]);
    assert_eq!(receipt["model"], "defi-exploits");
    assert_eq!(receipt["datanets"], json!(["records"]));
    assert_eq!(
        (&receipt["tokens_in"], &receipt["tokens_out"]),
        (&usage["prompt_tokens"], &json!(20))
    );
    let shares = contributors(&receipt, "training");
    assert!(
        !shares.is_empty() && shares.len() < 9,
        "some contributors' data moved the answer"
    );
    assert!(shares.is_sorted_by_key(|share| std::cmp::Reverse(wei(&share["weight"]))));
    assert!(
        shares
            .iter()
            .all(|share| !share["records"].as_array().unwrap().is_empty())
    );
    let ppb: u64 = shares
        .iter()
        .map(|share| share["share_ppb"].as_u64().unwrap())
        .sum();
    assert!((999_999_990..=1_000_000_000).contains(&ppb), "{ppb}");
    check_publicly(&world, receipt["id"].as_str().unwrap());
    world.stop();
}

#[test]
fn words_that_stand_in_records_are_paid_from_a_pot_of_their_own() {
    let disk = Disk::new();
    let world = disk.start();
    let mut body = question(QUOTING, QUOTED_QUESTION, 1);
    body["temperature"] = json!(0);
    body["max_tokens"] = json!(40);
    let reply = world.chat(&body);
    let receipt = check_payment(&world, &reply["openledger"]);
    let pots = &receipt["pots"];
    let part_wei = wei(&receipt["split"]["contributors"]);
    // Nothing was retrieved: the pot for context falls to training.
    let index = spans(&world.dir);
    let Earned {
        weights: units,
        total,
    } = index.units(&quoted_answer(), &SpanRule::default()).unwrap();
    let pot = ol_poa::shares(part_wei, &[6_000, 2_000, 2_000]).unwrap()[1];
    let sum: u128 = units.iter().map(|&(_, units)| u128::from(units)).sum();
    let of_spans = pot * sum / u128::from(total);
    assert!(of_spans < pot && of_spans > pot / 4, "{of_spans} of {pot}");
    assert_eq!(wei(&pots["training"]["paid_wei"]), part_wei - of_spans);
    assert_eq!(wei(&pots["spans"]["paid_wei"]), of_spans);
    assert_eq!(pots["spans"]["total_weight"], total.to_string());
    assert_eq!(pots["context"]["paid_wei"], "0");
    assert!(units.len() >= 2, "{units:?}");
    let mut paid: Vec<(Address, u64)> = contributors(&receipt, "spans")
        .iter()
        .map(|share| {
            let text = |field: &str| share[field].as_str().unwrap().to_owned();
            (
                text("address").parse().unwrap(),
                text("weight").parse().unwrap(),
            )
        })
        .collect();
    paid.sort();
    assert_eq!(paid, units);

    let answer: Vec<char> = reply["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .chars()
        .collect();
    let found = pots["spans"]["found"].as_array().unwrap();
    assert!(!found.is_empty());
    for span in found {
        let place = |n: usize| usize::try_from(span["text_range"][n].as_u64().unwrap()).unwrap();
        let words: String = answer[place(0)..place(1).min(answer.len())]
            .iter()
            .collect();
        let text = span["text"].as_str().unwrap();
        assert!(text.starts_with(&words) && !words.is_empty(), "{span}");
        assert!(!span["holders"].as_array().unwrap().is_empty());
    }
    check_publicly(&world, receipt["id"].as_str().unwrap());
    world.stop();
}

#[test]
fn where_nobodys_data_counts_the_treasury_is_paid() {
    let disk = Disk::new();
    let world = disk.start();
    let reply = world.chat(&question("silent", "who", 1));
    let receipt = check_payment(&world, &reply["openledger"]);
    assert_eq!(contributors(&receipt, "training"), [] as [Value; 0]);
    assert_eq!(receipt["treasury_wei"], receipt["split"]["contributors"]);
    check_publicly(&world, receipt["id"].as_str().unwrap());
    world.stop();
}

#[test]
fn a_stream_gives_the_text_of_the_whole_reply() {
    let disk = Disk::new();
    let world = disk.start();
    for (seed, include_usage) in [(1, false), (2, true), (3, false)] {
        let mut body = question("legal", "café, the law", seed);
        let whole = world.chat(&body);
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": include_usage});
        let reply = world.post(CHAT, Some(&world.key), body.to_string().as_bytes());
        assert_eq!(reply.status, 200);
        assert_eq!(reply.headers["content-type"], "text/event-stream");
        let mut data = events(&reply.text);
        assert_eq!(data.pop().as_deref(), Some("[DONE]"));
        let chunks: Vec<Value> = data
            .iter()
            .map(|data| serde_json::from_str(data).unwrap())
            .collect();
        assert!(
            chunks
                .iter()
                .all(|chunk| chunk["object"] == "chat.completion.chunk")
        );
        assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"]));
        assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
        let deltas = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str());
        let text: String = deltas.collect();
        assert_eq!(
            text,
            whole["choices"][0]["message"]["content"].as_str().unwrap()
        );
        let reasons: Vec<&str> = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["finish_reason"].as_str())
            .collect();
        assert_eq!(
            reasons,
            [whole["choices"][0]["finish_reason"].as_str().unwrap()]
        );

        let (last, rest) = chunks.split_last().unwrap();
        check_payment(&world, &last["openledger"]);
        assert!(rest.iter().all(|chunk| chunk.get("openledger").is_none()));
        assert_eq!(
            last["openledger"]["fee_wei"],
            whole["openledger"]["fee_wei"]
        );
        if include_usage {
            assert_eq!(last["usage"], whole["usage"]);
            assert_eq!(last["choices"], json!([]));
        } else {
            assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
        }
    }
    world.stop();
}

#[test]
fn completions_continue_text_and_obey_stop() {
    let disk = Disk::new();
    let world = disk.start();
    let ask = |body: &Value| {
        let reply = world.post(
            "/v1/completions",
            Some(&world.key),
            body.to_string().as_bytes(),
        );
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply
    };
    let mut body = json!({"model": "legal", "prompt": "the law of", "max_tokens": 40, "seed": 3});
    let whole = ask(&body).json();
    assert_eq!(whole["object"], "text_completion");
    check_payment(&world, &whole["openledger"]);
    let text = whole["choices"][0]["text"].as_str().unwrap();
    let stop: String = text.chars().skip(10).take(2).collect();
    body["stop"] = json!([stop]);
    let stopped = ask(&body).json();
    let choice = &stopped["choices"][0];
    assert_eq!(choice["text"].as_str(), text.split(&stop).next());
    assert_eq!(choice["finish_reason"], "stop");
    assert!(wei(&stopped["openledger"]["fee_wei"]) < wei(&whole["openledger"]["fee_wei"]));
    body["stream"] = json!(true);
    let mut data = events(&ask(&body).text);
    assert_eq!(data.pop().as_deref(), Some("[DONE]"));
    let text: String = data
        .iter()
        .map(|data| {
            serde_json::from_str::<Value>(data).unwrap()["choices"][0]["text"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(Some(text.as_str()), choice["text"].as_str());
    world.stop();
}

#[test]
fn eight_requests_at_once_get_what_each_gets_alone() {
    let disk = Disk::new();
    let world = Arc::new(disk.start());
    let ask = |world: &World, n: u64| {
        let model = MODELS[2 + usize::try_from(n).unwrap() % 3];
        world.chat(&question(model, "who and how", n))
    };
    let threads: Vec<_> = (0..8)
        .map(|n| {
            let world = Arc::clone(&world);
            std::thread::spawn(move || ask(&world, n))
        })
        .collect();
    let replies: Vec<Value> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    for (n, reply) in (0..).zip(&replies) {
        check_payment(&world, &reply["openledger"]);
        assert_eq!(reply["choices"], ask(&world, n)["choices"]);
    }
    Arc::into_inner(world).unwrap().stop();
}
