//! The EVM: any code, any input.

use alloy_primitives::{Address, Bytes, U256};
use ol_evm::{BlockContext, CallRequest, Header, MemoryState, call};

/// Gas for one piece of code: enough to go deep, not enough to be slow.
const GAS: u64 = 3_000_000;

/// Where the code is.
const CONTRACT: Address = Address::repeat_byte(0xC0);

/// Code, then input: the first two bytes say where one ends.
///
/// # Panics
/// If the answer is not the same twice, or coins are made.
pub fn execute(bytes: &[u8]) {
    let Some((&[high, low], rest)) = bytes.split_first_chunk() else {
        return;
    };
    let n_code = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
    let (code, input) = rest.split_at(n_code);
    let mut state = MemoryState::default();
    state.put(CONTRACT, 1, U256::from(10), Bytes::copy_from_slice(code));
    let header = Header {
        gas_limit: ol_evm::BLOCK_GAS_LIMIT,
        timestamp: 1_700_000_000,
        base_fee_per_gas: Some(7),
        ..Header::default()
    };
    let context = BlockContext::of(&header, 161_200, &ol_evm::Rules::OpenLedger);
    let request = CallRequest {
        to: Some(CONTRACT),
        gas_limit: Some(GAS),
        input: Bytes::copy_from_slice(input),
        ..CallRequest::default()
    };
    let first = call(&state, &context, &request);
    let second = call(&state, &context, &request);
    match (first, second) {
        (Ok(first), Ok(second)) => {
            assert_eq!(first, second, "another answer");
            assert!(first.gas_used <= GAS);
        }
        (Err(first), Err(second)) => assert_eq!(first.to_string(), second.to_string()),
        _ => panic!("once an answer, once an error"),
    }
}
