//! The command line: what can be said, and what `--help` teaches.

#![expect(
    rustdoc::broken_intra_doc_links,
    reason = "help texts name defaults in brackets, as clap does"
)]

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ol_server::Access;

use crate::device::Device;

mod node;
mod serve;
mod spans;
mod train;
mod watch;

pub(crate) use node::{BlockTime, DoctorArgs, NodeCommand, NodeRunArgs, StatusArgs};
pub(crate) use serve::{FleetArgs, FleetCommand, ServeArgs, WorkersArgs};
pub(crate) use spans::{SpansCommand, SpansVersion};
pub(crate) use train::{
    AdapterArgs, AdapterCommand, GradientsAt, JobArgs, MergeFormat, TrainArgs, TrainCommand,
    WorkerArgs,
};
pub(crate) use watch::{BondArgs, WatchArgs};

/// Payable AI: the people who write the data that models learn from are paid,
/// automatically and provably, each time a model answers.
///
/// Start everything on this machine with `openledger up`, then ask:
///
///   openledger ask --model defi-exploits "How was Euler exploited?"
#[derive(Debug, Parser)]
#[command(name = "openledger", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Folder that holds everything: chain, objects, models, keys [default: ~/.openledger]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        visible_alias = "datadir",
        env = "OPENLEDGER_DIR"
    )]
    pub(crate) dir: Option<PathBuf>,
    /// Print the result as JSON on stdout
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// How log lines look on stderr
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, help_heading = "Logging")]
    pub(crate) log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or a filter such as
    /// info,ol_node=debug [default: warn, for `node run` info]
    #[arg(
        long,
        global = true,
        value_name = "FILTER",
        env = "OPENLEDGER_LOG",
        help_heading = "Logging"
    )]
    pub(crate) log_level: Option<String>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// Who may ask a server from a browser.
#[derive(Debug, Clone, Args)]
pub(crate) struct AccessArgs {
    /// Pages that may ask: https://NAME[:PORT], local, or * [repeatable]
    ///
    /// `local` is any page of this machine and browser extensions such as
    /// wallets; it is the default in development. Otherwise the default is none.
    /// Programs that are no browsers are not concerned.
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    pub(crate) cors: Vec<String>,
    /// Host names served besides localhost and addresses; * is any [repeatable]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) hosts: Vec<String>,
}

impl AccessArgs {
    /// The rules as they were given.
    ///
    /// # Errors
    /// If one is no host or no origin.
    pub(crate) fn access(&self, is_dev: bool) -> anyhow::Result<Access> {
        let local = ["local".to_owned()];
        let origins = match self.cors.as_slice() {
            [] if is_dev => &local,
            given => given,
        };
        Ok(Access::new(&self.hosts, origins)?)
    }

