//! Random histories of everything at once, against one request at a time.

use std::time::Duration;

use ol_serve::{
    AdapterStore, EngineOptions, EngineStats, FinishReason, GenerateError, GenerateRequest,
    Priority, Sampling, Sharing, SubmitError, Turn,
};

use crate::drive::{Driven, Reader};
use crate::random::Random;
use crate::support::{adapter_store, lora, tokenizer};

/// Histories of each run; `OPENLEDGER_TEST_SCALE` multiplies them.
const N_HISTORIES: u64 = 1_500;

const NAMES: [&str; 3] = ["legal", "medical", "poetry"];

/// What became of the requests of all histories.
#[derive(Debug, Default)]
struct Seen {
    n_finished: u64,
    n_late: u64,
    n_late_with_tokens: u64,
    n_cached: u64,
    stats: EngineStats,
}

struct History {
    random: Random,
    driven: Driven,
    store: AdapterStore,
    readers: Vec<Reader>,
    /// Versions that names were given so far.
    n_versions: u32,
}

impl History {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let n_rows_max = 1 + random.below(5);
        let options = EngineOptions {
            n_rows_max,
            // From what one request needs up to room for all.
            n_kv_tokens_max: 112 + 16 * random.below(24),
            n_prefix_tokens_max: random.pick(&[0, 48, 160, usize::MAX]),
            n_step_tokens_max: n_rows_max + random.below(48),
            n_waiting_max: 3 + random.below(20),
            n_waiting_per_tenant_max: 2 + random.below(12),
            n_waiting_tokens_max: 100 + random.below(2_000),
            aging: Duration::from_secs(5),
        };
        let store = adapter_store();
        Self {
            random,
            driven: Driven::new(options),
            store,
            readers: Vec::new(),
            n_versions: 0,
        }
    }

    fn request(&mut self) -> GenerateRequest {
        let random = &mut self.random;
        // Few beginnings, so that many begin alike, at page bounds and between.
        let n_vocab = tokenizer().vocab_size();
        let (beginning, n_shared, n_own) = (random.below(3), random.below(56), random.below(24));
        let token = |i: usize| u32::try_from(i % n_vocab).unwrap();
        let mut prompt_tokens: Vec<u32> = (0..n_shared)
            .map(|i| token(7 + i * (beginning + 3)))
            .collect();
        prompt_tokens.extend((0..=n_own).map(|_| token(random.below(n_vocab))));
        let mut sampling = Sampling::GREEDY;
        if random.chance(50) {
            sampling.temperature = 1.2;
            sampling.top_p = 0.9;
            sampling.seed = random.below(1_000) as u64;
        }
        // What a sampler remembers has to survive a preemption.
        if random.chance(30) {
            sampling.frequency_penalty = 0.7;
            sampling.repetition_penalty = 1.3;
            sampling.min_tokens = 4;
        }
        let name = random.pick(&NAMES);
        GenerateRequest {
            adapter: self.store.resolve(name).ok().filter(|_| random.chance(75)),
            sampling,
            stop: if random.chance(20) {
                vec!["e".to_owned()]
            } else {
                Vec::new()
            },
            tenant: random.pick(&["a", "b", "c"]).into(),
            priority: random.pick(&[Priority::Interactive, Priority::Normal, Priority::Batch]),
            timeout: random
                .chance(25)
                .then(|| Duration::from_millis(random.below(9_000) as u64)),
            sharing: random.pick(&[Sharing::Tenant, Sharing::Everyone, Sharing::Nobody]),
            ..GenerateRequest::new(prompt_tokens, 1 + random.below(28))
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..30 => {
                let request = self.request();
                match self.driven.submit(&request) {
                    Ok(reader) => self.readers.push(reader),
                    Err(error) => assert!(
                        matches!(error, SubmitError::Overloaded { .. }),
                        "{error:?} of {request:?}"
                    ),
                }
            }
            30..36 => {
                let at = self.random.below(self.readers.len().max(1));
                if let Some(reader) = self.readers.get_mut(at) {
                    reader.cancel();
                }
            }
            // A name gets another version, or its first.
            36..44 => {
                self.n_versions += 1;
                let rank = self.random.pick(&[1, 4, 9]);
                let name = self.random.pick(&NAMES);
                let lora = lora(rank, 1 + self.n_versions % 5);
                self.store.insert(name, lora).unwrap();
            }
            44..47 => {
                // It may have none.
                let _ = self.store.unload(self.random.pick(&NAMES));
            }
            47..55 => self.driven.clock.advance(Duration::from_millis(700)),
            _ => {
                self.driven.scheduler.turn();
            }
        }
        let stats = self.driven.engine.stats();
        assert!(stats.n_pages_used + stats.n_pages_idle <= stats.n_pages);
    }

    fn finish(mut self, seen: &mut Seen) {
        self.driven.finish();
        for reader in &mut self.readers {
            reader.check();
            match &reader.end {
                Some(Ok(end)) => {
                    seen.n_finished += 1;
                    seen.n_cached += end.tokens_cached as u64;
                    seen.n_late_with_tokens +=
                        u64::from(end.finish_reason == FinishReason::Deadline);
                }
                Some(Err(GenerateError::Deadline)) => seen.n_late += 1,
                _ => {}
            }
        }
        // A client that went away at the end is noticed by the next turn.
        self.driven.finish();
        self.driven.check_empty();
        let stats = self.driven.engine.stats();
        seen.stats.n_preempted += stats.n_preempted;
        seen.stats.n_tokens_again += stats.n_tokens_again;
        seen.stats.n_refused += stats.n_refused;
        seen.stats.n_cancelled += stats.n_cancelled;
        seen.stats.n_prefix_tokens_found += stats.n_prefix_tokens_found;
        self.driven.engine.shutdown();
        assert_eq!(self.driven.scheduler.turn(), Turn::Closed);
    }
}

