//! What `serve`, `fleet` and their flags say.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::AccessArgs;

/// How to start a server without chain.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  The base that comes with the program, and one adapter:
    openledger serve --adapter legal=./adapters/legal --adapter tax=./tax.gguf

  A model of a folder, held in 4 bits, with every adapter below a folder on demand:
    openledger serve --base ./Llama-3.1-8B --weight-format q4_k --adapter-root ./adapters

  Answers with passages of a datanet, found by words and by embeddings:
    openledger serve --datanet healthcare --embedding-model ./Qwen3-Embedding-0.6B

  A gateway over two workers, one of them vLLM:
    openledger serve --base ./Llama-3.1-8B --adapter-root ./adapters \\
      --worker http://10.0.0.5:8000 --worker http://10.0.0.6:8000,kind=vllm,adapters=32

Any OpenAI client can ask: base URL http://HOST:PORT/v1, model = name of the base or an adapter.
SIGTERM stops it in order: /health says `stopping`, running requests are finished.")]
pub(crate) struct ServeArgs {
    /// Base model: a folder with safetensors, a GGUF file, or a model of the hub
    /// [default: the one that comes with the program]
    #[arg(long, value_name = "DIR|FILE|ID")]
    pub(crate) base: Option<String>,
    /// What clients call the base model [default: the last part of --base]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Where answers are computed
    #[arg(long, value_enum, default_value_t)]
    pub(crate) device: crate::device::Device,
    /// How weights are held: f32, stored, or quantised while loading: q8_0, q4_k, nf4
    /// [default: f32 for a folder, stored for GGUF]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) weight_format: Option<String>,
    /// How answers are drawn when a request does not say: `auto` takes what the model's
    /// makers recommend (`generation_config.json`, or the GGUF file), `none` draws from
    /// the model's own distribution, a folder has another `generation_config.json`
    #[arg(long, value_name = "auto|none|DIR", default_value = "auto")]
    pub(crate) generation_config: String,
    /// Adapter to serve: a PEFT folder or a GGUF file under a name [repeatable]. A URL
    /// is one below an --adapter-store
    #[arg(long, value_name = "NAME=PATH|URL", help_heading = "Adapters")]
    pub(crate) adapter: Vec<String>,
    /// Folder of PEFT folders and GGUF files: each is loaded when it is first asked for
    /// by its name [repeatable]. Operators may load from here only
    #[arg(long, value_name = "DIR", help_heading = "Adapters")]
    pub(crate) adapter_root: Vec<PathBuf>,
    /// Object store of adapters that operators may load from by URL: s3://BUCKET/FOLDER,
    /// gs://, az://, https:// [repeatable]. Keys come from the environment (AWS_…,
    /// GOOGLE_…, AZURE_…)
    #[arg(long, value_name = "URL", help_heading = "Adapters")]
    pub(crate) adapter_store: Vec<String>,
    /// Memory for adapters, in MiB; what does not fit waits on disk
    #[arg(
        long,
        value_name = "MIB",
        default_value_t = 1_024,
        help_heading = "Adapters"
    )]
    pub(crate) adapter_memory_mib: u64,
    /// Datanet of this folder that questions may be given passages of
    /// (`"retrieval": {"datanet": NAME}`); its newest version [repeatable]
    #[arg(long, value_name = "NAME", help_heading = "Retrieval")]
    pub(crate) datanet: Vec<String>,
    /// Model that embeds passages and questions: a folder, a GGUF file, or `base` for
    /// the hidden states of the base model [default: passages are found by words only]
    #[arg(
        long,
        value_name = "DIR|FILE|base",
        requires = "datanet",
        help_heading = "Retrieval"
    )]
    pub(crate) embedding_model: Option<PathBuf>,
    /// Words of the longest passage
    #[arg(
        long,
        value_name = "N",
        default_value_t = 64,
        help_heading = "Retrieval"
    )]
    pub(crate) passage_words: usize,
    /// Address to listen on; others than this machine reach it where it is not 127.0.0.1
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub(crate) host: IpAddr,
    /// Port to listen on; 0 takes a free one, which the ready line names
    #[arg(long, default_value_t = 8000)]
    pub(crate) port: u16,
    /// Answer requests without API key. Calls of an operator need the admin key always
    #[arg(long)]
    pub(crate) open: bool,
    /// Threads for the model [default: all cores]
    #[arg(long, help_heading = "Limits")]
    pub(crate) threads: Option<usize>,
    /// Most requests computed at one time
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "Limits")]
    pub(crate) max_running: usize,
    /// Most requests that wait; the next are told to come back (429)
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Limits")]
    pub(crate) max_waiting: usize,
    /// Tokens of KV cache for all running requests
    #[arg(
        long,
        value_name = "N",
        default_value_t = 8_192,
        help_heading = "Limits"
    )]
    pub(crate) kv_tokens: usize,
    #[command(flatten)]
    pub(crate) fleet: WorkersArgs,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
}

/// Workers that compute instead of this process.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Workers")]
pub(crate) struct WorkersArgs {
    /// Worker that computes instead of this process: URL[,name=…][,kind=openledger|vllm]
    /// [,key=…][,admin-key=…][,slots=N][,adapters=N][,adapter-root=DIR] [repeatable]
    #[arg(long, value_name = "URL")]
    pub(crate) worker: Vec<String>,
    /// TOML file of workers; see docs/serve.md
    #[arg(long, value_name = "FILE")]
    pub(crate) workers: Option<PathBuf>,
}

/// How to look after the workers of a running gateway.
#[derive(Debug, Subcommand)]
pub(crate) enum FleetCommand {
    /// Show every worker: health, load, adapters, what went wrong last
    Status(FleetArgs),
    /// Give a worker no more requests; what it runs is finished
    ///
    /// Returns when nothing runs there any more: then it can be stopped.
    Drain {
        /// Name of the worker, as `status` shows it
        worker: String,
        #[command(flatten)]
        args: FleetArgs,
    },
    /// Give a drained worker requests again
    Undrain {
        /// Name of the worker, as `status` shows it
        worker: String,
        #[command(flatten)]
        args: FleetArgs,
    },
}

/// Where the gateway is.
#[derive(Debug, Clone, Args)]
pub(crate) struct FleetArgs {
    /// Address of the gateway: `serve` or `up` with workers
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    pub(crate) url: String,
    /// Admin key [default: the one `serve` made in --dir]
    #[arg(long, env = "OPENLEDGER_ADMIN_KEY", hide_env_values = true)]
    pub(crate) key: Option<String>,
}