    /// The rules for what no page needs.
    ///
    /// # Errors
    /// If one is no host.
    pub(crate) fn hosts_only(&self) -> anyhow::Result<Access> {
        Ok(Access::new(&self.hosts, &[])?)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the chain, the demo datanets and models, and serve them until Ctrl-C
    Up(UpArgs),
    /// Serve a base model and its adapters over the OpenAI API, without chain and payments
    Serve(Box<ServeArgs>),
    /// Look after the workers of a running gateway
    #[command(subcommand)]
    Fleet(FleetCommand),
    /// Run a node: the chain without models
    #[command(subcommand)]
    Node(NodeCommand),
    /// Check that folder, disk, database, clock, port and keys are as a node needs them
    ///
    /// Every line says what was found and, where something is wrong, what to do.
    /// Fails if a check fails. Nothing is changed.
    Doctor(DoctorArgs),
    /// Make API keys, limit and revoke them
    ///
    /// A server sees the change with its next request. Only hashes are kept. Without
    /// --serve they are the keys of the paying gateway of `up`.
    Key(KeyArgs),
    /// Ask a model, and see who was paid for the answer
    Ask(AskArgs),
    /// Show a receipt, or recompute it from public data
    #[command(subcommand)]
    Receipt(ReceiptCommand),
    /// Create datanets, add records, list, show and verify them
    #[command(subcommand)]
    Datanet(DatanetCommand),
    /// Fine-tune an adapter: on your files or on a datanet, now or queued
    Train(Box<TrainArgs>),
    /// Look into adapters, merge them into their base, store them otherwise
    Adapter(AdapterArgs),
    /// Sketch the records of trained models again, or those that came since
    Sketch(SketchArgs),
    /// Measure whether the contributor of a record earns most when its question is asked
    SelfQuery(SelfQueryArgs),
    /// What contributors have earned, and paying it out
    #[command(subcommand)]
    Earnings(EarningsCommand),
    /// Recompute every receipt and claim on chain, and challenge those that are wrong
    ///
    /// Goes on where the last watch ended. A refuted claim pays the challenger
    /// most of the operator's bond; a challenge costs a bond until it is decided.
    Watch(WatchArgs),
    /// Show what the operator has bonded for answers of optimistic models, and take it back
    ///
    /// A claim holds 0.1 OPEN and its fee until it is closed; the rest is free. The
    /// gateway bonds again what its next claims need.
    Bond(BondArgs),
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Port of the Ethereum JSON-RPC on 127.0.0.1
    #[arg(long, default_value_t = 8545)]
    pub(crate) rpc_port: u16,
    /// Port of the OpenAI-compatible API on 127.0.0.1
    #[arg(long, default_value_t = 8600)]
    pub(crate) api_port: u16,
    /// Threads for models [default: all cores]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Where answers are computed; sketches for payouts are always the CPU's.
    /// `receipt verify --rerun` can only repeat what the CPU answered
    #[arg(long, value_enum, default_value_t)]
    pub(crate) device: Device,
    /// Train the demo adapters again instead of using the shipped ones
    #[arg(long)]
    pub(crate) retrain: bool,
    /// Most OPEN of the operator that may be bonded at one time for answers of
    /// optimistic models. Each takes 0.1 OPEN and its fee for 12 hours; what does not
    /// fit is refused by the model's name
    #[arg(long, value_name = "OPEN", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(..=10_000))]
    pub(crate) bond_max: u64,
    #[command(flatten)]
    pub(crate) fleet: WorkersArgs,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
}

/// Whose keys, and what to do with them.
#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    /// The keys of `openledger serve` in this folder, instead of those of `up`
    #[arg(long, global = true)]
    pub(crate) serve: bool,
    #[command(subcommand)]
    pub(crate) command: KeyCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key; it is shown once
    Add {
        /// What people know it by
        #[arg(long, default_value = "")]
        label: String,
        /// Account that pays, where answers are paid for: 0x and 40 digits
        #[arg(long)]
        account: Option<String>,
        /// Allow it to load and unload adapters too
        #[arg(long)]
        admin: bool,
        #[command(flatten)]
        limits: KeyLimitArgs,
    },
    /// List the keys: ids, scopes, accounts, limits
    List,
    /// Make a key stop working
    Revoke {
        /// Its id, or at least six digits of its start
        id: String,
    },
    /// Give a key these limits instead of those it has
    Limit {
        /// Its id, or at least six digits of its start
        id: String,
        #[command(flatten)]
        limits: KeyLimitArgs,
    },
}

