//! What a job came to, for people and for programs.

use std::fmt::Write as _;
use std::path::Path;

use ol_model::write_atomic;
use serde::{Deserialize, Serialize};

use super::runner::RunError;
use super::spec::Method;
use crate::curve::{CurvePoint, curve_csv, curve_svg};
use crate::evaluate::Evaluation;
use crate::trainer::Rewards;

/// `report.json`, and as a page `report.md`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobReport {
    /// Name of the base.
    pub base: String,
    /// Measurements on the way.
    pub curve: Vec<CurvePoint>,
    /// Base and adapter on what was held out.
    pub evaluation: Evaluation,
    /// Id of the training manifest.
    pub manifest: String,
    /// How it was trained.
    pub method: Method,
    /// Parameters that were trained.
    pub n_parameters: u64,
    /// Name of the job.
    pub name: String,
    /// Rewards of held-out pairs, where it learnt from pairs.
    pub rewards: Option<Rewards>,
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
        let (before, after) = (&self.evaluation.before, &self.evaluation.after);
        let mut lines = vec![
            format!(
                "{}: {} steps, {} tokens, {:.0} s",
                self.name, self.steps, self.tokens, self.seconds
            ),
            format!(
                "held-out loss {:.3} → {:.3} nats a token, perplexity {:.2} → {:.2}",
                before.loss, after.loss, before.perplexity, after.perplexity
            ),
        ];
        if let (Some(em), Some(em_after), Some(rouge), Some(rouge_after)) = (
            before.exact_match,
            after.exact_match,
            before.rouge_l,
            after.rouge_l,
        ) {
            lines.push(format!(
                "{} held-out questions: exact match {em:.3} → {em_after:.3}, ROUGE-L {rouge:.3} → {rouge_after:.3}",
                self.evaluation.answers.len()
            ));
        }
        if let Some(rewards) = &self.rewards {
            lines.push(format!(
                "held-out pairs: {:.3} of the chosen answers preferred, by {:.3}",
                rewards.accuracy, rewards.margin
            ));
        }
        lines
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
        let _ = writeln!(out, "![loss](loss.svg)\n");
        out.push_str(&self.evaluation.markdown());
        if let Some(rewards) = &self.rewards {
            let _ = writeln!(
                out,
                "\nHeld-out pairs: {:.4} of the chosen answers have the higher reward, by {:.4} on average.",
                rewards.accuracy, rewards.margin
            );
        }
        let _ = writeln!(out, "\nTraining manifest: `{}`", self.manifest);
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
