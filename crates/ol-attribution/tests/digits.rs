//! Goal: sketches of 130 bytes predict what retraining really does, almost as
//! well as the uncompressed method; and the payout rule starves a spammer.
//! Method: a 64-32-10 network on handwritten digits; 600 retrainings on random
//! halves of the records, done once by `fixtures/attribution/make.py`. The
//! linear datamodeling score (LDS) is the mean over queries of the rank
//! correlation between predicted and true losses over the halves.

use std::convert::Infallible;

use ol_attribution::fit::{Fit, FitOptions, fit};
use ol_attribution::kronecker::Kronecker;
use ol_attribution::reduce::BlockShape;
use ol_attribution::rows::Rows;
use ol_poa::{Entry, Index};
use ol_types::{Address, B256};

const FIXTURE: &[u8] = include_bytes!("../../../fixtures/attribution/digits.bin");

const N: usize = 1_000;
const Q: usize = 200;
const HALVES: usize = 200;
const PIXELS: usize = 64;
const HIDDEN: usize = 32;
const CLASSES: usize = 10;
const D: usize = HIDDEN * PIXELS + HIDDEN + CLASSES * HIDDEN + CLASSES;

/// Honest records belong to 20 contributors in turn; wrong ones to the spammer.
const HONEST: usize = 20;

/// λ over the trace of F of the uncompressed method; ground truth peaks near
/// 0.0005 and is flat to 0.0025.
const DAMPING: f64 = 0.0025;

/// The network's matrices and biases as factors: `W1`, `b1`, `W2`, `b2`.
const BLOCKS: [BlockShape; 2] = [
    BlockShape {
        rank: HIDDEN,
        d_in: PIXELS,
        d_out: 1,
    },
    BlockShape {
        rank: CLASSES,
        d_in: HIDDEN,
        d_out: 1,
    },
];

struct Digits {
    images: Vec<[f32; PIXELS]>,
    labels: Vec<usize>,
    is_wrong: Vec<bool>,
    halves: Vec<Vec<bool>>,
    /// `[half][query]`.
    losses: Vec<Vec<f64>>,
    network: Network,
}

struct Network {
    w1: Vec<f32>,
    b1: Vec<f32>,
    w2: Vec<f32>,
    b2: Vec<f32>,
}

