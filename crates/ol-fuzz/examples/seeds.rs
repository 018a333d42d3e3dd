//! Writes the seeds of all fuzz targets: one small, valid input of every kind.
//! `cargo run --release -p ol-fuzz --example seeds -- fuzz/seeds`

#![expect(clippy::unwrap_used, reason = "a program that is run by hand")]

use std::fs;
use std::path::{Path, PathBuf};

use alloy_consensus::{
    Block, BlockBody, Receipt, ReceiptEnvelope, SignableTransaction, TxEip1559, TxEip2930,
    TxEip4844, TxEip7702, TxLegacy,
};
use alloy_eips::eip2718::Encodable2718 as _;
use alloy_eips::eip2930::{AccessList, AccessListItem};
use alloy_eips::eip7702::Authorization;
use alloy_primitives::{Address, B256, Bytes, Log, Signature, TxKind, U256, hex, keccak256};
use alloy_signer::SignerSync as _;
use alloy_signer_local::PrivateKeySigner;
use ol_evm::{Header, Transaction, TransactionReceipt};
use ol_model::{
    Dtype, Family, Format, GgufTokenizer, Lora, LoraConfig, Model, ModelConfig, Projection,
    SlidingWindow, TokenKind, Tokenizer,
};
use ol_server::evidence::{Passage, Sources, gather};
use ol_spans::{BuildOptions, Corpus, RecordRef, Store};

const TO: Address = Address::repeat_byte(0x11);

fn main() {
    let root = PathBuf::from(std::env::args().nth(1).unwrap());
    let transactions = transactions();
    for (name, transaction) in &transactions {
        let raw = transaction.encoded_2718();
        write(&root, "transaction", name, &raw);
        write(&root, "submit", name, &raw);
    }
    write(&root, "submit", "post-exec", &[0x7d, 0xc0]);
    blocks(&root, &transactions);
    receipts(&root);
    requests(
        &root,
        &hex::encode_prefixed(transactions[2].1.encoded_2718()),
    );
    geneses(&root);
    code(&root);
    tries(&root);
    models(&root);
    adapters(&root);
    ggufs(&root);
    spans(&root);
}

/// An index of three records, spans with holders, and evidence.
fn spans(root: &Path) {
    let text = |n: u32| -> Vec<u32> { (0..20).map(|i| (i * i + n * i) % 16).collect() };
    let record = |n: u8| RecordRef {
        hash: keccak256([n]),
        contributor: Address::repeat_byte(n + 1),
        cluster: u32::from(n / 2),
    };
    for (name, vocabulary_size) in [("narrow", 16), ("spare", 40)] {
        let corpus = Corpus {
            manifest: keccak256("manifest"),
            tokenizer: keccak256("tokenizer"),
            vocabulary_size,
            versions: vec![1, 3],
            records: (0..3).map(record).collect(),
        };
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut tokens = |record: &RecordRef| Ok(vec![text(record.cluster), vec![1, 2]]);
        let options = BuildOptions::default();
        store
            .update(&corpus, &options, &mut tokens, &mut |_| ())
            .unwrap();
        let file = |extension: &str| {
            let mut files = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
            fs::read(
                files
                    .find(|p| p.extension().is_some_and(|e| e == extension))
                    .unwrap(),
            )
            .unwrap()
        };
        let bytes = joined(&[&file("corpus"), &file("shard")]);
        write(root, "spans", name, &bytes);
    }
    let table: Vec<u8> = (0..8_u16).flat_map(|i| (9_000 + i).to_le_bytes()).collect();
    let answer = [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7];
    let spans = [[0, 0, 6, 0, 2, 1, 5, 9], [4, 0, 8, 0, 1, 3, 7, 9]].concat();
    write(
        root,
        "span_units",
        "overlap",
        &joined(&[&table, &[&answer[..], &spans].concat()]),
    );
    let passages = [Passage {
        version: keccak256("version"),
        record: keccak256("record"),
        cluster: 0,
        contributor: Address::repeat_byte(3),
        start: 0,
        end: 6,
        drop_millinats: 1 << 20,
    }];
    let tokenizer = Tokenizer::train(["a text".to_owned()].into_iter(), 260).unwrap();
    let sources = Sources {
        tokenizer: &tokenizer,
        spans: None,
        passages: &passages,
    };
    let gathered = gather(&[1, 2, 3], &sources).unwrap();
    write(root, "evidence", "lists", &gathered.evidence.to_bytes());
    write(root, "evidence", "passages", &gathered.object);
    let spans = r#"{"format":"openledger-evidence-2","n_tokens":9,"spans":{"corpus":"0x1111111111111111111111111111111111111111111111111111111111111111","total_units":90000000,"runs":[{"start":2,"tokens":[5,6,7]}],"found":[{"start":2,"len":3,"since":1,"text":[4,9],"units":7000000,"holders":[{"cluster":1,"contributor":"0x0101010101010101010101010101010101010101","record":"0x2222222222222222222222222222222222222222222222222222222222222222"}]}]}}"#;
    write(root, "evidence", "spans", spans.as_bytes());
}

