//! Goal: every lie has a step that shows it, and the claim that stands has none.
//! Method: every byte of every node, number and cutoff of small claims is
//! changed, once with the operator's trees at hand and once with an operator
//! who reveals them; steps are mutated and judged against honest claims.

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::index::tests::sample_entries;
use crate::index::{ENTRY_SIZE_BYTES, Index};
use crate::score::{QuerySketch, weights};
use crate::{IndexError, shares};

fn index(n: usize, n_contributors: usize, seed: u64) -> CommittedIndex {
    let index = Index::new(sample_entries(n, n_contributors, seed)).unwrap();
    CommittedIndex::from_bytes(index.as_bytes().to_vec()).unwrap()
}

fn query(seed: u64) -> QuerySketch {
    QuerySketch::new(
        sample_entries(1, 1, seed)[0]
            .codes
            .map(|code| 18 * code + 1),
    )
    .unwrap()
}

struct Case {
    index: CommittedIndex,
    query: QuerySketch,
    null_threshold: u64,
    pot: u128,
}

impl Case {
    fn claim(&self) -> Claim {
        Claim::compute(&self.index, &self.query, self.null_threshold, self.pot)
    }

    fn terms(&self, posted: &Posted) -> Terms {
        posted.terms(
            &self.index,
            self.query.hash(),
            self.null_threshold,
            self.pot,
        )
    }

    fn find(&self, posted: &Posted, known: Known<'_>) -> Finding {
        find(
            &self.index,
            &self.query,
            self.null_threshold,
            self.pot,
            posted,
            known,
        )
    }

    /// What the court demands of totals and cutoff before it takes a claim.
    fn is_accepted(&self, posted: &Posted) -> bool {
        let (cutoff, total) = (posted.cutoff, posted.nets.value.weight);
        let pot = if total == 0 { 0 } else { self.pot };
        posted.scores.value == posted.nets.value.net
            && posted.shares.value == pot
            && cutoff.position < self.index.n_contributors()
            && (cutoff.remainder < total || cutoff == Cutoff::default())
            && (cutoff.remainder > 0 || cutoff.position == 0)
    }

    /// The claim is refuted whether its trees are known or have to be revealed;
    /// false if the court does not take it.
    fn check_refuted(&self, lying: &Claim) -> bool {
        let posted = lying.posted();
        if !self.is_accepted(&posted) {
            return false;
        }
        let all = Known {
            scores: &lying.scores,
            nets: &lying.nets,
            shares: &lying.shares,
        };
        let terms = self.terms(&posted);
        match self.find(&posted, all) {
            Finding::Lie(step) => assert_eq!(is_lie(&terms, &step), Ok(true)),
            hidden => self.check_unanswerable(&terms, lying, hidden),
        }
        let (mut scores, mut nets, mut shares) = (
            Revealed::default(),
            Revealed::default(),
            Revealed::default(),
        );
        for _ in 0..40 {
            let known = Known {
                scores: &scores,
                nets: &nets,
                shares: &shares,
            };
            let finding = self.find(&posted, known);
            let (tree, level, position) = match &finding {
                Finding::Lie(step) => {
                    assert_eq!(is_lie(&terms, step), Ok(true));
                    return true;
                }
                Finding::Honest => panic!("an accepted lie is called honest"),
                Finding::Hidden {
                    tree,
                    level,
                    position,
                    path,
                } => {
                    let node = open(&terms, *tree, *level, *position, path).unwrap();
                    let row = row(lying, *tree, *level, *position);
                    if reveal(*tree, *level, &row) != Ok(node) {
                        return true;
                    }
                    (*tree, *level, *position)
                }
            };
            let row = row(lying, tree, level, position);
            assert!(match tree {
                Tree::Scores => scores.insert(level, position, &row),
                Tree::Nets => nets.insert(level, position, &row),
                Tree::Shares => shares.insert(level, position, &row),
            });
        }
        panic!("revealing does not end");
    }

    /// A node whose hash is nobody's: no row leads to it.
    fn check_unanswerable(&self, terms: &Terms, lying: &Claim, finding: Finding) {
        let Finding::Hidden {
            tree,
            level,
            position,
            path,
        } = finding
        else {
            panic!("an accepted lie is called honest");
        };
        let node = open(terms, tree, level, position, &path).unwrap();
        let row = row(lying, tree, level, position);
        assert_ne!(reveal(tree, level, &row), Ok(node));
    }
}

