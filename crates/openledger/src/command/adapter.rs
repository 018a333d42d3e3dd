//! `openledger adapter`: adapters looked into, merged and converted.

use anyhow::bail;
use ol_model::{Format, Pool};
use ol_train::peft::{Inspection, convert, convert_for, inspect, is_gguf, merge, merge_gguf};
use serde_json::json;

use crate::cli::{AdapterCommand, MergeFormat};
use crate::output::{Out, print};

pub(crate) fn run(command: &AdapterCommand, json: bool, out: Out<'_>) -> anyhow::Result<()> {
    match command {
        AdapterCommand::Inspect { dir } => {
            let found = inspect(dir)?;
            print(out, json, &serde_json::to_value(&found)?, |out| {
                show(&found, out)
            })
        }
        AdapterCommand::Merge {
            base,
            adapter,
            out: to,
            format: MergeFormat::Gguf,
            quant,
            threads,
            dtype,
        } => {
            if dtype.is_some() {
                bail!("a GGUF file has --quant, not --dtype");
            }
            let format = quant.map_or(Format::F16, Into::into);
            let threads = threads.map_or_else(available, usize::from);
            let merged = merge_gguf(&Pool::new(threads), base, adapter, to, format)?;
            let value = json!({
                "file": to,
                "modules": merged.n_modules,
                "quant": format.name(),
                "size_bytes": merged.size_bytes,
                "tokenizer": merged.has_tokenizer,
            });
            print(out, json, &value, |out| {
                let tokenizer = if merged.has_tokenizer {
                    "with its tokenizer"
                } else {
                    "without a tokenizer: the base has none"
                };
                writeln!(
                    out,
                    "{} modules changed: {} of {} in {}, {tokenizer}",
                    merged.n_modules,
                    size(merged.size_bytes),
                    format.name(),
                    to.display()
                )
            })
        }
        AdapterCommand::Merge {
            base,
            adapter,
            out: to,
            format: MergeFormat::Safetensors,
            dtype,
            quant,
            ..
        } => {
            if quant.is_some() {
                bail!("--quant is for --format gguf");
            }
            let merged = merge(base, adapter, to, dtype.map(Into::into))?;
            let value = json!({
                "folder": to,
                "modules": merged.n_modules,
                "copied_tensors": merged.n_copied,
                "size_bytes": merged.size_bytes,
            });
            print(out, json, &value, |out| {
                writeln!(
                    out,
                    "{} modules changed, {} tensors as they were: {} in {}",
                    merged.n_modules,
                    merged.n_copied,
                    size(merged.size_bytes),
                    to.display()
                )
            })
        }
        AdapterCommand::Convert {
            adapter,
            out: to,
            dtype,
            base,
        } => {
            match base {
                Some(base) => convert_for(base, adapter, to, (*dtype).into())?,
                None if adapter.is_file() || is_gguf(to) => {
                    bail!("to and from GGUF the base is needed: --base FOLDER")
                }
                None => convert(adapter, to, (*dtype).into())?,
            }
            if is_gguf(to) {
                let size_bytes = std::fs::metadata(to)?.len();
                let value = json!({ "file": to, "size_bytes": size_bytes });
                return print(out, json, &value, |out| {
                    writeln!(out, "{} in {}", size(size_bytes), to.display())
                });
            }
            let found = inspect(to)?;
            print(out, json, &serde_json::to_value(&found)?, |out| {
                writeln!(
                    out,
                    "{} of {} in {}",
                    size(found.size_bytes),
                    found.dtype,
                    to.display()
                )
            })
        }
    }
}

fn available() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn show(found: &Inspection, out: Out<'_>) -> std::io::Result<()> {
    let base = found.base.as_deref().unwrap_or("an unnamed base");
    let kind = match (found.dora, found.rslora) {
        (true, _) => "DoRA",
        (false, true) => "rsLoRA",
        (false, false) => "LoRA",
    };
    writeln!(
        out,
        "{kind} for {base}: rank {}, alpha {}, {} parameters in {} modules",
        found.rank, found.alpha, found.n_parameters, found.n_modules
    )?;
    writeln!(
        out,
        "{} as {}, sha256 {}",
        size(found.size_bytes),
        found.dtype,
        found.sha256
    )?;
    if let Some(manifest) = &found.manifest {
        writeln!(
            out,
            "{} by {}: {} steps, {} tokens, seed {}, held-out loss {:.4} → {:.4}",
            manifest.method.name(),
            manifest.runner,
            manifest.steps,
            manifest.tokens,
            manifest.options.seed,
            manifest.held_out_before,
            manifest.held_out_after
        )?;
        for data in &manifest.data {
            writeln!(
                out,
                "  data {}: {} examples ({})",
                data.name, data.n_examples, data.sha256
            )?;
        }
        writeln!(
            out,
            "  learned from {} examples, measured on {} held out",
            manifest.n_trained, manifest.n_held_out
        )?;
        writeln!(out, "  training manifest {}", manifest.id())?;
    }
    writeln!(
        out,
        "\nHow much each module is changed (norm of scale·B·A):"
    )?;
    write!(out, "{:>6}", "layer")?;
    for module in &found.target_modules {
        write!(out, "  {module:>12}")?;
    }
    writeln!(out)?;
    for layer in &found.layers {
        let number = layer
            .layer
            .map_or_else(|| "-".to_owned(), |n| n.to_string());
        write!(out, "{number:>6}")?;
        for module in &found.target_modules {
            match layer.modules.get(module) {
                Some(norm) => write!(out, "  {norm:>12.4}")?,
                None => write!(out, "  {:>12}", "")?,
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

/// A size for people.
#[expect(clippy::cast_precision_loss, reason = "for display")]
fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", bytes as f64 / 1_073_741_824.0),
    }
}
