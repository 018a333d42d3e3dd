//! Gradients at an adapter, computed once and kept on disk.
//!
//! A file holds the hash of the experiment, the number of rows and their
//! length, then for each row a factor as `f32` and the numbers as `f16`: a
//! cache, made anew when it is missing or of another experiment.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Write as _};
use std::path::Path;

use anyhow::Context as _;
use half::f16;
use ol_attribution::checkpoint::mean_of;
use ol_attribution::reduce::BlockShape;
use ol_model::{Labels, Lora, LoraConfig, Sequence};

use crate::domain::{Domain, Text};
use crate::plan::{self, Kept};
use crate::retrain::{self, Machine};
use crate::setting::Setting;
use crate::stats::count;
use crate::truth::Loss;

/// Adapters kept on the way of a training, the last one included.
pub(crate) const CHECKPOINTS: u32 = 3;

/// Sequences whose gradients exist at one time.
const BATCH: usize = 32;

/// Rows of equal length, `f32`.
#[derive(Debug, Clone)]
pub(crate) struct Gradients {
    pub(crate) dim: usize,
    pub(crate) data: Vec<f32>,
}

impl Gradients {
    pub(crate) const fn new(dim: usize) -> Self {
        Self {
            dim,
            data: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.data.len() / self.dim
    }

    pub(crate) fn row(&self, at: usize) -> &[f32] {
        &self.data[at * self.dim..(at + 1) * self.dim]
    }

    pub(crate) fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.data.chunks_exact(self.dim)
    }

    pub(crate) fn extend(&mut self, other: &Self) {
        self.data.extend_from_slice(&other.data);
    }

    /// Every row changed.
    pub(crate) fn map(&self, dim: usize, mut each: impl FnMut(&[f32]) -> Vec<f32>) -> Self {
        let mut mapped = Self::new(dim);
        self.rows().for_each(|row| mapped.data.extend(each(row)));
        mapped
    }
}

/// All gradients at one adapter.
#[derive(Debug)]
pub(crate) struct Bank {
    /// Mean learning rate of the steps that led here.
    pub(crate) learning_rate: f64,
    /// Sums over the question's tokens, for the records and then the held-out.
    question: Gradients,
    /// Sums over the answer's tokens.
    answer: Gradients,
    /// Of the records with labels sampled from the model, sums over all tokens.
    pub(crate) fisher: Gradients,
}

/// The banks of a training on all records, one for each checkpoint.
pub(crate) fn banks(
    folder: &Path,
    machine: &Machine,
    domain: &Domain,
    setting: &Setting,
    seed: usize,
) -> anyhow::Result<Vec<Bank>> {
    let path = |at: usize| folder.join(format!("{}.seed{seed}.part{at}.bank", domain.name));
    let read = |at| Bank::read(&path(at), domain);
    if let Ok(banks) = (0..CHECKPOINTS as usize)
        .map(read)
        .collect::<anyhow::Result<Vec<_>>>()
    {
        return Ok(banks);
    }
    let is_kept = plan::kept(domain, Kept::All);
    let snapshots = retrain::train_on(machine, domain, setting, &is_kept, seed, CHECKPOINTS)?;
    let make = |(at, snapshot): (usize, &retrain::Snapshot)| {
        let bank = Bank::make(machine, domain, &snapshot.adapter, snapshot.learning_rate)?;
        bank.write(&path(at), domain)?;
        // Read back, so that the first time gives what later ones give.
        read(at)
    };
    snapshots.iter().enumerate().map(make).collect()
}

/// Another place than a checkpoint.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Elsewhere {
    /// The mean of a training's checkpoints.
    Mean { seed: usize },
    /// The end of one of so many parts of a training, numbered from 1.
    End { seed: usize, part: u32, of: u32 },
    /// Part of the way on the straight line from the base to the result: the
    /// second factor of every block is so much of what it came to.
    Part { percent: u8 },
}

impl Elsewhere {
    /// Those that are looked at.
    pub(crate) const ALL: [Self; 10] = [
        Self::Mean { seed: 0 },
        Self::first(1),
        Self::first(2),
        Self::End {
            seed: 0,
            part: 1,
            of: 6,
        },
        Self::End {
            seed: 0,
            part: 3,
            of: 6,
        },
        Self::Part { percent: 50 },
        Self::Part { percent: 25 },
        Self::Part { percent: 75 },
        Self::Mean { seed: 1 },
        Self::Mean { seed: 2 },
    ];

