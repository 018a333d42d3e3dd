//! What the types of a specification cannot say.

use std::path::Path;

use ol_model::{MAX_RANK, Projection};

use super::{DataFormat, JobSpec, Method, Problem, Targets};

/// Longest name of a job, in bytes.
const NAME_SIZE_BYTES_MAX: usize = 64;
/// Most files of one job.
const FILES_MAX: usize = 1024;
/// Most questions answered at the end.
const GENERATE_MAX: usize = 10_000;

/// Everything that is wrong, in the order of the fields.
pub(super) fn problems(spec: &JobSpec) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut no = |wrong: bool, at: &str, what: &str| {
        if wrong {
            found.push(Problem::new(at, what));
        }
    };
    let name = &spec.name;
    no(
        name.trim().is_empty()
            || name.len() > NAME_SIZE_BYTES_MAX
            || name.chars().any(char::is_control),
        "name",
        "must have 1 to 64 bytes and no control character",
    );
    base(spec, &mut no);
    data(spec, &mut no);
    lora(spec, &mut no);
    let evaluation = &spec.evaluation;
    let fraction = evaluation.held_out_fraction;
    no(
        evaluation.files.is_empty() && !(fraction > 0.0 && fraction <= 0.5),
        "evaluation.held_out_fraction",
        "must be above 0 and at most 0.5, or evaluation.files be given",
    );
    no(
        evaluation.generate > GENERATE_MAX,
        "evaluation.generate",
        "may be at most 10000",
    );
    no(
        !(1..=4096).contains(&evaluation.max_new_tokens),
        "evaluation.max_new_tokens",
        "must be 1 to 4096",
    );
    if let Err(error) = spec.options.check() {
        no(true, &format!("options.{}", error.field), &error.reason);
    }
    no(
        i64::try_from(spec.options.seed).is_err(),
        "options.seed",
        "may be at most 2^63 - 1, which every reader of JSON and TOML can hold",
    );
    no(
        spec.output.as_deref().is_some_and(is_taken),
        "output",
        "exists and is not empty; name a new folder, so that no adapter is overwritten",
    );
    found
}

fn is_taken(output: &Path) -> bool {
    match std::fs::read_dir(output) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => output.exists(),
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "gguf")
}

fn base(spec: &JobSpec, no: &mut impl FnMut(bool, &str, &str)) {
    let base = &spec.base;
    no(
        base.path.is_some() == base.hub.is_some(),
        "base",
        "give either path (a folder or a .gguf file) or hub (an id such as org/name)",
    );
    if let Some(path) = &base.path {
        if !path.exists() {
            no(
                true,
                "base.path",
                &format!("there is no {}", path.display()),
            );
        } else if path.is_file() && !is_gguf(path) {
            let what = format!(
                "{} is a file but no .gguf; name the folder that holds config.json",
                path.display()
            );
            no(true, "base.path", &what);
        } else if path.is_file() && !path.with_file_name("tokenizer.json").exists() {
            let what = format!(
                "there is no tokenizer.json beside {}; put the model's there",
                path.display()
            );
            no(true, "base.path", &what);
        } else if path.is_dir() && !path.join("config.json").exists() {
            no(
                true,
                "base.path",
                &format!("{} has no config.json", path.display()),
            );
        }
    }
    if let Some(id) = &base.hub {
        let parts: Vec<&str> = id.split('/').collect();
        let is_part = |p: &&str| {
            !p.is_empty()
                && p.len() <= 96
                && !p.starts_with(['.', '-'])
                && p.chars()
                    .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        no(
            !(1..=2).contains(&parts.len()) || !parts.iter().all(is_part),
            "base.hub",
            "must look like org/name; put a revision in base.revision",
        );
    }
    no(
        base.revision.is_some() && base.hub.is_none(),
        "base.revision",
        "needs base.hub",
    );
    no(
        spec.method == Method::Qlora
            && base.quantise.is_none()
            && !base.path.as_deref().is_some_and(is_gguf),
        "base.quantise",
        "method qlora needs a quantised base: say \"nf4\", \"q4_k\" or \"q8_0\", or give a .gguf file",
    );
    no(
        spec.method == Method::Lora && base.quantise.is_some(),
        "base.quantise",
        "method lora keeps the base as it is; say method = \"qlora\"",
    );
}

fn data(spec: &JobSpec, no: &mut impl FnMut(bool, &str, &str)) {
    let data = &spec.data;
    no(
        data.files.is_empty() == data.datanet.is_none(),
        "data",
        "give either files (a list) or datanet (a name)",
    );
    no(
        data.files.len() > FILES_MAX,
        "data.files",
        "may have at most 1024 entries; put the examples into fewer files",
    );
    for (at, file) in data.files.iter().map(|file| ("data.files", file)).chain(
        spec.evaluation
            .files
            .iter()
            .map(|f| ("evaluation.files", f)),
    ) {
        if !(file.is_file() || file.is_dir()) {
            no(
                true,
                at,
                &format!("there is no file or folder {}", file.display()),
            );
        }
    }
    no(
        data.version.is_some() && data.datanet.is_none(),
        "data.version",
        "needs data.datanet",
    );
    no(
        data.max_tokens.is_some_and(|n| n < 2),
        "data.max_tokens",
        "must be at least 2",
    );
    no(
        !(0.0..=1.0).contains(&data.prompt_weight),
        "data.prompt_weight",
        "must be between 0 (learn the answers only) and 1",
    );
    let is_preference = data.format == DataFormat::Preference;
    no(
        spec.method == Method::Dpo && !(is_preference || data.format == DataFormat::Auto),
        "data.format",
        "method dpo learns from pairs; say \"preference\"",
    );
    no(
        spec.method != Method::Dpo && is_preference,
        "data.format",
        "pairs are for method dpo",
    );
    no(
        spec.method == Method::Dpo && data.datanet.is_some(),
        "data.datanet",
        "a datanet has no pairs; method dpo needs files",
    );
}

fn lora(spec: &JobSpec, no: &mut impl FnMut(bool, &str, &str)) {
    let lora = &spec.lora;
    if !(1..=MAX_RANK).contains(&lora.rank) {
        no(true, "lora.rank", &format!("must be 1 to {MAX_RANK}"));
    }
    no(
        lora.alpha.is_some_and(|a| !(a.is_finite() && a > 0.0)),
        "lora.alpha",
        "must be a positive number",
    );
    no(
        lora.dropout != 0.0,
        "lora.dropout",
        "only 0 is supported: training is deterministic, and weight decay or early stopping \
         (options.patience) regularise as well",
    );
    match &lora.target_modules {
        Targets::Keyword(word) => no(
            word != Targets::ALL_LINEAR,
            "lora.target_modules",
            "must be \"all-linear\" or a list such as [\"q_proj\", \"v_proj\"]",
        ),
        Targets::Modules(names) => {
            no(
                names.is_empty(),
                "lora.target_modules",
                "names no layer; \"all-linear\" takes all of them",
            );
            for name in names {
                if !Projection::ALL.iter().any(|p| p.name() == name) {
                    let known: Vec<&str> = Projection::ALL.iter().map(|p| p.name()).collect();
                    let what = format!(
                        "{name:?} is no linear layer of a block; there are {}",
                        known.join(", ")
                    );
                    no(true, "lora.target_modules", &what);
                }
            }
        }
    }
}