/// GGUF files of a few kilobytes.
fn ggufs(root: &Path) {
    let config = ModelConfig {
        vocab_size: 8,
        hidden_size: 32,
        intermediate_size: 32,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 16,
        max_position_embeddings: 16,
        ..ModelConfig::default_base()
    };
    let tokenizer = GgufTokenizer {
        model: "gpt2".to_owned(),
        pre: Some("llama-bpe".to_owned()),
        tokens: (0..8).map(|i| format!("t{i}")).collect(),
        scores: vec![0.0; 8],
        kinds: vec![TokenKind::Normal; 8],
        merges: vec!["t 1".to_owned()],
        bos: Some(0),
        eos: Some(7),
        eot: None,
        unknown: None,
        padding: None,
        add_bos: Some(true),
        add_eos: None,
        add_space_prefix: None,
        chat_template: Some("{{ messages }}".to_owned()),
    };
    let model = Model::random(config, 1).unwrap();
    for (name, format) in [("q8_0", Format::Q8_0), ("q4_0", Format::Q4_0)] {
        let folder = root.join("gguf");
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(name);
        model.save_gguf(&path, format, Some(&tokenizer)).unwrap();
    }
}

fn write(root: &Path, target: &str, name: &str, bytes: &[u8]) {
    let folder = root.join(target);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), bytes).unwrap();
}

fn signer() -> PrivateKeySigner {
    ol_types::DEV_MNEMONIC_KEYS[4].parse().unwrap()
}

fn signed<T>(transaction: T) -> Transaction
where
    T: SignableTransaction<Signature>,
    Transaction: From<alloy_consensus::Signed<T>>,
{
    let hash = transaction.signature_hash();
    let signature = signer().sign_hash_sync(&hash).unwrap();
    transaction.into_signed(signature).into()
}

fn transactions() -> Vec<(&'static str, Transaction)> {
    let chain_id = ol_types::DEV_CHAIN_ID;
    let access_list = AccessList(vec![AccessListItem {
        address: TO,
        storage_keys: vec![B256::repeat_byte(1)],
    }]);
    let authorization = Authorization {
        chain_id: U256::from(chain_id),
        address: TO,
        nonce: 1,
    };
    let signature = signer()
        .sign_hash_sync(&authorization.signature_hash())
        .unwrap();
    let legacy = TxLegacy {
        chain_id: Some(chain_id),
        gas_price: 2_000_000_000,
        gas_limit: 21_000,
        to: TxKind::Call(TO),
        value: U256::from(1),
        ..TxLegacy::default()
    };
    let before_155 = TxLegacy {
        chain_id: None,
        ..legacy.clone()
    };
    let dynamic = TxEip1559 {
        chain_id,
        gas_limit: 100_000,
        max_fee_per_gas: 2_000_000_000,
        max_priority_fee_per_gas: 1,
        to: TxKind::Create,
        input: Bytes::from_static(&[0x5f, 0x5f, 0xf3]),
        ..TxEip1559::default()
    };
    let listed = TxEip2930 {
        chain_id,
        gas_price: 2_000_000_000,
        gas_limit: 50_000,
        to: TxKind::Call(TO),
        access_list: access_list.clone(),
        ..TxEip2930::default()
    };
    let delegating = TxEip7702 {
        chain_id,
        gas_limit: 100_000,
        max_fee_per_gas: 2_000_000_000,
        to: TO,
        authorization_list: vec![authorization.into_signed(signature)],
        ..TxEip7702::default()
    };
    let blob = TxEip4844 {
        chain_id,
        gas_limit: 21_000,
        max_fee_per_gas: 2_000_000_000,
        max_fee_per_blob_gas: 1,
        to: TO,
        blob_versioned_hashes: vec![B256::with_last_byte(1)],
        access_list,
        ..TxEip4844::default()
    };
    vec![
        ("legacy", signed(legacy)),
        ("listed", signed(listed)),
        ("dynamic", signed(dynamic)),
        ("delegating", signed(delegating)),
        ("before-155", signed(before_155)),
        ("blob", signed(blob)),
    ]
}

