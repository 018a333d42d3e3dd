//! `openledger up`: the whole loop on this machine, until Ctrl-C.

use std::error::Error;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use alloy_primitives::U256;
use anyhow::Context;
use ol_attribution::context::Answered;
use ol_attribution::query::QuerySketcher;
use ol_contracts::address::INFERENCE_SETTLEMENT;
use ol_contracts::bindings::InferenceSettlement;
use ol_datanet::{AddOptions, Datanets};
use ol_model::{Lora, Model, Pool, Tokenizer};
use ol_node::Node;
use ol_poa::QuerySketch;
use ol_poa::court::CommittedIndex;
use ol_retrieval::{CutRule, Retriever};
use ol_runtime::{DataDir, Shutdown, SystemClock};
use ol_serve::{EngineHandle, EngineOptions, EngineParts};
use ol_server::Backend;
use ol_server::api::{self, ApiState};
use ol_server::eth::{self, ServeConfig};
use ol_server::fleet::{Fleet, FleetOptions};
use ol_server::gateway::{
    AnswerSketcher, Chain, Gateway, GatewayOptions, PassagePrompt, ServedModel,
};
use ol_server::metrics::{Exporter, ServingObserver};
use ol_server::optimistic::OptimisticIndex;
use ol_server::retrieval::Retrieval;
use ol_types::WEI_PER_OPEN;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::assets::{self, DEMOS};
use crate::chain::open_node;
use crate::cli::UpArgs;
use crate::command::datanet::{self, contributor_address};
use crate::command::serve::workers;
use crate::device;
use crate::factory::{
    Base, Recipe, Tier, TrainedModel, model_folders, publish_objects, train_model,
};
use crate::instance::{Instance, Layout, lock};
use crate::output::{Out, note};
use crate::registration::{DevRole, ModelFacts, dev_signer, publish_datanet, register_model};
use crate::rpc::Rpc;
use crate::secret::write_private;
use crate::signals::stop_signals;
use crate::spans::Spans;

/// What the development payer is given to spend, and below what it is given more.
const PREPAID_WEI: u128 = 10_000 * WEI_PER_OPEN;
const PREPAID_LOW_WEI: u128 = 1_000 * WEI_PER_OPEN;

pub(crate) fn run(layout: &Layout, args: &UpArgs, out: Out<'_>) -> anyhow::Result<()> {
    // The chain, its operator and its accounts are for development.
    let access = args.access.access(true)?;
    let data = DataDir::open_or_create(layout.root())?;
    let _lock = lock(layout)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    // Ports first: a taken one should not cost a training run.
    let listener = runtime.block_on(listen(args.api_port))?;
    let api = format!("http://{}", listener.local_addr()?);
    let exporter = Exporter::global()?;
    let node = open_node(layout)?;
    exporter.watch(node.clone(), None);
    let shutdown = Shutdown::new();
    let rpc_addr = SocketAddr::from((Ipv4Addr::LOCALHOST, args.rpc_port));
    let server = runtime
        .block_on(eth::serve(
            node.clone(),
            ServeConfig {
                access: access.clone(),
                is_dev: true,
                ..ServeConfig::new(rpc_addr)
            },
            shutdown.clone(),
        ))
        .with_context(|| format!("port {} could not be used for --rpc-port", args.rpc_port))?;
    let rpc_url = format!("http://{}", server.addr);
    let state = ApiState::new();
    let api_server = runtime.spawn(api::serve_on(
        state.clone(),
        access,
        Some(exporter.clone()),
        listener,
        shutdown.clone(),
    ));

    runtime.spawn({
        let (exporter, shutdown) = (exporter.clone(), shutdown.clone());
        async move { exporter.upkeep(shutdown).await }
    });

    let rpc = Rpc::new(&rpc_url);
    let datanets = datanet::open(&data)?;
    let models = set_up(layout, args, &datanets, &rpc)?;
    let objects = data.objects()?;
    for model in &models.trained {
        publish_objects(model, &objects)?;
        let facts = ModelFacts {
            name: &model.description.name,
            datanet: &model.description.datanet,
            base_hash: model.description.base_hash,
            adapter_hash: model.description.adapter_hash,
            manifest_hash: model.description.manifest_hash,
            index: &model.index,
            tier: model.description.tier,
            sketch_root: model.description.sketch_root,
            pots_bps: model.description.pots_bps,
            null_threshold: model.description.null_threshold,
        };
        register_model(&rpc, &facts)?;
    }
    let gateway = start_gateway(&runtime, layout, args, node, models, &datanets, &data)?;
    dev_key(layout, &gateway, &rpc)?;
    let names: Vec<String> = gateway.models().map(str::to_owned).collect();
    state.set_ready(gateway.clone());
    let instance = Instance {
        api: Some(api.clone()),
        rpc: rpc_url.clone(),
        pid: std::process::id(),
    };
    let announced = instance.announce(layout)?;

    let stop = runtime.block_on(async { stop_signals() })?;
    writeln!(
        out,
        "ready  api {api}/v1  rpc {rpc_url}  models {}",
        names.join(", ")
    )?;
    out.flush()?;
    note(&format!(
        "Ask: openledger ask --model {} \"…\"   Key: {}   Stop: Ctrl-C",
        names.first().map_or("NAME", String::as_str),
        layout.dev_api_key().display()
    ));
    runtime.block_on(stop);

    // Whoever looks for the instance from now on should not find it.
    drop(announced);
    exporter.forget();
    finish(&runtime, &shutdown, &gateway, server, api_server)
}

