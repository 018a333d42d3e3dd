//! What keys have used, against their limits.
//!
//! Requests and tokens in a minute are token buckets: a key may use a minute's
//! worth at once, and gets it back evenly. A request reserves what it can cost at
//! most and gives back what it did not use. What counts towards budgets is kept
//! in a file, written at most once a second: a crash forgets less than that and
//! what was running.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ol_runtime::Clock;
use ol_types::B256;
use serde::{Deserialize, Serialize};

use super::{Key, KeyLimits, KeysError};
use crate::gateway::durable;

const FORMAT: &str = "openledger-api-usage/1";
const FILE: &str = "usage.json";
const FILE_SIZE_BYTES_MAX: u64 = 32 << 20;
const DAY_S: u64 = 86_400;

/// Keys without budgets whose buckets are remembered; the others' are full by
/// the time there are so many.
const IDLE_MAX: usize = 50_000;

/// What a request costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Tokens of prompt and answer.
    pub tokens: u64,
    /// Wei of OPEN.
    pub wei: u128,
}

/// A limit of a key is reached.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitError {
    /// Too much in a minute, or at one time.
    #[error("this key may use {limit} {what}; try again in {retry_after_s} s")]
    Rate {
        /// What is limited.
        what: &'static str,
        /// How much there may be.
        limit: u32,
        /// When there is room again.
        retry_after_s: u32,
    },
    /// More tokens than a minute has.
    #[error(
        "the request can take {tokens} tokens, and this key may use {limit} a minute: ask for fewer"
    )]
    TooLarge {
        /// Tokens of the prompt and of the longest answer.
        tokens: u64,
        /// How many there may be.
        limit: u32,
    },
    /// A budget is used up.
    #[error("the budget of this key is used up: {what}")]
    Budget {
        /// Which.
        what: &'static str,
        /// When there is a new one; never for a total.
        retry_after_s: Option<u32>,
    },
}

/// What is left of a key's limits of a minute, for the client to see.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RateState {
    /// Limit, what is left, and seconds until all of it is.
    pub(crate) requests: Option<(u32, u32, f64)>,
    pub(crate) tokens: Option<(u32, u32, f64)>,
}

/// Counts what keys use.
pub struct Meter {
    dir: PathBuf,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    by_key: BTreeMap<B256, Usage>,
    is_dirty: bool,
    written_s: f64,
}

#[derive(Debug, Default)]
struct Usage {
    requests: Bucket,
    tokens: Bucket,
    n_running: u32,
    /// Reserved by requests that run.
    reserved: Cost,
    spent: Spent,
}

/// What counts towards budgets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Spent {
    /// The day of the two numbers that follow, since 1970.
    day: u64,
    tokens_day: u64,
    #[serde(with = "text")]
    wei_day: u128,
    tokens_total: u64,
    #[serde(with = "text")]
    wei_total: u128,
}

/// A number that JSON's are too small for, as text.
mod text {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<u128, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UsageFile {
    format: String,
    keys: BTreeMap<B256, Spent>,
}

/// What was used of a minute's worth, less what came back since.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    used: f64,
    at_s: f64,
}

impl Bucket {
    fn refill(&mut self, limit: u32, now_s: f64) {
        let back = (now_s - self.at_s).max(0.0) * f64::from(limit) / 60.0;
        self.used = (self.used - back).max(0.0);
        self.at_s = now_s;
    }

