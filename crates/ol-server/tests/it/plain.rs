//! The API without payment: what is asked for is what comes, keys and their
//! limits hold, adapters come and go.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ol_model::{Dtype, GenerationConfig, Tokenizer};
use ol_runtime::{ManualClock, Shutdown};
use ol_serve::{EngineHandle, EngineOptions};
use ol_server::api::{self, ApiState};
use ol_server::keys::{KeyLimits, NewKey, Scope};
use ol_server::plain::{Plain, PlainOptions};
use ol_server::retrieval::Retrieval;
use ol_server::{Access, SamplingDefaults};
use serde_json::{Value, json};

use crate::support::{Reply, adapter, adapter_store, base, events, get, post, tokenizer};

pub(crate) const CHAT: &str = "/v1/chat/completions";
const BASE: &str = "tiny";

pub(crate) struct World {
    _dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    pub(crate) address: std::net::SocketAddr,
    plain: Plain,
    clock: Arc<ManualClock>,
}

impl World {
    fn new(is_open: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::over(dir, is_open)
    }

    fn over(dir: tempfile::TempDir, is_open: bool) -> Self {
        Self::with(dir, is_open, SamplingDefaults::default(), tokenizer())
    }

    fn with(
        dir: tempfile::TempDir,
        is_open: bool,
        sampling_defaults: SamplingDefaults,
        tokenizer: Arc<Tokenizer>,
    ) -> Self {
        let options = PlainOptions {
            is_open,
            sampling_defaults,
            ..PlainOptions::new(dir.path().join("keys"), BASE)
        };
        Self::with_options(dir, options, tokenizer)
    }

    /// A server whose datanets have passages.
    pub(crate) fn with_retrieval(retrieval: Retrieval) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = PlainOptions {
            is_open: true,
            retrieval,
            ..PlainOptions::new(dir.path().join("keys"), BASE)
        };
        Self::with_options(dir, options, tokenizer())
    }

    fn with_options(
        dir: tempfile::TempDir,
        options: PlainOptions,
        tokenizer: Arc<Tokenizer>,
    ) -> Self {
        let engine = EngineHandle::start(base(), tokenizer, 1, EngineOptions::default()).unwrap();
        let adapters = adapter_store(&roots(dir.path()));
        for (n, name) in (1..).zip(["one", "two"]) {
            adapters.insert(name, adapter(n)).unwrap();
        }
        let clock = Arc::new(ManualClock::new(1_700_000_000));
        let plain = Plain::new(options, engine, adapters, Arc::clone(&clock) as _).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let state = ApiState::new();
        state.set_ready(plain.clone());
        runtime.spawn(api::serve_on(
            state,
            Access::default(),
            None,
            listener,
            Shutdown::new(),
        ));
        Self {
            _dir: dir,
            runtime,
            address,
            plain,
            clock,
        }
    }

    fn key(&self, scopes: &[Scope], limits: KeyLimits) -> String {
        let new = NewKey {
            account: None,
            label: "test".to_owned(),
            scopes: scopes.to_vec(),
            limits,
        };
        self.plain.keys().add(new).unwrap().expose().to_owned()
    }

    pub(crate) fn post(&self, path: &str, key: Option<&str>, body: &Value) -> Reply {
        post(self.address, path, key, body.to_string().as_bytes())
    }

    pub(crate) fn ask(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, None, body);
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()
    }

    #[track_caller]
    pub(crate) fn refused(
        &self,
        path: &str,
        key: Option<&str>,
        body: &Value,
        status: u16,
    ) -> Value {
        let reply = self.post(path, key, body);
        assert_eq!(reply.status, status, "{}", reply.text);
        reply.json()["error"].clone()
    }

    pub(crate) fn stop(self) {
        self.runtime.block_on(self.plain.shutdown());
    }
}

fn roots(dir: &Path) -> std::path::PathBuf {
    let roots = dir.join("adapters");
    std::fs::create_dir_all(&roots).unwrap();
    roots
}