/// Stops in order: no new requests, running ones answered and settled, then the chain.
fn finish(
    runtime: &Runtime,
    shutdown: &Shutdown,
    gateway: &Gateway,
    server: eth::RunningServer,
    api_server: tokio::task::JoinHandle<()>,
) -> anyhow::Result<()> {
    shutdown.trigger();
    runtime.block_on(async {
        gateway.shutdown().await;
        server.stopped().await;
        api_server.await
    })?;
    Ok(())
}

async fn listen(port: u16) -> anyhow::Result<TcpListener> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpListener::bind(addr)
        .await
        .with_context(|| format!("port {port} could not be used for --api-port"))
}

/// Everything that is served.
struct Models {
    base: Base,
    trained: Vec<TrainedModel>,
}

/// Makes sure that datanets and models are there: the shipped ones at the first
/// start, and whatever the user has added.
fn set_up(
    layout: &Layout,
    args: &UpArgs,
    datanets: &Datanets,
    rpc: &Rpc,
) -> anyhow::Result<Models> {
    let known = datanets.list()?;
    for demo in &DEMOS {
        if !known.iter().any(|name| name == demo.name) {
            datanets.create(demo.name)?;
        }
        if datanets.head(demo.name)?.is_none() {
            note(&format!("adding the records of {}", demo.name));
            let options = AddOptions::new(&contributor_address);
            datanets.add(demo.name, demo.records()?.as_slice(), &options)?;
        }
    }
    for name in datanets.list()? {
        publish_datanet(rpc, datanets, &name)?;
    }

    assets::install_base(&layout.base())?;
    let base = Base::load(&layout.base(), args.threads)?;
    for demo in &DEMOS {
        let dir = layout.model(demo.name);
        if args.retrain {
            retrain(&base, datanets, demo.name, &dir)?;
        } else {
            demo.install_model(&dir)?;
        }
    }
    let mut trained = Vec::new();
    for dir in model_folders(&layout.models())? {
        trained.push(TrainedModel::load(&dir, &base.model)?);
    }
    Ok(Models { base, trained })
}

fn retrain(base: &Base, datanets: &Datanets, name: &str, dir: &Path) -> anyhow::Result<()> {
    // Without its description a folder is unfinished, and training goes on there.
    match fs::remove_file(dir.join("model.json")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| dir.display().to_string());
        }
        _ => {}
    }
    let report = train_model(base, datanets, name, name, &Recipe::SHIPPED, dir)?;
    note(&format!(
        "{name}: held-out loss {:.3} → {:.3} nats a token, adapter {}",
        report.held_out_before, report.held_out_after, report.adapter_hash
    ));
    Ok(())
}

/// Sketches answers for the gateway, on threads of its own.
struct Sketcher {
    base_model: Arc<Model>,
    adapter: Arc<Lora>,
    pool: Arc<Pool>,
    query: QuerySketcher,
}

impl AnswerSketcher for Sketcher {
    fn sketch(
        &self,
        prompt_tokens: &[u32],
        answer_tokens: &[u32],
    ) -> Result<QuerySketch, Box<dyn Error + Send + Sync>> {
        Ok(self.query.sketch(
            &self.base_model,
            &self.pool,
            &self.adapter,
            prompt_tokens,
            answer_tokens,
        )?)
    }

    fn drops(
        &self,
        n_passages: usize,
        prompt: PassagePrompt<'_>,
        answer_tokens: &[u32],
    ) -> Result<Vec<u32>, Box<dyn Error + Send + Sync>> {
        let answered = Answered {
            model: &self.base_model,
            pool: &self.pool,
            adapter: Some(&self.adapter),
            tokens: answer_tokens,
        };
        // An error in a box is none that another can hold.
        let prompt = |keep: &[bool]| prompt(keep).map_err(std::io::Error::other);
        Ok(answered.drops(n_passages, &prompt)?)
    }
}

/// Every datanet that has records, found by words.
fn retrieval(datanets: &Datanets) -> anyhow::Result<Retrieval> {
    let mut retrievers = Vec::new();
    for name in datanets.list()? {
        if let Some(version) = datanets.head(&name)? {
            let records = datanets.records(version)?;
            retrievers.push(Retriever::new(
                &name,
                version,
                &records,
                CutRule::default(),
            )?);
        }
    }
    Ok(Retrieval::new(retrievers))
}

