//! A run as it goes on: a bar on a terminal, JSON lines for programs.

use indicatif::ProgressBar;
use ol_train::job::{MetricsFollower, MetricsLine};

use crate::output::{Out, bar, note};

/// Shows what is new in a file of measurements.
pub(super) struct Watcher {
    follower: MetricsFollower,
    json: bool,
    bar: ProgressBar,
    name: String,
    held_out: Option<f64>,
}

impl Watcher {
    pub(super) fn new(follower: MetricsFollower, name: &str, json: bool) -> Self {
        let bar = if json {
            ProgressBar::hidden()
        } else {
            bar(1, name)
        };
        Self {
            follower,
            json,
            bar,
            name: name.to_owned(),
            held_out: None,
        }
    }

    /// Shows what has come since the last look.
    pub(super) fn look(&mut self, out: Out<'_>) -> anyhow::Result<()> {
        for line in self.follower.poll()? {
            if self.json {
                writeln!(out, "{}", serde_json::to_string(&line)?)?;
                out.flush()?;
            } else {
                self.show(&line);
            }
        }
        Ok(())
    }

    fn show(&mut self, line: &MetricsLine) {
        self.held_out = line.held_out.or(self.held_out);
        let mut message = format!(
            "loss {:.3}  |g| {:.2}  lr {:.1e}  {:.0} tokens/s",
            line.loss, line.gradient_norm, line.learning_rate, line.tokens_per_s
        );
        if let Some(held_out) = self.held_out {
            message.push_str(&format!("  held out {held_out:.3}"));
        }
        self.bar.set_length(line.steps.into());
        self.bar.set_position(line.step.into());
        // In a log file there is no bar: a line for each tenth of the work.
        if self.bar.is_hidden() && line.step.is_multiple_of(line.steps.div_ceil(10).max(1)) {
            note(&format!(
                "{}: step {} of {}  {message}  {:.0} s left",
                self.name, line.step, line.steps, line.eta_s
            ));
        }
        self.bar.set_message(message);
    }

    pub(super) fn finish(self) {
        self.bar.finish_and_clear();
    }
}
