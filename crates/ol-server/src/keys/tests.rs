//! Goal: a key works exactly while it is stored, and the file never holds it.

use std::fs;

use super::*;

const ALICE: Address = Address::repeat_byte(0xa1);
const BOB: Address = Address::repeat_byte(0xb0);

#[test]
fn keys_survive_a_restart_and_end_when_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let keys = ApiKeys::open(&dir.path().join("gateway")).unwrap();
    let alice = keys.create(ALICE, "alice").unwrap();
    let bob = keys.create(BOB, "").unwrap();
    assert_ne!(alice.expose(), bob.expose());
    assert_eq!(keys.account(alice.expose()), Some(ALICE));

    let keys = ApiKeys::open(&dir.path().join("gateway")).unwrap();
    assert_eq!(keys.account(alice.expose()), Some(ALICE));
    assert_eq!(keys.account(bob.expose()), Some(BOB));
    assert_eq!(keys.account(""), None);
    assert_eq!(keys.account(&alice.expose()[1..]), None);
    assert_eq!(keys.account(&"x".repeat(10_000)), None);

    assert!(keys.revoke(alice.expose()).unwrap());
    assert!(!keys.revoke(alice.expose()).unwrap());
    assert_eq!(keys.account(alice.expose()), None);
    let keys = ApiKeys::open(&dir.path().join("gateway")).unwrap();
    assert_eq!(keys.account(alice.expose()), None);
    assert_eq!(keys.account(bob.expose()), Some(BOB));
}

#[test]
fn the_file_holds_hashes_only() {
    let dir = tempfile::tempdir().unwrap();
    let keys = ApiKeys::open(dir.path()).unwrap();
    let key = keys.create(ALICE, "alice").unwrap();
    let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
    assert!(!text.contains(key.expose()));
    assert!(!text.contains(key.expose().trim_start_matches("ol-")));
    assert!(text.contains(&hex::encode(keccak256(key.expose()))));
    assert!(!format!("{key:?} {keys:?}").contains(key.expose()));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(dir.path().join(FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn a_damaged_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for text in [
        "",
        "{}",
        "{\"format\":\"x\",\"keys\":[]}",
        "[1]",
        "{\"format\":\"openledger-api-keys/1\"}",
    ] {
        fs::write(dir.path().join(FILE), text).unwrap();
        assert!(
            matches!(ApiKeys::open(dir.path()), Err(KeysError::Damaged { .. })),
            "{text:?}"
        );
    }
}
