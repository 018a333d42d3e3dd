//! What an adapter is.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::{Adapter, Factors, PeftFileError, WEIGHTS, io};
use crate::job::JobManifest;

/// How much an adapter changes a layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerNorms {
    /// Number of the block, where the modules' names have one.
    pub layer: Option<usize>,
    /// Frobenius norm of each module's change, `scale * B A`, by short name.
    pub modules: BTreeMap<String, f64>,
}

/// What is in a PEFT directory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The numerator of the scale.
    pub alpha: f64,
    /// Name of the base, as recorded.
    pub base: Option<String>,
    /// Whether magnitudes are trained besides.
    pub dora: bool,
    /// Storage of the factors, as in `F32`.
    pub dtype: String,
    /// The change of every layer, in order.
    pub layers: Vec<LayerNorms>,
    /// What it was made from, if it says so.
    pub manifest: Option<JobManifest>,
    /// Adapted modules.
    pub n_modules: usize,
    /// Parameters.
    pub n_parameters: u64,
    /// Inner width.
    pub rank: usize,
    /// Whether the scale is `alpha / sqrt(rank)`.
    pub rslora: bool,
    /// SHA-256 of the factors' file.
    pub sha256: String,
    /// Size of the factors' file, in bytes.
    pub size_bytes: u64,
    /// Short names of the adapted modules.
    pub target_modules: Vec<String>,
}

/// Looks into a PEFT directory; the base is not needed.
///
/// # Errors
/// [`PeftFileError`].
pub fn inspect(dir: &Path) -> Result<Inspection, PeftFileError> {
    let adapter = Adapter::read(dir)?;
    let modules = adapter.modules()?;
    let scale = adapter.scale();
    let mut layers: BTreeMap<Option<usize>, BTreeMap<String, f64>> = BTreeMap::new();
    let mut targets = Vec::new();
    let mut n_parameters = 0;
    for (name, factors) in &modules {
        let short = name.rsplit('.').next().unwrap_or(name).to_owned();
        let layer = name.split('.').find_map(|part| part.parse().ok());
        let parameters = [
            Some(&factors.a),
            Some(&factors.b),
            factors.magnitude.as_ref(),
        ];
        n_parameters += parameters
            .iter()
            .flatten()
            .map(|m| m.values.len() as u64)
            .sum::<u64>();
        *layers
            .entry(layer)
            .or_default()
            .entry(short.clone())
            .or_default() += norm(factors) * scale;
        targets.push(short);
    }
    targets.sort();
    targets.dedup();
    let tensors = adapter.tensors()?;
    let mut dtypes: Vec<String> = tensors
        .iter()
        .map(|(_, view)| format!("{:?}", view.dtype()))
        .collect();
    dtypes.sort();
    dtypes.dedup();
    let path = dir.join(WEIGHTS);
    let manifest = dir.join(JobManifest::FILE);
    let manifest = std::fs::read(manifest).ok();
    Ok(Inspection {
        alpha: adapter.config.lora_alpha,
        base: adapter.config.base_model_name_or_path.clone(),
        dora: adapter.config.use_dora,
        dtype: dtypes.join(", "),
        layers: layers
            .into_iter()
            .map(|(layer, modules)| LayerNorms { layer, modules })
            .collect(),
        manifest: manifest.and_then(|bytes| JobManifest::from_bytes(&bytes).ok()),
        n_modules: modules.len(),
        n_parameters,
        rank: adapter.config.r,
        rslora: adapter.config.use_rslora,
        sha256: crate::job::sha256_of(&path).map_err(io(&path))?,
        size_bytes: adapter.weights.len() as u64,
        target_modules: targets,
    })
}

/// Frobenius norm of `B A`, from the two small Gram matrices:
/// `|BA|^2 = sum((B^T B) * (A A^T))`.
fn norm(factors: &Factors) -> f64 {
    let rank = factors.a.rows;
    let mut gram_b = vec![0.0_f64; rank * rank];
    for o in 0..factors.b.rows {
        let row = factors.b.row(o);
        for i in 0..rank {
            for j in 0..rank {
                gram_b[i * rank + j] += f64::from(row[i]) * f64::from(row[j]);
            }
        }
    }
    let mut sum = 0.0;
    for i in 0..rank {
        for j in 0..rank {
            let products = factors.a.row(i).iter().zip(factors.a.row(j));
            let gram_a: f64 = products.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            sum += gram_b[i * rank + j] * gram_a;
        }
    }
    sum.max(0.0).sqrt()
}
