//! Which modules an adapter has, at which rank and scale.

use regex::Regex;

use super::{LoraBlock, LoraConfig, LoraError, MAX_RANK, Projection};
use crate::config::ModelConfig;

/// Longest pattern accepted, and memory a compiled one may take.
const MAX_PATTERN_CHARS: usize = 64 << 10;
const MAX_PATTERN_SIZE_BYTES: usize = 8 << 20;

/// Patterns accepted in `rank_pattern` and `alpha_pattern`.
const MAX_PATTERNS: usize = 4096;

/// Compiles `pattern` so that it must match as a whole.
pub(super) fn compile(pattern: &str) -> Result<Regex, LoraError> {
    let bad = |reason: String| LoraError::Pattern {
        pattern: pattern.chars().take(80).collect(),
        reason,
    };
    if pattern.len() > MAX_PATTERN_CHARS {
        return Err(bad(format!("it has more than {MAX_PATTERN_CHARS} bytes")));
    }
    regex::RegexBuilder::new(&format!("^(?:{pattern})$"))
        .size_limit(MAX_PATTERN_SIZE_BYTES)
        .build()
        .map_err(|e| bad(e.to_string()))
}

/// The values of `rank_pattern` or `alpha_pattern` by module.
struct Patterns<T> {
    all: Vec<(Regex, T)>,
    field: &'static str,
}

impl<T: Copy + PartialEq> Patterns<T> {
    /// As PEFT reads keys: at the end of a path, after a dot or as all of it.
    fn new<'a>(
        field: &'static str,
        patterns: impl ExactSizeIterator<Item = (&'a String, &'a T)>,
    ) -> Result<Self, LoraError>
    where
        T: 'a,
    {
        if patterns.len() > MAX_PATTERNS {
            return Err(LoraError::Pattern {
                pattern: field.to_owned(),
                reason: format!("it has more than {MAX_PATTERNS} entries"),
            });
        }
        let all = patterns
            .map(|(key, value)| Ok((compile(&format!(r"(?:.*\.)?(?:{key})"))?, *value)))
            .collect::<Result<_, LoraError>>()?;
        Ok(Self { all, field })
    }

    /// The value for `module`. PEFT takes the first that matches; the order of
    /// a JSON object is nothing to rely on, so two that differ are refused.
    fn get(&self, module: &str) -> Result<Option<T>, LoraError> {
        let mut values = self
            .all
            .iter()
            .filter(|(pattern, _)| pattern.is_match(module))
            .map(|(_, value)| *value);
        let first = values.next();
        if values.any(|value| Some(value) != first) {
            return Err(LoraError::Pattern {
                pattern: self.field.to_owned(),
                reason: format!("two entries give {module} different values"),
            });
        }
        Ok(first)
    }
}

/// Blocks of an adapter in flat order, and the number of parameters.
pub(super) fn blocks(
    model: &ModelConfig,
    config: &LoraConfig,
) -> Result<(Vec<LoraBlock>, usize), LoraError> {
    let ranks = Patterns::new("rank_pattern", config.rank_pattern.iter())?;
    let alphas = Patterns::new("alpha_pattern", config.alpha_pattern.iter())?;
    let only = match &config.module_pattern {
        Some(pattern) => Some(compile(pattern)?),
        None => None,
    };
    let mut targets = config.target_modules.clone();
    targets.sort_unstable();
    targets.dedup();
    let mut blocks = Vec::new();
    let mut offset = 0;
    for layer in 0..model.num_hidden_layers {
        for &projection in &targets {
            let Some((d_out, d_in)) = projection.shape(model, layer) else {
                continue;
            };
            let module = projection.module_path(model, layer);
            if only.as_ref().is_some_and(|only| !only.is_match(&module)) {
                continue;
            }
            let rank = ranks.get(&module)?.unwrap_or(config.rank);
            let alpha = alphas.get(&module)?.unwrap_or(config.alpha);
            check_rank(rank)?;
            check_alpha(alpha)?;
            let block = LoraBlock {
                layer,
                projection,
                module,
                rows_a: (rank, d_in),
                rows_b: (d_out, rank),
                offset,
                scale: scale(alpha, rank, config.use_rslora),
                has_magnitude: config.use_dora,
            };
            offset = block.range().end;
            blocks.push(block);
        }
    }
    if blocks.is_empty() {
        return Err(LoraError::NoTarget);
    }
    Ok((blocks, offset))
}

