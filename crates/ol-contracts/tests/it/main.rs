//! The contracts on the EVM that runs them, from the development genesis.

#[cfg(test)]
mod chain;
#[cfg(test)]
mod court;
#[cfg(test)]
mod settling;
