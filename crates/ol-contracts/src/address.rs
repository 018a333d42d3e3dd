//! Where genesis puts things; see `specs/predeploys.md`.

use alloy_primitives::{Address, address};

/// `Open`: the native token as an ERC-20.
pub const OPEN: Address = address!("0x4F50454E00000000000000000000000000000001");
/// `DatanetRegistry`.
pub const DATANET_REGISTRY: Address = address!("0x4f50454E00000000000000000000000000000002");
/// `ModelRegistry`.
pub const MODEL_REGISTRY: Address = address!("0x4F50454e00000000000000000000000000000003");
/// `SketchStore`.
pub const SKETCH_STORE: Address = address!("0x4f50454E00000000000000000000000000000004");
/// `InferenceSettlement`.
pub const INFERENCE_SETTLEMENT: Address = address!("0x4F50454E00000000000000000000000000000005");
/// Gets the stakers' part of each fee. No code until staking is built: what is
/// credited to it waits there.
pub const STAKERS_POOL: Address = address!("0x4f50454e00000000000000000000000000000006");
/// `AttributionCourt`.
pub const ATTRIBUTION_COURT: Address = address!("0x4f50454E00000000000000000000000000000007");

/// Precompile: recomputes the weights of an answer from its sketch index.
pub const POA_SCORE: Address = address!("0x0000000000000000000000000000000000000a01");
/// Precompile: divides an amount by weights, exactly.
pub const POA_SHARES: Address = address!("0x0000000000000000000000000000000000000a02");
/// Precompile: moves native balance for [`OPEN`].
pub const OPEN_TRANSFER: Address = address!("0x0000000000000000000000000000000000000a03");
/// Precompile: judges one step of a claim.
pub const POA_VERIFY: Address = address!("0x0000000000000000000000000000000000000a04");

/// The community's allocation.
pub const COMMUNITY_TREASURY: Address = address!("0x4F50454e000000000000000000000000000000c0");
/// The ecosystem's allocation.
pub const ECOSYSTEM_TREASURY: Address = address!("0x4F50454e000000000000000000000000000000C1");
/// The investors' allocation.
pub const INVESTORS_TREASURY: Address = address!("0x4F50454e000000000000000000000000000000c2");
/// The team's allocation.
pub const TEAM_TREASURY: Address = address!("0x4F50454e000000000000000000000000000000C3");
/// The liquidity that is not given to development accounts.
pub const LIQUIDITY_TREASURY: Address = address!("0x4F50454e000000000000000000000000000000C4");

/// Accounts of [`ol_types::DEV_MNEMONIC_KEYS`], in order: platform, gateway
/// operator, owner of the demo datanets and models, demo payer, free for users.
pub const DEV_ACCOUNTS: [Address; 5] = [
    address!("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"),
    address!("0x70997970C51812dc3A010C7d01b50e0d17dc79C8"),
    address!("0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"),
    address!("0x90F79bf6EB2c4f870365E785982E1f101E93b906"),
    address!("0x15d34AAf54267DB7D7c367839AAf71A00a2C6A65"),
];