/// Loading, replacing and unloading adapters, cancelling, deadlines, preemption
/// in small pools, shared pages, priorities and limits, in any order: every
/// answer is what its request gets alone with the version it resolved, or the
/// beginning of it, and at the end no page and no row is lost.
#[test]
fn any_history_gives_what_each_request_gets_alone() {
    let scale = std::env::var("OPENLEDGER_TEST_SCALE").map_or(1, |scale| scale.parse().unwrap());
    let mut seen = Seen::default();
    for seed in 0..N_HISTORIES * scale {
        let run = std::panic::catch_unwind(|| {
            let mut history = History::new(seed);
            for _ in 0..60 {
                history.step();
            }
            let mut seen = Seen::default();
            history.finish(&mut seen);
            seen
        });
        let run = run.unwrap_or_else(|_| panic!("history {seed}"));
        seen.n_finished += run.n_finished;
        seen.n_late += run.n_late;
        seen.n_late_with_tokens += run.n_late_with_tokens;
        seen.n_cached += run.n_cached;
        seen.stats.n_preempted += run.stats.n_preempted;
        seen.stats.n_tokens_again += run.stats.n_tokens_again;
        seen.stats.n_refused += run.stats.n_refused;
        seen.stats.n_cancelled += run.stats.n_cancelled;
        seen.stats.n_prefix_tokens_found += run.stats.n_prefix_tokens_found;
    }
    // The histories are about what they say they are about.
    let counts = [
        seen.n_finished,
        seen.n_late,
        seen.n_late_with_tokens,
        seen.n_cached,
        seen.stats.n_preempted,
        seen.stats.n_tokens_again,
        seen.stats.n_refused,
        seen.stats.n_cancelled,
        seen.stats.n_prefix_tokens_found,
    ];
    assert!(counts.iter().all(|&n| n > 100), "{seen:?}");
}
