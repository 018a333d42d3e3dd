//! A small random model, adapters that change its answers, and the oracle.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Poll, Waker};

use ol_model::{KvCache, Lora, LoraConfig, Model, ModelConfig, Pool, Segment, Tokenizer};
use ol_runtime::ManualClock;
use ol_serve::{
    AdapterComponents, AdapterRef, AdapterStore, AdapterStoreOptions, Completion, EngineHandle,
    EngineOptions, FinishReason, GenerateRequest, Sampler, StopFilter, StopReason,
};
use ol_types::B256;

pub(crate) const CONTEXT_TOKENS: usize = 4096;

pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    let make = || {
        let texts = [
            "the quick brown fox jumps over the lazy dog",
            "café, naïve, ∑ and 🦀 over 🦀",
        ];
        let texts = texts.iter().map(ToString::to_string);
        Arc::new(Tokenizer::train(texts, 300).unwrap())
    };
    Arc::clone(TOKENIZER.get_or_init(make))
}

pub(crate) fn base() -> Arc<Model> {
    static BASE: OnceLock<Arc<Model>> = OnceLock::new();
    let make = || {
        let config = ModelConfig {
            vocab_size: tokenizer().vocab_size(),
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 16,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            max_position_embeddings: CONTEXT_TOKENS,
            tie_word_embeddings: false,
            ..ModelConfig::default_base()
        };
        let random = Model::random(config.clone(), 1).unwrap();
        // Peaked logits, so that answers differ; and a logit of 0 for the end
        // token, which then never is the likeliest: answers are as long as asked.
        let mut params: Vec<f32> = random.parameters().iter().map(|p| p * 20.0).collect();
        let first = params.len() - config.vocab_size * config.hidden_size;
        let end = first + tokenizer().end_id() as usize * config.hidden_size;
        params[end..end + config.hidden_size].fill(0.0);
        Arc::new(Model::from_parameters(config, &params).unwrap())
    };
    Arc::clone(BASE.get_or_init(make))
}

/// An adapter with both factors random; a fresh one has no effect.
pub(crate) fn adapter(rank: usize, seed: u32) -> AdapterRef {
    AdapterRef::resident(lora(rank, seed))
}

type Made = Mutex<BTreeMap<(usize, u32), (B256, Arc<Lora>)>>;

/// Adapters by rank and seed, with their hashes.
static MADE: Made = Mutex::new(BTreeMap::new());

/// The adapter of [`adapter`] itself.
pub(crate) fn lora(rank: usize, seed: u32) -> Arc<Lora> {
    let mut made = MADE.lock().unwrap();
    let (_, lora) = made.entry((rank, seed)).or_insert_with(|| {
        let lora = make_lora(rank, seed);
        (lora.hash(), lora)
    });
    Arc::clone(lora)
}

fn make_lora(rank: usize, seed: u32) -> Arc<Lora> {
    let config = base().config().clone();
    let fresh = Lora::init(&config, LoraConfig::all_linear(rank), u64::from(seed)).unwrap();
    let param = |i: u32| {
        let bits = (i ^ seed.wrapping_mul(0x85eb_ca6b)).wrapping_mul(0x9e37_79b1);
        f32::from(u16::try_from(bits >> 16).unwrap()) / 65_536.0 - 0.5
    };
    let params = (0..u32::try_from(fresh.n_params()).unwrap())
        .map(param)
        .collect();
    Arc::new(Lora::from_parameters(&config, LoraConfig::all_linear(rank), params).unwrap())
}

/// A store without folders, for adapters given in memory.
pub(crate) fn adapter_store() -> AdapterStore {
    let components = AdapterComponents::new(Arc::new(ManualClock::new(0)));
    AdapterStore::open(base().config(), AdapterStoreOptions::default(), components).unwrap()
}

pub(crate) fn start(options: EngineOptions) -> EngineHandle {
    EngineHandle::start(base(), tokenizer(), 2, options).unwrap()
}

