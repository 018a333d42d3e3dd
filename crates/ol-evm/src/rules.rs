//! Which rules a chain follows, and from when on.
//!
//! A chain is ours ([`Rules::OpenLedger`]), or an Ethereum chain from Frontier
//! to Prague ([`Rules::Ethereum`]) whose forks its genesis names. For one block
//! they come down to [`BlockRules`].

use std::sync::Arc;

use alloy_consensus::Header;
use alloy_eips::eip7840::BlobParams;
use alloy_evm::eth::spec::EthExecutorSpec;
use alloy_genesis::ChainConfig;
use alloy_hardforks::{EthereumHardfork, EthereumHardforks, ForkCondition};
use alloy_primitives::{Address, B256, U256};
use revm::primitives::hardfork::SpecId;

pub(crate) mod difficulty;

/// Blocks from the DAO fork on whose `extraData` says which side they are on.
const DAO_EXTRA_DATA_BLOCKS: u64 = 10;

/// The rules of a chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Rules {
    /// Ours: OP Stack execution at Jovian, from genesis on.
    #[default]
    OpenLedger,
    /// Ethereum's, fork by fork.
    Ethereum(Arc<EthereumRules>),
}

/// Why a genesis names no rules that can be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RulesError {
    /// A fork or a consensus engine that this version does not know.
    #[error("the genesis asks for {name}, which this version does not support")]
    Unsupported {
        /// What it asks for.
        name: &'static str,
    },
    /// A fork that builds on one that is missing, or that comes later.
    #[error("the genesis has {fork} before {before}, on which it builds")]
    Order {
        /// The fork that comes too early.
        fork: EthereumHardfork,
        /// The fork that must not come after it.
        before: EthereumHardfork,
    },
}

impl Rules {
    /// The rules that a genesis asks for: ours if it names the forks of the OP
    /// Stack or none at all, Ethereum's if it names only forks of Ethereum.
    ///
    /// # Errors
    /// [`RulesError`] if they cannot be followed.
    pub fn of_genesis(config: &ChainConfig) -> Result<Self, RulesError> {
        if config.extra_fields.contains_key("bedrockBlock") {
            let jovian = config.extra_fields.get("jovianTime");
            if jovian.and_then(|time| time.as_u64()) == Some(0) {
                return Ok(Self::OpenLedger);
            }
            return Err(RulesError::Unsupported {
                name: "an OP Stack chain that does not begin at Jovian",
            });
        }
        let names_a_fork = config.terminal_total_difficulty.is_some()
            || BLOCK_FORKS.iter().any(|(_, at)| at(config).is_some())
            || TIME_FORKS.iter().any(|(_, at)| at(config).is_some());
        if !names_a_fork {
            return Ok(Self::OpenLedger);
        }
        EthereumRules::new(config).map(|rules| Self::Ethereum(Arc::new(rules)))
    }

    /// What they come down to for the block with a header.
    #[must_use]
    pub fn for_block(&self, header: &Header) -> BlockRules {
        match self {
            Self::OpenLedger => BlockRules::OpenLedger,
            Self::Ethereum(rules) => BlockRules::Ethereum(rules.for_block(header)),
        }
    }
}

/// When each fork of an Ethereum chain begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EthereumRules {
    /// Forks by block number, in their order.
    by_block: Vec<(EthereumHardfork, u64)>,
    /// Forks by timestamp, in their order.
    by_time: Vec<(EthereumHardfork, u64)>,
    /// Total difficulty at which proof of work ends; `None` for never.
    terminal_total_difficulty: Option<U256>,
    /// The block of the DAO fork, and whether the chain follows it.
    dao: Option<(u64, bool)>,
    cancun_blobs: BlobParams,
    prague_blobs: BlobParams,
    deposit_contract: Option<Address>,
}

type ForkAt = fn(&ChainConfig) -> Option<u64>;

