//! Datanets: records, duplicate clusters, versions with Merkle manifests.
