//! `openledger key`: who may ask, for what, how much.

use anyhow::Context;
use ol_server::keys::{ApiKeys, Key, KeyLimits, NewKey, Scope};
use serde_json::{Value, json};

use crate::cli::{KeyArgs, KeyCommand, KeyLimitArgs};
use crate::instance::Layout;
use crate::output::{Out, open, print, wei_of};

pub(crate) fn run(layout: &Layout, args: &KeyArgs, json: bool, out: Out<'_>) -> anyhow::Result<()> {
    let dir = if args.serve {
        layout.serve()
    } else {
        layout.gateway()
    };
    let keys = ApiKeys::open(&dir)?;
    match &args.command {
        KeyCommand::Add {
            label,
            account,
            admin,
            limits,
        } => {
            let account = account
                .as_deref()
                .map(|account| account.parse().context("--account is 0x and 40 digits"))
                .transpose()?;
            let mut scopes = vec![Scope::Infer];
            if *admin {
                scopes.push(Scope::Admin);
            }
            let key = keys.add(NewKey {
                account,
                label: label.clone(),
                scopes,
                limits: read_limits(limits)?,
            })?;
            let shown = json!({"key": key.expose()});
            print(out, json, &shown, |out| writeln!(out, "{}", key.expose()))
        }
        KeyCommand::List => {
            let keys = keys.list();
            let rows: Vec<Value> = keys.iter().map(view).collect();
            print(out, json, &Value::Array(rows), |out| {
                for key in &keys {
                    let scopes = scope_names(key).join(",");
                    let account = key
                        .account
                        .map_or_else(|| "-".to_owned(), |a| a.to_string());
                    writeln!(
                        out,
                        "{}  {scopes:<12} {account:<42} {} {}",
                        key.short_id(),
                        key.label,
                        limit_words(&key.limits)
                    )?;
                }
                Ok(())
            })
        }
        KeyCommand::Revoke { id } => {
            keys.revoke_id(id)?;
            print(out, json, &json!({"revoked": id}), |out| {
                writeln!(out, "revoked {id}")
            })
        }
        KeyCommand::Limit { id, limits } => {
            keys.set_limits(id, read_limits(limits)?)?;
            print(out, json, &json!({"limited": id}), |out| {
                writeln!(out, "{id} has these limits now, and no others")
            })
        }
    }
}

fn read_limits(args: &KeyLimitArgs) -> anyhow::Result<KeyLimits> {
    let wei = |open: &Option<String>| open.as_deref().map(wei_of).transpose();
    Ok(KeyLimits {
        requests_per_minute: args.requests_per_minute,
        tokens_per_minute: args.tokens_per_minute,
        concurrent: args.concurrent,
        tokens_per_day: args.tokens_per_day,
        tokens_total: args.tokens_total,
        wei_per_day: wei(&args.open_per_day)?,
        wei_total: wei(&args.open_total)?,
    })
}

fn scope_names(key: &Key) -> Vec<&'static str> {
    let name = |scope: &Scope| match scope {
        Scope::Infer => "infer",
        Scope::Admin => "admin",
    };
    key.scopes.iter().map(name).collect()
}

fn view(key: &Key) -> Value {
    json!({
        "id": key.hash, "account": key.account, "label": key.label, "scopes": scope_names(key),
        "limits": key.limits,
    })
}

fn limit_words(limits: &KeyLimits) -> String {
    let number = |limit: Option<u64>, what: &str| limit.map(|limit| format!("{limit} {what}"));
    let amount =
        |limit: Option<u128>, what: &str| limit.map(|wei| format!("{} OPEN {what}", open(wei)));
    let words = [
        number(limits.requests_per_minute.map(u64::from), "requests/min"),
        number(limits.tokens_per_minute.map(u64::from), "tokens/min"),
        number(limits.concurrent.map(u64::from), "at once"),
        number(limits.tokens_per_day, "tokens/day"),
        number(limits.tokens_total, "tokens"),
        amount(limits.wei_per_day, "a day"),
        amount(limits.wei_total, "in total"),
    ];
    let words: Vec<String> = words.into_iter().flatten().collect();
    words.join(", ")
}
