//! Goal: a genesis means the forks it names, and one that cannot be followed
//! is refused by name.
//! Method: mainnet's configuration, then one defect at a time.

use super::*;

fn mainnet() -> ChainConfig {
    ChainConfig {
        chain_id: 1,
        homestead_block: Some(1_150_000),
        dao_fork_block: Some(1_920_000),
        dao_fork_support: true,
        eip150_block: Some(2_463_000),
        eip155_block: Some(2_675_000),
        eip158_block: Some(2_675_000),
        byzantium_block: Some(4_370_000),
        constantinople_block: Some(7_280_000),
        petersburg_block: Some(7_280_000),
        istanbul_block: Some(9_069_000),
        muir_glacier_block: Some(9_200_000),
        berlin_block: Some(12_244_000),
        london_block: Some(12_965_000),
        arrow_glacier_block: Some(13_773_000),
        gray_glacier_block: Some(15_050_000),
        terminal_total_difficulty: Some(U256::from(58_750_000_000_000_000_000_000_u128)),
        shanghai_time: Some(1_681_338_455),
        cancun_time: Some(1_710_338_135),
        prague_time: Some(1_746_612_311),
        ..ChainConfig::default()
    }
}

fn header(number: u64, timestamp: u64, difficulty: u64) -> Header {
    Header {
        number,
        timestamp,
        difficulty: U256::from(difficulty),
        ..Header::default()
    }
}

#[test]
fn mainnet_has_its_forks() {
    let rules = EthereumRules::new(&mainnet()).unwrap();
    let cases = [
        (0, 0, 1, EthereumHardfork::Frontier, SpecId::FRONTIER),
        (
            1_150_000,
            0,
            1,
            EthereumHardfork::Homestead,
            SpecId::HOMESTEAD,
        ),
        (
            2_462_999,
            0,
            1,
            EthereumHardfork::Homestead,
            SpecId::HOMESTEAD,
        ),
        (
            7_280_000,
            0,
            1,
            EthereumHardfork::Petersburg,
            SpecId::PETERSBURG,
        ),
        (
            9_200_000,
            0,
            1,
            EthereumHardfork::MuirGlacier,
            SpecId::ISTANBUL,
        ),
        (
            15_537_393,
            0,
            1,
            EthereumHardfork::GrayGlacier,
            SpecId::LONDON,
        ),
        (
            15_537_394,
            1_663_224_179,
            0,
            EthereumHardfork::Paris,
            SpecId::MERGE,
        ),
        (
            17_034_870,
            1_681_338_455,
            0,
            EthereumHardfork::Shanghai,
            SpecId::SHANGHAI,
        ),
        (
            19_426_587,
            1_710_338_135,
            0,
            EthereumHardfork::Cancun,
            SpecId::CANCUN,
        ),
        (
            22_431_084,
            1_746_612_311,
            0,
            EthereumHardfork::Prague,
            SpecId::PRAGUE,
        ),
    ];
    for (number, timestamp, difficulty, fork, spec_id) in cases {
        let block = rules.for_block(&header(number, timestamp, difficulty));
        assert_eq!(block.fork, fork, "block {number}");
        assert_eq!(super::spec_id(block.fork), spec_id, "block {number}");
        assert_eq!(block.is_dao_fork, number == 1_920_000);
    }
    assert_eq!(rules.dao_extra_data(1_919_999), None);
    assert_eq!(rules.dao_extra_data(1_920_000), Some(true));
    assert_eq!(rules.dao_extra_data(1_920_009), Some(true));
    assert_eq!(rules.dao_extra_data(1_920_010), None);
    assert_eq!(rules.blob_params(EthereumHardfork::Shanghai), None);
    let most = |fork| rules.blob_params(fork).map(|blobs| blobs.max_blob_count);
    assert_eq!(most(EthereumHardfork::Cancun), Some(6));
    assert_eq!(most(EthereumHardfork::Prague), Some(9));
}

#[test]
fn a_genesis_without_forks_is_ours() {
    assert_eq!(
        Rules::of_genesis(&ChainConfig::default()),
        Ok(Rules::OpenLedger)
    );
    let rules = Rules::of_genesis(&mainnet()).unwrap();
    assert!(matches!(rules, Rules::Ethereum(_)));
    let mut config = mainnet();
    config
        .extra_fields
        .insert("bedrockBlock".to_owned(), 0.into());
    let error = Rules::of_genesis(&config).unwrap_err();
    assert!(error.to_string().contains("Jovian"), "{error}");
    config
        .extra_fields
        .insert("jovianTime".to_owned(), 0.into());
    assert_eq!(Rules::of_genesis(&config), Ok(Rules::OpenLedger));
}

#[test]
fn what_cannot_be_followed_is_named() {
    type Change = fn(&mut ChainConfig);
    let cases: [(Change, &str); 8] = [
        (|c| c.osaka_time = Some(1_764_798_551), "Osaka"),
        (|c| c.bpo1_time = Some(1), "BPO1"),
        (|c| c.eip155_block = Some(5), "EIP-155"),
        (|c| c.byzantium_block = None, "Byzantium"),
        (|c| c.berlin_block = Some(9_199_999), "MuirGlacier"),
        (|c| c.cancun_time = None, "Cancun"),
        (|c| c.terminal_total_difficulty = None, "Paris"),
        (
            |c| {
                c.london_block = None;
                c.arrow_glacier_block = None;
                c.gray_glacier_block = None;
            },
            "London",
        ),
    ];
    for (change, named) in cases {
        let mut config = mainnet();
        change(&mut config);
        let error = EthereumRules::new(&config).unwrap_err().to_string();
        assert!(error.contains(named), "{error} should name {named}");
    }
}
