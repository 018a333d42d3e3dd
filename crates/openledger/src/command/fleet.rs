//! `openledger fleet`: looking after the workers of a running gateway.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;

use crate::cli::{FleetArgs, FleetCommand};
use crate::http::{get_with_key, post};
use crate::instance::Layout;
use crate::output::{Out, note};

/// How often a worker that is being drained is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub(crate) fn run(
    layout: &Layout,
    command: &FleetCommand,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    match command {
        FleetCommand::Status(args) => {
            let status = status(layout, args)?;
            if json {
                writeln!(out, "{}", serde_json::to_string_pretty(&status)?)?;
                return Ok(());
            }
            show(&status, out)
        }
        FleetCommand::Drain { worker, args } => {
            set(layout, args, worker, "drain")?;
            let mut n_shown = None;
            loop {
                let status = status(layout, args)?;
                let all = status["workers"].as_array().map_or(&[][..], Vec::as_slice);
                let found = all.iter().find(|w| w["name"] == worker.as_str());
                let n_running = found.and_then(|w| w["n_running"].as_u64()).unwrap_or(0);
                if n_running == 0 {
                    writeln!(out, "{worker} is drained")?;
                    return Ok(());
                }
                if n_shown.replace(n_running) != Some(n_running) {
                    note(&format!("{worker} still runs {n_running} requests"));
                }
                std::thread::sleep(LOOK_EVERY);
            }
        }
        FleetCommand::Undrain { worker, args } => {
            set(layout, args, worker, "undrain")?;
            writeln!(out, "{worker} gets requests again")?;
            Ok(())
        }
    }
}

fn key(layout: &Layout, args: &FleetArgs) -> anyhow::Result<String> {
    if let Some(key) = &args.key {
        return Ok(key.clone());
    }
    let path = layout.serve_admin_key();
    let key = fs::read_to_string(&path).with_context(|| {
        format!(
            "no admin key: give one with --key, as `openledger key add --admin` makes it ({} is not \
             readable)",
            path.display()
        )
    })?;
    Ok(key.trim().to_owned())
}

fn status(layout: &Layout, args: &FleetArgs) -> anyhow::Result<Value> {
    let url = format!("{}/fleet", args.url.trim_end_matches('/'));
    get_with_key(&url, &key(layout, args)?).context("the fleet could not be read")
}

fn set(layout: &Layout, args: &FleetArgs, worker: &str, what: &str) -> anyhow::Result<Value> {
    let base = args.url.trim_end_matches('/');
    let url = format!("{base}/fleet/workers/{worker}/{what}");
    post(&url, &key(layout, args)?, &Value::Null)
        .with_context(|| format!("could not {what} {worker}"))
}

fn show(status: &Value, out: Out<'_>) -> anyhow::Result<()> {
    writeln!(
        out,
        "{} requests run, {} wait",
        status["n_running"], status["n_waiting"]
    )?;
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    for worker in status["workers"].as_array().into_iter().flatten() {
        let state = if worker["is_drained"] == true {
            "drained".to_owned()
        } else {
            text(&worker["health"])
        };
        writeln!(
            out,
            "{:<24} {:<10} {:<9} breaker {:<9} {}/{} running, {}/{} adapters, {} answered, {} failed",
            text(&worker["name"]),
            text(&worker["kind"]),
            state,
            text(&worker["breaker"]),
            worker["n_running"],
            worker["slots"],
            worker["n_adapters"],
            worker["adapters_max"],
            worker["n_answered"],
            worker["n_failed"],
        )?;
        if let Some(error) = worker["last_error"].as_str() {
            writeln!(out, "{:<24} last error: {error}", "")?;
        }
    }
    Ok(())
}
