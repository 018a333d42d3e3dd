//! Goal: a lie in a claim is refuted on chain, an honest claim never is, and
//! what it takes stays within 2 KB and 120,000 gas.
//! Method: the contract on `ol-evm`, every byte of small claims changed, steps
//! against liars sent to honest operators, and the twin of `POA_VERIFY` in
//! Solidity as its oracle.

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_sol_types::{SolCall, SolEvent};
use ol_contracts::address::{
    ATTRIBUTION_COURT, DATANET_REGISTRY, DEV_ACCOUNTS, INFERENCE_SETTLEMENT, MODEL_REGISTRY,
    POA_VERIFY,
};
use ol_contracts::bindings::{
    AttributionCourt, DatanetRegistry, IPoaVerify, InferenceSettlement, ModelRegistry,
};
use ol_contracts::court::posted_call;
use ol_poa::court::{
    Claim, CommittedIndex, Finding, Known, Net, Node, Posted, SumTree, Tree, Value, find,
};
use ol_poa::{Entry, Evidence, Index, K, QuerySketch, merkle};
use ol_types::{DEV_CHAIN_ID, Receipt, WEI_PER_OPEN, name_id};
use proptest::prelude::*;

use crate::chain::{Chain, Outcome};

mod malformed;

const OPERATOR: Address = DEV_ACCOUNTS[1];
const OWNER: Address = DEV_ACCOUNTS[2];
const PAYER: Address = DEV_ACCOUNTS[3];
const WATCHER: Address = DEV_ACCOUNTS[4];
const TREASURY: Address = Address::repeat_byte(0x7e);
const TWIN: Address = Address::repeat_byte(0x2d);

const NULL_THRESHOLD: u64 = 5;
const STAKE_WEI: u128 = WEI_PER_OPEN / 100;
const PENDING: u8 = 1;
const REFUTED: u8 = 3;

/// Largest calldata and gas of a transaction that shows a lie.
const CALLDATA_SIZE_BYTES_MAX: usize = 2_048;
const GAS_MAX: u64 = 120_000;

fn byte(seed: u32, at: usize) -> u8 {
    keccak256([&seed.to_be_bytes()[..], &at.to_be_bytes()].concat())[0]
}

fn codes(seed: u32) -> [i8; K] {
    std::array::from_fn(|at| byte(seed, at).cast_signed().max(-127))
}

fn index(n_entries: u32, n_contributors: u32) -> CommittedIndex {
    let entry = |cluster: u32| Entry {
        contributor: Address::left_padding_from(&(cluster % n_contributors + 1).to_be_bytes()),
        record: keccak256(cluster.to_be_bytes()),
        cluster,
        scale: 3,
        codes: codes(cluster).map(|code| code % 8),
    };
    let index = Index::new((0..n_entries).map(entry).collect()).unwrap();
    CommittedIndex::from_bytes(index.as_bytes().to_vec()).unwrap()
}

/// A chain with an optimistic model, a payer and a bonded operator.
#[derive(Clone)]
struct Court {
    chain: Chain,
    index_id: B256,
    query: QuerySketch,
    n_requests: u32,
}