fn read() -> Digits {
    let mut rest = FIXTURE;
    let mut take = |n: usize| {
        let (head, tail) = rest.split_at(n);
        rest = tail;
        head
    };
    let images = take((N + Q) * PIXELS)
        .as_chunks::<PIXELS>()
        .0
        .iter()
        .map(|image| image.map(|p| f32::from(p) / 16.0))
        .collect();
    let labels = take(N + Q).iter().map(|&label| label.into()).collect();
    let is_wrong = take(N).iter().map(|&wrong| wrong == 1).collect();
    let in_half = |bits: &[u8]| (0..N).map(|r| bits[r / 8] >> (r % 8) & 1 == 1).collect();
    let halves = take(HALVES * N / 8).chunks(N / 8).map(in_half).collect();
    let mut floats = |n: usize| -> Vec<f32> {
        let bytes = take(4 * n).as_chunks::<4>().0;
        bytes.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let losses = floats(HALVES * Q)
        .chunks(Q)
        .map(|row| row.iter().map(|&x| x.into()).collect())
        .collect();
    let network = Network {
        w1: floats(HIDDEN * PIXELS),
        b1: floats(HIDDEN),
        w2: floats(CLASSES * HIDDEN),
        b2: floats(CLASSES),
    };
    assert!(rest.is_empty(), "the fixture has the layout of make.py");
    Digits {
        images,
        labels,
        is_wrong,
        halves,
        losses,
        network,
    }
}

impl Network {
    /// Hidden activations and class probabilities.
    fn forward(&self, image: &[f32; PIXELS]) -> ([f32; HIDDEN], [f32; CLASSES]) {
        let hidden = std::array::from_fn(|h| {
            let row = &self.w1[h * PIXELS..(h + 1) * PIXELS];
            let sum: f32 = row.iter().zip(image).map(|(w, x)| w * x).sum();
            (sum + self.b1[h]).max(0.0)
        });
        let mut exps = std::array::from_fn(|c| {
            let row = &self.w2[c * HIDDEN..(c + 1) * HIDDEN];
            let sum: f32 = row.iter().zip(&hidden).map(|(w, x)| w * x).sum();
            libm::expf(sum + self.b2[c])
        });
        let total: f32 = exps.iter().sum();
        exps.iter_mut().for_each(|x| *x /= total);
        (hidden, exps)
    }

    /// The gradient of a loss whose derivative by the logits is `d_logits`.
    fn backward(
        &self,
        image: &[f32; PIXELS],
        hidden: &[f32; HIDDEN],
        d_logits: &[f32; CLASSES],
    ) -> Vec<f32> {
        let d_hidden: [f32; HIDDEN] = std::array::from_fn(|h| {
            if hidden[h] <= 0.0 {
                return 0.0;
            }
            (0..CLASSES)
                .map(|c| d_logits[c] * self.w2[c * HIDDEN + h])
                .sum()
        });
        let mut gradient = Vec::with_capacity(D);
        gradient.extend(d_hidden.iter().flat_map(|d| image.map(|x| d * x)));
        gradient.extend(d_hidden);
        gradient.extend(d_logits.iter().flat_map(|d| hidden.map(|h| d * h)));
        gradient.extend(d_logits);
        gradient
    }
}

/// Gradients of the losses of images `range` with their labels.
fn gradients(digits: &Digits, range: std::ops::Range<usize>) -> Rows {
    let mut rows = Rows::new(D);
    for i in range {
        let (hidden, mut d_logits) = digits.network.forward(&digits.images[i]);
        d_logits[digits.labels[i]] -= 1.0;
        rows.push(
            &digits
                .network
                .backward(&digits.images[i], &hidden, &d_logits),
        );
    }
    rows
}

/// The exact generalised Gauss–Newton matrix as rows: for every record and
/// class, the gradient with that class as label, times the root of 10 and of
/// its probability. The mean of the outer products is the expectation over
/// labels, without sampling noise.
fn fisher_rows(digits: &Digits) -> Rows {
    let mut rows = Rows::new(D);
    for image in &digits.images[..N] {
        let (hidden, probabilities) = digits.network.forward(image);
        for class in 0..CLASSES {
            let weight = (probabilities[class] * 10.0).sqrt();
            let mut d_logits = probabilities;
            d_logits[class] -= 1.0;
            let d_logits = d_logits.map(|d| d * weight);
            rows.push(&digits.network.backward(image, &hidden, &d_logits));
        }
    }
    rows
}

/// Scores without any compression, `qᵀ (F + λI)⁻¹ g`, `[query][record]`, by a
/// plain Cholesky factorisation: no code in common with the fit.
fn uncompressed_scores(records: &Rows, fisher: &Rows, queries: &Rows) -> Vec<Vec<f64>> {
    // The lower half of F + λI, row i of length i + 1.
    let mut lower: Vec<Vec<f64>> = (0..D).map(|i| vec![0.0; i + 1]).collect();
    for row in fisher.iter() {
        let row: Vec<f64> = row.iter().map(|&x| x.into()).collect();
        for (sums, &x) in lower.iter_mut().zip(&row) {
            // ReLU leaves many zeros; skipping them skips most of the work.
            if x != 0.0 {
                let x = x / fisher.len() as f64;
                sums.iter_mut().zip(&row).for_each(|(sum, y)| *sum += x * y);
            }
        }
    }
    let trace: f64 = lower.iter().map(|row| row[row.len() - 1]).sum();
    for i in 0..D {
        lower[i][i] += DAMPING * trace;
        let (above, below) = lower.split_at_mut(i);
        let row = &mut below[0];
        for j in 0..i {
            row[j] = (row[j] - dot(&row[..j], &above[j])) / above[j][j];
        }
        row[i] = (row[i] - dot(&row[..i], &row[..i])).sqrt();
    }
    // With F + λI = L Lᵀ the score is the dot product of L⁻¹ q and L⁻¹ g.
    let whiten = |row: &[f32]| {
        let mut x: Vec<f64> = row.iter().map(|&x| x.into()).collect();
        for i in 0..D {
            x[i] = (x[i] - dot(&x[..i], &lower[i])) / lower[i][i];
        }
        x
    };
    let records: Vec<Vec<f64>> = records.iter().map(whiten).collect();
    let score = |query: &[f32]| {
        let query = whiten(query);
        records.iter().map(|record| dot(&query, record)).collect()
    };
    queries.iter().map(score).collect()
}

/// The dot product of two rows, as long as the first, in eight partial sums.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let (a_blocks, a_rest) = a.as_chunks::<8>();
    let (b_blocks, b_rest) = b[..a.len()].as_chunks::<8>();
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..8 {
            sums[lane] += x[lane] * y[lane];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f64>() + rest
}

/// Scores as they are paid: the index of the records against query sketches.
fn sketch_scores(index: &Index, fit: &Fit, queries: &Rows) -> Vec<Vec<f64>> {
    queries
        .iter()
        .map(|query| {
            let scores = index.scores(&fit.map.sketch(query).expect("the gradient is finite"));
            let mut by_record = vec![0.0; N];
            for (entry, score) in index.entries().zip(scores) {
                by_record[entry.cluster() as usize] = score as f64;
            }
            by_record
        })
        .collect()
}

fn address(number: usize) -> Address {
    Address::left_padding_from(&number.to_be_bytes())
}

fn contributor(digits: &Digits, record: usize) -> usize {
    if digits.is_wrong[record] {
        HONEST
    } else {
        record % HONEST
    }
}

fn index_of(digits: &Digits, fit: &Fit) -> Index {
    let entries = fit
        .records
        .iter()
        .enumerate()
        .map(|(record, sketch)| Entry {
            contributor: address(contributor(digits, record) + 1),
            record: B256::left_padding_from(&record.to_be_bytes()),
            cluster: u32::try_from(record).expect("a thousand records"),
            scale: sketch.scale,
            codes: sketch.codes,
        });
    Index::new(entries.collect()).expect("the sketches of a fit form an index")
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    for (rank, &i) in order.iter().enumerate() {
        ranks[i] = rank as f64;
    }
    ranks
}

/// Mean over queries of the rank correlation between the summed scores of the
/// records in a half and minus the loss after training on that half.
fn lds(digits: &Digits, scores: &[Vec<f64>]) -> f64 {
    let of_query = |(query, scores): (usize, &Vec<f64>)| {
        let sum_in = |half: &Vec<bool>| -> f64 {
            half.iter()
                .zip(scores)
                .filter(|(is_in, _)| **is_in)
                .map(|(_, s)| s)
                .sum()
        };
        let predicted: Vec<f64> = digits.halves.iter().map(sum_in).collect();
        let real: Vec<f64> = digits.losses.iter().map(|losses| -losses[query]).collect();
        let (a, b) = (ranks(&predicted), ranks(&real));
        let mean = (HALVES as f64 - 1.0) / 2.0;
        let covariance: f64 = a.iter().zip(&b).map(|(x, y)| (x - mean) * (y - mean)).sum();
        let variance: f64 = a.iter().map(|x| (x - mean) * (x - mean)).sum();
        covariance / variance
    };
    scores.iter().enumerate().map(of_query).sum::<f64>() / Q as f64
}

/// Everything is computed once; the assertions are the claims.
#[test]
fn sketches_predict_retraining_and_starve_the_spammer() {
    let digits = read();
    let records = gradients(&digits, 0..N);
    let queries = gradients(&digits, N..N + Q);
    let fisher = fisher_rows(&digits);
    let options = FitOptions {
        damping: 0.1,
        seed: 1,
        context: Vec::new(),
        budget_bytes: 1 << 28,
    };
    let mut samples = |visit: &mut dyn FnMut(&[f32])| {
        fisher.iter().for_each(visit);
        Ok::<_, Infallible>(())
    };
    let curvature = Kronecker::fit(&BLOCKS, &mut samples, 1 << 28, &mut |_| ()).unwrap();
    // The score is about single records, so each counts alone.
    let alone: Vec<usize> = (0..N).collect();
    let fit = fit(
        &curvature,
        &mut records.clone(),
        &alone,
        &options,
        &mut |_| (),
    )
    .unwrap();
    let index = index_of(&digits, &fit);

    let full = lds(&digits, &uncompressed_scores(&records, &fisher, &queries));
    let scores = sketch_scores(&index, &fit, &queries);
    let sketched = lds(&digits, &scores);
    println!("LDS {full:.4} uncompressed, {sketched:.4} at 130 bytes a record");
    assert!(full > 0.6, "uncompressed LDS {full}");
    assert!(sketched > 0.95 * full, "LDS {sketched} of {full}");

    // What the spammer, with one record in ten and all of them wrong, is paid
    // under the two rules, averaged over the queries.
    let share_of_spam = |per_record: &dyn Fn(&[f64]) -> (f64, f64)| -> f64 {
        let share = |scores: &Vec<f64>| {
            let (spam, all) = per_record(scores);
            spam / all
        };
        scores.iter().map(share).sum::<f64>() / Q as f64
    };
    let positive_parts = share_of_spam(&|scores| {
        let part = |(record, score): (usize, &f64)| {
            let paid = score.max(0.0);
            (if digits.is_wrong[record] { paid } else { 0.0 }, paid)
        };
        let parts = scores.iter().enumerate().map(part);
        parts.fold((0.0, 0.0), |(s, a), (spam, paid)| (s + spam, a + paid))
    });
    let spammer = address(HONEST + 1);
    let netted = queries
        .iter()
        .map(|query| {
            let weights = index.weights(0, &fit.map.sketch(query).unwrap());
            let all: u64 = weights.iter().map(|(_, weight)| weight).sum();
            let spam = weights.iter().find(|(who, _)| *who == spammer);
            spam.map_or(0.0, |(_, weight)| *weight as f64) / all as f64
        })
        .sum::<f64>()
        / Q as f64;
    println!("spammer paid {positive_parts:.4} per record, {netted:.4} netted");
    assert!(positive_parts > 0.15, "{positive_parts}");
    assert!(netted < 0.02, "{netted}");
}