/// Forks by block number. A fork may be left out only if it does nothing but
/// delay the difficulty bomb.
const BLOCK_FORKS: [(EthereumHardfork, ForkAt); 12] = [
    (EthereumHardfork::Homestead, |c| c.homestead_block),
    (EthereumHardfork::Tangerine, |c| c.eip150_block),
    (EthereumHardfork::SpuriousDragon, |c| c.eip158_block),
    (EthereumHardfork::Byzantium, |c| c.byzantium_block),
    (EthereumHardfork::Constantinople, |c| c.constantinople_block),
    // Without a block of its own it comes with Constantinople, as in geth.
    (EthereumHardfork::Petersburg, |c| {
        c.petersburg_block.or(c.constantinople_block)
    }),
    (EthereumHardfork::Istanbul, |c| c.istanbul_block),
    (EthereumHardfork::MuirGlacier, |c| c.muir_glacier_block),
    (EthereumHardfork::Berlin, |c| c.berlin_block),
    (EthereumHardfork::London, |c| c.london_block),
    (EthereumHardfork::ArrowGlacier, |c| c.arrow_glacier_block),
    (EthereumHardfork::GrayGlacier, |c| c.gray_glacier_block),
];

const TIME_FORKS: [(EthereumHardfork, ForkAt); 3] = [
    (EthereumHardfork::Shanghai, |c| c.shanghai_time),
    (EthereumHardfork::Cancun, |c| c.cancun_time),
    (EthereumHardfork::Prague, |c| c.prague_time),
];

const fn only_delays_the_bomb(fork: EthereumHardfork) -> bool {
    matches!(
        fork,
        EthereumHardfork::MuirGlacier
            | EthereumHardfork::ArrowGlacier
            | EthereumHardfork::GrayGlacier
    )
}

impl EthereumRules {
    /// The rules that a genesis asks for.
    ///
    /// # Errors
    /// [`RulesError::Unsupported`] for a fork after Prague, a consensus engine
    /// other than proof of work and proof of stake, or EIP-155 apart from
    /// Spurious Dragon; [`RulesError::Order`] for forks out of order.
    pub fn new(config: &ChainConfig) -> Result<Self, RulesError> {
        let unsupported = [
            (config.osaka_time.is_some(), "Osaka"),
            (config.amsterdam_time.is_some(), "Amsterdam"),
            (config.bogota_time.is_some(), "Bogota"),
            (config.bpo1_time.is_some(), "BPO1"),
            (config.bpo2_time.is_some(), "BPO2"),
            (config.bpo3_time.is_some(), "BPO3"),
            (config.bpo4_time.is_some(), "BPO4"),
            (config.bpo5_time.is_some(), "BPO5"),
            (config.clique.is_some(), "Clique"),
            (config.parlia.is_some(), "Parlia"),
            (
                config
                    .eip155_block
                    .is_some_and(|at| config.eip158_block != Some(at)),
                "EIP-155 in another block than EIP-158",
            ),
        ];
        if let Some(&(_, name)) = unsupported.iter().find(|(is_asked, _)| *is_asked) {
            return Err(RulesError::Unsupported { name });
        }
        let by_block = in_order(&BLOCK_FORKS, config, EthereumHardfork::Frontier)?;
        let by_time = in_order(&TIME_FORKS, config, EthereumHardfork::Paris)?;
        let is_merged = config.terminal_total_difficulty.is_some();
        let has_london = by_block
            .iter()
            .any(|(fork, _)| *fork == EthereumHardfork::London);
        if let Some((fork, _)) = by_time.first()
            && !is_merged
        {
            return Err(RulesError::Order {
                fork: *fork,
                before: EthereumHardfork::Paris,
            });
        }
        if is_merged && !has_london {
            return Err(RulesError::Order {
                fork: EthereumHardfork::Paris,
                before: EthereumHardfork::London,
            });
        }
        let blobs = |name: &str| config.blob_schedule.get(name).copied();
        Ok(Self {
            by_block,
            by_time,
            terminal_total_difficulty: config.terminal_total_difficulty,
            dao: config
                .dao_fork_block
                .map(|at| (at, config.dao_fork_support)),
            cancun_blobs: blobs("cancun").unwrap_or_else(BlobParams::cancun),
            prague_blobs: blobs("prague").unwrap_or_else(BlobParams::prague),
            deposit_contract: config.deposit_contract_address,
        })
    }

