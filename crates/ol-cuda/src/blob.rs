//! The compiled kernels, and the proof that they are those of the source.

/// PTX of `kernels/kernels.cu` for compute capability 8.0; the driver translates
/// it for the chip it finds.
pub(crate) const PTX: &str = include_str!("../kernels/kernels.ptx");

#[cfg(test)]
mod tests {
    use ol_types::keccak256;

    /// Sources in the order in which `kernels/build.sh` names them.
    const SOURCES: &[u8] = concat!(
        include_str!("../kernels/kernels.h"),
        include_str!("../kernels/kernels.cu")
    )
    .as_bytes();

    #[test]
    fn the_blob_was_built_from_these_sources() {
        let recorded = include_str!("../kernels/kernels.hash");
        let mut fields = recorded.split_whitespace();
        let hint = "run crates/ol-cuda/kernels/build.sh";
        assert_eq!(
            fields.next(),
            Some(keccak256(SOURCES).to_string().as_str()),
            "kernels.cu or kernels.h changed: {hint}"
        );
        assert_eq!(
            fields.next(),
            Some(keccak256(super::PTX.as_bytes()).to_string().as_str()),
            "kernels.ptx is not the one recorded: {hint}"
        );
    }

    #[test]
    fn every_kernel_is_in_the_blob() {
        for kernel in crate::Kernel::ALL {
            assert!(
                super::PTX.contains(&format!(".entry {}(", kernel.name())),
                "{}",
                kernel.name()
            );
        }
    }
}
