use proptest::prelude::*;

use super::*;

fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn parse(bytes: &[u8]) -> Result<Tensors<'_>, WeightsError> {
    Tensors::parse(Path::new("some.safetensors"), bytes)
}

#[test]
fn hostile_headers_are_refused_by_what_is_wrong() {
    let tensor =
        |shape: &str, at: &str| format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":{at}}}"#);
    let good = tensor("[2]", "[0,8]");
    for (bytes, word) in [
        (vec![1, 2, 3], "3 bytes hold no header"),
        (u64::MAX.to_le_bytes().to_vec(), "its header says"),
        (file("", 0), "its header"),
        (file("[]", 0), "an object of tensors"),
        (file("{}", 4), "0 bytes, the file holds 4"),
        (
            file(&format!(r#"{{"a":{good},"a":{good}}}"#), 8),
            "\"a\" twice",
        ),
        (
            file(&format!(r#"{{"a":{good},"b":{good}}}"#), 8),
            "expected is 8",
        ),
        (
            file(&format!(r#"{{"a":{}}}"#, tensor("[2]", "[4,12]")), 12),
            "expected is 0",
        ),
        (
            file(&format!(r#"{{"a":{}}}"#, tensor("[2]", "[8,0]")), 8),
            "8..0",
        ),
        (
            file(&format!(r#"{{"a":{}}}"#, tensor("[3]", "[0,8]")), 8),
            "has 8 bytes",
        ),
        (
            file(
                &format!(r#"{{"a":{}}}"#, tensor("[4294967296,4294967296]", "[0,8]")),
                8,
            ),
            "has shape",
        ),
        (file(&format!(r#"{{"a":{good}}}"#), 7), "8 bytes, the file"),
        (file(r#"{"a":{"dtype":"F32"}}"#, 0), "missing field"),
        (file(r#"{"__metadata__":{"a":1}}"#, 0), "its header"),
    ] {
        let error = parse(&bytes).map(|_| ()).unwrap_err().to_string();
        assert!(
            error.contains(word) && error.contains("some.safetensors"),
            "{word}: {error}"
        );
    }
}

#[test]
fn elements_are_read_by_range_and_must_be_finite() {
    let values: Vec<f32> = (0..6_i16).map(f32::from).collect();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let bytes = serialize(&[("m", &[3, 2], &values), ("a", &[1], &[9.0])], dtype).unwrap();
        let tensors = parse(&bytes).unwrap();
        let mut out = [0.0; 3];
        tensors.read("m", 2..5, &mut out).unwrap();
        assert_eq!(out, [2.0, 3.0, 4.0]);
        assert!(tensors.read("m", 4..7, &mut out).is_err());
        assert!(tensors.expect("m", &[2, 3]).is_err());
        assert_eq!(tensors.names().collect::<Vec<_>>(), ["a", "m"]);
    }
    let bytes = serialize(&[("m", &[1], &[1.0])], Dtype::F32).unwrap();
    let mut broken = bytes;
    let last = broken.len() - 1;
    broken[last - 1..].copy_from_slice(&[0x80, 0x7f]);
    let error = parse(&broken).unwrap().read("m", 0..1, &mut [0.0]);
    assert!(error.unwrap_err().to_string().contains("element 0 is inf"));
    assert_eq!(
        serialize(&[("m", &[2], &[1.0, 1e6])], Dtype::F16),
        Err(("m".to_owned(), 1))
    );
}

#[test]
fn files_are_those_of_the_reference_implementation() {
    let (b, a) = ([1.0_f32, 2.0], [3.0_f32; 3]);
    let ours = serialize(&[("b", &[1, 2], &b), ("a\"\\", &[3], &a)], Dtype::F32).unwrap();
    let bytes = |v: &[f32]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let (b, a) = (bytes(&b), bytes(&a));
    let view = |shape: Vec<usize>, data| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, data).unwrap()
    };
    let tensors = [("b", view(vec![1, 2], &b)), ("a\"\\", view(vec![3], &a))];
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    assert_eq!(
        safetensors::serialize(tensors, Some(metadata)).unwrap(),
        ours
    );

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let rows = |name: &str, row: usize, out: &mut [f32]| {
        out.fill(if name == "b" { 1.0 + row as f32 } else { 3.0 });
    };
    write_rows(&path, &[("b", &[2, 1]), ("a", &[3])], Dtype::F32, rows).unwrap();
    let same = serialize(
        &[("b", &[2, 1], &[1.0, 2.0]), ("a", &[3], &[3.0; 3])],
        Dtype::F32,
    );
    assert_eq!(std::fs::read(&path).unwrap(), same.unwrap());
    let large = |_: &str, _: usize, out: &mut [f32]| out.fill(1e30);
    let error = write_rows(&path, &[("b", &[1])], Dtype::F16, large).unwrap_err();
    assert!(error.to_string().contains("cannot be stored as F16"));
    assert!(!dir.path().join("x.safetensors.tmp").exists());
}

proptest! {
    #[test]
    fn any_bytes_are_a_file_or_an_error(bytes: Vec<u8>, header in "\\PC{0,80}") {
        let _ = parse(&bytes).map(|_| ());
        let _ = parse(&file(&header, bytes.len())).map(|_| ());
    }
}