impl Court {
    fn new(object: B256, root: B256, n: u32, ranges_root: B256, m: u32) -> Self {
        let mut chain = Chain::new();
        let commit = AttributionCourt::commitIndexCall {
            object,
            root,
            nEntries: n,
            rangesRoot: ranges_root,
            nContributors: m,
        };
        chain.must(OWNER, ATTRIBUTION_COURT, 0, &commit);
        let id = [
            &[3],
            &object[..],
            &root[..],
            &n.to_be_bytes(),
            &ranges_root[..],
            &m.to_be_bytes(),
        ];
        let index_id = keccak256(id.concat());
        let create = DatanetRegistry::createCall {
            name: "legal".to_owned(),
            treasury: TREASURY,
        };
        chain.must(OWNER, DATANET_REGISTRY, 0, &create);
        let register = ModelRegistry::registerCall {
            name: "legal-model".to_owned(),
            params: ModelRegistry::Params {
                baseHash: keccak256("base"),
                adapterHash: keccak256("adapter"),
                manifestHash: keccak256("training manifest"),
                sketchRoot: index_id,
                datanetIds: vec![name_id("legal")],
                treasury: TREASURY,
                nullThreshold: NULL_THRESHOLD,
                priceInPerKTokens: WEI_PER_OPEN,
                priceOutPerKTokens: 0,
                platformFee: 10,
                splitBps: [1000, 2000, 2000, 5000],
                potsBps: [10_000, 0, 0],
            },
        };
        chain.must(OWNER, MODEL_REGISTRY, 0, &register);
        let deposit = InferenceSettlement::depositCall {};
        chain.must(
            PAYER,
            INFERENCE_SETTLEMENT,
            100_000 * WEI_PER_OPEN,
            &deposit,
        );
        let bond = AttributionCourt::addBondCall {};
        chain.must(OPERATOR, ATTRIBUTION_COURT, 100_000 * WEI_PER_OPEN, &bond);
        Self {
            chain,
            index_id,
            query: QuerySketch::new(codes(1_000)).unwrap(),
            n_requests: 0,
        }
    }

    fn over(index: &CommittedIndex) -> Self {
        let court = Self::new(
            index.object(),
            index.root(),
            index.n_entries(),
            index.ranges_root(),
            index.n_contributors(),
        );
        assert_eq!(court.index_id, index.id());
        court
    }

    fn receipt(&mut self) -> Receipt {
        self.n_requests += 1;
        Receipt {
            chain_id: DEV_CHAIN_ID,
            settlement: INFERENCE_SETTLEMENT,
            payer: PAYER,
            request_id: keccak256(self.n_requests.to_be_bytes()),
            model_id: name_id("legal-model"),
            base_hash: keccak256("base"),
            adapter_hash: keccak256("adapter"),
            manifest_hash: keccak256("training manifest"),
            sketch_root: self.index_id,
            prompt_hash: keccak256("prompt"),
            response_hash: keccak256("response"),
            query_hash: self.query.hash(),
            evidence_hash: Evidence::default().hash(),
            tokens_in: 1000,
            tokens_out: 0,
            fee_wei: FEE_WEI,
            answered_at_s: 1,
        }
    }

    /// Claims; `None` if the court does not take it.
    fn claim(&mut self, posted: AttributionCourt::Posted) -> Option<(B256, Outcome)> {
        let receipt = self.receipt();
        let call = AttributionCourt::claimCall {
            receipt: (&receipt).into(),
            query: self.query.to_bytes().to_vec().into(),
            posted,
            version: 1,
            data: B256::ZERO,
        };
        let outcome = self.chain.send(OPERATOR, ATTRIBUTION_COURT, 0, &call);
        outcome.is_success.then(|| (receipt.id(), outcome))
    }

    fn status(&self, id: B256) -> u8 {
        let claim = self
            .chain
            .view(ATTRIBUTION_COURT, &AttributionCourt::claimOfCall { id });
        claim.status
    }

    fn challenge(&mut self, id: B256, step: Vec<u8>) -> Outcome {
        let step = step.into();
        let call = AttributionCourt::challengeCall { id, step };
        self.chain
            .send(WATCHER, ATTRIBUTION_COURT, STAKE_WEI, &call)
    }