/// `alpha / rank`, or `alpha / sqrt(rank)` (Kalajdzievski, 2023).
#[expect(clippy::cast_precision_loss, reason = "ranks are small")]
pub(super) fn scale(alpha: f32, rank: usize, rslora: bool) -> f32 {
    if rslora {
        alpha / (rank as f32).sqrt()
    } else {
        alpha / rank as f32
    }
}

pub(super) fn check_rank(rank: usize) -> Result<(), LoraError> {
    if rank == 0 || rank > MAX_RANK {
        return Err(LoraError::Rank(rank));
    }
    Ok(())
}

pub(super) fn check_alpha(alpha: f32) -> Result<(), LoraError> {
    if !(alpha.is_finite() && alpha > 0.0) {
        return Err(LoraError::Alpha(alpha));
    }
    Ok(())
}

/// What PEFT's `target_modules` select: projections, and a pattern if not all
/// their layers are.
pub(super) struct Selection {
    pub(super) projections: Vec<Projection>,
    pub(super) pattern: Option<String>,
}

/// Modules of the model that are no projection: an adapter on them is refused.
fn other_modules(model: &ModelConfig) -> Vec<String> {
    let mut all = vec!["lm_head".to_owned(), "model.embed_tokens".to_owned()];
    if let Some(layer) = (0..model.num_hidden_layers).find(|l| model.has_experts(*l)) {
        let prefix = format!("model.layers.{layer}.mlp");
        all.push(format!("{prefix}.gate"));
        all.push(format!("{prefix}.experts"));
    }
    all
}

/// The modules whose path fulfils `matches`; `describe` is a pattern for them.
fn select(
    model: &ModelConfig,
    matches: impl Fn(&str) -> bool,
    describe: impl FnOnce() -> String,
) -> Result<Selection, LoraError> {
    if let Some(other) = other_modules(model).into_iter().find(|m| matches(m)) {
        return Err(LoraError::Target(other));
    }
    let mut projections = Vec::new();
    let mut partly = false;
    for projection in Projection::of(model) {
        let modules: Vec<bool> = (0..model.num_hidden_layers)
            .filter(|layer| projection.shape(model, *layer).is_some())
            .map(|layer| matches(&projection.module_path(model, layer)))
            .collect();
        if modules.contains(&true) {
            projections.push(projection);
            partly |= modules.contains(&false);
        }
    }
    Ok(Selection {
        projections,
        pattern: partly.then(describe),
    })
}

/// `target_modules` as one text: `all-linear`, or a regular expression that a
/// whole path must match.
pub(super) fn of_text(model: &ModelConfig, text: &str) -> Result<Selection, LoraError> {
    if text.eq_ignore_ascii_case("all-linear") {
        return Ok(Selection {
            projections: Projection::all_linear(model),
            pattern: None,
        });
    }
    let pattern = compile(text)?;
    select(model, |module| pattern.is_match(module), || text.to_owned())
}

/// `target_modules` as a list: each the end of a path, or all of it.
pub(super) fn of_names(model: &ModelConfig, names: &[String]) -> Result<Selection, LoraError> {
    let unknown = |name: &&String| {
        let last = name.rsplit('.').next().unwrap_or(name);
        Projection::from_name(last).is_none()
    };
    if let Some(name) = names.iter().find(unknown) {
        return Err(LoraError::Target(name.clone()));
    }
    let matches = |module: &str| {
        names.iter().any(|name| {
            module
                .strip_suffix(name.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    };
    let describe = || {
        let escaped: Vec<String> = names.iter().map(|n| regex::escape(n)).collect();
        format!(r"(.*\.)?({})", escaped.join("|"))
    };
    select(model, matches, describe)
}