    /// Total difficulty at which proof of work ends; `None` for never.
    #[must_use]
    pub const fn terminal_total_difficulty(&self) -> Option<U256> {
        self.terminal_total_difficulty
    }

    /// Whether a header is of proof of stake.
    #[must_use]
    pub fn is_merged(&self, header: &Header) -> bool {
        match self.terminal_total_difficulty {
            None => false,
            Some(terminal) => terminal.is_zero() || header.difficulty.is_zero(),
        }
    }

    /// The newest fork that is active in the block with a header.
    #[must_use]
    pub fn fork(&self, header: &Header) -> EthereumHardfork {
        if self.is_merged(header) {
            newest(&self.by_time, header.timestamp).unwrap_or(EthereumHardfork::Paris)
        } else {
            newest(&self.by_block, header.number).unwrap_or(EthereumHardfork::Frontier)
        }
    }

    /// How many blobs a block of a fork may have; `None` before Cancun.
    #[must_use]
    pub fn blob_params(&self, fork: EthereumHardfork) -> Option<BlobParams> {
        match fork {
            fork if fork >= EthereumHardfork::Prague => Some(self.prague_blobs),
            fork if fork >= EthereumHardfork::Cancun => Some(self.cancun_blobs),
            _ => None,
        }
    }

    /// Whether the `extraData` of a block must be the DAO fork's (`true`), must
    /// not be (`false`), or may be anything (`None`).
    pub(crate) fn dao_extra_data(&self, number: u64) -> Option<bool> {
        let (from, is_followed) = self.dao?;
        let last = from.saturating_add(DAO_EXTRA_DATA_BLOCKS - 1);
        (from..=last).contains(&number).then_some(is_followed)
    }

    fn for_block(&self, header: &Header) -> EthereumBlock {
        let fork = self.fork(header);
        EthereumBlock {
            fork,
            beneficiary: header.beneficiary,
            randomness: if fork >= EthereumHardfork::Paris {
                header.mix_hash
            } else {
                header.difficulty.into()
            },
            blobs: self.blob_params(fork).map(|params| {
                let excess_gas = header.excess_blob_gas.unwrap_or_default();
                BlockBlobs {
                    excess_gas,
                    base_fee_wei: params.calc_blob_fee(excess_gas),
                    per_transaction_max: params.max_blobs_per_tx,
                    block_gas_max: params.max_blob_gas_per_block(),
                }
            }),
            parent_beacon_block_root: header.parent_beacon_block_root,
            is_dao_fork: self.dao == Some((header.number, true)),
            deposit_contract: self.deposit_contract,
        }
    }
}

/// The forks that a genesis sets, checked to be in order and without gaps.
fn in_order(
    forks: &[(EthereumHardfork, ForkAt)],
    config: &ChainConfig,
    first: EthereumHardfork,
) -> Result<Vec<(EthereumHardfork, u64)>, RulesError> {
    let mut found: Vec<(EthereumHardfork, u64)> = Vec::new();
    let mut missing = None;
    for &(fork, at) in forks {
        let Some(at) = at(config) else {
            if !only_delays_the_bomb(fork) {
                missing = missing.or(Some(fork));
            }
            continue;
        };
        if let Some(before) = missing {
            return Err(RulesError::Order { fork, before });
        }
        let (before, from) = found.last().copied().unwrap_or((first, 0));
        if at < from {
            return Err(RulesError::Order { fork, before });
        }
        found.push((fork, at));
    }
    Ok(found)
}

fn newest(forks: &[(EthereumHardfork, u64)], now: u64) -> Option<EthereumHardfork> {
    forks
        .iter()
        .rev()
        .find(|(_, from)| *from <= now)
        .map(|(fork, _)| *fork)
}

