//! Goal: a key is taken only from a file that is private, and only if it is a
//! secret. Method: each kind of file that is not.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use ol_types::DEV_MNEMONIC_KEYS;

use super::*;

fn file(dir: &Path, name: &str, text: &str, mode: u32) -> std::path::PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    path
}

#[test]
fn a_new_key_is_private_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let made = create_signer(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let read = read_signer(&path, false).unwrap();
    assert_eq!(read.address(), made.address());
    let error = create_signer(&path).unwrap_err();
    assert!(format!("{error:#}").contains("could not make"), "{error:#}");
}

#[test]
fn files_and_keys_that_are_no_secret_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let good = "8f2a55949038a9610f50fb23b5883af3b4ecb3c3bb792cbcefbd1542c692be63";
    let dev = DEV_MNEMONIC_KEYS[0];
    let order = "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
    let cases = [
        ("readable", good, 0o644, "chmod 600"),
        ("group", good, 0o640, "chmod 600"),
        ("writable", good, 0o602, "chmod 600"),
        ("empty", "", 0o600, "holds no private key"),
        ("short", &good[2..], 0o600, "holds no private key"),
        ("words", "not a key", 0o600, "holds no private key"),
        ("long", &" ".repeat(2_000), 0o600, "holds no private key"),
        ("zero", &"0".repeat(64), 0o600, "holds no private key"),
        ("order", order, 0o600, "holds no private key"),
        ("dev", dev, 0o600, "everybody knows"),
    ];
    for (name, text, mode, expected) in cases {
        let path = file(dir.path(), name, text, mode);
        let error = format!("{:#}", read_signer(&path, false).unwrap_err());
        assert!(error.contains(expected), "{name}: {error}");
        let is_shown = text.trim().len() > 16 && error.contains(text.trim());
        assert!(!is_shown, "{error}");
    }
    assert!(read_signer(&dir.path().join("dev"), true).is_ok());
    assert!(
        read_signer(
            &file(dir.path(), "0x", &format!("0x{good}\n"), 0o400),
            false
        )
        .is_ok()
    );
    assert!(read_signer(dir.path(), true).is_err());
    assert!(read_signer(&dir.path().join("missing"), true).is_err());
}

#[test]
fn the_other_accounts_of_the_mnemonic_are_known() {
    // From the sixth key that anvil prints.
    let sixth: alloy_signer_local::PrivateKeySigner =
        "8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba"
            .parse()
            .unwrap();
    assert!(is_well_known(sixth.address()));
    for key in DEV_MNEMONIC_KEYS {
        let signer: alloy_signer_local::PrivateKeySigner = key.parse().unwrap();
        assert!(is_well_known(signer.address()));
    }
}
