//! Goal: what comes back is what was put, or an error that says why not.
//! Method: every case runs on a folder and in memory; then the folder's files
//! are changed behind the store's back.

use std::path::PathBuf;

use super::*;

#[test]
fn a_put_object_comes_back_and_has_the_hash_as_its_name() {
    let dir = tempfile::tempdir().unwrap();
    for objects in [
        Objects::memory(),
        Objects::local(&dir.path().join("a/b")).unwrap(),
    ] {
        for bytes in [Vec::new(), b"abc".to_vec(), vec![7; 100_000]] {
            let id = keccak256(&bytes);
            assert!(!objects.contains(id).unwrap());
            assert_eq!(objects.put(bytes.clone()).unwrap(), id);
            assert_eq!(objects.put(bytes.clone()).unwrap(), id);
            assert!(objects.contains(id).unwrap());
            assert_eq!(objects.get(id, bytes.len() as u64).unwrap(), bytes);
        }
    }
}

#[test]
fn the_path_is_sharded_by_the_first_byte() {
    let path = object_path(keccak256("abc"));
    let expected = "4e/03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45";
    assert_eq!(path.as_ref(), expected);
}

#[test]
fn a_missing_object_is_not_found() {
    let id = B256::repeat_byte(1);
    let error = Objects::memory().get(id, 1).unwrap_err();
    assert!(matches!(error, ObjectsError::NotFound { id: found } if found == id));
}

#[test]
fn an_object_over_the_limit_is_refused() {
    let objects = Objects::memory();
    let id = objects.put("four").unwrap();
    let error = objects.get(id, 3).unwrap_err();
    assert!(matches!(
        error,
        ObjectsError::TooLarge {
            size_bytes: 4,
            max_size_bytes: 3,
            ..
        }
    ));
}

fn local_with_one_object() -> (tempfile::TempDir, Objects, B256, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let objects = Objects::local(dir.path()).unwrap();
    let id = objects.put("true").unwrap();
    let path = dir.path().join(object_path(id).as_ref());
    (dir, objects, id, path)
}

#[test]
fn changed_bytes_are_named_and_a_put_repairs_them() {
    let (_dir, objects, id, path) = local_with_one_object();
    std::fs::write(path, "lie!").unwrap();
    let error = objects.get(id, 100).unwrap_err();
    let lie = keccak256("lie!");
    assert!(
        matches!(error, ObjectsError::Tampered { expected, found } if expected == id && found == lie)
    );
    objects.put("true").unwrap();
    assert_eq!(objects.get(id, 100).unwrap(), "true");
}

#[test]
fn leftovers_of_a_crashed_put_are_in_nobodys_way() {
    let (_dir, objects, id, path) = local_with_one_object();
    // The name of the store's temporary file; a process died before the rename.
    std::fs::write(format!("{}#1", path.display()), "tr").unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(!objects.contains(id).unwrap());
    objects.put("true").unwrap();
    assert_eq!(objects.get(id, 100).unwrap(), "true");
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(
        Objects::local(&file.join("sub")),
        Err(ObjectsError::Store(_))
    ));
}

#[tokio::test]
async fn calls_from_async_code_do_not_panic() {
    let (_dir, objects, id, _) = local_with_one_object();
    let task = tokio::task::spawn_blocking(move || objects.get(id, 100));
    assert_eq!(task.await.unwrap().unwrap(), "true");
}

#[test]
fn many_threads_may_put_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let objects = Objects::local(dir.path()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for i in 0..10_u8 {
                    objects.put(vec![i; 1_000]).unwrap();
                }
            });
        }
    });
    for i in 0..10_u8 {
        assert_eq!(
            objects.get(keccak256([i; 1_000]), 1_000).unwrap(),
            vec![i; 1_000]
        );
    }
}
