//! What a job came to, for people and for programs.

use std::fmt::Write as _;
use std::path::Path;

use ol_model::write_atomic;
use serde::{Deserialize, Serialize};

use super::runner::RunError;
use super::spec::Method;
use crate::curve::{CurvePoint, curve_csv, curve_svg};

/// `report.json`, and as a page `report.md`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobReport {
    /// Name of the base.
    pub base: String,
    /// Measurements on the way.
    pub curve: Vec<CurvePoint>,
    /// Held-out loss with the adapter, nats a token.
    pub held_out_after: f64,
    /// Held-out loss of the base, nats a token.
    pub held_out_before: f64,
    /// Id of the training manifest.
    pub manifest: String,
    /// How it was trained.
    pub method: Method,
    /// Parameters that were trained.
    pub n_parameters: u64,
    /// Name of the job.
    pub name: String,
    /// How long the last attempt took.
    pub seconds: f64,
    /// Steps done.
    pub steps: u32,
    /// Tokens trained on.
    pub tokens: u64,
}

impl JobReport {
    /// The result for people, a line each.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let (before, after) = (self.held_out_before, self.held_out_after);
        vec![
            format!(
                "{}: {} steps, {} tokens, {:.0} s",
                self.name, self.steps, self.tokens, self.seconds
            ),
            format!(
                "held-out loss {before:.3} → {after:.3} nats a token, perplexity {:.2} → {:.2}",
                libm::exp(before),
                libm::exp(after)
            ),
        ]
    }

    /// The report as Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = format!("# {}\n\n", self.name);
        let _ = writeln!(
            out,
            "{} on {}: {} parameters, {} steps, {} tokens, {:.0} s.\n",
            self.method.name(),
            self.base,
            self.n_parameters,
            self.steps,
            self.tokens,
            self.seconds
        );
        let _ = writeln!(out, "| held out | base | with the adapter |\n|---|---|---|");
        let (before, after) = (self.held_out_before, self.held_out_after);
        let _ = writeln!(out, "| loss, nats a token | {before:.4} | {after:.4} |");
        let _ = writeln!(
            out,
            "| perplexity | {:.2} | {:.2} |",
            libm::exp(before),
            libm::exp(after)
        );
        let _ = writeln!(out, "\n![loss](loss.svg)\n");
        let _ = writeln!(out, "Training manifest: `{}`", self.manifest);
        out
    }

    /// Writes `report.json`, `report.md`, `loss.svg` and `loss.csv`.
    pub(crate) fn write(&self, dir: &Path) -> Result<(), RunError> {
        let mut json = serde_json::to_vec_pretty(self).expect("numbers and strings are JSON");
        json.push(b'\n');
        let svg = curve_svg(&format!("{}: loss", self.name), &self.curve);
        for (name, bytes) in [
            ("report.json", json),
            ("report.md", self.markdown().into_bytes()),
            ("loss.svg", svg.into_bytes()),
            ("loss.csv", curve_csv(&self.curve).into_bytes()),
        ] {
            let path = dir.join(name);
            write_atomic(&path, &bytes).map_err(|source| RunError::Io { path, source })?;
        }
        Ok(())
    }
}
