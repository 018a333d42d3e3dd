//! `openledger train …` and `openledger adapter …`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use ol_attribution::checkpoint::Place;
use ol_train::job::JobId;

use crate::device::Device;
use crate::factory::Tier;

const EXAMPLES: &str = "\
Examples:
  Look before you leap: what would be trained, and does it fit into memory?
    openledger train --base ./Qwen3-0.6B --data chats.jsonl --dry-run

  Train an adapter on chats, and put it where PEFT, vLLM and others can load it:
    openledger train --base ./Qwen3-0.6B --data chats.jsonl --epochs 3 --out ./my-adapter

  The same from a file, with any option of specs/job.md; write one from flags with --print-spec:
    openledger train --base ./Qwen3-0.6B --data chats.jsonl --print-spec > job.toml
    openledger train --spec job.toml --set options.weight_decay=0.01

  Ctrl-C keeps a checkpoint; go on, look at what there is, follow a run of another terminal:
    openledger train resume 1
    openledger train jobs
    openledger train logs 1 --follow

  Queue jobs for the night, and work them off:
    openledger train --spec a.toml --queue && openledger train --spec b.toml --queue
    openledger train work

  A payable model: on a datanet of this folder, with sketches, for `openledger up` to serve:
    openledger train --datanet healthcare --name my-health

  The same, paid by claims that can be disputed for 12 hours: for more than 16,384 records:
    openledger train --datanet healthcare --name my-health --tier optimistic";

/// Where on the way of a training gradients are taken.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum GradientsAt {
    /// At the first checkpoint: foretells retrainings best
    First,
    /// At the mean of the checkpoints
    Mean,
    /// At each of them: as many backward passes for each paid answer, and as large a map
    Each,
}

impl From<GradientsAt> for Place {
    fn from(at: GradientsAt) -> Self {
        match at {
            GradientsAt::First => Self::First,
            GradientsAt::Mean => Self::Mean,
            GradientsAt::Each => Self::Each,
        }
    }
}

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = EXAMPLES,
    after_long_help = EXAMPLES
)]
pub(crate) struct TrainArgs {
    #[command(subcommand)]
    pub(crate) command: Option<TrainCommand>,
    #[command(flatten)]
    pub(crate) job: JobArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TrainCommand {
    /// List the jobs of this folder
    Jobs,
    /// Show a job: what it is, how far it is, its loss
    Show {
        /// Number of the job
        id: JobId,
    },
    /// Print the log of a job, or its measurements while it runs
    Logs {
        /// Number of the job
        id: JobId,
        /// Print measurements as they come, until the job is over
        #[arg(long, short)]
        follow: bool,
    },
    /// Cancel a job; one that runs keeps a checkpoint
    Cancel {
        /// Number of the job
        id: JobId,
    },
    /// Go on with a job that was stopped, cancelled or failed, from its checkpoint
    Resume {
        /// Number of the job
        id: JobId,
        #[command(flatten)]
        worker: WorkerArgs,
        /// Put it back into the queue instead of running it now
        #[arg(long)]
        queue: bool,
    },
    /// Run the queued jobs, one after the other, until none is left
    Work {
        #[command(flatten)]
        worker: WorkerArgs,
    },
    /// Be a runner: execute a job's file in a folder, without a queue (specs/runner.md)
    ///
    /// Exits with 0 when the adapter is in FOLDER/adapter, 2 if the job was
    /// refused, 75 if it was stopped by a signal and will go on when it is
    /// started again with the same arguments, and 1 if it failed.
    Run {
        /// The job, JSON or TOML
        spec: PathBuf,
        /// Folder for checkpoint, measurements and adapter
        folder: PathBuf,
        /// Threads [default: all cores]
        #[arg(long)]
        threads: Option<usize>,
        /// Where to train
        #[arg(long, value_enum, default_value_t)]
        device: Device,
    },
}

/// Who runs a job.
#[derive(Debug, Clone, Args)]
pub(crate) struct WorkerArgs {
    /// Threads [default: all cores]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Where to train; the adapter is measured and checked on the CPU
    #[arg(long, value_enum, default_value_t)]
    pub(crate) device: Device,
    /// Train by this program instead of the built-in trainer: called as
    /// PROGRAM SPEC FOLDER (specs/runner.md). Arguments after spaces
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) runner: Option<String>,
}

/// Pots in basis points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pots(pub(crate) [u16; 3]);