    /// Does what a finding says and lets the operator's time pass; the claim is
    /// refuted, the payer has its fee back, the winner the bond.
    #[track_caller]
    fn refute(&mut self, id: B256, finding: Finding) {
        let prepaid = InferenceSettlement::prepaidCall { account: PAYER };
        let before = self.chain.view(INFERENCE_SETTLEMENT, &prepaid);
        match finding {
            Finding::Honest => panic!("a lie is called honest"),
            Finding::Lie(step) => assert!(self.challenge(id, step).is_success),
            Finding::Hidden {
                tree,
                level,
                position,
                path,
            } => {
                let request = AttributionCourt::requestRevealCall {
                    id,
                    tree: tree as u8,
                    level: level.try_into().unwrap(),
                    position,
                    path: path.into(),
                };
                self.chain
                    .must(WATCHER, ATTRIBUTION_COURT, STAKE_WEI, &request);
                self.chain.wait_s(3_601);
                let expire = AttributionCourt::expireRevealCall {
                    id,
                    challenger: WATCHER,
                };
                self.chain.must(WATCHER, ATTRIBUTION_COURT, 0, &expire);
            }
        }
        assert_eq!(self.status(id), REFUTED);
        self.chain.must(
            WATCHER,
            ATTRIBUTION_COURT,
            0,
            &AttributionCourt::closeCall { id },
        );
        let after = self.chain.view(INFERENCE_SETTLEMENT, &prepaid);
        assert_eq!(after - before, U256::from(FEE_WEI));
        let credit = AttributionCourt::creditCall { account: WATCHER };
        let bond_wei = FEE_WEI + WEI_PER_OPEN / 10;
        assert_eq!(
            self.chain.view(ATTRIBUTION_COURT, &credit),
            U256::from(bond_wei - bond_wei / 4 + STAKE_WEI)
        );
    }
}

const FEE_WEI: u128 = WEI_PER_OPEN + 10;
const POT_WEI: u128 = FEE_WEI / 2;

fn pot_wei() -> u128 {
    ol_poa::split_fee(FEE_WEI, [1000, 2000, 2000, 5000]).unwrap()[3]
}

fn known(claim: &Claim) -> Known<'_> {
    Known {
        scores: &claim.scores,
        nets: &claim.nets,
        shares: &claim.shares,
    }
}

/// Calls `visit` with a tree for every byte of every node of `tree`, the right
/// sums put back above it, so that the totals agree.
fn every_byte<V: Value>(tree: &SumTree<V>, mut visit: impl FnMut(SumTree<V>)) {
    for level in 0..=tree.depth() {
        for position in 0..1 << (tree.depth() - level) {
            for byte in 0..Node::<V>::SIZE_BYTES {
                let mut node = tree.node(level, position).unwrap().encode();
                node[byte] ^= 1;
                let mut lying = tree.clone();
                lying.replace(level, position, Node::decode(&node).unwrap());
                let root = Node {
                    hash: lying.root().hash,
                    value: tree.root().value,
                };
                lying.replace(tree.depth(), 0, root);
                if lying.root() != tree.root() {
                    visit(lying);
                }
            }
        }
    }
}

#[test]
fn every_byte_of_every_node_is_refuted_on_chain() {
    let index = index(4, 3);
    let court = Court::over(&index);
    assert_eq!(pot_wei(), POT_WEI);
    let honest = Claim::compute(&index, &court.query, NULL_THRESHOLD, POT_WEI);
    assert!(honest.nets.root().value.weight > 0);
    let mut n_refuted = 0;
    let mut check = |lying: Claim| {
        let mut court = court.clone();
        let posted = lying.posted();
        let (id, _) = court.claim(posted_call(&posted)).unwrap();
        let finding = find(
            &index,
            &court.query,
            NULL_THRESHOLD,
            POT_WEI,
            &posted,
            known(&lying),
        );
        court.refute(id, finding);
        n_refuted += 1;
    };
    every_byte(&honest.scores, |scores| {
        check(Claim {
            scores,
            ..honest.clone()
        })
    });
    every_byte(&honest.nets, |nets| {
        check(Claim {
            nets,
            ..honest.clone()
        })
    });
    every_byte(&honest.shares, |shares| {
        check(Claim {
            shares,
            ..honest.clone()
        })
    });
    assert!(n_refuted > 700, "{n_refuted}");
}