pub(crate) fn question(more: Value) -> Value {
    let mut body = json!({
        "model": BASE, "messages": [{"role": "user", "content": "who and how"}],
        "max_tokens": 12, "temperature": 1.0, "seed": 5,
    });
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

pub(crate) fn content(reply: &Value) -> &str {
    reply["choices"][0]["message"]["content"].as_str().unwrap()
}

#[test]
fn answers_have_no_receipts_and_models_have_parents() {
    let world = World::new(true);
    let reply = world.ask(CHAT, &question(json!({})));
    assert!(reply.get("openledger").is_none());
    assert_eq!(reply["usage"]["completion_tokens"], 12);
    let adapted = world.ask(CHAT, &question(json!({"model": "two"})));
    assert_ne!(content(&adapted), content(&reply));
    let models = get(world.address, "/v1/models").json();
    let names: Vec<&Value> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["id"])
        .collect();
    assert_eq!(names, [BASE, "one", "two"]);
    assert_eq!(models["data"][0]["parent"], Value::Null);
    assert_eq!(models["data"][1]["parent"], BASE);
    for path in [
        "/health",
        "/ping",
        "/version",
        "/openapi.json",
        "/v1/models/one",
    ] {
        assert_eq!(get(world.address, path).status, 200, "{path}");
    }
    let receipt = format!("/v1/receipts/0x{}", "11".repeat(32));
    assert_eq!(get(world.address, &receipt).status, 404);
    world.stop();
}

#[test]
fn several_choices_differ_and_the_first_is_the_one_alone() {
    let world = World::new(true);
    let alone = world.ask(CHAT, &question(json!({})));
    let three = world.ask(CHAT, &question(json!({"n": 3})));
    let choices = three["choices"].as_array().unwrap();
    assert_eq!(choices[0], alone["choices"][0]);
    assert_ne!(choices[1]["message"], choices[2]["message"]);
    assert_eq!(three["usage"]["completion_tokens"], 36);
    assert_eq!(
        three["usage"]["prompt_tokens"],
        alone["usage"]["prompt_tokens"]
    );

    let body = question(json!({"n": 3, "stream": true, "stream_options": {"include_usage": true}}));
    let mut data = events(&world.post(CHAT, None, &body).text);
    assert_eq!(data.pop().as_deref(), Some("[DONE]"));
    let chunks: Vec<Value> = data
        .iter()
        .map(|d| serde_json::from_str(d).unwrap())
        .collect();
    assert_eq!(chunks.last().unwrap()["usage"], three["usage"]);
    for (index, choice) in choices.iter().enumerate() {
        let parts = chunks.iter().filter_map(|chunk| {
            let part = &chunk["choices"][0];
            (part["index"] == index).then(|| part["delta"]["content"].as_str().unwrap_or_default())
        });
        assert_eq!(
            parts.collect::<String>(),
            choice["message"]["content"].as_str().unwrap()
        );
    }
    world.stop();
}

#[test]
fn token_ids_and_log_probabilities_are_those_of_the_answer() {
    let world = World::new(true);
    let more =
        json!({"logprobs": true, "top_logprobs": 3, "return_token_ids": true, "temperature": 0});
    let reply = world.ask(CHAT, &question(more.clone()));
    let choice = &reply["choices"][0];
    let ids = choice["token_ids"].as_array().unwrap();
    assert_eq!(ids.len(), 12);
    let prompt = reply["prompt_token_ids"].as_array().unwrap();
    assert_eq!(reply["usage"]["prompt_tokens"], prompt.len());
    let body = json!({"tokens": ids});
    assert_eq!(
        world.ask("/detokenize", &body)["prompt"],
        choice["message"]["content"]
    );
    let messages = json!({"messages": [{"role": "user", "content": "who and how"}]});
    assert_eq!(world.ask("/tokenize", &messages)["tokens"], json!(prompt));
    let entries = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(entries.len(), 12);
    for entry in entries {
        // Greedy: the drawn token is the likeliest.
        assert_eq!(entry["top_logprobs"][0]["bytes"], entry["bytes"]);
        assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 3);
        assert!(entry["logprob"].as_f64().unwrap() <= 0.0);
    }
    let mut body = question(more);
    body["stream"] = json!(true);
    let data = events(&world.post(CHAT, None, &body).text);
    let streamed: Vec<Value> = data
        .iter()
        .filter_map(|d| serde_json::from_str::<Value>(d).ok())
        .flat_map(|chunk| {
            chunk["choices"][0]["token_ids"]
                .as_array()
                .cloned()
                .unwrap_or_default()
        })
        .collect();
    assert_eq!(&streamed, ids);

    let body =
        json!({"model": BASE, "prompt": prompt, "max_tokens": 12, "temperature": 0, "logprobs": 2});
    let completion = world.ask("/v1/completions", &body);
    let logprobs = &completion["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 12);
    assert_eq!(logprobs["token_logprobs"][0], entries[0]["logprob"]);
    assert_eq!(logprobs["text_offset"][0], 0);
    world.stop();
}

