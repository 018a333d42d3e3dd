//! Gradients to integer sketches: Fisher whitening, learned subspace, query sketches.