#[test]
fn every_byte_of_what_is_posted_is_refused_or_refuted() {
    let index = index(4, 3);
    let court = Court::over(&index);
    let honest = Claim::compute(&index, &court.query, NULL_THRESHOLD, POT_WEI);
    let right = posted_call(&honest.posted());
    // Three hashes, then net, weight, remainder (8 bytes each) and position (4).
    let mut n_refuted = 0;
    for at in 0..3 * 32 + 3 * 8 + 4 {
        let mut posted = right.clone();
        match at {
            0..32 => posted.scoresHash[at] ^= 1,
            32..64 => posted.netsHash[at - 32] ^= 1,
            64..96 => posted.sharesHash[at - 64] ^= 1,
            96..104 => posted.net ^= 1 << (8 * (at - 96)),
            104..112 => posted.weight ^= 1 << (8 * (at - 104)),
            112..120 => posted.cutoffRemainder ^= 1 << (8 * (at - 112)),
            _ => posted.cutoffPosition ^= 1 << (8 * (at - 120)),
        }
        let mut court = court.clone();
        let Some((id, outcome)) = court.claim(posted) else {
            continue;
        };
        // As a watcher reads it, from the event.
        let event = outcome
            .logs
            .iter()
            .find_map(|log| AttributionCourt::Claimed::decode_log_data(&log.data).ok())
            .unwrap();
        let posted = ol_contracts::court::posted(&event.posted, event.pot);
        let finding = find(
            &index,
            &court.query,
            NULL_THRESHOLD,
            event.pot,
            &posted,
            known(&honest),
        );
        court.refute(id, finding);
        n_refuted += 1;
    }
    assert!(n_refuted > 100, "{n_refuted}");
}

/// One leaf and its siblings: enough of a tree of any depth.
struct Sparse<V> {
    node: Node<V>,
    position: u32,
    siblings: Vec<Node<V>>,
}

impl<V: Value> Sparse<V> {
    /// The sum of the whole is `total`.
    fn new(node: Node<V>, position: u32, depth: u32, total: V, minus: fn(V, V) -> V) -> Self {
        let sibling = |at: u32| Node {
            hash: keccak256(at.to_be_bytes()),
            value: V::read(&keccak256(at.to_be_bytes())[..V::SIZE_BYTES]).unwrap(),
        };
        let mut sparse = Self {
            node,
            position,
            siblings: (0..depth).map(sibling).collect(),
        };
        let last = sparse.siblings.last_mut().unwrap();
        last.value = V::default();
        let value = minus(total, sparse.root().value);
        sparse.siblings.last_mut().unwrap().value = value;
        sparse
    }

    fn root(&self) -> Node<V> {
        let mut top = self.node;
        for (level, sibling) in self.siblings.iter().enumerate() {
            top = if self.position >> level & 1 == 0 {
                Node::parent(&top, sibling)
            } else {
                Node::parent(sibling, &top)
            };
        }
        top
    }

    fn path(&self) -> Vec<u8> {
        self.siblings.iter().flat_map(Node::encode).collect()
    }
}

