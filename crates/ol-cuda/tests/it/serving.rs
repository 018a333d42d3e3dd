//! What a server asks of a device: slots for adapters, shared pages, drawn tokens.

use std::sync::Arc;

use ol_cuda::{Backend, GpuModel, GpuModelOptions, Precision};
use ol_model::{
    CpuExecutor, Draw, Drawn, Executor, KvCache, Lora, LoraConfig, Model, ModelConfig, Pool,
    Random, Segment, Tokenizer,
};
use ol_serve::{
    AdapterError, AdapterRef, EngineHandle, EngineOptions, EngineParts, GenerateError,
    GenerateRequest,
};

use crate::emulator::Emulator;
use crate::passes::{adapter, close, logits, model, options, segments, small, tokens};

/// Many adapters of different ranks through few slots, in random batches, some
/// with more adapters than slots: always the weights of the one asked for.
fn slots_hold<B: Backend + Send>(device: B)
where
    B::Memory: Send,
{
    let config = small();
    let cpu = model(config.clone(), 7);
    let pool = Pool::new(1);
    let adapters: Vec<Lora> = (0..9)
        .map(|i| adapter(&config, 1 + i % 5, 40 + i as u64))
        .collect();
    let largest = adapters.iter().map(Lora::n_params).max().unwrap() * 4;
    let limits = GpuModelOptions {
        adapter_bytes: 2 * largest,
        ..options(Precision::F32)
    };
    let mut gpu = GpuModel::new(device, &cpu, limits).unwrap();
    let remote = gpu.kv_pool();
    let mut random = Random::new(1);
    for round in 0..8 {
        let n = 1 + random.below(7);
        let choice: Vec<Option<&Lora>> = (0..n)
            .map(|_| adapters.get(random.below(adapters.len() + 2)))
            .collect();
        let parts: Vec<Vec<u32>> = (0..n)
            .map(|i| tokens(1 + random.below(3), config.vocab_size, i as u64))
            .collect();
        let mut on_cpu: Vec<KvCache> = (0..n).map(|_| KvCache::new(&config, 8)).collect();
        let mut on_gpu: Vec<KvCache> = (0..n).map(|_| KvCache::in_pool(&remote, 8)).collect();
        let expected = cpu
            .forward(&pool, &mut segments(&parts, &mut on_cpu, &choice))
            .unwrap();
        let got = logits(&mut gpu, &mut segments(&parts, &mut on_gpu, &choice)).unwrap();
        close(&got, &expected, 1e-4, &format!("round {round}"));
        let stats = gpu.adapter_stats();
        assert!(stats.n_resident <= limits.adapter_slots, "{stats:?}");
        assert!(stats.resident_bytes <= limits.adapter_bytes, "{stats:?}");
    }
    let stats = gpu.adapter_stats();
    assert!(stats.n_evictions > 0, "{stats:?}");
    assert_eq!(
        stats.n_uploads,
        stats.n_evictions + stats.n_resident as u64,
        "{stats:?}"
    );
}

/// An adapter that exceeds the budget runs, alone.
fn a_large_adapter_runs<B: Backend + Send>(device: B)
where
    B::Memory: Send,
{
    let config = small();
    let cpu = model(config.clone(), 7);
    let (large, small) = (adapter(&config, 8, 1), adapter(&config, 1, 2));
    let limits = GpuModelOptions {
        adapter_bytes: small.n_params() * 4,
        ..options(Precision::F32)
    };
    let mut gpu = GpuModel::new(device, &cpu, limits).unwrap();
    let remote = gpu.kv_pool();
    let parts = vec![vec![1, 2], vec![3], vec![4]];
    let choice = [Some(&small), Some(&large), Some(&small)];
    let mut on_cpu: Vec<KvCache> = (0..3).map(|_| KvCache::new(&config, 8)).collect();
    let mut on_gpu: Vec<KvCache> = (0..3).map(|_| KvCache::in_pool(&remote, 8)).collect();
    let expected = cpu
        .forward(&Pool::new(1), &mut segments(&parts, &mut on_cpu, &choice))
        .unwrap();
    let got = logits(&mut gpu, &mut segments(&parts, &mut on_gpu, &choice)).unwrap();
    close(&got, &expected, 1e-4, "logits");
    assert_eq!(gpu.adapter_stats().n_uploads, 3);
}

