//! The chain and objects of a data folder, whether an instance runs on it or not.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use alloy_primitives::B256;
use anyhow::{Context, ensure};
use ol_datanet::Datanets;
use ol_model::Tokenizer;
use ol_node::{BlockSigner, Node, NodeConfig};
use ol_runtime::{DataDir, DirLock, Objects, Shutdown, SystemClock};
use ol_server::eth;
use ol_server::gateway::{self, Journal, Receipts};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::command::datanet::{self, labels};
use crate::genesis::Origin;
use crate::http::get;
use crate::instance::{Instance, Layout};
use crate::registration::{DevRole, dev_signer};
use crate::rpc::Rpc;

/// Access to the chain by JSON-RPC: the running instance's, or that of a node
/// opened on the folder for one command.
#[derive(Debug)]
pub(crate) struct Chain {
    rpc: Rpc,
    data: DataDir,
    layout: Layout,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Running(Instance),
    Opened(Box<Opened>),
}

/// In the order in which they must be dropped.
#[derive(Debug)]
struct Opened {
    node: Node,
    _runtime: Runtime,
    _lock: DirLock,
}

impl Chain {
    /// Finds the running instance, or opens the folder's chain.
    ///
    /// # Errors
    /// If there is no chain, or it cannot be opened.
    pub(crate) fn open(layout: &Layout) -> anyhow::Result<Self> {
        let data = || Ok::<_, anyhow::Error>(DataDir::open_or_create(layout.root())?);
        if let Ok(instance) = Instance::find(layout) {
            return Ok(Self {
                rpc: Rpc::new(&instance.rpc),
                data: data()?,
                layout: layout.clone(),
                source: Source::Running(instance),
            });
        }
        ensure!(
            layout.chain().exists(),
            "there is no chain in {}, so no receipt either; `openledger up` starts one",
            layout.root().display()
        );
        let data = data()?;
        let lock = DirLock::acquire(layout.root())?;
        let node = open_node(layout)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = runtime.block_on(eth::serve(
            node.clone(),
            eth::ServeConfig::new(any_port),
            Shutdown::new(),
        ))?;
        let rpc = Rpc::new(&format!("http://{}", server.addr));
        let opened = Opened {
            node,
            _runtime: runtime,
            _lock: lock,
        };
        Ok(Self {
            rpc,
            data,
            layout: layout.clone(),
            source: Source::Opened(Box::new(opened)),
        })
    }

    pub(crate) const fn rpc(&self) -> &Rpc {
        &self.rpc
    }

    /// The folder that it is read from.
    pub(crate) const fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn objects(&self) -> anyhow::Result<Objects> {
        Ok(self.data.objects()?)
    }

    pub(crate) fn datanets(&self) -> anyhow::Result<Datanets> {
        datanet::open(&self.data)
    }

    /// A receipt as the API shows it.
    ///
    /// # Errors
    /// If there is none with this id.
    pub(crate) fn receipt(&self, id: B256) -> anyhow::Result<Value> {
        match &self.source {
            Source::Running(instance) => get(&format!("{}/v1/receipts/{id}", instance.api()?)),
            Source::Opened(opened) => {
                // Nothing is settled here; reading needs no other key.
                let chain = gateway::Chain::new(opened.node.clone(), dev_signer(DevRole::Operator));
                let journal = Journal::open(&self.layout.gateway().join("pending"))?;
                let labels = Arc::new(labels(&self.datanets()?)?);
                let mut receipts = Receipts::new(Arc::new(chain), self.objects()?, journal, labels);
                // The words of spans, where the base is at hand.
                if let Ok(tokenizer) = Tokenizer::load(&self.layout.base()) {
                    receipts = receipts.with_tokenizer(Arc::new(tokenizer));
                }
                let view = receipts
                    .get(id)?
                    .with_context(|| format!("there is no receipt {id} here"))?;
                Ok(serde_json::to_value(view)?)
            }
        }
    }
}

/// Opens the chain of a data folder, whose lock the caller holds.
pub(crate) fn open_node(layout: &Layout) -> anyhow::Result<Node> {
    let origin = Origin::find(layout, None, true)?;
    let config = NodeConfig {
        // The development chain's, which `up` makes.
        block_signer: Some(BlockSigner::dev()),
        ..NodeConfig::default()
    };
    let clock = Arc::new(SystemClock::new());
    Node::open_with(&layout.chain(), &origin.genesis, clock, config)
        .with_context(|| format!("could not open the chain in {}", layout.chain().display()))
}