pub(crate) fn request(prompt: &str, max_tokens: usize) -> GenerateRequest {
    GenerateRequest::new(tokenizer().encode(prompt).unwrap(), max_tokens)
}

/// The logits after the first tokens of a sequence.
pub(crate) fn logits(tokens: &[u32], adapter: Option<&Lora>) -> Vec<f32> {
    let mut cache = KvCache::new(base().config(), tokens.len());
    next_logits(tokens, &mut cache, adapter)
}

/// The logits after all of `tokens`, of which `cache` holds the first.
fn next_logits(tokens: &[u32], cache: &mut KvCache, adapter: Option<&Lora>) -> Vec<f32> {
    static ONE_THREAD: OnceLock<Pool> = OnceLock::new();
    let mut segments = [Segment {
        tokens: &tokens[cache.len()..],
        cache,
        adapter,
    }];
    let pool = ONE_THREAD.get_or_init(|| Pool::new(1));
    base().forward(pool, &mut segments).unwrap()
}

/// The adapter itself: the oracle asks no store where it was made here.
pub(crate) fn weights(adapter: &AdapterRef) -> Arc<Lora> {
    let made = MADE.lock().unwrap();
    if let Some((_, lora)) = made.values().find(|(hash, _)| *hash == adapter.hash()) {
        return Arc::clone(lora);
    }
    drop(made);
    match adapter.poll_lease(Waker::noop()) {
        Poll::Ready(lease) => Arc::new(Lora::clone(&lease.unwrap())),
        Poll::Pending => panic!("the oracle's adapters are in memory"),
    }
}

/// What a request must give: decoded alone, on one thread, with a cache of its
/// own, the text taken from all tokens at once.
pub(crate) fn oracle(request: &GenerateRequest) -> (String, Completion) {
    let tokenizer = tokenizer();
    let adapter = request.adapter.as_ref().map(weights);
    let mut sampler = Sampler::for_prompt(
        request.sampling.clone(),
        &request.prompt_tokens,
        tokenizer.end_ids(),
    );
    let mut tokens = request.prompt_tokens.clone();
    let tokens_in = tokens.len();
    let mut cache = KvCache::new(base().config(), tokens_in + request.max_tokens);
    let mut finish_reason = FinishReason::Length;
    let mut stop_reason = None;
    let mut text = String::new();
    while tokens.len() - tokens_in < request.max_tokens {
        let id = sampler
            .next(&next_logits(&tokens, &mut cache, adapter.as_deref()))
            .unwrap();
        if sampler.is_end(id) {
            finish_reason = FinishReason::Stop;
            stop_reason = sampler.stop_reason(id);
            break;
        }
        tokens.push(id);
        let is_last = tokens.len() - tokens_in == request.max_tokens;
        let decoded = decode(&tokens[tokens_in..], is_last);
        let stopped = StopFilter::new(request.stop.clone()).push(&decoded);
        if let Some(stop) = stopped.stop {
            (text, finish_reason) = (stopped.text, FinishReason::Stop);
            let token_ids = tokens.split_off(tokens_in);
            return (
                text,
                Completion {
                    finish_reason,
                    stop_reason: Some(StopReason::Text(stop)),
                    text_delta: String::new(),
                    tokens_in,
                    tokens_cached: 0,
                    token_ids,
                },
            );
        }
    }
    let token_ids = tokens.split_off(tokens_in);
    text.push_str(&decode(&token_ids, true));
    (
        text,
        Completion {
            finish_reason,
            stop_reason,
            text_delta: String::new(),
            tokens_in,
            tokens_cached: 0,
            token_ids,
        },
    )
}

/// The text of tokens; without what may be the beginning of a character, unless
/// nothing follows.
fn decode(token_ids: &[u32], is_end: bool) -> String {
    let tokenizer = tokenizer();
    let mut stream = tokenizer.stream();
    let mut text: String = token_ids.iter().map(|&id| stream.push(id)).collect();
    if is_end {
        text.push_str(&stream.finish());
    }
    text
}
