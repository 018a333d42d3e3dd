//! Goal: the same root as the plain tree, for every number of leaves.

use super::*;

#[test]
fn every_prefix_has_the_root_of_the_plain_tree() {
    let leaves: Vec<B256> = (0..300_u32)
        .map(|i| merkle::leaf(&i.to_be_bytes()))
        .collect();
    let mut frontier = Frontier::default();
    assert_eq!(frontier.root(), merkle::root(&[]));
    for (i, leaf) in leaves.iter().enumerate() {
        frontier.push(*leaf);
        assert_eq!(
            frontier.root(),
            merkle::root(&leaves[..=i]),
            "{} leaves",
            i + 1
        );
    }
}