/// Sequences that share pages, and part in the middle of one.
fn pages_are_copied<B: Backend + Send>(device: B)
where
    B::Memory: Send,
{
    let config = small();
    let cpu = model(config.clone(), 7);
    let pool = Pool::new(1);
    let mut gpu = GpuModel::new(device, &cpu, options(Precision::F32)).unwrap();
    let prompt = vec![tokens(21, config.vocab_size, 1)];
    let mut host = vec![KvCache::new(&config, 64)];
    let mut remote = vec![KvCache::in_pool(&gpu.kv_pool(), 64)];
    cpu.forward(&pool, &mut segments(&prompt, &mut host, &[None]))
        .unwrap();
    logits(&mut gpu, &mut segments(&prompt, &mut remote, &[None])).unwrap();
    for i in 0..2 {
        host.push(host[0].clone());
        remote.push(remote[0].clone());
        let parts: Vec<Vec<u32>> = (0..host.len())
            .map(|j| tokens(3, config.vocab_size, 10 * i + j as u64))
            .collect();
        let none = vec![None; host.len()];
        let expected = cpu
            .forward(&pool, &mut segments(&parts, &mut host, &none))
            .unwrap();
        let got = logits(&mut gpu, &mut segments(&parts, &mut remote, &none)).unwrap();
        close(&got, &expected, 1e-4, &format!("branch {i}"));
    }
    drop(remote);
    assert_eq!(gpu.kv_pool().free_pages(), 40);
}

/// As [`Draw`] says, in f64, without cleverness.
fn oracle(logits: &[f32], draw: &Draw) -> (Vec<(u32, f64)>, f64) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut all: Vec<(u32, f64)> = (0..)
        .zip(logits)
        .map(|(id, l)| (id, (f64::from(l - max) / f64::from(draw.temperature)).exp()))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if draw.top_k > 0 {
        all.truncate(draw.top_k);
    }
    all.retain(|(_, w)| *w >= f64::from(draw.min_p));
    let wanted: f64 = f64::from(draw.top_p) * all.iter().map(|(_, w)| w).sum::<f64>();
    if draw.top_p < 1.0 {
        let mut sum = 0.0;
        let kept = all.iter().position(|(_, w)| {
            sum += w;
            sum >= wanted
        });
        all.truncate(kept.unwrap() + 1);
    }
    let total = all.iter().map(|(_, w)| w).sum();
    (all, total)
}

/// The token that `uniform` names, and how far it is from the next one.
fn pick(kept: &[(u32, f64)], total: f64, uniform: f64) -> (u32, f64) {
    let mut sum = 0.0;
    for (id, weight) in kept {
        let before = sum;
        sum += weight;
        if sum > uniform * total {
            let room = (uniform * total - before).min(sum - uniform * total);
            return (*id, room / total);
        }
    }
    (kept[kept.len() - 1].0, 0.0)
}

fn one_drawn(
    gpu: &mut (impl Executor + Sized),
    prompt: &[u32],
    draws: &[Option<Draw>],
) -> Vec<Option<Drawn>> {
    let remote = gpu.kv_pool(0);
    let mut caches: Vec<KvCache> = draws
        .iter()
        .map(|_| KvCache::in_pool(&remote, 16))
        .collect();
    let parts = vec![prompt.to_vec(); draws.len()];
    let none = vec![None; draws.len()];
    gpu.forward(&mut segments(&parts, &mut caches, &none), draws)
        .unwrap()
        .drawn
}