#[test]
fn sampling_is_as_asked() {
    let world = World::new(true);
    let greedy = question(json!({"temperature": 0, "return_token_ids": true}));
    let plain = world.ask(CHAT, &greedy);
    let ids = plain["choices"][0]["token_ids"].as_array().unwrap();
    let with = |more: Value| {
        let mut body = greedy.clone();
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        world.ask(CHAT, &body)["choices"][0].clone()
    };
    let first = ids[0].to_string();
    let mut bias = json!({});
    bias[&first] = json!(-100);
    assert_ne!(with(json!({"logit_bias": bias}))["token_ids"][0], ids[0]);
    let stopped = with(json!({"stop_token_ids": [ids[2]]}));
    assert_eq!(stopped["finish_reason"], "stop");
    assert!(stopped["token_ids"].as_array().unwrap().len() <= 2);
    let late = with(json!({"stop_token_ids": [ids[2]], "min_tokens": 6}));
    assert!(late["token_ids"].as_array().unwrap().len() >= 6);
    let spread = with(json!({"repetition_penalty": 100.0}));
    let mut seen: Vec<u64> = spread["token_ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap())
        .collect();
    let n = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), n, "nothing is repeated");
    // One token only: whatever the temperature, it is the likeliest.
    assert_eq!(
        with(json!({"top_k": 1, "temperature": 2}))["token_ids"],
        json!(ids)
    );
    world.stop();
}

#[test]
fn a_models_recommendations_fill_in_what_a_request_does_not_say() {
    let config = GenerationConfig {
        temperature: Some(1.5),
        top_k: Some(1),
        ..GenerationConfig::default()
    };
    let defaults = SamplingDefaults::recommended(&config).unwrap();
    let world = World::with(tempfile::tempdir().unwrap(), true, defaults, tokenizer());
    // Several seeds: the model is rather sure of itself.
    let asked = |sampling: Value| -> Vec<Value> {
        let of_seed = |seed: u64| {
            let mut body = question(json!({"return_token_ids": true, "seed": seed}));
            let fields = body.as_object_mut().unwrap();
            fields.remove("temperature");
            fields.extend(sampling.as_object().unwrap().clone());
            world.ask(CHAT, &body)["choices"][0]["token_ids"].clone()
        };
        (0..6).map(of_seed).collect()
    };
    let likeliest = asked(json!({"temperature": 0}));
    assert_eq!(asked(json!({})), likeliest, "the model's top_k");
    assert_eq!(asked(json!({"temperature": 2})), likeliest);
    // What the request says goes before: all tokens, at the model's temperature.
    let all = asked(json!({"top_k": 0}));
    assert_ne!(all, likeliest);
    assert_eq!(all, asked(json!({"top_k": -1, "temperature": 1.5})));
    assert_ne!(all, asked(json!({"top_k": 0, "temperature": 0.2})));
    world.stop();
}

