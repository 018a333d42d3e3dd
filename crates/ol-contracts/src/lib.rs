//! Contract bindings, bytecode and the genesis state.