fn tokens_are_drawn<B: Backend + Send>(device: B)
where
    B::Memory: Send,
{
    let config = small();
    let cpu = model(config.clone(), 5);
    let mut gpu = GpuModel::new(device, &cpu, options(Precision::F32)).unwrap();
    let prompt = tokens(4, config.vocab_size, 8);
    let mut cache = KvCache::in_pool(&gpu.kv_pool(), 16);
    let all = logits(
        &mut gpu,
        &mut [Segment {
            tokens: &prompt,
            cache: &mut cache,
            adapter: None,
        }],
    )
    .unwrap();
    let mut random = Random::new(3);
    let limits = [
        (0, 1.0, 0.0),
        (5, 1.0, 0.0),
        (0, 0.6, 0.0),
        (0, 1.0, 0.2),
        (7, 0.8, 0.05),
        (1, 1.0, 0.0),
    ];
    let mut draws = Vec::new();
    for (top_k, top_p, min_p) in limits {
        for temperature in [0.5, 1.0, 3.0] {
            for uniform in [0.0, random.uniform(), random.uniform(), 1.0 - f64::EPSILON] {
                draws.push(Some(Draw {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    uniform,
                    n_top: 3,
                }));
            }
        }
    }
    let mut likeliest: Vec<(u32, f32)> = (0..).zip(all.iter().copied()).collect();
    likeliest.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let max = f64::from(likeliest[0].1);
    let log_sum = max
        + all
            .iter()
            .map(|l| (f64::from(*l) - max).exp())
            .sum::<f64>()
            .ln();
    let mut at_the_edge = 0;
    for part in draws.chunks(8) {
        for (draw, drawn) in part.iter().zip(one_drawn(&mut gpu, &prompt, part)) {
            let (draw, drawn) = (draw.unwrap(), drawn.unwrap());
            let (kept, total) = oracle(&all, &draw);
            let (token, room) = pick(&kept, total, draw.uniform);
            assert!(kept.iter().any(|(id, _)| *id == drawn.token), "{draw:?}");
            if room > 1e-5 {
                assert_eq!(drawn.token, token, "{draw:?}");
            } else {
                at_the_edge += 1;
            }
            let logit = all[drawn.token as usize];
            assert!((f64::from(drawn.logprob) - (f64::from(logit) - log_sum)).abs() < 1e-4);
            let rank = likeliest
                .iter()
                .position(|(id, _)| *id == drawn.token)
                .unwrap()
                + 1;
            assert_eq!(drawn.rank as usize, rank);
            let top: Vec<u32> = drawn.top.iter().map(|(id, _)| *id).collect();
            assert_eq!(
                top,
                likeliest[..3].iter().map(|(id, _)| *id).collect::<Vec<_>>()
            );
        }
    }
    // Only the least and the greatest numbers there are.
    assert!(at_the_edge <= draws.len() / 2, "{at_the_edge}");
    // Alone, beside others, and where the rest asks for logits.
    let greedy = Some(Draw::GREEDY);
    let answers = one_drawn(&mut gpu, &prompt, &[None, greedy, draws[1]]);
    assert_eq!(answers[0], None);
    assert_eq!(answers[1].as_ref().unwrap().token, likeliest[0].0);
    assert_eq!(answers[2], one_drawn(&mut gpu, &prompt, &[draws[1]])[0]);
    let many = Some(Draw {
        n_top: 21,
        ..Draw::GREEDY
    });
    assert_eq!(
        one_drawn(&mut gpu, &prompt, &[many]),
        [None],
        "that many are the host's to find"
    );
}

/// Equal logits: the lower token first, whoever asks.
fn equals_are_told_apart<B: Backend + Send>(device: B)
where
    B::Memory: Send,
{
    let config = small();
    let params = vec![0.0; model(config.clone(), 1).parameters().len()];
    let cpu = Model::from_parameters(config.clone(), &params).unwrap();
    let mut gpu = GpuModel::new(device, &cpu, options(Precision::F32)).unwrap();
    let n = config.vocab_size as f64;
    for (uniform, top_k, token) in [
        (0.0, 0, 0),
        (10.5 / n, 0, 10),
        (96.5 / n, 0, 96),
        (0.5, 3, 1),
    ] {
        let draw = Some(Draw {
            temperature: 1.0,
            top_k,
            uniform,
            ..Draw::GREEDY
        });
        assert_eq!(
            one_drawn(&mut gpu, &[1], &[draw])[0]
                .as_ref()
                .unwrap()
                .token,
            token
        );
    }
    assert_eq!(
        one_drawn(&mut gpu, &[1], &[Some(Draw::GREEDY)])[0]
            .as_ref()
            .unwrap()
            .token,
        0
    );
}

/// Both executors of one model are asked alike and agree.
#[test]
fn executors_are_exchangeable() {
    let cpu = Arc::new(model(small(), 7));
    let gpu = GpuModel::new(Emulator, &cpu, options(Precision::F32)).unwrap();
    let mut executors: [Box<dyn Executor>; 2] = [
        Box::new(CpuExecutor::new(Arc::clone(&cpu), Pool::new(1))),
        Box::new(gpu),
    ];
    let answers = executors.each_mut().map(|executor| {
        let pool = executor.kv_pool(4);
        let mut cache = KvCache::in_pool(&pool, 40);
        let mut all = Vec::new();
        for part in [&[1_u32, 2, 3][..], &[4]] {
            let mut segment = [Segment {
                tokens: part,
                cache: &mut cache,
                adapter: None,
            }];
            all.extend(executor.forward(&mut segment, &[None]).unwrap().logits);
        }
        assert_eq!(cache.len(), 4);
        all
    });
    close(&answers[1], &answers[0], 1e-4, "logits");
}

