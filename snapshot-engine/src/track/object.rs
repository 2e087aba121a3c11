//! The eBPF object inside the engine's own file.
//!
//! `build.rs` puts it there; `cargo xtask ebpf` makes it.

/// The bytes that `build.rs` found. Empty when there was no object to find. Aligned, because the ELF reader
/// casts headers in place.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/snapshot-ebpf.o"));

/// This engine carries no eBPF programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("built without eBPF programs; run `cargo xtask ebpf` and build again")]
pub struct Missing;

/// The eBPF object (ELF, with BTF) for this machine's byte order.
///
/// # Errors
///
/// [`Missing`] when the engine was built before the object was.
pub fn object() -> Result<&'static [u8], Missing> {
    present(OBJECT)
}

fn present(bytes: &[u8]) -> Result<&[u8], Missing> {
    if bytes.is_empty() { Err(Missing) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_object_is_missing_and_says_the_remedy() {
        assert_eq!(present(&[]), Err(Missing));
        assert!(Missing.to_string().contains("cargo xtask ebpf"));
    }

    #[test]
    fn what_is_embedded_is_an_aligned_elf_file_for_bpf() {
        const EM_BPF: [u8; 2] = 247u16.to_ne_bytes();
        let Ok(bytes) = object() else {
            // `cargo xtask test` builds the programs first and demands them; a bare `cargo test` may lack them.
            assert!(std::env::var_os("SNAPSHOT_REQUIRE_JUDGES").is_none(), "{Missing}");
            return;
        };
        assert_eq!(&bytes[..4], b"\x7fELF");
        assert_eq!(bytes[18..20], EM_BPF);
        assert_eq!(bytes.as_ptr().addr() % 8, 0);
    }
}
