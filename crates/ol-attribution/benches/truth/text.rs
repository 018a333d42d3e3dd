//! What needs no gradients: words and hidden states.

use ol_model::Sequence;
use ol_retrieval::Lexical;

use crate::domain::{Domain, Text};
use crate::linalg::Matrix;
use crate::retrain::Machine;

/// BM25 of each query's words, question and answer, against each record's.
pub(crate) fn bm25(domain: &Domain) -> anyhow::Result<Matrix> {
    let whole = |text: &Text| format!("{}\n{}", text.question, text.answer);
    let pool: Vec<String> = domain.pool.iter().map(whole).collect();
    let index = Lexical::new(pool.iter().map(String::as_str))?;
    let queries = domain.queries().map(|text| index.scores(&whole(text)));
    let scores: Vec<Vec<u32>> = queries.collect();
    Ok(Matrix::from_fn(
        scores.len(),
        pool.len(),
        |query, record| f64::from(scores[query][record]),
    ))
}

/// Cosine of the base's mean hidden states, the mean over the records taken
/// out; and how many numbers a state has.
pub(crate) fn embedding(machine: &Machine, domain: &Domain) -> anyhow::Result<(Matrix, usize)> {
    let states = |texts: Vec<Sequence>| machine.model.mean_hidden(&machine.pool, None, &texts);
    let mut records = states(domain.pool.iter().map(Text::whole).collect())?;
    let mut queries = states(domain.queries().map(Text::whole).collect())?;
    let dim = records.first().map_or(0, Vec::len);
    #[expect(clippy::cast_precision_loss, reason = "a number of records")]
    let part = 1.0 / records.len() as f32;
    let mut middle = vec![0.0_f32; dim];
    for record in &records {
        middle
            .iter_mut()
            .zip(record)
            .for_each(|(m, x)| *m += part * x);
    }
    for state in records.iter_mut().chain(&mut queries) {
        state.iter_mut().zip(&middle).for_each(|(x, m)| *x -= m);
        let length = state.iter().map(|x| x * x).sum::<f32>().sqrt();
        state.iter_mut().for_each(|x| *x /= length);
    }
    let dot = |query: usize, record: usize| -> f64 {
        let pairs = queries[query].iter().zip(&records[record]);
        pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    Ok((Matrix::from_fn(queries.len(), records.len(), dot), dim))
}
