//! Atomics the BPF target has in its instruction set but not in `core`: the fetching forms, which are full barriers
//! (without BPF_FETCH arm64 would give no ordering; kernel Documentation/bpf/standardization/instruction-set.rst).

/// `*p += v`, giving the old value.
///
/// # Safety
/// `p` points to an aligned u64 in a map value.
#[inline(always)]
pub unsafe fn fetch_add(p: *mut u64, v: u64) -> u64 {
    let mut old = v;
    // SAFETY: the caller vouches for `p`; the verifier checks it again.
    unsafe {
        core::arch::asm!("{v} = atomic_fetch_add((u64 *)({p} + 0), {v})", p = in(reg) p, v = inout(reg) old)
    };
    old
}

/// `*p |= v`, giving the old value.
///
/// # Safety
/// As [`fetch_add`].
#[inline(always)]
pub unsafe fn fetch_or(p: *mut u64, v: u64) -> u64 {
    let mut old = v;
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("{v} = atomic_fetch_or((u64 *)({p} + 0), {v})", p = in(reg) p, v = inout(reg) old)
    };
    old
}

/// `*p |= v`, unless nothing would change: an atomic operation costs ten times what a look does. Whoever counts on the order of his look and what he did
/// before has passed a [`barrier`].
///
/// # Safety
/// As [`fetch_add`].
#[inline(always)]
pub unsafe fn set(p: *mut u64, v: u64) {
    // SAFETY: as above.
    unsafe {
        if core::ptr::read_volatile(p) & v != v {
            fetch_or(p, v);
        }
    }
}

/// A full barrier: BPF has no instruction for one, but every fetching atomic is one, whatever it is about.
#[inline(always)]
pub fn barrier() {
    let mut local = 0;
    // SAFETY: a word of this stack frame.
    unsafe { fetch_add(&raw mut local, 0) };
}

/// The same number, of which the compiler knows nothing: what is checked afterwards is checked on the very register
/// that is used, as the verifier wants it.
#[inline(always)]
pub fn opaque(v: u64) -> u64 {
    let mut v = v;
    // SAFETY: no instruction at all. No text either, not even a comment: LLVM would give the instruction behind it two lines of source, which the
    // kernel refuses.
    unsafe { core::arch::asm!("", inout("r1") v) };
    v
}
