//! How well predictions and retrainings agree.

use std::ops::Range;

use ol_model::Random;

use crate::domain::Domain;
use crate::linalg::Matrix;
use crate::methods::{Method, REFERENCE};
use crate::plan::{self, Kept};
use crate::space::Scores;
use crate::stats::{interval, mean, resample, spearman};
use crate::truth::{Loss, Truth};

/// Draws of the bootstrap.
const DRAWS: usize = 200;

/// One kind of question with one kind of loss.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) name: String,
    /// Mean rank correlation over the queries that were not used for tuning.
    pub(crate) score: f64,
    /// 95 % over queries and halves.
    pub(crate) interval: (f64, f64),
    /// The draws: the same queries and halves for every method.
    draws: Vec<f64>,
}

/// Shares against what leaving contributors out did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Payout {
    /// Rank correlation over the contributors of a query's shares and of the
    /// losses without them; mean over queries.
    pub(crate) by_query: f64,
    /// Of the shares of all queries together.
    pub(crate) in_all: f64,
    /// Sum of the absolute differences between paid shares, all queries
    /// together, and the shares that the losses would give: 0 to 2.
    pub(crate) distance: f64,
}

/// What a method came to on a domain.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) size_bytes: usize,
    /// The setting that was best on the queries used for tuning.
    pub(crate) setting: String,
    pub(crate) cells: Vec<Cell>,
    /// By loss.
    pub(crate) payouts: [Payout; Loss::ALL.len()],
}

/// Measured losses and which records each half holds.
pub(crate) struct Table<'a> {
    domain: &'a Domain,
    /// `[half, record]`.
    members: Vec<Vec<bool>>,
    /// By loss, then query, over halves.
    losses: [Vec<Vec<f64>>; Loss::ALL.len()],
    /// By loss: loss of each query without each contributor, `[query][rank]`.
    without: [Vec<Vec<f64>>; Loss::ALL.len()],
}

impl<'a> Table<'a> {
    pub(crate) fn new(domain: &'a Domain, truth: &Truth) -> Self {
        let halves = truth.halves();
        let members = halves
            .iter()
            .map(|&half| plan::kept(domain, Kept::Half(half)));
        let losses = Loss::ALL.map(|loss| {
            let queries = 0..domain.n_queries();
            queries
                .map(|query| truth.losses(&halves, loss, query))
                .collect()
        });
        Self {
            domain,
            members: members.collect(),
            losses,
            without: Loss::ALL.map(|loss| truth.without(loss, domain.n_queries())),
        }
    }

    /// Contributors that were left out.
    pub(crate) fn n_contributors(&self) -> usize {
        self.without[0].first().map_or(0, Vec::len)
    }

    /// Tunes a method on every second query and measures it on the others.
    pub(crate) fn row(&self, method: &Method) -> Option<Row> {
        let tuned = |scores: &Scores| {
            let cells = self.kinds().map(|(queries, loss)| {
                let predicted = self.predicted(&scores[loss]);
                let even = queries.filter(|query| query % 2 == 0);
                mean(
                    &even
                        .map(|query| self.agreement(&predicted, loss, query, None))
                        .collect::<Vec<_>>(),
                )
            });
            mean(&cells.collect::<Vec<_>>())
        };
        let best = method
            .variants
            .iter()
            .max_by(|a, b| tuned(&a.1).total_cmp(&tuned(&b.1)))?;
        let cells = self
            .kinds()
            .map(|(queries, loss)| self.cell(&best.1[loss], queries, loss));
        Some(Row {
            name: method.name.clone(),
            size_bytes: method.size_bytes,
            setting: best.0.clone(),
            cells: cells.collect(),
            payouts: [0, 1].map(|loss| self.payout(&best.1[loss], loss)),
        })
    }

