//! Clients that ask for one answer after the other.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use ol_model::Random;
use ol_serve::{Event, GenerateRequest};

use crate::fixture::{Fixture, name, prompt};
use crate::{ANSWER, CLIENTS, PROMPT, float, now};

/// Requests of one measurement.
pub(crate) const REQUESTS: usize = 192;

/// How often each adapter is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Popularity {
    /// In proportion to one over its rank in popularity.
    Zipf,
    Uniform,
}

impl Popularity {
    /// An adapter for each request.
    fn draw(self, n: usize, seed: u64) -> Vec<usize> {
        let mut sum = 0.0;
        let sums: Vec<f64> = (1..=n)
            .map(|rank| {
                sum += if self == Self::Zipf {
                    1.0 / float(rank)
                } else {
                    1.0
                };
                sum
            })
            .collect();
        let mut random = Random::new(seed + 1);
        (0..REQUESTS)
            .map(|_| {
                let drawn = random.uniform() * sum;
                sums.partition_point(|end| *end < drawn).min(n - 1)
            })
            .collect()
    }
}

/// What the clients saw.
#[derive(Default)]
pub(crate) struct Measured {
    pub(crate) tokens_per_s: f64,
    /// From asking to the first token.
    pub(crate) first_s: Vec<f64>,
    /// Between two tokens of an answer.
    pub(crate) between_s: Vec<f64>,
}

impl Measured {
    pub(crate) fn extend(&mut self, other: Self) {
        self.first_s.extend(other.first_s);
        self.between_s.extend(other.between_s);
    }
}

impl Fixture {
    /// Serves all requests, each with an adapter drawn from `n` or without any.
    pub(crate) fn serve(&self, adapters: Option<(usize, Popularity)>, seed: u64) -> Measured {
        let drawn = adapters.map(|(n, popularity)| popularity.draw(n, seed));
        let next = AtomicUsize::new(0);
        let mut measured = Measured::default();
        let started = now();
        let seen: Vec<Measured> = thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| scope.spawn(|| self.client(&next, drawn.as_deref())))
                .collect();
            let join = |client: thread::ScopedJoinHandle<'_, Measured>| {
                client.join().expect("clients do not panic")
            };
            clients.into_iter().map(join).collect()
        });
        let seconds = started.elapsed().as_secs_f64();
        for seen in seen {
            measured.extend(seen);
        }
        let n_tokens = measured.first_s.len() + measured.between_s.len();
        measured.tokens_per_s = float(n_tokens) / seconds;
        measured
    }

    fn client(&self, next: &AtomicUsize, drawn: Option<&[usize]>) -> Measured {
        let mut measured = Measured::default();
        let n_vocab = self.engine.base().config().vocab_size;
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= REQUESTS {
                return measured;
            }
            let mut last = now();
            let mut request = GenerateRequest::new(prompt(at, PROMPT, n_vocab), ANSWER);
            // Every answer is as long as asked.
            request.sampling.logit_bias = vec![(self.engine.tokenizer().end_id(), -100.0)];
            request.adapter = drawn.map(|drawn| {
                let adapter = self.store.resolve(&name(drawn[at]));
                adapter.expect("it is registered")
            });
            let mut answer = self.engine.submit(request).expect("there is room");
            let mut is_first = true;
            while let Some(event) = answer.blocking_next() {
                match event {
                    Event::Token { .. } => {
                        let times = if is_first {
                            &mut measured.first_s
                        } else {
                            &mut measured.between_s
                        };
                        times.push(last.elapsed().as_secs_f64());
                        (last, is_first) = (now(), false);
                    }
                    Event::Done(_) => break,
                    Event::Failed(error) => panic!("{error}"),
                }
            }
        }
    }
}
