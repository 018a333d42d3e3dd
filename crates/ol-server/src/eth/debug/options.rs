//! What to trace, as geth's callers say it.

use std::time::Duration;

use alloy_rpc_types_eth::BlockOverrides;
use alloy_rpc_types_eth::state::StateOverride;
use jsonrpsee::types::ErrorObjectOwned;
use ol_node::{FrameOptions, StepOptions, TraceParts};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::eth::errors;

/// The last parameter of the tracing methods. What geth takes besides
/// (`reexec`, `debug`, `overrides`) changes nothing here.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(in crate::eth) struct TraceOptions {
    enable_memory: bool,
    disable_stack: bool,
    disable_storage: bool,
    enable_return_data: bool,
    limit: u64,
    tracer: Option<String>,
    tracer_config: Option<Value>,
    timeout: Option<String>,
    pub(super) state_overrides: Option<StateOverride>,
    pub(super) block_overrides: Option<BlockOverrides>,
    pub(super) tx_index: Option<Value>,
}

/// What is shown of a trace.
#[derive(Debug)]
pub(super) enum Tracer {
    StructLogs(StepOptions),
    Calls(CallOptions),
    FlatCalls(FlatOptions),
    Prestate(PrestateOptions),
    FourByte,
    Noop,
    Mux(Vec<(String, Self)>),
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct CallOptions {
    pub(super) only_top_call: bool,
    pub(super) with_log: bool,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct FlatOptions {
    pub(super) convert_parity_errors: bool,
    pub(super) include_precompiles: bool,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PrestateOptions {
    pub(super) diff_mode: bool,
    pub(super) disable_code: bool,
    pub(super) disable_storage: bool,
    pub(super) include_empty: bool,
}

impl TraceOptions {
    /// # Errors
    /// If the tracer is not known, or its configuration is not its.
    pub(super) fn tracer(&self) -> Result<Tracer, ErrorObjectOwned> {
        match &self.tracer {
            Some(name) if !name.is_empty() => {
                Tracer::named(name, self.tracer_config.clone().unwrap_or_default())
            }
            _ => Ok(Tracer::StructLogs(StepOptions {
                stack: !self.disable_stack,
                memory: self.enable_memory,
                storage: !self.disable_storage,
                return_data: self.enable_return_data,
                first_max: self.limit,
            })),
        }
    }

    /// How long it may take: what is asked for, and no longer than `most_s`.
    ///
    /// # Errors
    /// If it is no duration.
    pub(super) fn time_max_s(&self, most_s: f64) -> Result<f64, ErrorObjectOwned> {
        let Some(text) = &self.timeout else {
            return Ok(most_s);
        };
        let wanted = duration(text).ok_or_else(|| {
            errors::invalid_params("timeout is no duration such as \"5s\" or \"300ms\"")
        })?;
        Ok(wanted.as_secs_f64().min(most_s))
    }
}

impl Tracer {
    fn named(name: &str, config: Value) -> Result<Self, ErrorObjectOwned> {
        Ok(match name {
            "callTracer" => Self::Calls(configured(name, config)?),
            "flatCallTracer" => Self::FlatCalls(configured(name, config)?),
            "prestateTracer" => Self::Prestate(configured(name, config)?),
            "4byteTracer" => Self::FourByte,
            "noopTracer" => Self::Noop,
            "muxTracer" => {
                let tracers: Map<String, Value> = configured(name, config)?;
                let tracers = tracers.into_iter().map(|(name, config)| {
                    if name == "muxTracer" {
                        return Err(errors::invalid_params("a muxTracer holds no other"));
                    }
                    let tracer = Self::named(&name, config)?;
                    Ok((name, tracer))
                });
                Self::Mux(tracers.collect::<Result<_, _>>()?)
            }
            _ => {
                return Err(errors::invalid_params(
                    "tracer not known: there are callTracer, flatCallTracer, prestateTracer, \
                     4byteTracer, muxTracer and noopTracer; JavaScript tracers are not supported",
                ));
            }
        })
    }

    /// What must be recorded.
    pub(super) fn parts(&self) -> TraceParts {
        let mut parts = TraceParts::default();
        self.add_to(&mut parts);
        parts
    }

    fn add_to(&self, parts: &mut TraceParts) {
        match self {
            Self::StructLogs(options) => parts.steps = Some(*options),
            Self::Calls(options) => {
                let frames = FrameOptions {
                    only_top: options.only_top_call,
                    with_logs: options.with_log,
                };
                // Of two wishes the greater; what is too much is not shown.
                parts.frames = Some(parts.frames.map_or(frames, |other| FrameOptions {
                    only_top: frames.only_top && other.only_top,
                    with_logs: frames.with_logs || other.with_logs,
                }));
            }
            Self::FlatCalls(_) => {
                let with_logs = parts.frames.is_some_and(|frames| frames.with_logs);
                parts.frames = Some(FrameOptions {
                    only_top: false,
                    with_logs,
                });
            }
            Self::Prestate(_) => parts.touched = true,
            Self::FourByte => parts.selectors = true,
            Self::Noop => {}
            Self::Mux(tracers) => {
                for (_, tracer) in tracers {
                    tracer.add_to(parts);
                }
            }
        }
    }
}

/// The configuration of a tracer; `null` and nothing are the defaults.
fn configured<T: DeserializeOwned + Default>(
    name: &str,
    config: Value,
) -> Result<T, ErrorObjectOwned> {
    if config.is_null() {
        return Ok(T::default());
    }
    serde_json::from_value(config)
        .map_err(|error| errors::invalid_params(format!("tracerConfig of {name}: {error}")))
}

/// A duration as Go writes it, of one number and one unit.
fn duration(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(split);
    let unit_s = match unit {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * unit_s).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        assert_eq!(duration("5s"), Some(Duration::from_secs(5)));
        assert_eq!(duration("1.5ms"), Some(Duration::from_micros(1_500)));
        for bad in ["", "5", "s", "-5s", "5 s", "5x", "1e400s", ".s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_mux_records_what_its_tracers_need() {
        let options: TraceOptions = serde_json::from_value(serde_json::json!({
            "tracer": "muxTracer",
            "tracerConfig": {
                "callTracer": {"onlyTopCall": true},
                "flatCallTracer": null,
                "4byteTracer": {},
            },
        }))
        .unwrap();
        let parts = options.tracer().unwrap().parts();
        assert!(parts.selectors && !parts.touched && parts.steps.is_none());
        assert!(!parts.frames.unwrap().only_top);
    }
}