    /// Pays as the chain does (net by contributor, nothing below zero, one fee
    /// for each query) among the contributors that were left out.
    fn payout(&self, scores: &Matrix, loss: usize) -> Payout {
        let n = self.n_contributors();
        let (mut paid, mut due) = (vec![0.0; n], vec![0.0; n]);
        let mut by_query = Vec::new();
        for (query, without) in self.without[loss].iter().enumerate() {
            let mut nets = vec![0.0; self.domain.contributors.len()];
            for (text, score) in self.domain.pool.iter().zip(scores.row(query)) {
                nets[text.contributor] += score;
            }
            let nets: Vec<f64> = self.domain.largest[..n].iter().map(|&c| nets[c]).collect();
            by_query.push(spearman(&nets, without));
            add_shares(&mut paid, &nets);
            add_shares(&mut due, without);
        }
        let of_all = |shares: &[f64]| {
            let total: f64 = shares.iter().sum();
            shares
                .iter()
                .map(|x| x / total.max(f64::MIN_POSITIVE))
                .collect::<Vec<_>>()
        };
        let pairs = of_all(&paid).into_iter().zip(of_all(&due));
        Payout {
            by_query: mean(&by_query),
            in_all: spearman(&paid, &due),
            distance: pairs.map(|(a, b)| (a - b).abs()).sum(),
        }
    }

    fn kinds(&self) -> impl Iterator<Item = (Range<usize>, usize)> {
        let (held_out, all) = (self.domain.held_out.len(), self.domain.n_queries());
        let asked = [0..held_out, held_out..all];
        asked
            .into_iter()
            .flat_map(|queries| (0..Loss::ALL.len()).map(move |loss| (queries.clone(), loss)))
    }

    fn cell(&self, scores: &Matrix, queries: Range<usize>, loss: usize) -> Cell {
        let asked = if queries.start == 0 {
            "held out"
        } else {
            "own"
        };
        let odd: Vec<usize> = queries.filter(|query| query % 2 == 1).collect();
        let predicted = self.predicted(scores);
        let of = |queries: &[usize], halves: Option<&[usize]>| {
            let each = queries
                .iter()
                .map(|&query| self.agreement(&predicted, loss, query, halves));
            mean(&each.collect::<Vec<_>>())
        };
        let mut random = Random::new(1);
        let draws: Vec<f64> = (0..DRAWS)
            .map(|_| {
                let queries = resample(odd.len(), &mut random);
                let queries: Vec<usize> = queries.into_iter().map(|at| odd[at]).collect();
                of(&queries, Some(&resample(self.members.len(), &mut random)))
            })
            .collect();
        Cell {
            name: format!("{asked}, {}", Loss::ALL[loss].name()),
            score: of(&odd, None),
            interval: interval(draws.clone()),
            draws,
        }
    }

    /// The gain that the scores foretell, `[query, half]`.
    fn predicted(&self, scores: &Matrix) -> Vec<Vec<f64>> {
        let gain = |row: &[f64], members: &Vec<bool>| -> f64 {
            row.iter()
                .zip(members)
                .filter(|(_, kept)| **kept)
                .map(|(x, _)| x)
                .sum()
        };
        (0..scores.rows())
            .map(|query| {
                self.members
                    .iter()
                    .map(|m| gain(scores.row(query), m))
                    .collect()
            })
            .collect()
    }

    /// Rank correlation of foretold gains and measured losses of a query.
    fn agreement(
        &self,
        predicted: &[Vec<f64>],
        loss: usize,
        query: usize,
        halves: Option<&[usize]>,
    ) -> f64 {
        let (gains, losses) = (&predicted[query], &self.losses[loss][query]);
        let Some(halves) = halves else {
            return -spearman(gains, losses);
        };
        let pick = |values: &[f64]| halves.iter().map(|&at| values[at]).collect::<Vec<_>>();
        -spearman(&pick(gains), &pick(losses))
    }
}

/// Divides one fee by what is above zero.
fn add_shares(shares: &mut [f64], weights: &[f64]) {
    let total: f64 = weights.iter().map(|x| x.max(0.0)).sum();
    if total > 0.0 {
        let parts = weights.iter().map(|x| x.max(0.0) / total);
        shares.iter_mut().zip(parts).for_each(|(sum, x)| *sum += x);
    }
}

