//! `openledger watch`: recompute everything that the chain pays for, and
//! challenge what is wrong.
//!
//! The chain is the only state: what was claimed, revealed and refuted is in
//! its events. A cursor on disk says up to which block they were read, and
//! which claims are not decided yet.

use std::collections::BTreeSet;
use std::time::Duration;

use alloy_primitives::B256;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::SolEvent;
use anyhow::Context;
use ol_contracts::address::{ATTRIBUTION_COURT, INFERENCE_SETTLEMENT};
use ol_contracts::bindings::{AttributionCourt, InferenceSettlement};
use serde_json::json;

use crate::Exit;
use crate::chain::Chain;
use crate::cli::WatchArgs;
use crate::command::receipt;
use crate::instance::Layout;
use crate::output::{Out, bar};
use crate::secret::read_key;
use crate::signals::stop_signals;

mod claims;
mod cursor;

use claims::Claims;
use cursor::Cursor;

/// Blocks asked for at a time.
const BLOCKS_PER_PAGE: u64 = 1_000;

/// Exit status of a watch that found a lie.
const FOUND_A_LIE: u8 = 3;

/// What is said of a receipt or a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// Recomputed, and the same.
    Right,
    /// Recomputed, and not the same.
    Lie(String),
    /// Refuted by somebody, or paid: nothing is left to do.
    Over(&'static str),
    /// An object is missing or not what it should be.
    Unknown(String),
    /// A lie that is not shown yet: the operator has been asked, or will be.
    Waiting(String),
}

impl Verdict {
    const fn name(&self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Lie(_) => "lie",
            Self::Over(_) => "over",
            Self::Unknown(_) => "unknown",
            Self::Waiting(_) => "waiting",
        }
    }

    fn detail(&self) -> &str {
        match self {
            Self::Right => "",
            Self::Over(detail) => detail,
            Self::Lie(detail) | Self::Unknown(detail) | Self::Waiting(detail) => detail,
        }
    }
}

pub(crate) fn run(
    layout: &Layout,
    args: &WatchArgs,
    json: bool,
    out: Out<'_>,
) -> anyhow::Result<()> {
    let key = args.key.as_deref().map(read_key).transpose()?;
    let chain = Chain::open(layout)?;
    let mut watch = Watch {
        cursor: Cursor::open(&layout.watch(), chain.rpc().chain_id()?)?,
        claims: Claims::default(),
        key: key.filter(|_| !args.dry_run),
        chain,
        json,
        n_lies: 0,
    };
    if let Some(block) = args.from {
        watch.cursor.next_block = block;
    }
    if args.once {
        watch.look(out)?;
        return watch.end();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut stop = std::pin::pin!({
        let _guard = runtime.enter();
        stop_signals()?
    });
    loop {
        if let Err(error) = watch.look(out) {
            // A node that restarts is no reason to stop watching it.
            tracing::warn!("could not look at the chain, will again: {error:#}");
        }
        let is_stopped = runtime.block_on(async {
            let pause = Duration::from_secs(args.every);
            tokio::time::timeout(pause, &mut stop).await.is_ok()
        });
        if is_stopped {
            return watch.end();
        }
    }
}

struct Watch {
    chain: Chain,
    cursor: Cursor,
    claims: Claims,
    key: Option<PrivateKeySigner>,
    json: bool,
    n_lies: u64,
}

impl Watch {
    /// Reads the blocks since the last look, judges what is in them, and goes on
    /// with the claims that are not decided.
    fn look(&mut self, out: Out<'_>) -> anyhow::Result<()> {
        let head = self.chain.rpc().block_number()?;
        let total = (head + 1).saturating_sub(self.cursor.next_block);
        let progress = bar(total, "blocks");
        while self.cursor.next_block <= head {
            let first = self.cursor.next_block;
            let last = head.min(first + BLOCKS_PER_PAGE - 1);
            self.read_receipts(first, last, out)?;
            self.read_claims(first, last)?;
            self.cursor.next_block = last + 1;
            self.cursor.save()?;
            progress.inc(last + 1 - first);
        }
        progress.finish_and_clear();

        let undecided: BTreeSet<B256> = self.cursor.claims.clone();
        for id in undecided {
            let verdict = self.claims.judge(&self.chain, self.key.as_ref(), id);
            let verdict = verdict.unwrap_or_else(|error| Verdict::Unknown(format!("{error:#}")));
            let is_decided = matches!(verdict, Verdict::Right | Verdict::Over(_));
            self.say("claim", id, &verdict, out)?;
            if is_decided {
                self.cursor.claims.remove(&id);
                self.cursor.save()?;
            }
        }
        Ok(())
    }

    fn read_receipts(&mut self, first: u64, last: u64, out: Out<'_>) -> anyhow::Result<()> {
        let topic = InferenceSettlement::Settled::SIGNATURE_HASH;
        let found = self
            .chain
            .rpc()
            .events(INFERENCE_SETTLEMENT, topic, first, last)?;
        for log in found {
            let event = InferenceSettlement::Settled::decode_log_data(&log.log.data)
                .context("the settlement emitted an event of an unknown form")?;
            let verdict = match receipt::recompute(&self.chain, event.receiptId) {
                Ok(Ok(())) => Verdict::Right,
                Ok(Err(difference)) => Verdict::Lie(difference),
                Err(error) => Verdict::Unknown(format!("{error:#}")),
            };
            self.say("receipt", event.receiptId, &verdict, out)?;
        }
        Ok(())
    }

    fn read_claims(&mut self, first: u64, last: u64) -> anyhow::Result<()> {
        let topic = AttributionCourt::Claimed::SIGNATURE_HASH;
        let found = self
            .chain
            .rpc()
            .events(ATTRIBUTION_COURT, topic, first, last)?;
        for log in found {
            let id = log.log.topics().get(1).context("a claim without its id")?;
            self.cursor.add(*id)?;
        }
        Ok(())
    }

    fn say(&mut self, what: &str, id: B256, verdict: &Verdict, out: Out<'_>) -> anyhow::Result<()> {
        if matches!(verdict, Verdict::Lie(_)) {
            self.n_lies += 1;
        }
        let (name, detail) = (verdict.name(), verdict.detail());
        if self.json {
            let line = json!({what: id, "verdict": name, "detail": detail});
            writeln!(out, "{line}")?;
        } else {
            writeln!(out, "{name:<8} {what} {id} {detail}")?;
        }
        out.flush()?;
        Ok(())
    }

    fn end(self) -> anyhow::Result<()> {
        match self.n_lies {
            0 => Ok(()),
            n => Err(Exit {
                code: FOUND_A_LIE,
                said: format!("{n} lies were found"),
            }
            .into()),
        }
    }
}
