//! Proof of Attribution in integers: scores, netting, shares, commitments.
