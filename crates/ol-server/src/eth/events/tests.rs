//! Goal: a journal tells what changed between two moments, and says when it
//! does not know any more.

use ol_node::Header;

use super::*;

fn added(number: u64, hash: u8) -> BlockChange {
    BlockChange::Added {
        number,
        hash: B256::repeat_byte(hash),
    }
}

fn removed(hash: u8) -> BlockChange {
    BlockChange::Removed {
        hash: B256::repeat_byte(hash),
        logs: Arc::new([]),
    }
}

/// The head when a mark is made: block 5, of hash 5.
fn head() -> Head {
    let header = Header {
        number: 5,
        ..Header::default()
    };
    Head {
        header,
        hash: B256::repeat_byte(5),
    }
}

fn feed() -> Feed {
    Feed {
        live: broadcast::channel(1).1,
        journal: Mutex::new(Journal::default()),
    }
}

#[test]
fn what_came_and_went_leaves_no_trace() {
    #[track_caller]
    fn check(changes: Vec<BlockChange>, n_removed: usize, expected: &[(u64, u8)]) {
        let feed = feed();
        let mut mark = feed.mark(&head());
        for change in changes {
            feed.journal().blocks.push(change);
        }
        let net = feed.blocks_since(&mut mark).unwrap();
        assert_eq!(net.removed.len(), n_removed);
        let expected: Vec<_> = expected
            .iter()
            .map(|&(number, hash)| (number, B256::repeat_byte(hash)))
            .collect();
        assert_eq!(net.added, expected);
        let nothing = feed.blocks_since(&mut mark).unwrap();
        assert!(nothing.added.is_empty() && nothing.removed.is_empty());
    }
    check(vec![], 0, &[]);
    check(vec![added(6, 6), added(7, 7)], 0, &[(6, 6), (7, 7)]);
    check(vec![added(6, 6), removed(6), added(6, 9)], 0, &[(6, 9)]);
    check(vec![removed(5), removed(4), added(4, 6)], 2, &[(4, 6)]);
    check(vec![added(6, 6), removed(6), removed(5)], 1, &[]);
    // What was before the mark, and comes late.
    check(vec![added(4, 4), added(5, 5), added(6, 6)], 0, &[(6, 6)]);
    check(vec![added(5, 9), removed(9), added(5, 5)], 0, &[]);
    check(
        vec![removed(8), removed(7), added(5, 5), removed(5)],
        1,
        &[],
    );
    check(vec![added(6, 7), removed(7), added(6, 6)], 0, &[(6, 6)]);
}

#[test]
fn what_fell_out_of_the_journal_is_not_known() {
    let feed = feed();
    let mut old = feed.mark(&head());
    for n in 0..JOURNAL_MAX {
        feed.journal().transactions.push(B256::ZERO);
        assert_eq!(feed.journal().transactions.end(), n as u64 + 1);
    }
    let mut all = old;
    let found = feed.transactions_since(&mut all).unwrap();
    assert_eq!(found.len(), JOURNAL_MAX);
    feed.journal().transactions.push(B256::ZERO);
    assert!(feed.transactions_since(&mut old).is_none());
    assert_eq!(feed.transactions_since(&mut all).unwrap().len(), 1);
    feed.journal().has_ended = true;
    assert!(feed.transactions_since(&mut all).is_none());
    assert!(feed.blocks_since(&mut all).is_none());
}
