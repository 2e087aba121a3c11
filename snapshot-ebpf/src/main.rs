//! The tracker's eBPF programs.
#![no_std]
#![no_main]

use aya_ebpf::{macros::map, macros::raw_tracepoint, maps::Array, programs::RawTracePointContext};

#[map]
static CALLS: Array<u64> = Array::with_max_entries(1, 0);

/// Counts system calls: the smallest program with a map, so that the build has something real to link.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn sys_enter(_ctx: RawTracePointContext) -> i32 {
    if let Some(calls) = CALLS.get_ptr_mut(0) {
        // SAFETY: the verifier has checked the pointer; a lost increment between CPUs is harmless.
        unsafe { *calls += 1 };
    }
    0
}

// SAFETY: the kernel reads this section by name; nothing in the object refers to it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