/// The rules of one block, and what they make execution ask of its header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BlockRules {
    /// Ours.
    #[default]
    OpenLedger,
    /// Ethereum's.
    Ethereum(EthereumBlock),
}

/// What execution asks of the header of an Ethereum block, besides what is in
/// every [`BlockContext`](crate::BlockContext).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EthereumBlock {
    /// The newest fork that is active.
    pub fork: EthereumHardfork,
    /// Who gets the tips, and the block reward of proof of work.
    pub beneficiary: Address,
    /// What opcode 0x44 gives: the difficulty, and since the merge the
    /// randomness of the beacon chain.
    pub randomness: B256,
    /// What blobs cost; `None` before Cancun.
    pub blobs: Option<BlockBlobs>,
    /// Root of the parent beacon block (EIP-4788).
    pub parent_beacon_block_root: Option<B256>,
    /// Whether the coins of the DAO move in this block.
    pub is_dao_fork: bool,
    /// Whose logs are deposits to the beacon chain (EIP-6110).
    pub deposit_contract: Option<Address>,
}

/// What the blobs of a block cost (EIP-4844).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockBlobs {
    /// Blob gas above the target so far, from which the base fee follows.
    pub excess_gas: u64,
    /// Base fee for one unit of blob gas.
    pub base_fee_wei: u128,
    /// Most blobs of one transaction.
    pub per_transaction_max: u64,
    /// Most blob gas of the block.
    pub block_gas_max: u64,
}

impl EthereumBlock {
    pub(crate) fn is_active(&self, fork: EthereumHardfork) -> bool {
        self.fork >= fork
    }
}

/// The EVM of a fork.
pub(crate) const fn spec_id(fork: EthereumHardfork) -> SpecId {
    match fork {
        EthereumHardfork::Frontier => SpecId::FRONTIER,
        EthereumHardfork::Homestead | EthereumHardfork::Dao => SpecId::HOMESTEAD,
        EthereumHardfork::Tangerine => SpecId::TANGERINE,
        EthereumHardfork::SpuriousDragon => SpecId::SPURIOUS_DRAGON,
        EthereumHardfork::Byzantium => SpecId::BYZANTIUM,
        // The EVM has no EIP-1283, which was never active on a public
        // network: Constantinople runs as Petersburg.
        EthereumHardfork::Constantinople | EthereumHardfork::Petersburg => SpecId::PETERSBURG,
        EthereumHardfork::Istanbul | EthereumHardfork::MuirGlacier => SpecId::ISTANBUL,
        EthereumHardfork::Berlin => SpecId::BERLIN,
        EthereumHardfork::London
        | EthereumHardfork::ArrowGlacier
        | EthereumHardfork::GrayGlacier => SpecId::LONDON,
        EthereumHardfork::Paris => SpecId::MERGE,
        EthereumHardfork::Shanghai => SpecId::SHANGHAI,
        EthereumHardfork::Cancun => SpecId::CANCUN,
        // Nothing after Prague gets here: `EthereumRules::new` refuses it.
        _ => SpecId::PRAGUE,
    }
}

/// The rules of one block as the block executor asks for them: a fork is
/// active from the beginning or never. The coins of the DAO are moved by us,
/// before the transactions.
impl EthereumHardforks for EthereumBlock {
    fn ethereum_fork_activation(&self, fork: EthereumHardfork) -> ForkCondition {
        if fork == EthereumHardfork::Dao || !self.is_active(fork) {
            ForkCondition::Never
        } else if fork >= EthereumHardfork::Shanghai {
            ForkCondition::Timestamp(0)
        } else {
            ForkCondition::Block(0)
        }
    }
}

impl EthExecutorSpec for EthereumBlock {
    fn deposit_contract_address(&self) -> Option<Address> {
        self.deposit_contract
    }
}

#[cfg(test)]
mod tests;