/// Two tables for the reader: agreement with the halves, and with leaving out
/// contributors.
pub(crate) fn markdown(domain: &Domain, table: &Table<'_>, rows: &[Row]) -> String {
    let mut text = format!("\n## {}: {} halves\n", domain.name, table.members.len());
    let Some(first) = rows.first() else {
        return text;
    };
    let names: Vec<&str> = first.cells.iter().map(|cell| cell.name.as_str()).collect();
    text += &format!(
        "\n| method | bytes a record | tuned to | mean | of EK-FAC | {} |\n|---|---|---|---|---|{}\n",
        names.join(" | "),
        "---|".repeat(names.len())
    );
    let reference = rows.iter().find(|row| row.name == REFERENCE);
    for row in rows {
        let ratio = reference.map_or_else(String::new, |reference| {
            let (low, high) = ratio_interval(row, reference);
            format!("{:.2} [{low:.2}, {high:.2}]", row.mean() / reference.mean())
        });
        let cells = row.cells.iter().map(|cell| {
            let (low, high) = cell.interval;
            format!("{:.3} [{low:.2}, {high:.2}]", cell.score)
        });
        text += &format!(
            "| {} | {} | {} | {:.3} | {ratio} | {} |\n",
            row.name,
            row.size_bytes,
            row.setting,
            row.mean(),
            cells.collect::<Vec<_>>().join(" | ")
        );
    }
    if table.n_contributors() < 3 {
        return text;
    }
    text += &format!(
        "\n{} contributors left out\n\n| method |{}\n|---|{}\n",
        table.n_contributors(),
        Loss::ALL
            .map(|loss| format!(" {0}: by query | in all | distance |", loss.name()))
            .concat(),
        "---|".repeat(3 * Loss::ALL.len())
    );
    for row in rows {
        let cells = row.payouts.map(|payout| {
            let Payout {
                by_query,
                in_all,
                distance,
            } = payout;
            format!(" {by_query:.3} | {in_all:.3} | {distance:.3} |")
        });
        text += &format!("| {} |{}\n", row.name, cells.concat());
    }
    text
}

/// One line for each method: its mean over all datanets, questions and losses.
pub(crate) fn json(of_domains: &[Vec<Row>]) -> serde_json::Value {
    let Some(first) = of_domains.first() else {
        return serde_json::Value::Array(Vec::new());
    };
    // Ours come in the same order for every domain; another library's scores may
    // be of one domain only, and then have no mean.
    let is_everywhere = |at: usize, name: &str| {
        let mut of_all = of_domains.iter().map(|rows| rows.get(at));
        of_all.all(|row| row.is_some_and(|row| row.name == name))
    };
    let score = |at: usize| {
        mean(
            &of_domains
                .iter()
                .map(|rows| rows[at].mean())
                .collect::<Vec<_>>(),
        )
    };
    let reference = first.iter().position(|row| row.name == REFERENCE);
    let shared = first.iter().enumerate();
    let shared = shared.filter(|(at, row)| is_everywhere(*at, &row.name));
    let lines = shared.map(|(at, row)| {
        let draws = (0..DRAWS).map(|draw| {
            mean(
                &of_domains
                    .iter()
                    .map(|rows| rows[at].draw(draw))
                    .collect::<Vec<_>>(),
            )
        });
        let (low, high) = interval(draws.collect());
        let mut line = serde_json::json!({
            "work": row.name,
            "unit": format!("LDS, {} bytes a record", row.size_bytes),
            "ours": rounded(score(at)),
            "spread": format!("{low:.3} to {high:.3}"),
            "command": "cargo xtask bench attribution-truth",
        });
        if let Some(reference) = reference {
            line["peer"] = rounded(score(reference)).into();
            line["peer_name"] = REFERENCE.into();
            line["ratio"] = rounded(score(at) / score(reference)).into();
        }
        line
    });
    lines.collect()
}

fn rounded(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}

impl Row {
    /// Over the kinds of question and loss, of one draw.
    fn draw(&self, draw: usize) -> f64 {
        mean(
            &self
                .cells
                .iter()
                .map(|cell| cell.draws[draw])
                .collect::<Vec<_>>(),
        )
    }

    /// Over the kinds of question and loss.
    fn mean(&self) -> f64 {
        mean(&self.cells.iter().map(|cell| cell.score).collect::<Vec<_>>())
    }
}

/// 95 % of the ratio of two methods, on the same draws.
fn ratio_interval(row: &Row, reference: &Row) -> (f64, f64) {
    let ratio = |draw| row.draw(draw) / reference.draw(draw);
    interval((0..DRAWS).map(ratio).collect())
}
