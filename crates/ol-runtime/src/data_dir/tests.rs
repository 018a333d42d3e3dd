//! Goal: we never write into a folder that is not ours, and two processes
//! never share one.

use super::*;
use crate::Heads as _;

#[test]
fn a_new_folder_gets_a_format_file_and_opens_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    let data = DataDir::open_or_create(&path).unwrap();
    assert_eq!(
        fs::read_to_string(path.join("format")).unwrap(),
        "openledger-data 1\n"
    );
    let id = data.objects().unwrap().put("x").unwrap();
    data.heads("datanets")
        .unwrap()
        .compare_and_swap("legal", None, id)
        .unwrap();

    let data = DataDir::open_or_create(&path).unwrap();
    assert_eq!(
        data.heads("datanets").unwrap().get("legal").unwrap(),
        Some(id)
    );
    assert_eq!(data.heads("models").unwrap().get("legal").unwrap(), None);
    assert_eq!(data.objects().unwrap().get(id, 1).unwrap(), "x");
    let mut names: Vec<_> = fs::read_dir(&path)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["format", "heads", "objects"]);
}

#[test]
fn an_empty_folder_and_one_with_only_our_leftovers_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(".format.1.1"), "openle").unwrap();
    let _lock = DirLock::acquire(dir.path()).unwrap();
    // A mount point, or what another program shares with us.
    fs::create_dir(dir.path().join("fleet-adapters")).unwrap();
    DataDir::open_or_create(dir.path()).unwrap();
}

#[test]
fn a_foreign_folder_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "").unwrap();
    let error = DataDir::open_or_create(dir.path()).unwrap_err();
    assert!(matches!(&error, DataDirError::Foreign { found, .. } if found == "thesis.tex"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("photos/2024")).unwrap();
    let error = DataDir::open_or_create(dir.path()).unwrap_err();
    assert!(matches!(&error, DataDirError::Foreign { found, .. } if found == "photos"));
}

#[test]
fn an_unknown_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for found in ["openledger-data 2\n", "", "openledger-data 1", "\u{fffd}"] {
        fs::write(dir.path().join("format"), found).unwrap();
        let error = DataDir::open_or_create(dir.path()).unwrap_err();
        assert!(matches!(error, DataDirError::Version { .. }), "{found:?}");
    }
    fs::write(dir.path().join("format"), "x".repeat(1_000_000)).unwrap();
    let error = DataDir::open_or_create(dir.path()).unwrap_err();
    assert!(matches!(error, DataDirError::Version { found, .. } if found.len() == 64));
}

#[test]
fn a_path_through_a_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.join("sub"), file] {
        let error = DataDir::open_or_create(&path).unwrap_err();
        assert!(matches!(error, DataDirError::Io { .. }), "{error:?}");
    }
}

#[test]
fn many_threads_may_make_the_same_folder() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| DataDir::open_or_create(&path).unwrap());
        }
    });
    assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
}

#[test]
fn a_kind_of_heads_is_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::open_or_create(dir.path()).unwrap();
    assert!(matches!(data.heads("../up"), Err(HeadsError::Name { .. })));
}

#[test]
fn a_lock_is_exclusive_until_it_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let lock = DirLock::acquire(dir.path()).unwrap();
    assert!(matches!(
        DirLock::acquire(dir.path()),
        Err(LockError::InUse { .. })
    ));
    drop(lock);
    DirLock::acquire(dir.path()).unwrap();
}

#[test]
fn locking_a_missing_folder_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    assert!(matches!(
        DirLock::acquire(&missing),
        Err(LockError::Io { .. })
    ));
}
