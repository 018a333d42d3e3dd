//! Goal: what is held never exceeds the balance, and all of it comes back.

use proptest::prelude::*;

use super::*;

const ALICE: Address = Address::repeat_byte(0xa1);
const BOB: Address = Address::repeat_byte(0xb0);

fn place(holds: &Arc<Holds>, amount_wei: u128, balance_wei: u128) -> Result<Hold, HoldError<()>> {
    holds.place(ALICE, amount_wei, || Ok(balance_wei))
}

#[test]
fn parallel_requests_cannot_spend_the_same_money() {
    let holds = Arc::new(Holds::default());
    let mut first = place(&holds, 60, 100).unwrap();
    assert_eq!(
        place(&holds, 41, 100).unwrap_err(),
        HoldError::Insufficient {
            amount_wei: 41,
            available_wei: 40
        }
    );
    let second = place(&holds, 40, 100).unwrap();
    first.shrink_to(10);
    first.shrink_to(30);
    assert_eq!(holds.held_wei(ALICE), 50);
    drop(second);
    drop(first);
    assert_eq!(holds.held_wei(ALICE), 0);
    assert_eq!(holds.held_wei(BOB), 0);
}

#[test]
fn an_empty_account_starts_nothing() {
    let holds = Arc::new(Holds::default());
    assert!(place(&holds, 0, 0).is_err());
    assert!(place(&holds, 0, 1).is_ok());
}

#[test]
fn an_unreadable_balance_holds_nothing() {
    let holds = Arc::new(Holds::default());
    let error = holds.place(ALICE, 1, || Err("down")).unwrap_err();
    assert_eq!(error, HoldError::Balance("down"));
    assert_eq!(holds.held_wei(ALICE), 0);
}

proptest! {
    #[test]
    fn the_sum_is_what_is_alive(
        balance_wei: u128,
        steps in prop::collection::vec((any::<u128>(), any::<bool>(), any::<u8>()), 1..40),
    ) {
        let holds = Arc::new(Holds::default());
        let mut alive: Vec<Hold> = Vec::new();
        for (amount_wei, is_drop, pick) in steps {
            if is_drop && !alive.is_empty() {
                let picked = usize::from(pick) % alive.len();
                alive.swap_remove(picked);
            } else if let Ok(hold) = place(&holds, amount_wei, balance_wei) {
                alive.push(hold);
            }
            let sum: u128 = alive.iter().map(|hold| hold.amount_wei).sum();
            prop_assert_eq!(holds.held_wei(ALICE), sum);
            prop_assert!(sum <= balance_wei);
        }
    }
}