fn row(claim: &Claim, tree: Tree, level: u32, position: u32) -> Vec<u8> {
    fn bytes<V: Value>(tree: &SumTree<V>, level: u32, position: u32) -> Vec<u8> {
        let row = tree.row_below(level, position).unwrap();
        row.iter().flat_map(Node::encode).collect()
    }
    match tree {
        Tree::Scores => bytes(&claim.scores, level, position),
        Tree::Nets => bytes(&claim.nets, level, position),
        Tree::Shares => bytes(&claim.shares, level, position),
    }
}

fn forged<V: Value>(
    tree: &SumTree<V>,
    level: u32,
    position: u32,
    byte: usize,
    by: u8,
) -> SumTree<V> {
    let mut node = tree.node(level, position).unwrap().encode();
    node[byte] ^= by;
    let mut tree = tree.clone();
    tree.replace(level, position, Node::decode(&node).unwrap());
    tree
}

/// Calls `visit` for every byte of every node of a tree, with the right sum put
/// back at each place above it, so that the totals agree.
fn every_byte<V: Value>(tree: &SumTree<V>, mut visit: impl FnMut(SumTree<V>)) {
    for level in 0..=tree.depth() {
        for position in 0..1 << (tree.depth() - level) {
            for byte in 0..Node::<V>::SIZE_BYTES {
                let lying = forged(tree, level, position, byte, 1);
                for above in level..=tree.depth() {
                    let at = position >> (above - level);
                    let node = Node {
                        hash: lying.node(above, at).unwrap().hash,
                        value: tree.node(above, at).unwrap().value,
                    };
                    let mut lying = lying.clone();
                    lying.replace(above, at, node);
                    if lying.root() != tree.root() {
                        visit(lying);
                    }
                }
            }
        }
    }
}

#[test]
fn every_byte_of_every_node_is_refuted() {
    for (n, n_contributors, pot) in [(1, 1, 10), (5, 3, 1_000_000_007), (6, 6, 3)] {
        let case = Case {
            index: index(n, n_contributors, 3),
            query: query(9),
            null_threshold: 5,
            pot,
        };
        let honest = case.claim();
        assert!(honest.nets.root().value.weight > 0);
        every_byte(&honest.scores, |scores| {
            let lying = Claim {
                scores,
                ..honest.clone()
            };
            assert!(case.check_refuted(&lying));
        });
        every_byte(&honest.nets, |nets| {
            let lying = Claim {
                nets,
                ..honest.clone()
            };
            assert!(case.check_refuted(&lying));
        });
        every_byte(&honest.shares, |shares| {
            let lying = Claim {
                shares,
                ..honest.clone()
            };
            assert!(case.check_refuted(&lying));
        });
    }
}

#[test]
fn every_published_number_is_refuted_with_the_totals_made_to_agree() {
    let case = Case {
        index: index(9, 4, 5),
        query: query(2),
        null_threshold: 1_000,
        pot: 999_999_999_999,
    };
    let honest = case.claim();
    let bytes = honest.to_bytes(&case.index);
    let (n, m) = (9, case.index.n_contributors() as usize);
    let unit = |at: usize| match at {
        at if at < 8 * (n + m) => at / 8 * 8..at / 8 * 8 + 8,
        at => {
            let at = 8 * (n + m) + (at - 8 * (n + m)) / 16 * 16;
            at..at + 16
        }
    };
    for at in 0..bytes.len() {
        for other in [0, n, n + 1, n + m] {
            let mut lying = bytes.clone();
            lying[at] ^= 4;
            // The difference is taken back elsewhere of the same kind, so that sums agree.
            let (from, to) = (unit(at), unit((8 * other).min(bytes.len() - 1)));
            if from.len() == to.len() && from != to {
                let number = |bytes: &[u8]| match bytes.try_into() {
                    Ok(wide) => u128::from_be_bytes(wide),
                    Err(_) => u64::from_be_bytes(bytes.try_into().unwrap()).into(),
                };
                let change = number(&lying[from.clone()]).wrapping_sub(number(&bytes[from]));
                let other = number(&bytes[to.clone()]).wrapping_sub(change);
                let width = to.len();
                lying[to].copy_from_slice(&other.to_be_bytes()[16 - width..]);
            }
            let lying = Claim::from_bytes(&case.index, 1_000, honest.cutoff, &lying).unwrap();
            assert_ne!(lying, honest);
            case.check_refuted(&lying);
        }
    }
}