fn header() -> Header {
    Header {
        number: 1,
        gas_limit: 60_000_000,
        timestamp: 1_700_000_000,
        base_fee_per_gas: Some(1_000_000_000),
        withdrawals_root: Some(B256::ZERO),
        blob_gas_used: Some(0),
        excess_blob_gas: Some(0),
        parent_beacon_block_root: Some(B256::ZERO),
        requests_hash: Some(B256::ZERO),
        ..Header::default()
    }
}

fn blocks(root: &Path, transactions: &[(&str, Transaction)]) {
    write(root, "block", "header", &alloy_rlp::encode(header()));
    write(
        root,
        "block",
        "header-frontier",
        &alloy_rlp::encode(Header::default()),
    );
    let block = Block {
        header: header(),
        body: BlockBody {
            transactions: transactions.iter().map(|(_, t)| t.clone()).collect(),
            ommers: vec![],
            withdrawals: Some(Default::default()),
        },
    };
    write(root, "block", "block", &alloy_rlp::encode(block));
}

fn receipts(root: &Path) {
    let receipt = Receipt {
        status: true.into(),
        cumulative_gas_used: 21_000,
        logs: vec![Log::new_unchecked(
            TO,
            vec![B256::repeat_byte(2)],
            Bytes::from_static(b"data"),
        )],
    };
    let bloomed = receipt.with_bloom();
    let all = [
        ("legacy", ReceiptEnvelope::Legacy(bloomed.clone())),
        ("listed", ReceiptEnvelope::Eip2930(bloomed.clone())),
        ("dynamic", ReceiptEnvelope::Eip1559(bloomed.clone())),
        ("blob", ReceiptEnvelope::Eip4844(bloomed.clone())),
        ("delegating", ReceiptEnvelope::Eip7702(bloomed)),
    ];
    for (name, receipt) in all {
        let receipt = TransactionReceipt::Ethereum(receipt);
        write(root, "receipt", name, &receipt.encoded_2718());
    }
}