/// How much a key may use; what is not given is not limited.
#[derive(Debug, Clone, Args)]
pub(crate) struct KeyLimitArgs {
    /// Requests a minute
    #[arg(long)]
    pub(crate) requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers a minute
    #[arg(long)]
    pub(crate) tokens_per_minute: Option<u32>,
    /// Requests at one time
    #[arg(long)]
    pub(crate) concurrent: Option<u32>,
    /// Tokens of prompts and answers a day (UTC)
    #[arg(long)]
    pub(crate) tokens_per_day: Option<u64>,
    /// Tokens of prompts and answers in total
    #[arg(long)]
    pub(crate) tokens_total: Option<u64>,
    /// OPEN a day (UTC), as 1.25
    #[arg(long, value_name = "OPEN")]
    pub(crate) open_per_day: Option<String>,
    /// OPEN in total, as 1.25
    #[arg(long, value_name = "OPEN")]
    pub(crate) open_total: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// Model to ask: healthcare, legal, defi-exploits, or one you trained
    #[arg(long, short)]
    pub(crate) model: String,
    /// Longest answer, in tokens
    #[arg(long, default_value_t = 128)]
    pub(crate) max_tokens: u32,
    /// 0 always takes the likeliest token; higher is more varied
    #[arg(long, default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Seed of the sampling: the same seed gives the same answer
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// API key [default: the development key of the running instance]
    #[arg(long, env = "OPENLEDGER_API_KEY", hide_env_values = true)]
    pub(crate) key: Option<String>,
    /// Datanet to give the question passages of; the answer then lists its sources
    #[arg(long, value_name = "DATANET")]
    pub(crate) retrieve: Option<String>,
    /// Passages at most
    #[arg(
        long,
        value_name = "N",
        default_value_t = 4,
        requires = "retrieve",
        value_parser = clap::value_parser!(u32).range(1..=32)
    )]
    pub(crate) passages: u32,
    /// Base URL of the API, as http://127.0.0.1:8000/v1 [default: the running instance]
    #[arg(long, value_name = "URL")]
    pub(crate) api: Option<String>,
    /// The question
    pub(crate) question: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReceiptCommand {
    /// Show a receipt: what was answered, for how much, and who was paid
    Show {
        /// Id of the receipt: 0x and 64 hexadecimal digits
        id: String,
    },
    /// Recompute scores and shares from objects and chain alone; fails where they differ
    ///
    /// With --question, the answer and its query sketch are computed again too: so
    /// the payer, who knows the question, needs to take nobody's word for anything.
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Id of the receipt: 0x and 64 hexadecimal digits
    pub(crate) id: String,
    /// The question that was asked, to answer it again
    #[arg(long)]
    pub(crate) question: Option<String>,
    /// Temperature it was asked with
    #[arg(long, default_value_t = 0.0, requires = "question")]
    pub(crate) temperature: f32,
    /// Nucleus it was asked with
    #[arg(long, default_value_t = 1.0, requires = "question")]
    pub(crate) top_p: f32,
    /// Seed it was asked with
    #[arg(long, default_value_t = 0, requires = "question")]
    pub(crate) seed: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DatanetCommand {
    /// Create an empty datanet
    Create {
        /// 1 to 64 lower-case letters, digits and hyphens
        name: String,
    },
    /// Add records from a JSONL file as a new version
    ///
    /// One JSON object a line: `question`, `answer`, `contributor`, `license`, and
    /// if known `id`, `topic`, `kind`, `url`. Lines that cannot be used are listed
    /// with the reason; the others are added.
    Add {
        /// Datanet to add to
        name: String,
        /// JSONL file
        file: PathBuf,
        /// Count records as duplicates that share so many per cent of their
        /// words, rare ones weighing more, 1 to 100; 40 is a good value. Fixed
        /// by the first version of a datanet; without it only exact duplicates
        /// count
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
        near_duplicates: Option<u8>,
        /// Count records as duplicates whose question and answer each stand in
        /// earlier records, word for word or nearly: they bring no words. Not
        /// for labels, where honest answers repeat ("yes", "no"). Fixed by the
        /// first version of a datanet
        #[arg(long)]
        recombined_duplicates: bool,
    },
    /// List the datanets
    List,
    /// Show versions, contributors and licences of a datanet
    Show {
        /// Datanet to show
        name: String,
    },
    /// Recompute every hash of a datanet from its objects
    Verify {
        /// Datanet to verify [default: all]
        name: Option<String>,
    },
    /// Index the words of a datanet: which runs of an answer stand in which records
    ///
    /// A model's pot for spans pays those whose words stand word for word in its
    /// answers. `openledger up` builds what it needs; these commands build ahead,
    /// check, and look up any text.
    #[command(subcommand)]
    Spans(SpansCommand),
}

#[derive(Debug, Args)]
pub(crate) struct SketchArgs {
    /// Model to sketch [default: every model of this folder]
    #[arg(long, short)]
    pub(crate) model: Option<String>,
    /// Only records that the model's datanets have gained, under the map it has
    #[arg(long)]
    pub(crate) new: bool,
    /// Only what a net must be above to be paid, with the sketches as they are
    #[arg(long, conflicts_with = "new")]
    pub(crate) calibrate: bool,
    /// Where on the way of the training gradients are taken from now on [default: where
    /// they were]
    #[arg(long, value_enum, conflicts_with_all = ["new", "calibrate"])]
    pub(crate) gradients_at: Option<GradientsAt>,
}

#[derive(Debug, Args)]
pub(crate) struct SelfQueryArgs {
    /// Model to measure [default: every model of this folder]
    #[arg(long, short)]
    pub(crate) model: Option<String>,
    /// Records to sample per model
    #[arg(long, default_value_t = 50)]
    pub(crate) samples: usize,
    /// Seed of the sample
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Longest answer, in tokens
    #[arg(long, default_value_t = 64)]
    pub(crate) max_tokens: usize,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EarningsCommand {
    /// List what each contributor of a datanet can claim
    List {
        /// Datanet whose contributors to list
        datanet: String,
    },
    /// Pay a contributor's credit out to the contributor's account
    Claim {
        /// Contributor: a name of a datanet, or a 0x address
        contributor: String,
    },
}