#[test]
fn every_cutoff_but_one_is_refuted() {
    let case = Case {
        index: index(30, 12, 8),
        query: query(4),
        null_threshold: 0,
        pot: 1_003,
    };
    let honest = case.claim();
    assert!(honest.cutoff.remainder > 0);
    let total = honest.nets.root().value.weight;
    let weight = |at| honest.nets.node(0, at).unwrap().value.weight;
    let mut refuted = 0;
    for position in 0..case.index.n_contributors() {
        let remainder = Cutoff::default()
            .share(case.pot, position, weight(position), total)
            .1;
        let remainder = remainder.to::<u64>();
        for remainder in [remainder, remainder ^ 1, honest.cutoff.remainder, 0] {
            let cutoff = Cutoff {
                remainder,
                position,
            };
            if cutoff == honest.cutoff {
                continue;
            }
            // The operator pays as its cutoff says, and as is right.
            let m = case.index.n_contributors();
            let paid = (0..m).map(|at| cutoff.share(case.pot, at, weight(at), total).0.to());
            let paid = claim::share_tree(&case.index, paid);
            for shares in [paid, honest.shares.clone()] {
                let lying = Claim {
                    shares,
                    cutoff,
                    ..honest.clone()
                };
                refuted += usize::from(case.is_accepted(&lying.posted()));
                case.check_refuted(&lying);
            }
        }
    }
    assert!(refuted > 20);
}

#[test]
fn a_claim_pays_what_the_exact_tier_pays() {
    let entries = Index::new(sample_entries(300, 40, 1)).unwrap();
    let case = Case {
        index: CommittedIndex::from_bytes(entries.as_bytes().to_vec()).unwrap(),
        query: query(6),
        null_threshold: 77,
        pot: 10_u128.pow(18) + 1,
    };
    let claim = case.claim();
    let (who, weights): (Vec<_>, Vec<_>) = weights(&entries.chunks(), 77, &case.query)
        .unwrap()
        .into_iter()
        .unzip();
    let exact = shares(case.pot, &weights).unwrap();
    for (at, (contributor, _)) in (0..).zip(case.index.ranges()) {
        let expected = who
            .iter()
            .position(|w| w == contributor)
            .map_or(0, |i| exact[i]);
        assert_eq!(claim.shares.node(0, at).unwrap().value, expected);
    }
    let bytes = claim.to_bytes(&case.index);
    let read = Claim::from_bytes(&case.index, 77, claim.cutoff, &bytes);
    assert_eq!(read.as_ref(), Some(&claim));
    assert_eq!(
        Claim::from_bytes(&case.index, 77, claim.cutoff, &bytes[1..]),
        None
    );
}

#[test]
fn malformed_indexes_are_refused() {
    let index = index(2, 1_000_000, 1);
    assert_eq!(index.n_contributors(), 2);
    let mut swapped = index.as_bytes().to_vec();
    swapped.rotate_left(ENTRY_SIZE_BYTES);
    let mut doubled = index.as_bytes().to_vec();
    doubled.copy_within(52..56, 52 + ENTRY_SIZE_BYTES);
    let cases = [
        (vec![], IndexError::Empty),
        (
            vec![0; 5],
            IndexError::ChunkSize {
                chunk: 0,
                size_bytes: 5,
            },
        ),
        (swapped, IndexError::Order { entry: 1 }),
    ];
    for (bytes, error) in cases {
        assert_eq!(CommittedIndex::from_bytes(bytes), Err(error));
    }
    assert!(matches!(
        CommittedIndex::from_bytes(doubled),
        Err(IndexError::DuplicateCluster { .. })
    ));
}