impl Pots {
    /// Reads three whole per cent that add up to 100. The registry on chain has
    /// bounds of its own.
    fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<u16> = text
            .split(',')
            .map(|part| part.trim().parse().ok().filter(|percent| *percent <= 100))
            .collect::<Option<_>>()
            .unwrap_or_default();
        match <[u16; 3]>::try_from(parts) {
            Ok(percent) if percent.iter().sum::<u16>() == 100 => Ok(Self(percent.map(|p| p * 100))),
            _ => {
                Err("three whole numbers that add up to 100, as 60,20,20, are expected".to_owned())
            }
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// The job as a file, JSON or TOML (specs/job.md); flags change what it says
    #[arg(long, value_name = "FILE")]
    pub(crate) spec: Option<PathBuf>,
    /// Base model: a folder of Hugging Face files, a .gguf file, or a hub id as
    /// org/name[@revision] [default: the small model that is shipped]
    #[arg(long, value_name = "PATH|ID")]
    pub(crate) base: Option<String>,
    /// File of examples: JSONL, JSON, CSV or text [repeatable]
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Vec<PathBuf>,
    /// What an example looks like: auto, chat, instruction, prompt-completion,
    /// text, preference [default: auto]
    #[arg(long)]
    pub(crate) format: Option<String>,
    /// Datanet to learn from; without --base the result is a payable model,
    /// which `openledger up` serves
    #[arg(long, conflicts_with = "data")]
    pub(crate) datanet: Option<String>,
    /// What a payable model's contributors are paid by, in per cent of their part
    /// of a fee: influence on the answer, words that stand in it, passages that
    /// the model was given [default: 60,20,20]
    ///
    /// What there is no evidence for falls to the first.
    #[arg(long, value_name = "TRAINING,SPANS,CONTEXT", value_parser = Pots::parse)]
    pub(crate) pots: Option<Pots>,
    /// Adapters on the way that a payable model's sketches are made with, the
    /// result counted: 1 to 8 [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    pub(crate) checkpoints: Option<u32>,
    /// Where on the way of the training gradients are taken [default: first]
    #[arg(long, value_enum)]
    pub(crate) gradients_at: Option<GradientsAt>,
    /// How a payable model's contributors are paid by training [default: exact, and
    /// optimistic above 16,384 records]
    ///
    /// exact: the sketches are on chain (5 million gas for 128 records, once), the
    /// chain scores all of them for every answer and pays in the same block.
    /// optimistic: the chain holds 100 bytes, whatever the number of records. The operator
    /// claims who is paid, bonds 0.1 OPEN and the fee, and it is paid after 12 hours in which
    /// nobody refuted it (`openledger watch` does). It pays the same to the wei, by training
    /// alone: no pots for spans and context.
    #[arg(long, value_enum)]
    pub(crate) tier: Option<Tier>,
    /// Name of the job, or of the payable model
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// New folder for the finished adapter [default: the job's own]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// lora, qlora (on a quantised base) or dpo (on pairs of answers) [default: lora]
    #[arg(long)]
    pub(crate) method: Option<String>,
    /// Storage of the base for qlora: nf4, q4_k or q8_0
    #[arg(long, value_name = "FORMAT")]
    pub(crate) quantise: Option<String>,
    /// Rank of the adapter [default: 16; for a payable model 8]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Adapter")]
    pub(crate) rank: Option<u16>,
    /// Numerator of the adapter's scale [default: twice the rank]
    #[arg(long, help_heading = "Adapter")]
    pub(crate) alpha: Option<f32>,
    /// Modules to adapt, as q_proj,v_proj [default: all-linear]
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        help_heading = "Adapter"
    )]
    pub(crate) target_modules: Vec<String>,
    /// Passes over the examples [for a payable model 6]
    #[arg(long, help_heading = "Training", conflicts_with = "steps")]
    pub(crate) epochs: Option<f64>,
    /// Optimiser steps, instead of passes
    #[arg(long, help_heading = "Training")]
    pub(crate) steps: Option<u32>,
    /// Highest learning rate of the schedule [for a payable model 0.003]
    #[arg(long, help_heading = "Training")]
    pub(crate) learning_rate: Option<f32>,
    /// Tokens of a batch
    #[arg(long, help_heading = "Training")]
    pub(crate) batch_tokens: Option<usize>,
    /// Seed of initialisation, order and hold-out
    #[arg(long, help_heading = "Training")]
    pub(crate) seed: Option<u64>,
    /// Any field of the job, as options.weight_decay=0.01 or lora.rslora=true [repeatable]
    #[arg(long, value_name = "FIELD=VALUE", help_heading = "Training")]
    pub(crate) set: Vec<String>,
    #[command(flatten)]
    pub(crate) worker: WorkerArgs,
    /// Read model and data, say what would be done and needed, and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Put the job into the queue, for `openledger train work`
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) queue: bool,
    /// Print the job as TOML, for --spec, and stop
    #[arg(long, conflicts_with_all = ["dry_run", "queue"])]
    pub(crate) print_spec: bool,
}

