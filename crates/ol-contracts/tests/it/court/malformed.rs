//! Entries that no index may have, in the largest index there is.

use ol_poa::court::{Cutoff, Terms};

use super::*;

fn entry(cluster: u32, scale: u16) -> Vec<u8> {
    let entry = Entry {
        contributor: Address::repeat_byte(1),
        record: keccak256(cluster.to_be_bytes()),
        cluster,
        scale,
        codes: [1; K],
    };
    entry.encode().to_vec()
}

#[test]
fn malformed_entries_refute_on_chain_within_the_limits() {
    const N: u32 = 1 << 20;
    const M: u32 = 1 << 14;
    let above: Vec<B256> = (1..20).map(B256::repeat_byte).collect();
    let cases = [
        (7, entry(4, 0), entry(5, 1), true),
        (7, entry(4, 1), entry(5, 0), false),
        (8, entry(5, 1), entry(4, 1), true),
        (8, entry(4, 1), entry(4, 2), true),
        (8, entry(4, 1), entry(5, 0), false),
    ];
    for (kind, first, second, is_lie) in cases {
        let leaves = [&first, &second].map(|entry| merkle::leaf(entry));
        let mut root = merkle::node(&leaves[0], &leaves[1]);
        for sibling in &above {
            root = merkle::node(&root, sibling);
        }
        let part = |position: u32, entry: &[u8]| {
            let sibling = leaves[1 - position as usize];
            let path = [sibling].into_iter().chain(above.iter().copied());
            let path: Vec<u8> = path.flat_map(|hash| hash.0).collect();
            [&position.to_be_bytes()[..], entry, &path].concat()
        };
        let mut step = [vec![kind], part(0, &first)].concat();
        if kind == 8 {
            step.extend(part(1, &second));
        }
        let mut court = Court::new(keccak256("object"), root, N, keccak256("ranges"), M);
        let posted = Posted {
            scores: Node::default(),
            nets: Node::default(),
            shares: Node::default(),
            cutoff: Cutoff::default(),
        };
        let (id, _) = court.claim(posted_call(&posted)).unwrap();
        let call = IPoaVerify::isLieCall {
            terms: terms(&Terms {
                index_root: root,
                n_entries: N,
                ranges_root: keccak256("ranges"),
                n_contributors: M,
                query_hash: court.query.hash(),
                null_threshold: NULL_THRESHOLD,
                pot: POT_WEI,
                roots: posted.roots(),
                cutoff: posted.cutoff,
            }),
            step: step.clone().into(),
        };
        let twin = hex_code(include_str!("../../../artifacts/PoaVerifyTwin.json"));
        court.chain.state.put(TWIN, 1, U256::ZERO, twin);
        let found = court.chain.answer(POA_VERIFY, &call);
        assert!(found.is_some());
        assert_eq!(found, court.chain.answer(TWIN, &call));
        let size_bytes = AttributionCourt::challengeCall {
            id,
            step: step.clone().into(),
        };
        let size_bytes = size_bytes.abi_encode().len();
        let outcome = court.challenge(id, step);
        let expected = if is_lie { REFUTED } else { PENDING };
        assert_eq!(court.status(id), expected, "{kind}");
        assert!(size_bytes <= CALLDATA_SIZE_BYTES_MAX, "{size_bytes} bytes");
        assert!(outcome.gas_used <= GAS_MAX, "{} gas", outcome.gas_used);
    }
}