/// Every way in which entries can be no index is shown by one step, and no step
/// shows it of entries that are one.
#[test]
fn a_malformed_index_refutes_every_claim_against_it() {
    let index = index(9, 3, 1);
    let good = index.as_bytes();
    let n = index.n_entries();
    let root_of = |bytes: &[u8]| {
        let entries = bytes.as_chunks::<ENTRY_SIZE_BYTES>().0.iter();
        let leaves: Vec<B256> = entries.map(|entry| crate::merkle::leaf(entry)).collect();
        crate::merkle::root(&leaves)
    };
    let terms_of = |bytes: &[u8]| {
        let honest = Claim::compute(&index, &query(1), 0, 1_000);
        let terms = honest.posted().terms(&index, query(1).hash(), 0, 1_000);
        Terms {
            index_root: root_of(bytes),
            ..terms
        }
    };
    let change = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = good.to_vec();
        change(&mut bytes);
        bytes
    };
    let at = |entry: usize, byte: usize| entry * ENTRY_SIZE_BYTES + byte;
    let cases = [
        change(&|bytes| bytes[at(4, 56)..at(4, 58)].fill(0)),
        change(&|bytes| bytes[at(8, 70)] = 0x80),
        change(&|bytes| bytes[at(0, 185)] = 0x18),
        change(&|bytes| bytes[..at(2, 0)].rotate_left(ENTRY_SIZE_BYTES)),
        change(&|bytes| bytes.copy_within(at(0, 0)..at(1, 0), at(8, 0))),
        // Two contributors with one cluster.
        change(&|bytes| bytes.copy_within(at(0, 52)..at(0, 56), at(8, 52))),
    ];
    for bytes in cases {
        assert!(CommittedIndex::from_bytes(bytes.clone()).is_err());
        let root = root_of(&bytes);
        let step = find_malformed(&bytes, &root, n).unwrap();
        assert_eq!(is_lie(&terms_of(&bytes), &step), Ok(true));
        assert!(step.len() < 2_048 - 300, "short also at 2^20 entries");
        // Of another index it shows nothing.
        assert_eq!(is_lie(&terms_of(good), &step), Err(StepError::Unproven));
        assert_eq!(find_malformed(&bytes, &root_of(good), n), None);
        assert_eq!(find_malformed(&bytes[1..], &root, n), None);
        assert_eq!(find_malformed(&bytes, &root, n + 1), None);
    }
    assert_eq!(find_malformed(good, &root_of(good), n), None);
    let part = |position: u32| {
        let mut part = position.to_be_bytes().to_vec();
        part.extend_from_slice(index.entry(position).unwrap());
        for sibling in index.entry_proof(position) {
            part.extend_from_slice(sibling.as_slice());
        }
        part
    };
    let terms = terms_of(good);
    for first in 0..n {
        let entry = [vec![7], part(first)].concat();
        assert_eq!(is_lie(&terms, &entry), Ok(false));
        for second in 0..n {
            let pair = [vec![8], part(first), part(second)].concat();
            let expected = if first < second {
                Ok(false)
            } else {
                Err(StepError::Malformed)
            };
            assert_eq!(is_lie(&terms, &pair), expected);
        }
    }
}

proptest! {
    #[test]
    fn an_honest_claim_is_never_refuted(
        (n, n_contributors) in (1_usize..40, 1_usize..12),
        seed in any::<u64>(),
        pot in prop_oneof![any::<u128>(), 0_u128..100],
        null_threshold in prop_oneof![Just(0), 0_u64..1 << 32, Just(u64::MAX)],
        lies in proptest::collection::vec((0_usize..3, any::<u32>(), any::<u32>(), any::<usize>(), 1_u8..), 8),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 8),
    ) {
        let case = Case { index: index(n, n_contributors, seed), query: query(seed), null_threshold, pot };
        let honest = case.claim();
        let posted = honest.posted();
        prop_assert!(case.is_accepted(&posted));
        let (scores, nets, shares) = (&honest.scores, &honest.nets, &honest.shares);
        let known = Known { scores, nets, shares };
        prop_assert_eq!(case.find(&posted, known), Finding::Honest);

        let terms = case.terms(&posted);
        for (tree, level, position, byte, by) in lies {
            let mut lying = honest.clone();
            let place = |depth: u32| (level % (depth + 1), position % (1 << (depth - level % (depth + 1))));
            let (l, p) = place([scores.depth(), nets.depth(), shares.depth()][tree]);
            match tree {
                0 => lying.scores = forged(scores, l, p, byte % 40, by),
                1 => lying.nets = forged(nets, l, p, byte % 48, by),
                _ => lying.shares = forged(shares, l, p, byte % 48, by),
            }
            case.check_refuted(&lying);
            // The step against the liar says nothing against the honest.
            let known = Known { scores: &lying.scores, nets: &lying.nets, shares: &lying.shares };
            let Finding::Lie(mut step) = case.find(&lying.posted(), known) else { continue };
            prop_assert_ne!(is_lie(&terms, &step), Ok(true));
            for (at, by) in &flips {
                let at = at.index(step.len());
                step[at] ^= by;
                prop_assert_ne!(is_lie(&terms, &step), Ok(true));
            }
        }
    }

    #[test]
    fn bytes_from_outside_never_panic(
        step in proptest::collection::vec(any::<u8>(), 0..3_000),
        kind in 0_u8..8,
        n in any::<u32>(),
        m in 0_u32..40_000,
        level in any::<u32>(),
        position in any::<u32>(),
    ) {
        let case = Case { index: index(3, 2, 1), query: query(1), null_threshold: 0, pot: 5 };
        let mut terms = case.terms(&case.claim().posted());
        (terms.n_entries, terms.n_contributors) = (n, m);
        let mut step = step;
        if let Some(first) = step.first_mut() {
            *first = kind;
        }
        prop_assert!(is_lie(&terms, &step).is_err());
        for tree in Tree::ALL {
            prop_assert!(open(&terms, tree, level, position, &step).is_err());
            let _ = reveal(tree, level, &step);
            prop_assert!(!Revealed::<i64>::default().insert(level, position, &step) || !step.is_empty());
        }
    }
}
