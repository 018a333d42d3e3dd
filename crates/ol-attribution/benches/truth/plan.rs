//! Which retrainings there are, and in which order they are made.

use ol_model::Random;

use crate::domain::Domain;
use crate::setting::Setting;

/// What is left in for a training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Everything.
    All,
    /// A random half of the records.
    Half(usize),
    /// All records but those of the contributor of this rank by size.
    Without(usize),
}

/// One retraining.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) kept: Kept,
    pub(crate) seed: usize,
}

impl Run {
    /// Its number in the log: what is kept, then the seed.
    pub(crate) fn number(self) -> u32 {
        let (kind, which) = match self.kept {
            Kept::All => (0, 0),
            Kept::Half(half) => (1, half),
            Kept::Without(rank) => (2, rank),
        };
        let [which, seed] = [which, self.seed].map(|n| u32::try_from(n).expect("a small count"));
        kind << 28 | which << 8 | seed
    }

    /// The run of a number.
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        let [which, seed] = [number >> 8 & 0xf_ffff, number & 0xff].map(|n| n as usize);
        let kept = match (number >> 28, which) {
            (0, 0) => Kept::All,
            (1, half) => Kept::Half(half),
            (2, rank) => Kept::Without(rank),
            _ => return None,
        };
        Some(Self { kept, seed })
    }
}

/// Every retraining of a domain, in the order in which they are made: halves
/// and contributors advance together, so that any prefix is an experiment.
pub(crate) fn plan(setting: &Setting, domain: &Domain) -> Vec<Run> {
    let halves = (0..setting.halves).flat_map(|half| {
        (0..setting.half_seeds).map(move |seed| Run {
            kept: Kept::Half(half),
            seed,
        })
    });
    let n_contributors = setting.contributors.min(domain.largest.len());
    let without = (0..setting.contributor_seeds).flat_map(|seed| {
        let kept = (0..n_contributors).map(Kept::Without);
        std::iter::once(Kept::All)
            .chain(kept)
            .map(move |kept| Run { kept, seed })
    });
    merge(halves.collect(), without.collect())
}

/// Two lists as one, each spread evenly over it.
fn merge(a: Vec<Run>, b: Vec<Run>) -> Vec<Run> {
    let (n_a, n_b) = (a.len(), b.len());
    let (mut a, mut b) = (a.into_iter().enumerate(), b.into_iter().enumerate());
    let (mut next_a, mut next_b) = (a.next(), b.next());
    let mut all = Vec::with_capacity(n_a + n_b);
    loop {
        match (next_a, next_b) {
            // i / n_a <= j / n_b
            (Some((i, run)), other) if other.is_none_or(|(j, _)| i * n_b <= j * n_a) => {
                all.push(run);
                next_a = a.next();
            }
            (_, Some((_, run))) => {
                all.push(run);
                next_b = b.next();
            }
            (Some((_, run)), None) => {
                all.push(run);
                next_a = a.next();
            }
            (None, None) => return all,
        }
    }
}

/// Which records of the pool are left in.
pub(crate) fn kept(domain: &Domain, kept: Kept) -> Vec<bool> {
    let n = domain.pool.len();
    match kept {
        Kept::All => vec![true; n],
        Kept::Without(rank) => {
            let left_out = domain.largest[rank];
            domain
                .pool
                .iter()
                .map(|text| text.contributor != left_out)
                .collect()
        }
        Kept::Half(half) => {
            let mut order: Vec<usize> = (0..n).collect();
            stream(0x6861_6c66, half).shuffle(&mut order);
            let mut is_kept = vec![false; n];
            order[..n / 2].iter().for_each(|&at| is_kept[at] = true);
            is_kept
        }
    }
}

/// The order of one pass. The same seed gives the records that two trainings
/// share the same order: what differs between them is what was left out.
pub(crate) fn order(n: usize, seed: usize, epoch: u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    let mut random = stream(0x6f72_6465, seed);
    let key = random.next_u64() ^ u64::from(epoch);
    Random::new(key).shuffle(&mut order);
    order
}

/// Seed of the initial adapter.
pub(crate) fn adapter_seed(seed: usize) -> u64 {
    stream(0x6c6f_7261, seed).next_u64()
}

fn stream(name: u64, number: usize) -> Random {
    let number = u64::try_from(number).expect("a count fits 64 bits");
    Random::new(Random::new(name ^ number.rotate_left(32)).next_u64())
}