/// Where tokens come from: an engine here, or workers. Sketches are computed
/// here either way: money is bit-identical, so it stays on one kind of machine.
fn backend(
    runtime: &Runtime,
    layout: &Layout,
    args: &UpArgs,
    base: &Arc<Model>,
    tokenizer: Arc<Tokenizer>,
    n_threads: usize,
) -> anyhow::Result<Backend> {
    let workers = workers(&args.fleet)?;
    if workers.is_empty() {
        let n_threads = args.threads.unwrap_or(n_threads);
        let options = EngineOptions::default();
        let executor = device::executor(args.device, base, n_threads, &options)?;
        let parts = EngineParts {
            observer: Arc::new(ServingObserver),
            ..EngineParts::on(executor, Arc::clone(base), tokenizer)
        };
        return Ok(EngineHandle::start_with(parts, options)?.into());
    }
    let config = base.config();
    let options = FleetOptions::new(
        workers,
        base.hash(),
        tokenizer,
        (config.vocab_size, config.max_position_embeddings),
        layout.published_adapters(),
    );
    let clock = Arc::new(SystemClock::new());
    Ok(runtime.block_on(Fleet::start(options, clock))?.into())
}

fn start_gateway(
    runtime: &Runtime,
    layout: &Layout,
    args: &UpArgs,
    node: Node,
    models: Models,
    datanets: &Datanets,
    data: &DataDir,
) -> anyhow::Result<Gateway> {
    let Models { base, trained } = models;
    let (base_model, tokenizer, pool) = (
        Arc::new(base.model),
        Arc::new(base.tokenizer),
        Arc::new(base.pool),
    );
    let backend = backend(
        runtime,
        layout,
        args,
        &base_model,
        tokenizer,
        pool.threads(),
    )?;
    let spans = Spans::open(layout)?;
    let served = trained
        .into_iter()
        .map(|model| {
            let [_, spans_bps, _] = model.description.pots_bps;
            let index = match spans_bps {
                0 => None,
                _ => {
                    let index = spans.of_model(datanets, &model.manifest);
                    let name = &model.description.name;
                    Some(Arc::new(index.with_context(|| format!("model {name}"))?))
                }
            };
            let adapter = Arc::new(model.adapter);
            let sketcher = Sketcher {
                query: QuerySketcher::at(model.map, &base_model, &adapter, &model.checkpoints)?,
                base_model: Arc::clone(&base_model),
                adapter: Arc::clone(&adapter),
                pool: Arc::clone(&pool),
            };
            let optimistic = match model.description.tier {
                Tier::Exact => None,
                Tier::Optimistic => {
                    let index = CommittedIndex::new(model.index)?;
                    let index = OptimisticIndex::new(index, Arc::clone(&pool))?;
                    let (name, n) = (&model.description.name, index.committed().n_entries());
                    let mib = index.size_bytes() >> 20;
                    note(&format!(
                        "{name}: {n} records to score, {mib} MiB of memory"
                    ));
                    Some(Arc::new(index))
                }
            };
            Ok(ServedModel {
                name: model.description.name,
                adapter,
                sketcher: Arc::new(sketcher),
                spans: index,
                optimistic,
            })
        })
        .collect::<anyhow::Result<_>>()?;
    let chain = Chain::new(node, dev_signer(DevRole::Operator));
    let clock = Arc::new(SystemClock::new());
    let labels = Arc::new(datanet::labels(datanets)?);
    let options = GatewayOptions {
        labels,
        retrieval: retrieval(datanets)?,
        bond_max_wei: u128::from(args.bond_max) * WEI_PER_OPEN,
        ..GatewayOptions::new(layout.gateway())
    };
    Ok(Gateway::start(
        options,
        chain,
        backend,
        data.objects()?,
        clock,
        served,
    )?)
}

/// Makes the development API key if it is missing, and fills its payer's
/// prepaid balance.
fn dev_key(layout: &Layout, gateway: &Gateway, rpc: &Rpc) -> anyhow::Result<()> {
    let payer = dev_signer(DevRole::Payer);
    let path = layout.dev_api_key();
    let known = fs::read_to_string(&path).ok();
    if known
        .and_then(|key| gateway.keys().account(key.trim()))
        .is_none()
    {
        let key = gateway.keys().create(payer.address(), "development")?;
        write_private(&path, key.expose()).with_context(|| path.display().to_string())?;
    }
    let call = InferenceSettlement::prepaidCall {
        account: payer.address(),
    };
    let prepaid = rpc.call(INFERENCE_SETTLEMENT, &call)?;
    if prepaid < U256::from(PREPAID_LOW_WEI) {
        let call = InferenceSettlement::depositCall {};
        rpc.send(&payer, INFERENCE_SETTLEMENT, U256::from(PREPAID_WEI), &call)?;
    }
    Ok(())
}
