//! Private keys in files: who may read them, and which are no secrets.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use alloy_primitives::{Address, B256, address, hex};
use alloy_signer_local::PrivateKeySigner;
use anyhow::{Context, bail, ensure};
use ol_contracts::address::DEV_ACCOUNTS;
use ol_node::BlockSigner;

/// Bits of a file's mode that let others than its owner do anything.
const OTHERS: u32 = 0o077;

/// Bytes read of a file with a key: more than the digits, `0x` and blanks.
const KEY_FILE_SIZE_BYTES_MAX: u64 = 256;

/// The accounts of the test mnemonic that [`DEV_ACCOUNTS`] leaves out: anvil and
/// hardhat fund these too.
const OTHER_WELL_KNOWN: [Address; 5] = [
    address!("0x9965507D1a55bcC2695C58ba16FB37d819B0A4dc"),
    address!("0x976EA74026E726554dB657fA54763abd0C3a0aa9"),
    address!("0x14dC79964da2C08b23698B3D3cc7Ca32193d9955"),
    address!("0x23618e81E3f5cdF7f54C3d65f7FBc0aBf5B21E8f"),
    address!("0xa0Ee7A142d267C1f36714E4a8F75612F20a79720"),
];

/// Whether everybody knows the key of an account.
pub(crate) fn is_well_known(account: Address) -> bool {
    DEV_ACCOUNTS.contains(&account) || OTHER_WELL_KNOWN.contains(&account)
}

/// Reads the key with which this node signs its blocks. The key itself is in no
/// error.
///
/// # Errors
/// If others may read or change the file, it holds no key, or the key is one
/// that everybody knows and `is_dev` is false.
pub(crate) fn read_signer(path: &Path, is_dev: bool) -> anyhow::Result<BlockSigner> {
    let signer = BlockSigner::from_file(path)?;
    ensure!(
        is_dev || !is_well_known(signer.address()),
        "the key in {} is one that everybody knows; it is for --dev only \
         (`openledger node keygen FILE` makes another)",
        path.display()
    );
    Ok(signer)
}

/// Reads the key of an account from a file: 64 hexadecimal digits. The key
/// itself is in no error.
///
/// # Errors
/// If others may read or change the file, or it holds no key.
pub(crate) fn read_key(path: &Path) -> anyhow::Result<PrivateKeySigner> {
    let mut text = String::new();
    open_private(path)?
        .take(KEY_FILE_SIZE_BYTES_MAX)
        .read_to_string(&mut text)
        .with_context(|| path.display().to_string())?;
    text.trim()
        .parse()
        .ok()
        .with_context(|| format!("{} holds no key: 64 hexadecimal digits", path.display()))
}

/// Opens a file with a secret, if only its owner may read or change it.
///
/// # Errors
/// What is wrong with it, and what to do.
pub(crate) fn open_private(path: &Path) -> anyhow::Result<fs::File> {
    let shown = path.display();
    let file = fs::File::open(path).with_context(|| format!("could not read {shown}"))?;
    // Of the open file, so that it cannot be another one by now.
    let found = file.metadata().with_context(|| shown.to_string())?;
    ensure!(found.is_file(), "{shown} is not a file");
    let mode = found.mode() & 0o7777;
    if mode & OTHERS != 0 {
        bail!("{shown} may be read by others (mode {mode:04o}); run `chmod 600 {shown}`");
    }
    Ok(file)
}

/// Makes a key and writes it to a new file that only its owner may read.
///
/// # Errors
/// If the file exists or cannot be written.
pub(crate) fn create_signer(path: &Path) -> anyhow::Result<PrivateKeySigner> {
    let signer = loop {
        let key = B256::from(ol_runtime::os_bytes()?);
        // All but one in 2^128 are keys.
        if let Ok(signer) = PrivateKeySigner::from_bytes(&key) {
            break signer;
        }
    };
    let shown = path.display();
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("could not make {shown}"))?;
    writeln!(file, "{}", hex::encode(signer.to_bytes())).with_context(|| shown.to_string())?;
    file.sync_all().with_context(|| shown.to_string())?;
    Ok(signer)
}

/// Writes a secret that only its owner may read: never readable by others, not
/// even for a moment, and never half written.
pub(crate) fn write_private(path: &Path, secret: &str) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(secret.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests;
