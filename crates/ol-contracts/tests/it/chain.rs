//! A chain in memory that begins with our genesis: one transaction a block.

use alloy_consensus::{SignableTransaction, TxEip1559};
use alloy_primitives::{Address, B256, Bytes, Log, Signature, U256};
use alloy_sol_types::{Revert, SolCall, SolError};
use ol_contracts::genesis;
use ol_evm::{
    BlockContext, CallRequest, CallStatus, Header, MemoryState, Recovered, Rules, call,
    execute_block, header,
};
use ol_types::DEV_CHAIN_ID;

/// What a transaction did.
pub(crate) struct Outcome {
    pub(crate) is_success: bool,
    pub(crate) gas_used: u64,
    pub(crate) logs: Vec<Log>,
}

#[derive(Clone)]
pub(crate) struct Chain {
    pub(crate) state: MemoryState,
    head: Header,
}

impl Chain {
    pub(crate) fn new() -> Self {
        let genesis = genesis::dev();
        let mut state = MemoryState::default();
        for (&address, account) in &genesis.alloc {
            let code = account.code.clone().unwrap_or_default();
            state.put(
                address,
                account.nonce.unwrap_or_default(),
                account.balance,
                code,
            );
            for (&slot, &value) in account.storage.iter().flatten() {
                state.storage.insert((address, slot.into()), value.into());
            }
        }
        let base_fee_wei = genesis.base_fee_per_gas.map(|fee| fee.try_into().unwrap());
        let head = header::genesis(
            genesis.timestamp,
            genesis.gas_limit,
            base_fee_wei,
            genesis.extra_data,
            B256::ZERO,
        );
        Self { state, head }
    }

    /// Lets time pass before the next block.
    pub(crate) fn wait_s(&mut self, seconds: u64) {
        self.head.timestamp += seconds;
    }

    fn next(&self) -> BlockContext {
        let time_s = self.head.timestamp + 1;
        let hash = self.head.hash_slow();
        BlockContext::after(&self.head, hash, DEV_CHAIN_ID, time_s, &Rules::OpenLedger)
    }

    /// Executes one transaction in a block of its own.
    pub(crate) fn send<C: SolCall>(
        &mut self,
        from: Address,
        to: Address,
        value_wei: u128,
        call: &C,
    ) -> Outcome {
        let context = self.next();
        let nonce = self
            .state
            .accounts
            .get(&from)
            .map_or(0, |account| account.nonce);
        let transaction = TxEip1559 {
            chain_id: DEV_CHAIN_ID,
            nonce,
            gas_limit: 30_000_000,
            max_fee_per_gas: u128::from(context.base_fee_wei) + 1,
            max_priority_fee_per_gas: 1,
            to: to.into(),
            value: U256::from(value_wei),
            input: call.abi_encode().into(),
            ..TxEip1559::default()
        };
        // Execution does not check signatures: the pool does.
        let signed = transaction.into_signed(Signature::test_signature());
        let recovered = Recovered::new_unchecked(signed.into(), from);
        let execution = execute_block(&self.state, &context, &[recovered]).unwrap();
        self.state.apply(&execution.diff);
        self.head = header::seal(&context, &[], &execution, B256::ZERO);
        let receipt = &execution.receipts[0];
        Outcome {
            is_success: receipt.status(),
            gas_used: execution.gas_used,
            logs: receipt.logs().to_vec(),
        }
    }

    /// The same, for a transaction that must succeed.
    #[track_caller]
    pub(crate) fn must<C: SolCall>(
        &mut self,
        from: Address,
        to: Address,
        value_wei: u128,
        call: &C,
    ) -> Outcome {
        let outcome = self.send(from, to, value_wei, call);
        assert!(
            outcome.is_success,
            "{} failed: {:?}",
            C::SIGNATURE,
            self.refusal(from, to, call)
        );
        outcome
    }

    /// Calls without a transaction.
    pub(crate) fn view<C: SolCall>(&self, to: Address, question: &C) -> C::Return {
        let output = self.call(Address::ZERO, to, question);
        assert_eq!(output.0, CallStatus::Success, "{}", C::SIGNATURE);
        C::abi_decode_returns(&output.1).unwrap()
    }

    /// What a call returns, or `None` if it reverts.
    pub(crate) fn answer<C: SolCall>(&self, to: Address, question: &C) -> Option<Bytes> {
        let (status, output) = self.call(Address::ZERO, to, question);
        (status == CallStatus::Success).then(|| output.into())
    }

    /// The four bytes, and the reason if there is one, with which a call reverts.
    pub(crate) fn refusal<C: SolCall>(
        &self,
        from: Address,
        to: Address,
        question: &C,
    ) -> ([u8; 4], Option<String>) {
        let (status, output) = self.call(from, to, question);
        assert_eq!(status, CallStatus::Revert, "{}", C::SIGNATURE);
        let reason = Revert::abi_decode(&output).ok().map(|revert| revert.reason);
        (output[..4].try_into().unwrap(), reason)
    }

    fn call<C: SolCall>(&self, from: Address, to: Address, question: &C) -> (CallStatus, Vec<u8>) {
        let request = CallRequest {
            from,
            to: Some(to),
            input: question.abi_encode().into(),
            ..CallRequest::default()
        };
        let output = call(&self.state, &self.next(), &request).unwrap();
        (output.status, output.output.to_vec())
    }

    pub(crate) fn balance_wei(&self, account: Address) -> u128 {
        let found = self.state.accounts.get(&account);
        found.map_or(0, |account| account.balance_wei.try_into().unwrap())
    }
}
