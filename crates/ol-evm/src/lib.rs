//! Block execution with the attribution precompiles: a pure function.