/// A tokenizer of few tokens and a base of its size.
fn base() -> (Arc<Tokenizer>, Arc<Model>) {
    let texts = ["red and blue", "blue and green"].map(str::to_owned);
    let tokenizer = Tokenizer::train(texts.into_iter(), 270).unwrap();
    let config = ModelConfig {
        vocab_size: tokenizer.vocab_size(),
        ..small()
    };
    (Arc::new(tokenizer), Arc::new(model(config, 7)))
}

/// A server's engine on the emulated device, or on the CPU.
fn engine(is_device: bool) -> EngineHandle {
    let (tokenizer, base) = base();
    let engine = EngineOptions {
        n_kv_tokens_max: 256,
        n_step_tokens_max: 16,
        ..EngineOptions::default()
    };
    let limits = GpuModelOptions {
        kv_pages: engine.n_pages(),
        ..options(Precision::F32)
    };
    let executor: Box<dyn Executor> = if is_device {
        Box::new(GpuModel::new(Emulator, &base, limits).unwrap())
    } else {
        Box::new(CpuExecutor::new(Arc::clone(&base), Pool::new(1)))
    };
    EngineHandle::start_with(EngineParts::on(executor, base, tokenizer), engine).unwrap()
}

fn request(prompt: &[u32], adapter: Option<&Arc<Lora>>) -> GenerateRequest {
    GenerateRequest {
        adapter: adapter.map(|lora| AdapterRef::resident(Arc::clone(lora))),
        ..GenerateRequest::new(prompt.to_vec(), 6)
    }
}

/// Requests of different adapters, longer than a step and sharing a beginning,
/// by the engine that a server runs.
#[test]
fn an_engine_on_a_device_answers_as_on_the_cpu() {
    let config = base().1.config().clone();
    let adapters: Vec<Arc<Lora>> = (0..5)
        .map(|i| Arc::new(adapter(&config, 1 + i, 40 + i as u64)))
        .collect();
    let prompt = tokens(40, config.vocab_size, 5);
    let [expected, got] = [false, true].map(|is_device| {
        let engine = engine(is_device);
        let asked: Vec<_> = (0..8)
            .map(|i| {
                let adapter = adapters.get(i % (adapters.len() + 1));
                let request = request(&prompt[..40 - 2 * i], adapter);
                engine.submit(request).unwrap()
            })
            .collect();
        let answered = asked.into_iter().map(|answer| {
            let (_, completion) = answer.blocking_collect().unwrap();
            completion.token_ids
        });
        let answered: Vec<Vec<u32>> = answered.collect();
        engine.shutdown();
        answered
    });
    assert_eq!(got, expected);
    assert!(got.iter().any(|tokens| *tokens != got[0]), "{got:?}");
}

/// The request alone: those beside it are answered.
#[test]
fn a_request_with_dora_is_refused_by_name_and_the_others_are_answered() {
    let base = base().1;
    let dora = LoraConfig {
        use_dora: true,
        ..LoraConfig::all_linear(2)
    };
    let dora = base.fresh_adapter(&Pool::new(1), dora, 1).unwrap();
    let (dora, plain) = (Arc::new(dora), Arc::new(adapter(base.config(), 2, 1)));
    let engine = engine(true);
    let ask = |adapter| engine.submit(request(&[1, 2, 3], Some(adapter))).unwrap();
    let (before, refused, after) = (ask(&plain), ask(&dora), ask(&plain));
    let error = refused.blocking_collect().unwrap_err();
    assert!(
        matches!(&error, GenerateError::Adapter(AdapterError::Refused { .. })),
        "{error:?}"
    );
    assert!(error.to_string().contains("DoRA"), "{error}");
    let answer = before.blocking_collect().unwrap();
    assert_eq!(answer.0, after.blocking_collect().unwrap().0);
    engine.shutdown();
}

#[test]
fn a_slot_never_serves_another_adapter() {
    slots_hold(Emulator);
}

#[test]
fn an_adapter_larger_than_the_budget_runs_alone() {
    a_large_adapter_runs(Emulator);
}

#[test]
fn shared_pages_are_copied_before_they_are_written() {
    pages_are_copied(Emulator);
}

#[test]
fn tokens_are_drawn_as_their_limits_say() {
    tokens_are_drawn(Emulator);
}

#[test]
fn equal_logits_are_told_apart_by_number() {
    equals_are_told_apart(Emulator);
}

/// All of this on a device.
pub(crate) fn serves<B: Backend + Send>(open: impl Fn() -> B)
where
    B::Memory: Send,
{
    slots_hold(open());
    a_large_adapter_runs(open());
    pages_are_copied(open());
    tokens_are_drawn(open());
    equals_are_told_apart(open());
}