/// Limits of the largest index: 2^20 entries of 2^14 contributors.
#[test]
fn the_longest_steps_stay_within_the_limits() {
    const N: u32 = 1 << 20;
    const M: u32 = 1 << 14;
    const AT: u32 = 0x000a_aaaa;
    const WHO: u32 = 0x2aaa;
    let proof = |depth: u8| (1..=depth).map(|at| keccak256([at])).collect::<Vec<B256>>();
    let flat = |hashes: &[B256]| hashes.iter().flat_map(|h| h.to_vec()).collect::<Vec<u8>>();
    let entry = Entry {
        contributor: Address::repeat_byte(0xaa),
        record: keccak256("record"),
        cluster: 0xffff_ffff,
        scale: 65_535,
        codes: codes(5).map(|code| code % 8),
    }
    .encode();
    let contributor = Address::repeat_byte(0xaa);
    let end = AT + 1;
    let range = [contributor.as_slice(), &end.to_be_bytes()].concat();
    let root = merkle::fold(&merkle::leaf(&entry), AT as usize, &proof(20));
    let ranges_root = merkle::fold(&merkle::leaf(&range), WHO as usize, &proof(14));
    let court = Court::new(keccak256("object"), root, N, ranges_root, M);

    let net = |a: Net, b: Net| Net {
        net: a.net.wrapping_sub(b.net),
        weight: a.weight.wrapping_sub(b.weight),
    };
    let hash = |parts: &[&[u8]]| keccak256(parts.concat());
    let score = 0x7bcd_ef12_3456_789a_i64;
    let score_leaf = Node {
        hash: hash(&[&[0], &AT.to_be_bytes(), &score.to_be_bytes()]),
        value: score,
    };
    let total = 0x6666_7777_8888_9999_u64;
    let scores = Sparse::new(score_leaf, AT, 20, total.cast_signed(), i64::wrapping_sub);
    let value = Net {
        net: score,
        weight: 0x1234_5678_9abc_def1,
    };
    let net_leaf = Node {
        hash: hash(&[&[0], &range, &score.to_be_bytes()]),
        value,
    };
    let totals = Net {
        net: total.cast_signed(),
        weight: total,
    };
    let nets = Sparse::new(net_leaf, WHO, 14, totals, net);
    let share = 0x1234_5678_9abc_def1_1234_5678_9abc_def1_u128;
    let share_leaf = Node {
        hash: hash(&[&[0], contributor.as_slice(), &share.to_be_bytes()]),
        value: share,
    };
    let shares = Sparse::new(share_leaf, WHO, 14, POT_WEI, u128::wrapping_sub);
    let mut net_preimage = range.clone();
    net_preimage.extend_from_slice(&score.to_be_bytes());
    net_preimage.extend_from_slice(&value.weight.to_be_bytes());

    // A node above two leaves whose sum is not theirs.
    let children = [score_leaf, net_like(&score_leaf)];
    let mut sum_node = Node::parent(&children[0], &children[1]);
    sum_node.value = sum_node.value.wrapping_add(1);
    let sums = Sparse::new(
        sum_node,
        AT >> 1,
        19,
        total.cast_signed(),
        i64::wrapping_sub,
    );

    let (at, who) = (AT.to_be_bytes(), WHO.to_be_bytes());
    let query = court.query.to_bytes();
    let cases: [(&str, Vec<u8>, Node<i64>); 5] = [
        (
            "score",
            [
                &[1][..],
                &at,
                &score.to_be_bytes(),
                &scores.path(),
                &entry,
                &flat(&proof(20)),
                &query,
            ]
            .concat(),
            scores.root(),
        ),
        (
            "net",
            [
                &[2][..],
                &who,
                &net_leaf.encode(),
                &nets.path(),
                &range,
                &flat(&proof(14)),
            ]
            .concat(),
            scores.root(),
        ),
        (
            "boundary",
            [
                &[3][..],
                &who,
                &net_preimage,
                &nets.path(),
                &score.to_be_bytes(),
                &scores.path(),
            ]
            .concat(),
            scores.root(),
        ),
        (
            "share",
            [
                &[4][..],
                &who,
                &share_leaf.encode(),
                &shares.path(),
                &net_preimage,
                &nets.path(),
            ]
            .concat(),
            scores.root(),
        ),
        (
            "sum",
            [
                &[5, 0, 1][..],
                &(AT >> 1).to_be_bytes(),
                &sum_node.encode(),
                &children[0].encode(),
                &children[1].encode(),
                &sums.path(),
            ]
            .concat(),
            sums.root(),
        ),
    ];
    for (name, step, scores) in cases {
        let posted = Posted {
            scores,
            nets: nets.root(),
            shares: shares.root(),
            cutoff: ol_poa::court::Cutoff {
                remainder: 0x1111_2222_3333_4444,
                position: 0x1fff,
            },
        };
        let mut court = court.clone();
        let (id, _) = court.claim(posted_call(&posted)).unwrap();
        let call = AttributionCourt::challengeCall {
            id,
            step: step.clone().into(),
        };
        let size_bytes = call.abi_encode().len();
        let outcome = court.challenge(id, step);
        assert_eq!(court.status(id), REFUTED, "{name}");
        eprintln!("{name}: {size_bytes} bytes, {} gas", outcome.gas_used);
        assert!(
            size_bytes <= CALLDATA_SIZE_BYTES_MAX,
            "{name}: {size_bytes}"
        );
        assert!(outcome.gas_used <= GAS_MAX, "{name}: {}", outcome.gas_used);
    }

    // A reveal at the deepest place: the request, and the answer.
    let mut court = court;
    let row = vec![net_leaf; 16];
    let mut level = row.clone();
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| Node::parent(&pair[0], &pair[1]))
            .collect();
    }
    let inner = Sparse::new(level[0], WHO >> 4, 10, totals, net);
    let posted = Posted {
        scores: scores.root(),
        nets: inner.root(),
        shares: shares.root(),
        cutoff: ol_poa::court::Cutoff::default(),
    };
    let (id, _) = court.claim(posted_call(&posted)).unwrap();
    let request = AttributionCourt::requestRevealCall {
        id,
        tree: Tree::Nets as u8,
        level: 4,
        position: WHO >> 4,
        path: [inner.node.encode(), inner.path()].concat().into(),
    };
    let asked = court
        .chain
        .must(WATCHER, ATTRIBUTION_COURT, STAKE_WEI, &request);
    let answer = AttributionCourt::answerRevealCall {
        id,
        challenger: WATCHER,
        row: row
            .iter()
            .flat_map(Node::encode)
            .collect::<Vec<u8>>()
            .into(),
    };
    let answered = court.chain.must(OPERATOR, ATTRIBUTION_COURT, 0, &answer);
    assert_eq!(court.status(id), PENDING);
    for (name, size_bytes, outcome) in [
        ("reveal asked", request.abi_encode().len(), asked),
        ("reveal answered", answer.abi_encode().len(), answered),
    ] {
        eprintln!("{name}: {size_bytes} bytes, {} gas", outcome.gas_used);
        assert!(size_bytes <= CALLDATA_SIZE_BYTES_MAX && outcome.gas_used <= GAS_MAX + 30_000);
    }
}