    /// The first checkpoint.
    const fn first(seed: usize) -> Self {
        Self::End {
            seed,
            part: 1,
            of: CHECKPOINTS,
        }
    }

    pub(crate) const fn is_first(self) -> bool {
        matches!(
            self,
            Self::End {
                part: 1,
                of: CHECKPOINTS,
                ..
            }
        )
    }

    pub(crate) fn name(self) -> String {
        match self {
            Self::End { seed, part, of } => format!("end of part {part} of {of}, seed {seed}"),
            Self::Mean { seed } => format!("mean of the checkpoints, seed {seed}"),
            Self::Part { percent } => format!("{percent} % of the adapter"),
        }
    }

    /// The gradients there, of a training on all records; not kept, they are many.
    pub(crate) fn bank(
        self,
        machine: &Machine,
        domain: &Domain,
        setting: &Setting,
    ) -> anyhow::Result<Bank> {
        let (seed, parts) = match self {
            Self::Mean { seed } => (seed, CHECKPOINTS),
            Self::End { seed, of, .. } => (seed, of),
            Self::Part { .. } => (0, CHECKPOINTS),
        };
        let is_kept = plan::kept(domain, Kept::All);
        let snapshots = retrain::train_on(machine, domain, setting, &is_kept, seed, parts)?;
        let all: Vec<&Lora> = snapshots.iter().map(|s| &s.adapter).collect();
        let adapter = match self {
            Self::Mean { .. } => mean_of(&all).context("checkpoints of one shape")?,
            Self::End { part, .. } => (*all.get(part as usize - 1).context("a part")?).clone(),
            Self::Part { percent } => {
                let last = all.last().context("a checkpoint")?;
                part_of(last, f32::from(percent) / 100.0)?
            }
        };
        let rates: f64 = snapshots.iter().map(|s| s.learning_rate).sum();
        Bank::make(machine, domain, &adapter, rates / count(snapshots.len()))
    }
}

/// The second factors times `part`.
fn part_of(adapter: &Lora, part: f32) -> anyhow::Result<Lora> {
    let mut parameters = adapter.parameters().to_vec();
    for block in adapter.blocks() {
        let second = &mut parameters[block.range_b()];
        second.iter_mut().for_each(|x| *x *= part);
    }
    let mut scaled = adapter.clone();
    scaled.set_parameters(&parameters)?;
    Ok(scaled)
}

impl Bank {
    fn make(
        machine: &Machine,
        domain: &Domain,
        adapter: &Lora,
        learning_rate: f64,
    ) -> anyhow::Result<Self> {
        let all = || domain.pool.iter().chain(&domain.held_out);
        let question: Vec<Sequence> = all().map(Text::question_part).collect();
        let answer: Vec<Sequence> = all().map(Text::answer_part).collect();
        let whole: Vec<Sequence> = domain.pool.iter().map(Text::whole).collect();
        let gradients = |sequences: &[Sequence], labels| -> anyhow::Result<Gradients> {
            let mut rows = Gradients::new(adapter.n_params());
            for batch in sequences.chunks(BATCH) {
                let (model, pool) = (&machine.model, &machine.pool);
                for of_one in model.lora_gradients(pool, adapter, batch, labels)? {
                    rows.data.extend(of_one.gradient);
                }
            }
            Ok(rows)
        };
        Ok(Self {
            learning_rate,
            question: gradients(&question, Labels::Given)?,
            answer: gradients(&answer, Labels::Given)?,
            fisher: gradients(&whole, Labels::Sampled { seed: 1 })?,
        })
    }

    /// Gradients of the records' training loss: the sum over their tokens.
    pub(crate) fn records(&self, domain: &Domain) -> Gradients {
        self.combine(0..domain.pool.len(), |_| [1.0, 1.0])
    }

