//! `openledger doctor`: is everything as a node needs it, and if not, what to do.

mod checks;

use anyhow::bail;
use serde::Serialize;
use serde_json::json;

use crate::cli::DoctorArgs;
use crate::instance::Layout;
use crate::output::{Out, print};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Ok,
    /// It works, and may not for long.
    Warn,
    /// A node will not work.
    Fail,
}

/// One line of the report.
#[derive(Debug, Clone, Serialize)]
struct Finding {
    check: &'static str,
    outcome: Outcome,
    /// What was found.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            outcome: Outcome::Ok,
            found: found.into(),
            advice: None,
        }
    }

    fn warn(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Warn,
            advice: Some(advice.into()),
            ..Self::ok(check, found)
        }
    }

    fn fail(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Fail,
            ..Self::warn(check, found, advice)
        }
    }
}

pub(crate) fn run(
    layout: &Layout,
    args: &DoctorArgs,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    let findings = checks::all(layout, args);
    let n_failed = findings
        .iter()
        .filter(|finding| finding.outcome == Outcome::Fail)
        .count();
    let value = json!({"ok": n_failed == 0, "findings": findings});
    print(out, json, &value, |out| show(&findings, out))?;
    if n_failed > 0 {
        bail!("{n_failed} of {} checks failed", findings.len());
    }
    Ok(())
}

fn show(findings: &[Finding], out: Out<'_>) -> std::io::Result<()> {
    for finding in findings {
        let outcome = match finding.outcome {
            Outcome::Ok => "ok  ",
            Outcome::Warn => "warn",
            Outcome::Fail => "FAIL",
        };
        writeln!(out, "{outcome}  {:<12} {}", finding.check, finding.found)?;
        if let Some(advice) = &finding.advice {
            writeln!(out, "      {:<12} {advice}", "")?;
        }
    }
    Ok(())
}
