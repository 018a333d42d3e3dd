//! Goal: a block signature is what `specs/blocks.md` says, proves one key for
//! one block of one chain, and a key file is refused unless it is private.
//! Method: golden values made by an implementation of keccak256, RFC 6979 and
//! secp256k1 of its own.

use std::os::unix::fs::PermissionsExt;

use alloy_primitives::{U256, address, b256, hex};

use super::*;

const ORDER: U256 = alloy_primitives::uint!(
    0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141_U256
);

#[test]
fn golden_signatures() {
    let signer = BlockSigner::dev();
    let dev = address!("0x70997970c51812dc3a010c7d01b50e0d17dc79c8");
    assert_eq!(signer.address(), dev);
    let cases = [
        (
            161_200,
            B256::ZERO,
            "315d95b8a362fe0ad0d0efbe3e7583e8e68b9cb35740bf894059d638025b5ea9\
             5b4be589f332e7d1d0688076f060e58bf75b8ab0075253d298f4dbc879a4a0a61b",
        ),
        (
            1,
            b256!("0x20b53acf0daefc8c6ad68c861fb3b543ca541abd101abc1edfcbf6606b838ef4"),
            "7b71f6b32c79b634f168db523a4fd9b9c487467f5bdeb7b17ec9614963cfc0f0\
             07de51c7e8f8bdcedecaf84562719dd0148c0a09f48fa497b9ba9f13ef219deb1b",
        ),
        (
            u64::MAX,
            B256::repeat_byte(0xff),
            "057dbd2e122ce30c03b4cf3f6b889d936cc060f0ef9bc4baa194c4f6cf9caaaa\
             46d40a54ca32e213e87505a50d577023a522dad51620b1e8a8949a8a7d929bc71b",
        ),
    ];
    for (chain_id, hash, golden) in cases {
        let signature = signer.sign(chain_id, hash);
        assert_eq!(hex::encode(signature.as_bytes()), golden);
        assert_eq!(block_signed_by(chain_id, hash, &signature), Some(dev));
    }
}

#[test]
fn a_signature_is_for_one_block_of_one_chain() {
    let signer = BlockSigner::dev();
    let hash = B256::repeat_byte(7);
    let signature = signer.sign(5, hash);
    assert_ne!(block_signed_by(6, hash, &signature), Some(signer.address()));
    let other = B256::repeat_byte(8);
    assert_ne!(
        block_signed_by(5, other, &signature),
        Some(signer.address())
    );
}

#[test]
fn the_twin_of_a_signature_is_nobodys() {
    let signature = BlockSigner::dev().sign(5, B256::ZERO);
    let twin = Signature::new(signature.r(), ORDER - signature.s(), !signature.v());
    assert_eq!(block_signed_by(5, B256::ZERO, &twin), None);
    let nothing = Signature::new(U256::ZERO, U256::ZERO, false);
    assert_eq!(block_signed_by(5, B256::ZERO, &nothing), None);
}

#[test]
fn a_key_comes_from_a_private_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let write = |text: &str, mode: u32| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let key = ol_types::DEV_MNEMONIC_KEYS[1];
    for text in [key.to_owned(), format!("0x{key}\n"), format!("  {key}\n\n")] {
        write(&text, 0o600);
        let signer = BlockSigner::from_file(&path).unwrap();
        assert!(signer.is_dev());
        assert!(
            !format!("{signer:?}").contains(&key[..16]),
            "the key is shown"
        );
    }
    for mode in [0o640, 0o604, 0o620, 0o601] {
        write(key, mode);
        let error = BlockSigner::from_file(&path).unwrap_err();
        assert!(
            matches!(error, KeyError::Permissions { mode: m, .. } if m == mode),
            "{error}"
        );
    }
    let long = "0".repeat(1_000);
    let zeros = "0".repeat(64);
    for text in ["", "xyz", &key[2..], &long, &zeros] {
        write(text, 0o600);
        let error = BlockSigner::from_file(&path).unwrap_err();
        assert!(matches!(error, KeyError::Malformed { .. }), "{error}");
        assert!(text.is_empty() || !error.to_string().contains(text));
    }
    let error = BlockSigner::from_file(&dir.path().join("none")).unwrap_err();
    assert!(matches!(error, KeyError::Unreadable { .. }), "{error}");
}

#[test]
fn the_genesis_may_name_the_sequencer() {
    let parse = |json: &str| serde_json::from_str::<Genesis>(json).unwrap();
    let sequencer = address!("0x70997970c51812dc3a010c7d01b50e0d17dc79c8");
    let named = format!(
        r#"{{"config": {{"chainId": 5, "openledger": {{"sequencer": "{sequencer}"}}}}, "alloc": {{}}, "difficulty": "0x0", "gasLimit": "0x0"}}"#
    );
    assert_eq!(sequencer_of(&parse(&named)), Some(sequencer));
    let silent =
        r#"{"config": {"chainId": 5}, "alloc": {}, "difficulty": "0x0", "gasLimit": "0x0"}"#;
    assert_eq!(sequencer_of(&parse(silent)), None);
}
