//! Goal: the list of metrics, the document and what is recorded agree.
//! Method: the table of the document is compared with the list; a node takes
//! and refuses transactions, and what is shown is read back line by line.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ol_node::Genesis;
use ol_runtime::ManualClock;

use super::*;

#[test]
fn the_document_lists_every_metric() {
    let document = include_str!("../../../../docs/metrics.md");
    let rows: BTreeMap<&str, Vec<&str>> = document
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            (cells[0].trim_matches('`'), cells)
        })
        .collect();
    for metric in all() {
        let kind = format!("{:?}", metric.kind).to_lowercase();
        let expected = [
            format!("`{}`", metric.name),
            kind,
            metric.labels.join(", "),
            metric.help.to_owned(),
        ];
        let found = rows.get(metric.name);
        let row = expected.join(" | ");
        assert!(
            found.is_some_and(|found| *found == expected),
            "docs/metrics.md needs the row\n| {row} |"
        );
    }
    assert_eq!(rows.len(), all().count(), "a row names no metric");
}

#[test]
fn names_are_unique_and_say_area_and_unit() {
    let names: BTreeSet<&str> = all().map(|metric| metric.name).collect();
    assert_eq!(names.len(), all().count());
    for metric in all() {
        let is_ours = metric.name.starts_with("openledger_") || metric.name.starts_with("process_");
        assert!(is_ours, "{}", metric.name);
        let is_total = metric.name.ends_with("_total");
        assert_eq!(
            is_total,
            metric.kind == MetricKind::Counter,
            "{}",
            metric.name
        );
        let is_time = metric.name.ends_with("_seconds");
        assert!(
            metric.kind != MetricKind::Histogram || is_time,
            "{}",
            metric.name
        );
    }
}

/// Series by name and labels, as text.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let lines = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[test]
fn what_a_node_does_is_shown() {
    let exporter = Exporter::global().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut genesis = Genesis::default();
    genesis.config.chain_id = 161_200;
    genesis.base_fee_per_gas = Some(7);
    let clock = Arc::new(ManualClock::new(1_700_000_000));
    let node = Node::open(dir.path(), &genesis, clock).unwrap();
    exporter.watch(node.clone(), None);
    node.submit(&[0x7d]).unwrap_err();
    rpc_answered("eth_call", None, 0.002);
    rpc_answered("eth_call", Some(3), 0.000_01);
    rpc_answered("unknown", Some(-32_601), 100.0);
    let open = Open::connection("rpc");

    let series = parse(&exporter.render());
    let value = |name: &str| series.get(name).copied();
    assert_eq!(value("openledger_chain_head_number"), Some(0.0));
    assert_eq!(value("openledger_chain_base_fee_wei"), Some(7.0));
    assert!(value("openledger_store_size_bytes").unwrap() > 4_096.0);
    assert!(value("process_resident_memory_bytes").unwrap() > 1e6);
    let rejected = "openledger_pool_rejected_total{reason=\"type\"}";
    assert_eq!(value(rejected), Some(1.0));
    let calls = |rest: &str| value(&format!("openledger_rpc_request{rest}"));
    assert_eq!(
        calls("s_total{method=\"eth_call\",outcome=\"ok\"}"),
        Some(1.0)
    );
    assert_eq!(
        calls("s_total{method=\"eth_call\",outcome=\"reverted\"}"),
        Some(1.0)
    );
    assert_eq!(
        calls("_seconds_bucket{method=\"eth_call\",le=\"0.0001\"}"),
        Some(1.0)
    );
    assert_eq!(
        calls("_seconds_bucket{method=\"eth_call\",le=\"0.0025\"}"),
        Some(2.0)
    );
    assert_eq!(
        calls("_seconds_bucket{method=\"unknown\",le=\"10\"}"),
        Some(0.0)
    );
    assert_eq!(
        calls("_seconds_bucket{method=\"unknown\",le=\"+Inf\"}"),
        Some(1.0)
    );
    let connections = "openledger_http_connections{server=\"rpc\"}";
    assert_eq!(value(connections), Some(1.0));
    drop(open);
    assert_eq!(parse(&exporter.render())[connections], 0.0);

    // Nothing is shown that is not on the list.
    let known: BTreeSet<&str> = all().map(|metric| metric.name).collect();
    for series in series.keys() {
        let name = series.split('{').next().unwrap();
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(name);
        assert!(known.contains(base), "{series}");
    }
    exporter.forget();
}