fn net_like(leaf: &Node<i64>) -> Node<i64> {
    Node {
        hash: keccak256(leaf.hash),
        value: leaf.value ^ 0x55,
    }
}

fn terms(terms: &ol_poa::court::Terms) -> IPoaVerify::Terms {
    IPoaVerify::Terms {
        indexRoot: terms.index_root,
        nEntries: terms.n_entries,
        rangesRoot: terms.ranges_root,
        nContributors: terms.n_contributors,
        queryHash: terms.query_hash,
        nullThreshold: terms.null_threshold,
        pot: terms.pot,
        roots: terms.roots,
        cutoffRemainder: terms.cutoff.remainder,
        cutoffPosition: terms.cutoff.position,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_honest_claim_stands_and_the_twin_agrees(
        (n, m) in (1_u32..20, 1_u32..8),
        lies in proptest::collection::vec(
            (0..3_usize, any::<u32>(), any::<u32>(), any::<usize>(), 1_u8..), 6),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 4),
    ) {
        let index = index(n, m.min(n));
        let mut court = Court::over(&index);
        let twin = hex_code(include_str!("../../artifacts/PoaVerifyTwin.json"));
        court.chain.state.put(TWIN, 1, U256::ZERO, twin);
        let honest = Claim::compute(&index, &court.query, NULL_THRESHOLD, POT_WEI);
        let posted = honest.posted();
        let (id, _) = court.claim(posted_call(&posted)).unwrap();
        let right = posted.terms(&index, court.query.hash(), NULL_THRESHOLD, POT_WEI);

        for (tree, level, position, byte, by) in lies {
            let mut lying = honest.clone();
            match tree {
                0 => lie(&mut lying.scores, level, position, byte, by),
                1 => lie(&mut lying.nets, level, position, byte, by),
                _ => lie(&mut lying.shares, level, position, byte, by),
            }
            let lied = lying.posted();
            let wrong = lied.terms(&index, court.query.hash(), NULL_THRESHOLD, POT_WEI);
            let mut step = match find(
                &index, &court.query, NULL_THRESHOLD, POT_WEI, &lied, known(&lying),
            ) {
                Finding::Lie(step) => step,
                Finding::Honest => continue,
                Finding::Hidden { tree, level, position, path } => {
                    let call = IPoaVerify::openCall {
                        terms: terms(&wrong),
                        tree: tree as u8,
                        level,
                        position,
                        path: path.into(),
                    };
                    let found = court.chain.answer(POA_VERIFY, &call);
                    prop_assert!(found.is_some());
                    prop_assert_eq!(found, court.chain.answer(TWIN, &call));
                    continue;
                }
            };
            for flip in [None].into_iter().chain(flips.iter().map(Some)) {
                if let Some((at, by)) = flip {
                    let at = at.index(step.len());
                    step[at] ^= by;
                }
                for terms_of in [&right, &wrong] {
                    let call = IPoaVerify::isLieCall {
                        terms: terms(terms_of),
                        step: step.clone().into(),
                    };
                    let found = court.chain.answer(POA_VERIFY, &call);
                    prop_assert_eq!(&found, &court.chain.answer(TWIN, &call));
                }
                let before = court.chain.balance_wei(ATTRIBUTION_COURT);
                let outcome = court.challenge(id, step.clone());
                prop_assert_eq!(court.status(id), PENDING);
                let stake = if outcome.is_success { STAKE_WEI } else { 0 };
                prop_assert_eq!(court.chain.balance_wei(ATTRIBUTION_COURT), before + stake);
            }
        }

        // Everything the operator can be asked to reveal, it can.
        for tree in Tree::ALL {
            let (level, root, row) = match tree {
                Tree::Scores => top(&honest.scores),
                Tree::Nets => top(&honest.nets),
                Tree::Shares => top(&honest.shares),
            };
            if level == 0 {
                continue;
            }
            let request = AttributionCourt::requestRevealCall {
                id,
                tree: tree as u8,
                level: level.try_into().unwrap(),
                position: 0,
                path: root.into(),
            };
            court.chain.must(WATCHER, ATTRIBUTION_COURT, STAKE_WEI, &request);
            let reveal = AttributionCourt::answerRevealCall {
                id,
                challenger: WATCHER,
                row: row.into(),
            };
            court.chain.must(OPERATOR, ATTRIBUTION_COURT, 0, &reveal);
        }
        court.chain.wait_s(13 * 3_600);
        court.chain.must(WATCHER, ATTRIBUTION_COURT, 0, &AttributionCourt::closeCall { id });

        // Contributors collect exactly the pot.
        let mut paid = 0;
        for (at, (contributor, _)) in (0..).zip(index.ranges()) {
            let share = honest.shares.node(0, at).unwrap().value;
            if share == 0 {
                continue;
            }
            let path = honest.shares.path(0, at).iter().flat_map(Node::encode).collect::<Vec<u8>>();
            let collect = AttributionCourt::collectCall {
                id,
                position: at,
                contributor: *contributor,
                share,
                path: path.into(),
            };
            court.chain.must(WATCHER, ATTRIBUTION_COURT, 0, &collect);
            prop_assert!(!court.chain.send(WATCHER, ATTRIBUTION_COURT, 0, &collect).is_success);
            paid += share;
        }
        let is_empty = honest.nets.root().value.weight == 0;
        prop_assert_eq!(paid, if is_empty { 0 } else { POT_WEI });
    }
}

fn lie<V: Value>(tree: &mut SumTree<V>, level: u32, position: u32, byte: usize, by: u8) {
    let level = level % (tree.depth() + 1);
    let position = position % (1 << (tree.depth() - level));
    let mut node = tree.node(level, position).unwrap().encode();
    let at = byte % node.len();
    node[at] ^= by;
    tree.replace(level, position, Node::decode(&node).unwrap());
}

/// The root as it is asked to be revealed, and what answers.
fn top<V: Value>(tree: &SumTree<V>) -> (u32, Vec<u8>, Vec<u8>) {
    let row = tree.row_below(tree.depth(), 0).unwrap();
    let row = row.iter().flat_map(Node::encode).collect();
    (tree.depth(), tree.root().encode(), row)
}

fn hex_code(artifact: &str) -> Bytes {
    let artifact: serde_json::Value = serde_json::from_str(artifact).unwrap();
    artifact["deployedBytecode"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}
