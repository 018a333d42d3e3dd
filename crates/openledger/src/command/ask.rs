//! `openledger ask`: one question, the answer, and who was paid for it.

use std::fs;

use anyhow::Context;
use serde_json::{Value, json};

use crate::cli::AskArgs;
use crate::http::post;
use crate::instance::{Instance, Layout};
use crate::output::{Out, open_of, percent_of};

/// Most contributors shown; the receipt lists them all.
const SHARES_SHOWN_MAX: usize = 5;

pub(crate) fn run(layout: &Layout, args: &AskArgs, json: bool, out: Out<'_>) -> anyhow::Result<()> {
    let api = match &args.api {
        Some(api) => api.trim_end_matches('/').to_owned(),
        None => format!("{}/v1", Instance::find(layout)?.api()?),
    };
    let key = match &args.key {
        Some(key) => key.clone(),
        None => {
            // The key of whoever answers: of `serve`, or of `up`.
            let path = match args.api {
                Some(_) => layout.serve_admin_key(),
                None => layout.dev_api_key(),
            };
            let key = fs::read_to_string(&path).with_context(|| {
                format!(
                    "no API key: give one with --key ({} is not readable)",
                    path.display()
                )
            })?;
            key.trim().to_owned()
        }
    };
    let mut body = json!({
        "model": args.model,
        "messages": [{"role": "user", "content": args.question}],
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
    });
    if let Some(seed) = args.seed {
        body["seed"] = seed.into();
    }
    if let Some(datanet) = &args.retrieve {
        body["retrieval"] = json!({"datanet": datanet, "top_k": args.passages});
    }
    let reply = post(&format!("{api}/chat/completions"), &key, &body)
        .with_context(|| format!("could not ask {}", args.model))?;
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&reply)?)?;
        return Ok(());
    }
    let answer = reply["choices"][0]["message"]["content"]
        .as_str()
        .context("a reply without answer")?;
    writeln!(out, "{}\n", answer.trim())?;
    show_sources(&reply["citations"], out)?;
    if reply["openledger"].is_null() {
        return Ok(());
    }
    show_payment(&reply["openledger"], out)?;
    match reply["openledger"]["receipt_id"].as_str() {
        Some(id) => writeln!(out, "\nCheck it: openledger receipt verify {id}")?,
        None => writeln!(out, "\nWho is paid is computed later.")?,
    }
    Ok(())
}

/// Prints the passages that the answer was given.
fn show_sources(citations: &Value, out: Out<'_>) -> anyhow::Result<()> {
    let citations = citations.as_array().map(Vec::as_slice).unwrap_or_default();
    if citations.is_empty() {
        return Ok(());
    }
    writeln!(out, "Sources")?;
    for citation in citations {
        let text = |name: &str| citation[name].as_str().unwrap_or("?");
        let words: Vec<&str> = text("text").split_whitespace().take(12).collect();
        writeln!(
            out,
            "  [{}] {} · {} · record {}\n      {} …",
            citation["number"],
            text("contributor"),
            text("license"),
            text("record"),
            words.join(" ")
        )?;
    }
    writeln!(out)?;
    Ok(())
}

/// Prints fee, split and the contributors who earned most.
pub(crate) fn show_payment(payment: &Value, out: Out<'_>) -> anyhow::Result<()> {
    let id = payment["receipt_id"]
        .as_str()
        .or_else(|| payment["id"].as_str())
        // While the receipt waits for its sketch, its request's id finds it.
        .or_else(|| payment["request_id"].as_str())
        .unwrap_or("?");
    writeln!(
        out,
        "Paid {} OPEN · receipt {id}",
        open_of(&payment["fee_wei"])
    )?;
    match (payment["tx_hash"].as_str(), payment["block"].as_u64()) {
        (Some(tx_hash), Some(block)) => {
            let how = match payment["status"].as_str() {
                Some("claimed" | "challenged" | "final" | "slashed") => "Claimed",
                _ => "Settled",
            };
            writeln!(out, "{how} in block {block}, transaction {tx_hash}")?;
            let claim = &payment["claim"];
            match payment["status"].as_str() {
                Some("claimed") => writeln!(
                    out,
                    "It can be challenged until Unix second {}, then it pays:",
                    claim["deadline"]
                )?,
                Some("challenged") => writeln!(
                    out,
                    "It is challenged: {} nodes of it are asked for. If it holds, it pays:",
                    claim["n_open_reveals"]
                )?,
                Some("final") => writeln!(out, "Its window is over: it pays")?,
                Some("slashed") => writeln!(
                    out,
                    "It was refuted: the fee goes back to the payer. It would have paid:"
                )?,
                _ => {}
            }
        }
        _ => writeln!(
            out,
            "Settlement is pending; see `openledger receipt show {id}`"
        )?,
    }
    let split = &payment["split"];
    for (part, name) in [
        ("platform", "platform"),
        ("model", "model owner"),
        ("stakers", "stakers"),
        ("contributors", "contributors"),
    ] {
        writeln!(out, "  {name:<14}{:>24} OPEN", open_of(&split[part]))?;
    }
    for (pot, what) in [
        ("training", "whose data moved the answer"),
        ("spans", "whose words stand in it"),
        ("context", "whose passages it was given"),
    ] {
        show_pot(&payment["pots"][pot], pot, what, out)?;
    }
    Ok(())
}

/// One pot, with the contributors who earned most; nothing if it is empty.
fn show_pot(pot: &Value, name: &str, what: &str, out: Out<'_>) -> anyhow::Result<()> {
    let shares = pot["contributors"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if shares.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "    {name:<12}{:>24} OPEN  {what}",
        open_of(&pot["paid_wei"])
    )?;
    for share in shares.iter().take(SHARES_SHOWN_MAX) {
        let records: Vec<&str> = share["records"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .take(2)
            .collect();
        writeln!(
            out,
            "      {:<52}{:>8} {:>22} OPEN  {}",
            share["contributor"].as_str().unwrap_or("?"),
            percent_of(&share["share_ppb"]),
            open_of(&share["paid_wei"]),
            records.join(", ")
        )?;
    }
    let n_shares = pot["n_contributors"]
        .as_u64()
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(shares.len());
    if n_shares > SHARES_SHOWN_MAX {
        writeln!(out, "      … and {} more", n_shares - SHARES_SHOWN_MAX)?;
    }
    Ok(())
}
