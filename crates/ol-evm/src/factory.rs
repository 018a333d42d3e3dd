//! The one place where an EVM is made.

use alloy_evm::precompiles::PrecompilesMap;
use alloy_evm::{Database, Evm, EvmEnv, EvmFactory};
use alloy_op_evm::{OpEvm, OpEvmContext, OpEvmFactory, OpTx};
use op_revm::{OpHaltReason, OpSpecId};
use revm::Inspector;
use revm::context::BlockEnv;
use revm::inspector::NoOpInspector;

use crate::precompiles;

/// Makes OP Stack EVMs that know our precompiles.
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
        let mut evm = self.inner.create_evm(db, env);
        precompiles::install(evm.precompiles_mut());
        evm
    }

    fn create_evm_with_inspector<DB: Database, I: Inspector<Self::Context<DB>>>(
        &self,
        db: DB,
        env: EvmEnv<OpSpecId, BlockEnv>,
        inspector: I,
    ) -> Self::Evm<DB, I> {
        let mut evm = self.inner.create_evm_with_inspector(db, env, inspector);
        precompiles::install(evm.precompiles_mut());
        evm
    }
}
