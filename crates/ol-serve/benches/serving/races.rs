//! Other servers of many adapters, on the same prompts: PEFT's mixed batch,
//! llama.cpp with one adapter after the other, vLLM, and a process for each
//! adapter.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use ol_model::{Lora, Model, Tokenizer};
use ol_serve::{AdapterRef, EngineHandle, EngineOptions, GenerateRequest};
use tempfile::TempDir;

use crate::fixture::{Fixture, Kind, adapter, base_dir, prompt};
use crate::peer::Peer;
use crate::traffic::Popularity;
use crate::{ANSWER, CLIENTS, PROMPT, ROUNDS_OF_PEERS, Report, THREADS, float, timed};

/// Names the Python in which PEFT and llama.cpp are installed.
pub(crate) const PYTHON: &str = "OPENLEDGER_BENCH_PYTHON";
/// The same for vLLM, which wants another torch.
const VLLM_PYTHON: &str = "OPENLEDGER_VLLM_PYTHON";

/// Adapters of the peers, and ours beside them.
const N_PEERS: usize = 64;
const N_OURS: usize = 2000;

pub(crate) fn bench(report: &mut Report) {
    let work = |what: &str| {
        format!("{N_OURS} adapters, Uniform; the peer has {N_PEERS} and serves {what}")
    };
    let kinds = [
        (
            "torch",
            PYTHON,
            "mixed batches of 16",
            work("mixed batches of 16"),
        ),
        ("llama.cpp", PYTHON, "", work("one after the other")),
        ("vllm", VLLM_PYTHON, "", work("16 at a time")),
    ];
    let processes = [
        format!("{N_OURS} adapters, Uniform; a process of ours for each"),
        format!("{N_OURS} adapters, Uniform; a process of PEFT for each"),
    ];
    let mut wanted = kinds.iter().map(|(.., work)| work).chain(&processes);
    if !wanted.any(|work| report.wants(work)) {
        return;
    }
    let kind = Kind {
        is_all: false,
        is_half: false,
    };
    let fixture = Fixture::new(N_OURS, kind, 1200 << 20);
    let folder = TempDir::new().expect("there is a temporary directory");
    let dir = folder.path();
    for name in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        std::fs::copy(base_dir().join(name), dir.join(name)).expect("the base can be copied");
    }
    for i in 0..N_PEERS {
        adapter(fixture.engine.base().config(), i, false)
            .save(&dir.join("adapters").join(i.to_string()), "base")
            .expect("the temporary directory can be written");
    }
    let ours = |round: usize| {
        let measured = fixture.serve(Some((N_OURS, Popularity::Uniform)), round as u64);
        measured.tokens_per_s
    };
    for (kind, variable, _, work) in &kinds {
        if !report.wants(work) {
            continue;
        }
        let Some(mut peer) = Peer::start("serving", variable, kind, dir) else {
            continue;
        };
        if peer.try_ask(&format!("adapters 0 {N_PEERS}")).is_none() {
            continue;
        }
        let (mut our_rates, mut peer_rates) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS_OF_PEERS {
            let our_rate = ours(round);
            let first = round * CLIENTS;
            let answered = peer.try_ask(&match *kind {
                "torch" => format!("mixed {THREADS} {CLIENTS} {PROMPT} {ANSWER} {first}"),
                "llama.cpp" => format!("swap {THREADS} {CLIENTS} {PROMPT} {ANSWER}"),
                _ => format!("serve {THREADS} {N_PEERS} {PROMPT} {ANSWER}"),
            });
            let Some((seconds, tokens)) = answered else {
                peer_rates.clear();
                break;
            };
            if round > 0 {
                our_rates.push(our_rate);
                peer_rates.push(tokens / seconds);
            }
        }
        if !peer_rates.is_empty() {
            report.add(work, "tokens/s", &our_rates, &peer_rates, &peer.name, None);
        }
    }
    let bench = std::env::current_exe().expect("the benchmark is a file");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/serving/peer.py");
    for (work, is_peft) in processes.iter().zip([false, true]) {
        if !report.wants(work) {
            continue;
        }
        let n = if is_peft { 2 } else { CLIENTS };
        let (mut our_rates, mut peer_rates) = (Vec::new(), Vec::new());
        for round in 1..=if is_peft { 1 } else { ROUNDS_OF_PEERS } {
            our_rates.push(ours(round));
            let mut is_there = true;
            let seconds = timed(|| {
                for i in 0..n {
                    let mut process = if is_peft {
                        let python = std::env::var(PYTHON).unwrap_or_else(|_| "python3".into());
                        let mut process = Command::new(python);
                        process.arg(&script).arg("once").arg(dir);
                        process.args([i.to_string(), PROMPT.to_string(), ANSWER.to_string()]);
                        process
                    } else {
                        let mut process = Command::new(&bench);
                        process.arg("--one-process").arg(dir).arg(i.to_string());
                        process
                    };
                    process.stderr(Stdio::null()).stdout(Stdio::null());
                    is_there &= process.status().is_ok_and(|status| status.success());
                }
            });
            if !is_there {
                eprintln!("{work}: left out, a process failed");
                peer_rates.clear();
                break;
            }
            peer_rates.push(float(n * ANSWER) / seconds);
        }
        if !peer_rates.is_empty() {
            let name = "processes, one request each, one after the other";
            report.add(work, "tokens/s", &our_rates, &peer_rates, name, None);
        }
    }
}

/// Serves one request of one adapter, and ends.
pub(crate) fn one_process(dir: &Path, name: &str) {
    let base = Model::load(dir).expect("the base is there");
    let tokenizer = Tokenizer::load(dir).expect("the tokenizer is there");
    let lora = Lora::load(&dir.join("adapters").join(name), base.config());
    let n_vocab = base.config().vocab_size;
    let engine = EngineHandle::start(
        Arc::new(base),
        Arc::new(tokenizer),
        THREADS,
        EngineOptions::default(),
    )
    .expect("the bounds are valid");
    let mut request = GenerateRequest::new(prompt(0, PROMPT, n_vocab), ANSWER);
    request.sampling.logit_bias = vec![(engine.tokenizer().end_id(), -100.0)];
    request.adapter = Some(AdapterRef::resident(Arc::new(
        lora.expect("the adapter is there"),
    )));
    let answer = engine.submit(request).expect("there is room");
    answer.blocking_collect().expect("it is finished");
}
