//! From flags to a job.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use ol_train::job::{JobSpec, Problem, SpecError};
use serde_json::{Map, Value, json};

use crate::assets;
use crate::cli::JobArgs;
use crate::instance::Layout;
use crate::output::note;

/// The job that the flags describe, with the file of `--spec` below them.
pub(super) fn from_args(layout: &Layout, args: &JobArgs) -> anyhow::Result<JobSpec> {
    let here = std::env::current_dir().context("the current folder")?;
    let mut value = match &args.spec {
        Some(path) => serde_json::to_value(named(JobSpec::load(path))?)?,
        None => json!({"format": JobSpec::FORMAT}),
    };
    set_base(layout, args, &here, &mut value)?;
    // Without the `.` of `./x` in its middle.
    let absolute = |path: &PathBuf| here.join(path).components().collect::<PathBuf>();
    if !args.data.is_empty() {
        let files: Vec<PathBuf> = args.data.iter().map(absolute).collect();
        value["data"]["files"] = json!(files);
        remove(&mut value["data"], "datanet");
    }
    if let Some(name) = &args.datanet {
        value["data"]["datanet"] = json!(name);
        remove(&mut value["data"], "files");
    }
    let flags = [
        ("data", "format", args.format.as_ref().map(|v| json!(v))),
        ("", "name", args.name.as_ref().map(|v| json!(v))),
        ("", "output", args.out.as_ref().map(|v| json!(absolute(v)))),
        ("", "method", args.method.as_ref().map(|v| json!(v))),
        ("base", "quantise", args.quantise.as_ref().map(|v| json!(v))),
        ("lora", "rank", args.rank.map(|v| json!(v))),
        ("lora", "alpha", args.alpha.map(|v| json!(v))),
        ("lora", "target_modules", targets(&args.target_modules)),
        ("options", "epochs", args.epochs.map(|v| json!(v))),
        ("options", "steps", args.steps.map(|v| json!(v))),
        (
            "options",
            "learning_rate",
            args.learning_rate.map(|v| json!(v)),
        ),
        (
            "options",
            "batch_tokens",
            args.batch_tokens.map(|v| json!(v)),
        ),
        ("options", "seed", args.seed.map(|v| json!(v))),
    ];
    for (section, field, given) in flags {
        let Some(given) = given else { continue };
        if section.is_empty() {
            value[field] = given;
        } else {
            value[section][field] = given;
        }
    }
    if args.steps.is_some() {
        remove(&mut value["options"], "epochs");
    }
    for assignment in &args.set {
        set(&mut value, assignment)?;
    }
    if value["name"].is_null() {
        let first = args.data.first().and_then(|path| path.file_stem());
        let name = first.map(|stem| stem.to_string_lossy().into_owned());
        let name = name.or_else(|| args.datanet.clone());
        value["name"] = json!(name.unwrap_or_else(|| "adapter".to_owned()));
    }
    let spec = named(JobSpec::from_json(&value.to_string()))?;
    Ok(spec.at(&here))
}

fn set_base(layout: &Layout, args: &JobArgs, here: &Path, value: &mut Value) -> anyhow::Result<()> {
    let Some(given) = &args.base else {
        if args.spec.is_none() {
            assets::install_base(&layout.base())?;
            value["base"] = json!({"path": layout.base()});
        }
        return Ok(());
    };
    let path = here.join(given);
    let looks_like_path = given.starts_with(['.', '/']) || given.ends_with(".gguf");
    value["base"] = if path.exists() || looks_like_path {
        json!({"path": path})
    } else {
        match given.split_once('@') {
            Some((id, revision)) => json!({"hub": id, "revision": revision}),
            None => json!({"hub": given}),
        }
    };
    Ok(())
}

fn targets(names: &[String]) -> Option<Value> {
    match names {
        [] => None,
        [word] if word == "all-linear" => Some(json!(word)),
        names => Some(json!(names)),
    }
}

fn remove(section: &mut Value, field: &str) {
    if let Some(fields) = section.as_object_mut() {
        fields.remove(field);
    }
}

/// `options.weight_decay=0.01`: the value is JSON, or else a string.
fn set(value: &mut Value, assignment: &str) -> anyhow::Result<()> {
    let Some((field, text)) = assignment.split_once('=') else {
        bail!("--set {assignment}: write FIELD=VALUE, as options.weight_decay=0.01");
    };
    let given = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
    let mut at = value;
    for part in field.split('.') {
        if at.is_null() {
            *at = Value::Object(Map::new());
        }
        let Some(fields) = at.as_object_mut() else {
            bail!("--set {assignment}: there is no such field; see specs/job.md");
        };
        at = fields.entry(part).or_insert(Value::Null);
    }
    *at = given;
    Ok(())
}

/// Prints each mistake on a line of its own, and one line to end with.
pub(super) fn named<T>(result: Result<T, SpecError>) -> anyhow::Result<T> {
    match result {
        Err(error) if !error.problems().is_empty() => Err(refused(error.problems())),
        result => Ok(result?),
    }
}

pub(super) fn refused(problems: &[Problem]) -> anyhow::Error {
    if let [problem] = problems {
        return anyhow::anyhow!("{problem}");
    }
    for problem in problems {
        note(&format!("  {problem}"));
    }
    anyhow::anyhow!("the job has {} mistakes, listed above", problems.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_field_can_be_set() {
        let mut value = json!({"options": {"steps": 3}, "name": "a"});
        for assignment in [
            "options.weight_decay=0.01",
            "lora.rslora=true",
            "data.format=chat",
            "options.steps=5",
            "lora.target_modules=[\"q_proj\"]",
        ] {
            set(&mut value, assignment).unwrap();
        }
        let expected = json!({
            "options": {"steps": 5, "weight_decay": 0.01},
            "name": "a",
            "lora": {"rslora": true, "target_modules": ["q_proj"]},
            "data": {"format": "chat"},
        });
        assert_eq!(value, expected);
        assert!(set(&mut value, "options").is_err());
        assert!(set(&mut value, "name.first=b").is_err());
    }
}