fn requests(root: &Path, raw: &str) {
    let account = "0x15d34aaf54267db7d7c367839aaf71a00a2c6a65";
    let word = format!("0x{}", "11".repeat(32));
    let call = format!(r#"{{"from":"{account}","to":"{TO}","value":"0x1","data":"0x01"}}"#);
    let filter = format!(
        r#"{{"fromBlock":"0x0","toBlock":"latest","address":["{TO}"],"topics":[null,["{word}"]]}}"#
    );
    let overrides = format!(
        r#"{{"{TO}":{{"balance":"0x1","code":"0x5f5ff3","stateDiff":{{"{word}":"{word}"}}}}}}"#
    );
    let seeds = [
        ("eth_blockNumber", "[]".to_owned()),
        ("eth_getBalance", format!(r#"["{account}","latest"]"#)),
        (
            "eth_getBalance",
            format!(r#"["{account}",{{"blockHash":"{word}"}}]"#),
        ),
        ("eth_getStorageAt", format!(r#"["{TO}","0x0","pending"]"#)),
        (
            "eth_getProof",
            format!(r#"["{TO}",["0x0","{word}"],"latest"]"#),
        ),
        ("eth_getBlockByNumber", r#"["0x0",true]"#.to_owned()),
        ("eth_getBlockByHash", format!(r#"["{word}",false]"#)),
        ("eth_getBlockReceipts", r#"["earliest"]"#.to_owned()),
        ("eth_getTransactionByHash", format!(r#"["{word}"]"#)),
        ("eth_getTransactionReceipt", format!(r#"["{word}"]"#)),
        ("eth_call", format!(r#"[{call},"latest"]"#)),
        ("eth_call", format!(r#"[{call},"latest",{overrides}]"#)),
        ("eth_estimateGas", format!("[{call}]")),
        ("eth_createAccessList", format!("[{call},\"latest\"]")),
        (
            "eth_simulateV1",
            format!(
                r#"[{{"blockStateCalls":[{{"calls":[{call}],"stateOverrides":{overrides}}}]}},"latest"]"#
            ),
        ),
        ("eth_feeHistory", r#"["0x4","latest",[25,50.5]]"#.to_owned()),
        ("eth_getLogs", format!("[{filter}]")),
        ("eth_newFilter", format!("[{filter}]")),
        ("eth_getFilterChanges", r#"["0x1"]"#.to_owned()),
        ("eth_sendRawTransaction", format!(r#"["{raw}"]"#)),
        ("eth_sendRawTransaction", r#"["0x7dc0"]"#.to_owned()),
        (
            "debug_traceCall",
            format!(
                r#"[{call},"latest",{{"tracer":"callTracer","tracerConfig":{{"onlyTopCall":true}}}}]"#
            ),
        ),
        (
            "debug_traceTransaction",
            format!(r#"["{word}",{{"tracer":"prestateTracer"}}]"#),
        ),
        ("debug_traceBlockByNumber", r#"["0x0",{}]"#.to_owned()),
        ("trace_block", r#"["0x0"]"#.to_owned()),
        (
            "trace_filter",
            r#"[{"fromBlock":"0x0","count":1}]"#.to_owned(),
        ),
        ("txpool_content", "[]".to_owned()),
        ("web3_sha3", r#"["0x00"]"#.to_owned()),
    ];
    for (number, (name, params)) in seeds.iter().enumerate() {
        let file = format!("{number:02}-{name}");
        write(root, "method", &file, format!("{name}{params}").as_bytes());
        let request = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{name}","params":{params}}}"#);
        write(root, "rpc", &file, request.as_bytes());
    }
    let odd = [
        (
            "batch",
            r#"[{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}]"#.to_owned(),
        ),
        ("deep", format!("{}{}", "[".repeat(300), "]".repeat(300))),
        (
            "number",
            r#"{"jsonrpc":"2.0","id":1e999,"method":"eth_chainId"}"#.to_owned(),
        ),
        (
            "notification",
            r#"{"jsonrpc":"2.0","method":"eth_chainId"}"#.to_owned(),
        ),
    ];
    for (name, request) in odd {
        write(root, "rpc", name, request.as_bytes());
    }
}

fn geneses(root: &Path) {
    let small = r#"{"config":{"chainId":7},"gasLimit":"0x3938700","difficulty":"0x0","alloc":{"0x00000000000000000000000000000000000000aa":{"balance":"0x1","nonce":"0x1","code":"0x00","storage":{"0x01":"0x02"}}}}"#;
    write(root, "genesis", "small", small.as_bytes());
    let forks = r#"{"config":{"chainId":1,"homesteadBlock":0,"eip150Block":0,"eip155Block":0,"eip158Block":0,"byzantiumBlock":0,"constantinopleBlock":0,"petersburgBlock":0,"istanbulBlock":0,"berlinBlock":0,"londonBlock":0,"terminalTotalDifficulty":0,"shanghaiTime":0,"cancunTime":5},"nonce":"0x42","timestamp":"0x5","extraData":"0x01","gasLimit":"0x1","difficulty":"0x1","mixHash":"0x0000000000000000000000000000000000000000000000000000000000000000","coinbase":"0x0000000000000000000000000000000000000000","alloc":{},"baseFeePerGas":"0x7"}"#;
    write(root, "genesis", "forks", forks.as_bytes());
}

fn code(root: &Path) {
    let code = |name: &str, code: &[u8], input: &[u8]| {
        let length = u16::try_from(code.len()).unwrap().to_be_bytes();
        write(root, "execute", name, &[&length, code, input].concat());
    };
    // Return the input; call itself for ever; grow memory for ever.
    code("echo", &hex!("365f5f37365ff3"), b"input");
    code("recurse", &hex!("5f5f5f5f5f305af1"), b"");
    code("grow", &hex!("5b59600101595f5f56"), b"");
    code("create", &hex!("60206000600060006000f0"), b"");
    code("precompiles", &hex!("5f5f60205f5f60015af1"), &[1; 128]);
    code("store", &hex!("600160015560015460025500"), b"");
}

/// Parts of an input, as the targets split them.
fn joined(parts: &[&[u8]]) -> Vec<u8> {
    let (_, most) = parts.split_last().unwrap();
    let lengths = most
        .iter()
        .flat_map(|p| u32::try_from(p.len()).unwrap().to_le_bytes());
    lengths.chain(parts.concat()).collect()
}

fn models(root: &Path) {
    let tiny = ModelConfig {
        vocab_size: 4,
        hidden_size: 4,
        intermediate_size: 4,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 2,
        max_position_embeddings: 16,
        ..ModelConfig::default_base()
    };
    let window = SlidingWindow {
        window_tokens: 3,
        layers: vec![true],
    };
    for (family, dtype, tied) in [
        (Family::Llama, Dtype::F32, true),
        (Family::Mistral, Dtype::Bf16, false),
        (Family::Qwen2, Dtype::F16, true),
        (Family::Qwen3, Dtype::Bf16, false),
    ] {
        let config = ModelConfig {
            family,
            tie_word_embeddings: tied,
            sliding_window: (family == Family::Mistral).then(|| window.clone()),
            ..tiny.clone()
        };
        let dir = tempfile::tempdir().unwrap();
        let model = Model::random(config, 1).unwrap();
        model.save(dir.path(), dtype).unwrap();
        let [config, weights] =
            ["config.json", "model.safetensors"].map(|f| fs::read(dir.path().join(f)).unwrap());
        let names = model.layout().tensors().iter().map(|s| s.name.clone());
        let map: serde_json::Map<String, serde_json::Value> =
            names.map(|n| (n, "model.safetensors".into())).collect();
        let index = serde_json::json!({ "weight_map": map }).to_string();
        let index = if tied { "" } else { index.as_str() };
        let bytes = joined(&[&config, index.as_bytes(), &weights]);
        write(root, "model", family.model_type(), &bytes);
    }
}

fn adapters(root: &Path) {
    let base = ol_fuzz::adapter_base();
    let some = LoraConfig {
        target_modules: vec![Projection::Q, Projection::Down],
        ..LoraConfig::all_linear(1)
    };
    let model = Model::random(base.clone(), 1).unwrap();
    let dora = LoraConfig {
        use_dora: true,
        module_pattern: Some(r".*\.0\..*".to_owned()),
        ..some.clone()
    };
    let patterns = LoraConfig {
        use_rslora: true,
        rank_pattern: [("q_proj".to_owned(), 2)].into(),
        alpha_pattern: [(r"0\.mlp\.down_proj".to_owned(), 3.0)].into(),
        ..some.clone()
    };
    let pool = ol_model::Pool::new(1);
    for (name, lora) in [
        ("plain", Lora::init(&base, some, 1).unwrap()),
        ("dora", model.fresh_adapter(&pool, dora, 1).unwrap()),
        ("patterns", Lora::init(&base, patterns, 1).unwrap()),
    ] {
        let (config, weights) = lora.to_bytes("base");
        write(root, "adapter", name, &joined(&[&config, &weights]));
        if !lora.config().use_dora {
            let folder = root.join("gguf_adapter");
            fs::create_dir_all(&folder).unwrap();
            let path = folder.join(name);
            lora.save_gguf(&path, &base, Dtype::F32).unwrap();
        }
    }
}

/// Changes of four bytes: two of the key, the length of the value with the end
/// of the block in the upper bits, and its bytes.
fn tries(root: &Path) {
    let put = |key: u16, length: u8, end: u8| {
        let [high, low] = key.to_be_bytes();
        [high, low, length | end, 0x42]
    };
    let grow: Vec<u8> = (0..32).flat_map(|n| put(n * 1_031, 40, 0)).collect();
    // Two deep neighbours, of which one goes: the branch collapses.
    let collapse = [
        put(0x0000, 1, 0),
        put(0x1000, 2, 0xc0),
        put(0x1000, 0, 0xc0),
        put(0x0001, 33, 0xc0),
        put(0x0000, 0, 0xc0),
        put(0x0001, 0, 0xc0),
    ];
    let again = [
        put(0x0020, 32, 0xc0),
        put(0x0020, 31, 0xc0),
        put(0x0021, 0, 0xc0),
    ];
    write(root, "trie", "grow", &grow);
    write(root, "trie", "collapse", collapse.as_flattened());
    write(root, "trie", "again", again.as_flattened());
}