    /// Gradients of the queries' losses, in the order of the queries.
    pub(crate) fn queries(&self, domain: &Domain, loss: Loss) -> Gradients {
        let n = domain.pool.len();
        let held_out = self.combine(n..n + domain.held_out.len(), |at| {
            means(&domain.held_out[at - n], loss)
        });
        let mut queries = held_out;
        let own = self.combine(domain.own.iter().copied(), |at| {
            means(&domain.pool[at], loss)
        });
        queries.extend(&own);
        queries
    }

    fn combine(
        &self,
        rows: impl Iterator<Item = usize>,
        weights: impl Fn(usize) -> [f32; 2],
    ) -> Gradients {
        let mut combined = Gradients::new(self.fisher.dim);
        for at in rows {
            let [question, answer] = weights(at);
            let pairs = self.question.row(at).iter().zip(self.answer.row(at));
            combined
                .data
                .extend(pairs.map(|(q, a)| question * q + answer * a));
        }
        combined
    }

    fn write(&self, path: &Path, domain: &Domain) -> anyhow::Result<()> {
        let part = path.with_extension("part");
        let mut file = BufWriter::new(File::create(&part)?);
        file.write_all(domain.hash.as_slice())?;
        file.write_all(&self.learning_rate.to_le_bytes())?;
        for rows in [&self.question, &self.answer, &self.fisher] {
            for row in rows.rows() {
                let largest = row
                    .iter()
                    .fold(f32::MIN_POSITIVE, |max, x| max.max(x.abs()));
                let factor = largest / 1024.0;
                file.write_all(&factor.to_le_bytes())?;
                let codes: Vec<u8> = row
                    .iter()
                    .flat_map(|x| f16::from_f32(x / factor).to_le_bytes())
                    .collect();
                file.write_all(&codes)?;
            }
        }
        file.into_inner()?.sync_all()?;
        std::fs::rename(&part, path).with_context(|| path.display().to_string())
    }

    fn read(path: &Path, domain: &Domain) -> anyhow::Result<Self> {
        let mut file = BufReader::new(File::open(path)?);
        let (mut hash, mut rate) = ([0; 32], [0; 8]);
        file.read_exact(&mut hash)?;
        file.read_exact(&mut rate)?;
        anyhow::ensure!(domain.hash == hash, "a bank of another experiment");
        let n_all = domain.pool.len() + domain.held_out.len();
        let n_rows = 2 * n_all + domain.pool.len();
        let size_bytes = usize::try_from(file.get_ref().metadata()?.len())?;
        let dim = ((size_bytes - 40) / n_rows - 4) / 2;
        let mut codes = vec![0; 2 * dim];
        let mut rows = |n: usize| -> anyhow::Result<Gradients> {
            let mut rows = Gradients::new(dim);
            rows.data.reserve_exact(n * dim);
            for _ in 0..n {
                let mut factor = [0; 4];
                file.read_exact(&mut factor)?;
                let factor = f32::from_le_bytes(factor);
                file.read_exact(&mut codes)?;
                let codes = codes.as_chunks::<2>().0.iter();
                rows.data
                    .extend(codes.map(|code| factor * f16::from_le_bytes(*code).to_f32()));
            }
            Ok(rows)
        };
        Ok(Self {
            learning_rate: f64::from_le_bytes(rate),
            question: rows(n_all)?,
            answer: rows(n_all)?,
            fisher: rows(domain.pool.len())?,
        })
    }
}

/// Weights of the question's and the answer's tokens in a loss.
fn means(text: &Text, loss: Loss) -> [f32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "one over a small count")]
    let [question, answer] = text.part_lens().map(|n| (1.0 / count(n)) as f32);
    match loss {
        Loss::Answer => [0.0, answer],
        Loss::Both => [question, answer],
    }
}

/// Shapes of the adapter's blocks.
pub(crate) fn block_shapes(
    machine: &Machine,
    setting: &Setting,
) -> anyhow::Result<Vec<BlockShape>> {
    let config = LoraConfig::all_linear(setting.rank);
    let adapter = Lora::init(machine.model.config(), config, 0)?;
    let shape = |block: &ol_model::LoraBlock| BlockShape {
        rank: block.rows_a.0,
        d_in: block.rows_a.1,
        d_out: block.rows_b.0,
    };
    Ok(adapter.blocks().iter().map(shape).collect())
}