#[test]
fn answers_have_the_form_asked_for() {
    let world = World::new(true);
    let schema = json!({
        "type": "object", "properties": {"name": {"enum": ["Ada", "Bob"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["name", "n"], "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let mut n_finished = 0;
    for seed in 0..6 {
        let reply = world.ask(
            CHAT,
            &question(json!({"response_format": format, "max_tokens": 150, "seed": seed})),
        );
        if reply["choices"][0]["finish_reason"] == "stop" {
            let value: Value = serde_json::from_str(content(&reply)).unwrap();
            assert!(["Ada", "Bob"].contains(&value["name"].as_str().unwrap()));
            assert!(value["n"].as_u64().unwrap() < 100);
            n_finished += 1;
        }
    }
    assert!(n_finished > 0);
    let choice = world.ask(
        CHAT,
        &question(json!({"structured_outputs": {"choice": ["yes", "no"]}, "max_tokens": 20})),
    );
    assert!(["yes", "no"].contains(&content(&choice)));
    assert_eq!(choice["choices"][0]["finish_reason"], "stop");
    let bad =
        json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "wat"}}});
    let error = world.refused(CHAT, None, &question(json!({"response_format": bad})), 400);
    assert_eq!(error["param"], "response_format");
    world.stop();
}

#[test]
fn required_tools_are_called_with_arguments_that_fit() {
    let world = World::new(true);
    let tools = json!([{"type": "function", "function": {"name": "add", "parameters": {
        "type": "object", "properties": {"a": {"enum": [1, 2, 3]}}, "required": ["a"], "additionalProperties": false,
    }}}]);
    let named = json!({"type": "function", "function": {"name": "add"}});
    for (choice, reason) in [(json!("required"), "tool_calls"), (named, "stop")] {
        let mut body = question(json!({
            "tools": tools, "tool_choice": choice, "parallel_tool_calls": false, "max_tokens": 200,
        }));
        let reply = world.ask(CHAT, &body);
        let choice = &reply["choices"][0];
        assert_eq!(choice["finish_reason"], reason, "{reply}");
        assert_eq!(choice["message"]["content"], Value::Null);
        let call = &choice["message"]["tool_calls"][0];
        assert_eq!(
            (&call["type"], &call["function"]["name"]),
            (&json!("function"), &json!("add"))
        );
        let arguments: Value =
            serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
        assert!((1..=3).contains(&arguments["a"].as_u64().unwrap()));
        body["stream"] = json!(true);
        let data = events(&world.post(CHAT, None, &body).text);
        let deltas = data
            .iter()
            .filter_map(|d| serde_json::from_str::<Value>(d).ok());
        let parts: String = deltas
            .filter_map(|chunk| {
                let part = &chunk["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"];
                part.as_str().map(str::to_owned)
            })
            .collect();
        assert_eq!(serde_json::from_str::<Value>(&parts).unwrap(), arguments);
    }
    // This model's chat format has no place for tools that it may choose to call.
    let error = world.refused(CHAT, None, &question(json!({"tools": tools})), 400);
    assert_eq!(error["param"], "tools");
    world.stop();
}

/// A model of a family that writes calls in its text: the constraint makes this
/// one write what such a model would.
#[test]
fn a_call_that_the_model_chose_to_make_streams_by_its_parts() {
    let mut tokenizer = Tokenizer::clone(&tokenizer());
    let template = "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}\
        {% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}";
    tokenizer.set_chat_template(template).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let world = World::with(dir, true, SamplingDefaults::default(), Arc::new(tokenizer));
    let tools = json!([{"type": "function", "function": {"name": "add", "parameters": {
        "type": "object", "properties": {"a": {"enum": [1, 2, 3]}}, "required": ["a"],
    }}}]);
    let form = r#"so: <tool_call>\{"name": "add", "arguments": \{"a": [1-3], "b": "(how|who)"\}\}</tool_call>"#;
    let asked = |more: Value| {
        let mut body = question(json!({
            "tools": tools, "max_tokens": 300, "structured_outputs": {"regex": form},
        }));
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    let reply = world.ask(CHAT, &asked(json!({})));
    let choice = &reply["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{reply}");
    assert_eq!(choice["message"]["content"], "so: ");
    let calls = choice["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(
        (calls.len(), &calls[0]["function"]["name"]),
        (1, &json!("add"))
    );
    let arguments = calls[0]["function"]["arguments"].as_str().unwrap();
    let read: Value = serde_json::from_str(arguments).unwrap();
    assert!((1..=3).contains(&read["a"].as_u64().unwrap()));
    // More prompt tokens: the template has described the tool.
    let without = world.ask(CHAT, &question(json!({})));
    assert!(reply["usage"]["prompt_tokens"].as_u64() > without["usage"]["prompt_tokens"].as_u64());

    let data = events(&world.post(CHAT, None, &asked(json!({"stream": true}))).text);
    let chunks: Vec<Value> = data
        .iter()
        .filter_map(|d| serde_json::from_str(d).ok())
        .collect();
    let parts: Vec<&Value> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].get(0))
        .collect();
    assert_eq!(parts[0]["function"]["name"], "add");
    assert!(parts[0]["id"].as_str().unwrap().starts_with("call_"));
    assert!(
        parts[1..]
            .iter()
            .all(|part| part["function"].get("name").is_none())
    );
    let sum: String = parts
        .iter()
        .filter_map(|p| p["function"]["arguments"].as_str())
        .collect();
    assert_eq!(sum, arguments, "the same seed gives the same call");
    assert!(
        parts.len() > 4,
        "name and arguments come as they are written: {parts:?}"
    );
    let none = world.ask(CHAT, &asked(json!({"tool_choice": "none"})));
    assert_eq!(none["choices"][0]["finish_reason"], "stop");
    assert!(
        none["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .contains("<tool_call>")
    );
    world.stop();
}

#[test]
fn embeddings_are_of_length_one_and_depend_on_the_text_alone() {
    let world = World::new(true);
    let ask = |more: Value| {
        let mut body = json!({"model": BASE, "input": ["the law", "who", "the law"]});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        world.ask("/v1/embeddings", &body)
    };
    let vector = |reply: &Value, at: usize| -> Vec<f64> {
        let numbers = reply["data"][at]["embedding"].as_array().unwrap();
        numbers.iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let reply = ask(json!({}));
    let first = vector(&reply, 0);
    assert_eq!(first.len(), 32);
    assert!((first.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
    assert_eq!(first, vector(&reply, 2));
    assert_ne!(first, vector(&reply, 1));
    let short = vector(&ask(json!({"dimensions": 8})), 0);
    assert!((short[0] / short[1] - first[0] / first[1]).abs() < 1e-3);
    assert!((short.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
    let packed = ask(json!({"encoding_format": "base64"}));
    assert_eq!(
        packed["data"][0]["embedding"].as_str().unwrap().len(),
        (32_usize * 4).div_ceil(3) * 4
    );
    for (more, param) in [
        (json!({"dimensions": 33}), "dimensions"),
        (json!({"input": ""}), "input"),
        (json!({"input": [70_000]}), "input"),
        (json!({"model": "one"}), "model"),
        (json!({"model": "none"}), "model"),
    ] {
        let mut body = json!({"model": BASE, "input": "a"});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let reply = world.post("/v1/embeddings", None, &body);
        assert_eq!(reply.json()["error"]["param"], param, "{}", reply.text);
    }
    world.stop();
}

#[test]
fn keys_have_scopes_and_limits() {
    let world = World::new(false);
    let body = question(json!({}));
    assert_eq!(
        world.refused(CHAT, None, &body, 401)["code"],
        "missing_api_key"
    );
    assert_eq!(
        world.refused(CHAT, Some("ol-no"), &body, 401)["code"],
        "invalid_api_key"
    );
    let admin = world.key(&[Scope::Admin], KeyLimits::default());
    assert_eq!(
        world.refused(CHAT, Some(&admin), &body, 403)["code"],
        "insufficient_scope"
    );

    let limits = KeyLimits {
        requests_per_minute: Some(2),
        tokens_per_minute: Some(1_000),
        ..KeyLimits::default()
    };
    let key = world.key(&[Scope::Infer], limits);
    let reply = world.post(CHAT, Some(&key), &body);
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.headers["x-ratelimit-limit-requests"], "2");
    assert_eq!(reply.headers["x-ratelimit-remaining-requests"], "1");
    assert_eq!(reply.headers["x-ratelimit-limit-tokens"], "1000");
    assert_eq!(world.post(CHAT, Some(&key), &body).status, 200);
    let limited = world.post(CHAT, Some(&key), &body);
    assert_eq!(limited.status, 429);
    assert_eq!(limited.headers["retry-after"], "30");
    assert_eq!(limited.json()["error"]["code"], "rate_limit_exceeded");
    world.clock.advance(Duration::from_secs(30));
    assert_eq!(world.post(CHAT, Some(&key), &body).status, 200);
    world.clock.advance(Duration::from_secs(60));
    let error = world.refused(
        CHAT,
        Some(&key),
        &question(json!({"max_tokens": 2_000})),
        400,
    );
    assert_eq!(error["code"], "rate_limit_exceeded");

    let budget = KeyLimits {
        tokens_total: Some(60),
        ..KeyLimits::default()
    };
    let key = world.key(&[Scope::Infer], budget);
    let statuses: Vec<u16> = (0..6)
        .map(|_| world.post(CHAT, Some(&key), &body).status)
        .collect();
    assert_eq!(statuses[0], 200);
    assert_eq!(statuses[5], 429, "{statuses:?}");
    let error = world.refused(CHAT, Some(&key), &body, 429);
    assert_eq!(error["code"], "insufficient_quota");
    world.stop();
}

#[test]
fn adapters_come_and_go_as_vllms_do() {
    let dir = tempfile::tempdir().unwrap();
    for (n, name) in [(7, "seven"), (8, "eight")] {
        let folder = roots(dir.path()).join(name);
        std::fs::create_dir_all(&folder).unwrap();
        adapter(n).save(&folder, "tiny").unwrap();
    }
    let file = roots(dir.path()).join("seven.gguf");
    adapter(7)
        .save_gguf(&file, base().config(), Dtype::F32)
        .unwrap();
    let world = World::over(dir, true);
    let admin = world.key(&[Scope::Admin], KeyLimits::default());
    let (load, unload) = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter");
    let call = |path: &str, body: Value| {
        let reply = world.post(path, Some(&admin), &body);
        (reply.status, reply.text)
    };
    let seven = json!({"lora_name": "new", "lora_path": "seven"});
    assert_eq!(
        world.refused(load, None, &seven, 401)["code"],
        "missing_api_key"
    );
    let infer = world.key(&[Scope::Infer], KeyLimits::default());
    assert_eq!(
        world.refused(load, Some(&infer), &seven, 403)["code"],
        "insufficient_scope"
    );

    let added = "Success: LoRA adapter 'new' added successfully.".to_owned();
    assert_eq!(call(load, seven.clone()), (200, added.clone()));
    let first = content(&world.ask(CHAT, &question(json!({"model": "new"})))).to_owned();
    let card = get(world.address, "/v1/models/new").json();
    assert_eq!(card["parent"], BASE);
    assert!(card["root"].as_str().unwrap().contains("seven"), "{card}");

    // llama.cpp's form of it.
    let file = json!({"lora_name": "file", "lora_path": "seven.gguf"});
    assert_eq!(call(load, file).0, 200);
    let same = world.ask(CHAT, &question(json!({"model": "file"})));
    assert_eq!(content(&same), first);

    let error = world.refused(load, Some(&admin), &seven, 400);
    assert_eq!(error["type"], "InvalidUserInput");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("'load_inplace' to True")
    );
    let replaced = json!({"lora_name": "new", "lora_path": "eight", "load_inplace": true});
    assert_eq!(call(load, replaced), (200, added));
    assert_ne!(
        content(&world.ask(CHAT, &question(json!({"model": "new"})))),
        first
    );

    for (body, status, kind) in [
        (
            json!({"lora_name": "x", "lora_path": "none"}),
            404,
            "NotFoundError",
        ),
        (
            json!({"lora_name": "x", "lora_path": "/etc"}),
            404,
            "NotFoundError",
        ),
        (
            json!({"lora_name": "x", "lora_path": "../keys"}),
            404,
            "NotFoundError",
        ),
        (
            json!({"lora_name": BASE, "lora_path": "seven"}),
            400,
            "InvalidUserInput",
        ),
        (json!({"lora_name": "x"}), 400, "invalid_request_error"),
    ] {
        let error = world.refused(load, Some(&admin), &body, status);
        assert_eq!(error["type"], kind, "{error}");
    }
    let removed = "Success: LoRA adapter 'new' removed successfully.".to_owned();
    let name = json!({"lora_name": "new"});
    assert_eq!(call(unload, name.clone()), (200, removed));
    let error = world.refused(unload, Some(&admin), &name, 404);
    assert_eq!(error["type"], "NotFoundError");
    world.refused(CHAT, None, &question(json!({"model": "new"})), 404);
    world.stop();
}

#[test]
fn adapters_are_added_up_with_weights() {
    let world = World::new(true);
    let ask = |more: Value| content(&world.ask(CHAT, &question(more))).to_owned();
    let greedy = json!({"temperature": 0});
    let with = |adapters: Value| {
        let mut more = greedy.clone();
        more["adapters"] = adapters;
        ask(more)
    };
    let mut one = greedy.clone();
    one["model"] = json!("one");
    assert_eq!(with(json!([{"name": "one"}])), ask(one));
    let both = with(json!([{"name": "one", "weight": 0.7}, {"name": "two", "weight": 0.6}]));
    assert_ne!(both, with(json!([{"name": "one"}])));
    let error = world.refused(
        CHAT,
        None,
        &question(json!({"adapters": [{"name": "none"}]})),
        400,
    );
    assert_eq!(error["param"], "adapters");
    let error = world.refused(
        CHAT,
        None,
        &question(json!({"model": "one", "adapters": [{"name": "two"}]})),
        400,
    );
    assert_eq!(error["param"], "adapters");
    world.stop();
}
