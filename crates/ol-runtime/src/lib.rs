//! What comes from outside the program, passed in: time, randomness, storage
//! and the wish to stop.
//!
//! Owns: [`Clock`], seeded and system randomness ([`seeded_rng`], [`os_bytes`]),
//! content-addressed [`Objects`], [`Heads`] (the only mutable names), the
//! [`DataDir`] and its [`DirLock`], [`Shutdown`], and the fault injection that
//! tests put between a component and its storage ([`fault`]).
//!
//! Invariants: an object's id is the keccak256 of its bytes, checked on every
//! read; a head moves by compare-and-swap only; a write that returned is on
//! the disk.
//!
//! Does not own: what objects mean (that is for the crate that writes them),
//! and networking.
//!
//! # Example
//! ```
//! use ol_runtime::{Heads as _, MemoryHeads, Objects};
//! let (objects, heads) = (Objects::memory(), MemoryHeads::default());
//! let id = objects.put("bytes")?;
//! assert_eq!(objects.get(id, 1_000)?, "bytes");
//! heads.compare_and_swap("newest", None, id)?;
//! assert_eq!(heads.get("newest")?, Some(id));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod clock;
mod data_dir;
pub mod fault;
mod heads;
mod objects;
mod seed;
mod shutdown;

pub use clock::{Clock, ManualClock, SystemClock};
pub use data_dir::{DataDir, DataDirError, DirLock, LockError};
pub use heads::{HEAD_NAME_MAX, Heads, HeadsError, LocalHeads, MemoryHeads, is_name};
pub use objects::{Objects, ObjectsError, block_on, object_path};
pub use seed::{SeededRng, os_bytes, seeded_rng};
pub use shutdown::Shutdown;