const ADAPTER_EXAMPLES: &str = "\
Examples:
  What is in it, and how much does it change each layer?
    openledger adapter inspect ./my-adapter

  One model of base and adapter, for programs that know no adapters:
    openledger adapter merge ./Qwen3-0.6B ./my-adapter ./merged --dtype bf16

  Half the size:
    openledger adapter convert ./my-adapter ./my-adapter-bf16 --dtype bf16

  For llama.cpp: the adapter as a file of its own, or one file of both:
    openledger adapter convert ./my-adapter my-adapter.gguf --base ./Qwen3-0.6B
    openledger adapter merge ./Qwen3-0.6B ./my-adapter merged.gguf --format gguf --quant q4_k";

#[derive(Debug, Args)]
#[command(after_help = ADAPTER_EXAMPLES, after_long_help = ADAPTER_EXAMPLES)]
pub(crate) struct AdapterArgs {
    #[command(subcommand)]
    pub(crate) command: AdapterCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdapterCommand {
    /// Show shape, size, origin, and how much each layer is changed
    Inspect {
        /// PEFT folder
        dir: PathBuf,
    },
    /// Add an adapter to its base, into a new Hugging Face folder or GGUF file
    Merge {
        /// Folder or GGUF file of the base
        base: PathBuf,
        /// PEFT folder or GGUF file
        adapter: PathBuf,
        /// New folder or file
        out: PathBuf,
        /// What to write
        #[arg(long, value_enum, default_value_t)]
        format: MergeFormat,
        /// Storage of the weights in a folder [default: as the base's]
        #[arg(long, conflicts_with = "quant")]
        dtype: Option<DtypeArg>,
        /// Storage of the matrices in a GGUF file [default: f16]
        #[arg(long)]
        quant: Option<QuantArg>,
        /// Threads for a GGUF file [default: the machine's cores]
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
        threads: Option<u16>,
    },
    /// Store an adapter in another format: in a new PEFT folder, or as a GGUF file
    Convert {
        /// PEFT folder or GGUF file
        adapter: PathBuf,
        /// New folder, or file that ends in .gguf
        out: PathBuf,
        /// Storage of the factors
        #[arg(long, default_value = "f32")]
        dtype: DtypeArg,
        /// Folder or GGUF file of the base; needed to and from GGUF
        #[arg(long)]
        base: Option<PathBuf>,
    },
}

/// What a merge writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum MergeFormat {
    /// A Hugging Face folder
    #[default]
    Safetensors,
    /// One file for llama.cpp, tokenizer included
    Gguf,
}

/// Storage of the matrices of a GGUF file.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum QuantArg {
    /// 16 bits
    F16,
    /// 16 bits, more range
    Bf16,
    /// 8.5 bits
    #[value(name = "q8_0")]
    Q8,
    /// 6.6 bits
    #[value(name = "q6_k")]
    Q6K,
    /// 4.5 bits, the output layer 6.6
    #[value(name = "q4_k")]
    Q4K,
}

impl From<QuantArg> for ol_model::Format {
    fn from(quant: QuantArg) -> Self {
        match quant {
            QuantArg::F16 => Self::F16,
            QuantArg::Bf16 => Self::Bf16,
            QuantArg::Q8 => Self::Q8_0,
            QuantArg::Q6K => Self::Q6K,
            QuantArg::Q4K => Self::Q4K,
        }
    }
}

/// Storage of numbers.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum DtypeArg {
    /// 32 bits
    F32,
    /// 16 bits, more digits
    F16,
    /// 16 bits, more range
    Bf16,
}

impl From<DtypeArg> for ol_model::Dtype {
    fn from(dtype: DtypeArg) -> Self {
        match dtype {
            DtypeArg::F32 => Self::F32,
            DtypeArg::F16 => Self::F16,
            DtypeArg::Bf16 => Self::Bf16,
        }
    }
}
