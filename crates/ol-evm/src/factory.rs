//! The one place where an EVM is made.

use alloy_evm::precompiles::PrecompilesMap;
use alloy_evm::{Database, Evm, EvmEnv, EvmFactory};
use alloy_op_evm::{OpEvm, OpEvmContext, OpEvmFactory, OpTx};
use op_revm::{OpHaltReason, OpSpecId};
use revm::Inspector;
use revm::context::BlockEnv;
use revm::inspector::NoOpInspector;
use revm::precompile::{PrecompileSpecId, Precompiles};

use crate::precompiles;

/// Makes OP Stack EVMs. At Jovian, the fork of our rules, they know our
/// precompiles; at any other they stand for Ethereum's EVM of that fork, and
/// know its precompiles alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenEvmFactory {
    inner: OpEvmFactory,
}

impl EvmFactory for OpenEvmFactory {
    type Evm<DB: Database, I: Inspector<OpEvmContext<DB>>> = OpEvm<DB, I, PrecompilesMap, OpTx>;
    type Context<DB: Database> = OpEvmContext<DB>;
    type Tx = OpTx;
    type Error<E: std::error::Error + Send + Sync + 'static> =
        <OpEvmFactory as EvmFactory>::Error<E>;
    type HaltReason = OpHaltReason;
    type Spec = OpSpecId;
    type BlockEnv = BlockEnv;
    type Precompiles = PrecompilesMap;

    fn create_evm<DB: Database>(
        &self,
        db: DB,
        env: EvmEnv<OpSpecId, BlockEnv>,
    ) -> Self::Evm<DB, NoOpInspector> {
        let spec_id = env.cfg_env.spec;
        let mut evm = self.inner.create_evm(db, env);
        set_precompiles(evm.precompiles_mut(), spec_id);
        evm
    }

    fn create_evm_with_inspector<DB: Database, I: Inspector<Self::Context<DB>>>(
        &self,
        db: DB,
        env: EvmEnv<OpSpecId, BlockEnv>,
        inspector: I,
    ) -> Self::Evm<DB, I> {
        let spec_id = env.cfg_env.spec;
        let mut evm = self.inner.create_evm_with_inspector(db, env, inspector);
        set_precompiles(evm.precompiles_mut(), spec_id);
        evm
    }
}

fn set_precompiles(map: &mut PrecompilesMap, spec_id: OpSpecId) {
    if spec_id == OpSpecId::JOVIAN {
        precompiles::install(map);
    } else {
        let spec_id = PrecompileSpecId::from_spec_id(spec_id.into_eth_spec());
        *map = PrecompilesMap::from_static(Precompiles::new(spec_id));
    }
}