    /// Seconds until `wanted` fit; `None` if they do.
    fn wait_s(&self, limit: u32, wanted: f64) -> Option<f64> {
        let missing = self.used + wanted - f64::from(limit);
        // Rounding must not refuse what just fits.
        (missing > 1e-6).then(|| missing * 60.0 / f64::from(limit.max(1)))
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "from 0 to the limit"
    )]
    fn state(&self, limit: u32) -> (u32, u32, f64) {
        let left = (f64::from(limit) - self.used).max(0.0);
        let reset_s = self.used * 60.0 / f64::from(limit.max(1));
        (limit, left as u32, reset_s)
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl State {
    /// What is kept in `dir`.
    fn read(dir: &Path) -> io::Result<Self> {
        durable::create_dir(dir)?;
        let mut state = Self::default();
        if let Some(bytes) = durable::read(&dir.join(FILE), FILE_SIZE_BYTES_MAX)? {
            let bad = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
            let file: UsageFile =
                serde_json::from_slice(&bytes).map_err(|error| bad(format!("{FILE}: {error}")))?;
            if file.format != FORMAT {
                return Err(bad(format!("{FILE}: its format is {:?}", file.format)));
            }
            let known = file.keys.into_iter().map(|(hash, spent)| {
                let usage = Usage {
                    spent,
                    ..Usage::default()
                };
                (hash, usage)
            });
            state.by_key = known.collect();
        }
        Ok(state)
    }
}

impl Meter {
    /// Goes on with what is kept in `dir`.
    ///
    /// # Errors
    /// [`KeysError::Usage`] if the file cannot be read or is not ours.
    pub fn open(dir: &Path, clock: Arc<dyn Clock>) -> Result<Arc<Self>, KeysError> {
        Ok(Arc::new(Self {
            dir: dir.to_owned(),
            clock,
            state: Mutex::new(State::read(dir).map_err(KeysError::Usage)?),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a request of a key begin that costs at most `cost`. Blocks for a
    /// write to the disk now and then.
    ///
    /// # Errors
    /// [`LimitError`]; nothing was counted then.
    pub fn begin(self: &Arc<Self>, key: &Key, cost: Cost) -> Result<Admission, LimitError> {
        let (now_s, unix_s) = (self.clock.monotonic_s(), self.clock.unix_s());
        let mut state = self.lock();
        if state.by_key.len() >= IDLE_MAX {
            state
                .by_key
                .retain(|_, usage| usage.n_running > 0 || usage.spent.tokens_total > 0);
        }
        let usage = state.by_key.entry(key.hash).or_default();
        usage.check(&key.limits, cost, now_s, unix_s)?;
        usage.requests.used += 1.0;
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^53")]
        {
            usage.tokens.used += cost.tokens as f64;
        }
        usage.n_running += 1;
        usage.reserved.tokens += cost.tokens;
        usage.reserved.wei += cost.wei;
        drop(state);
        self.write(false);
        Ok(Admission {
            meter: Arc::clone(self),
            key: key.hash,
            has_budget: key.limits.has_budget(),
            reserved: cost,
            used: Cost::default(),
        })
    }

    /// What is left of a key's minute.
    pub(crate) fn rates(&self, key: &Key) -> RateState {
        let now_s = self.clock.monotonic_s();
        let mut state = self.lock();
        let usage = state.by_key.entry(key.hash).or_default();
        let mut of = |bucket: fn(&mut Usage) -> &mut Bucket, limit: Option<u32>| {
            let limit = limit?;
            let bucket = bucket(usage);
            bucket.refill(limit, now_s);
            Some(bucket.state(limit))
        };
        RateState {
            requests: of(|usage| &mut usage.requests, key.limits.requests_per_minute),
            tokens: of(|usage| &mut usage.tokens, key.limits.tokens_per_minute),
        }
    }

    /// Writes what was used, if anything was; unless `is_last`, at most once a
    /// second.
    pub(crate) fn write(&self, is_last: bool) {
        let now_s = self.clock.monotonic_s();
        let mut state = self.lock();
        if !state.is_dirty || !is_last && now_s - state.written_s < 1.0 {
            return;
        }
        state.is_dirty = false;
        state.written_s = now_s;
        let spent = state.by_key.iter();
        let keys = spent
            .filter(|(_, usage)| usage.spent.tokens_total > 0)
            .map(|(hash, usage)| (*hash, usage.spent.clone()))
            .collect();
        let file = UsageFile {
            format: FORMAT.to_owned(),
            keys,
        };
        let bytes = serde_json::to_vec(&file).expect("plain data has a JSON form");
        // Held: an older state must not overwrite a newer one.
        let written = durable::write(&self.dir, FILE, &bytes);
        if let Err(error) = written {
            state.is_dirty = true;
            tracing::error!(%error, "the usage of keys could not be written");
        }
    }
}

impl KeyLimits {
    const fn has_budget(&self) -> bool {
        self.tokens_per_day.is_some()
            || self.tokens_total.is_some()
            || self.wei_per_day.is_some()
            || self.wei_total.is_some()
    }
}

impl Usage {
    fn check(
        &mut self,
        limits: &KeyLimits,
        cost: Cost,
        now_s: f64,
        unix_s: u64,
    ) -> Result<(), LimitError> {
        let rate = |what, limit, wait_s: f64| LimitError::Rate {
            what,
            limit,
            retry_after_s: whole_seconds(wait_s),
        };
        if let Some(limit) = limits.concurrent
            && self.n_running >= limit
        {
            return Err(rate("requests at one time", limit, 1.0));
        }
        if let Some(limit) = limits.requests_per_minute {
            self.requests.refill(limit, now_s);
            if let Some(wait_s) = self.requests.wait_s(limit, 1.0) {
                return Err(rate("requests a minute", limit, wait_s));
            }
        }
        if let Some(limit) = limits.tokens_per_minute {
            let tokens = cost.tokens;
            if tokens > u64::from(limit) {
                return Err(LimitError::TooLarge { tokens, limit });
            }
            self.tokens.refill(limit, now_s);
            #[expect(clippy::cast_precision_loss, reason = "at most the limit")]
            if let Some(wait_s) = self.tokens.wait_s(limit, tokens as f64) {
                return Err(rate("tokens a minute", limit, wait_s));
            }
        }
        let today = unix_s / DAY_S;
        if self.spent.day != today {
            self.spent.day = today;
            self.spent.tokens_day = 0;
            self.spent.wei_day = 0;
        }
        let tomorrow_s = u32::try_from(DAY_S - unix_s % DAY_S).unwrap_or(u32::MAX);
        let spent = &self.spent;
        let (tokens, wei) = (
            self.reserved.tokens.saturating_add(cost.tokens),
            self.reserved.wei.saturating_add(cost.wei),
        );
        let is_over = |spent: u64, limit: Option<u64>| {
            limit.is_some_and(|limit| spent.saturating_add(tokens) > limit)
        };
        let is_wei_over = |spent: u128, limit: Option<u128>| {
            limit.is_some_and(|limit| spent.saturating_add(wei) > limit)
        };
        let budget = |what, retry_after_s| {
            Err(LimitError::Budget {
                what,
                retry_after_s,
            })
        };
        if is_over(spent.tokens_total, limits.tokens_total) {
            return budget("tokens in total", None);
        }
        if is_wei_over(spent.wei_total, limits.wei_total) {
            return budget("OPEN in total", None);
        }
        if is_over(spent.tokens_day, limits.tokens_per_day) {
            return budget("tokens of the day", Some(tomorrow_s));
        }
        if is_wei_over(spent.wei_day, limits.wei_per_day) {
            return budget("OPEN of the day", Some(tomorrow_s));
        }
        Ok(())
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates, and is not negative"
)]
fn whole_seconds(wait_s: f64) -> u32 {
    wait_s.ceil().max(1.0) as u32
}

/// A request of a key that runs. Dropping it gives back what was not used.
#[derive(Debug)]
pub struct Admission {
    meter: Arc<Meter>,
    key: B256,
    has_budget: bool,
    reserved: Cost,
    used: Cost,
}

impl Admission {
    /// Says what the request costs after all.
    pub(crate) const fn settle(&mut self, used: Cost) {
        self.used = used;
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut state = self.meter.lock();
        let Some(usage) = state.by_key.get_mut(&self.key) else {
            return;
        };
        usage.n_running = usage.n_running.saturating_sub(1);
        usage.reserved.tokens = usage.reserved.tokens.saturating_sub(self.reserved.tokens);
        usage.reserved.wei = usage.reserved.wei.saturating_sub(self.reserved.wei);
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^53")]
        let back = self.reserved.tokens.saturating_sub(self.used.tokens) as f64;
        usage.tokens.used = (usage.tokens.used - back).max(0.0);
        if self.has_budget {
            let (Cost { tokens, wei }, spent) = (self.used, &mut usage.spent);
            spent.tokens_day = spent.tokens_day.saturating_add(tokens);
            spent.tokens_total = spent.tokens_total.saturating_add(tokens);
            spent.wei_day = spent.wei_day.saturating_add(wei);
            spent.wei_total = spent.wei_total.saturating_add(wei);
            state.is_dirty = true;
        }
    }
}

#[cfg(test)]
mod tests;
