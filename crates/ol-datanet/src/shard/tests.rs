//! Goal: records come back as they went in, in the same bytes each time; and no
//! file, however broken, does more than return an error.

use proptest::prelude::*;

use super::*;
use crate::record::tests::committed;

fn encode(n: usize) -> Bytes {
    let records: Vec<_> = (0..n).map(committed).collect();
    encode_shard(&records).unwrap().into()
}

#[test]
fn records_come_back_and_the_bytes_are_the_same_each_time() {
    for n in [1, 2, 100, SHARD_RECORDS_MAX] {
        let records: Vec<_> = (0..n).map(committed).collect();
        let bytes = encode(n);
        assert_eq!(encode(n), bytes);
        assert_eq!(decode_shard(bytes, n as u64).unwrap(), records);
    }
}

#[test]
fn a_number_of_rows_that_is_not_the_manifests_is_refused() {
    for n_records in [0, 2, 4, u64::MAX] {
        assert!(decode_shard(encode(3), n_records).is_err(), "{n_records}");
    }
}

#[test]
fn other_columns_are_refused() {
    let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Utf8, false)]));
    let column: ArrayRef = Arc::new(StringArray::from_iter_values(["a"]));
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![column]).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, None).unwrap();
    writer.write(&batch).unwrap();
    let error = decode_shard(writer.into_inner().unwrap().into(), 1).unwrap_err();
    assert!(error.to_string().contains("columns"), "{error}");
}

#[test]
fn a_file_that_unpacks_to_too_much_is_refused_before_it_is_unpacked() {
    // Four thousand records of 20,000 equal bytes: small packed, 80 MB unpacked.
    let mut record = committed(0);
    let records: Vec<_> = (0..SHARD_RECORDS_MAX)
        .map(|i| {
            record.record.answer = format!("{i} {}", "a".repeat(20_000));
            record.clone()
        })
        .collect();
    let bytes = Bytes::from(encode_shard(&records).unwrap());
    assert!(bytes.len() < 1_000_000);
    let error = decode_shard(bytes, SHARD_RECORDS_MAX as u64).unwrap_err();
    assert!(error.to_string().contains("unpack"), "{error}");
}

/// Writes records as another writer might: valid Parquet, other settings.
fn encode_with(records: &[CommittedRecord], properties: WriterProperties) -> Bytes {
    let mut writer = ArrowWriter::try_new(Vec::new(), schema(), Some(properties)).unwrap();
    writer.write(&batch(records).unwrap()).unwrap();
    writer.into_inner().unwrap().into()
}

#[test]
fn a_dictionary_that_stands_for_too_much_text_is_refused() {
    // One answer of a megabyte in a dictionary, named by a hundred rows.
    let mut record = committed(0);
    record.record.answer = "a".repeat(1_000_000);
    let records = vec![record; 100];
    let properties = || {
        let level = ZstdLevel::try_new(1).unwrap();
        WriterProperties::builder()
            .set_compression(Compression::ZSTD(level))
            .set_dictionary_page_size_limit(10_000_000)
            .set_statistics_enabled(EnabledStatistics::None)
    };
    let bytes = encode_with(&records, properties().build());
    let error = decode_shard(bytes, 100).unwrap_err();
    assert!(
        error.to_string().contains("records are too large"),
        "{error}"
    );

    let bytes = encode_with(&records[..3], properties().build());
    assert_eq!(decode_shard(bytes, 3).unwrap(), records[..3]);
    // A newer kind of page, which shards do not use.
    let newer = properties()
        .set_writer_version(WriterVersion::PARQUET_2_0)
        .build();
    assert!(decode_shard(encode_with(&records[..3], newer), 3).is_err());
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = encode(3);
    for end in 0..bytes.len() {
        assert!(decode_shard(bytes.slice(..end), 3).is_err(), "{end} bytes");
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut framed = b"PAR1".to_vec();
        framed.extend_from_slice(&bytes);
        // A plausible length of the footer, so that its decoder sees the bytes.
        framed.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_le_bytes());
        framed.extend_from_slice(b"PAR1");
        prop_assert!(decode_shard(bytes.into(), 1).is_err());
        prop_assert!(decode_shard(framed.into(), 1).is_err());
    }

    #[test]
    fn changed_bytes_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
    ) {
        let mut bytes = encode(3).to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        // Some bytes mean nothing, so success is possible; the hash, checked
        // before decoding, tells the difference.
        let _ = decode_shard(bytes.into(), 3);
    }
}
