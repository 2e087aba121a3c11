//! The tracker's programs: which inodes of the upper's file system change, and who is about to change one.
//!
//! * `calls`: the targets' system calls, told from all others
//! * `count`: calls counted in and out, and held at the fence; `target`: who belongs to a target, and which inodes
//! * `ext4`, `xfs`, `any`: the file systems' events, from tracepoints
//! * `vfs`: the same for file systems without tracepoints, from the kernel's functions (fentry, fexit)
//! * `slots`: marking a watched inode
//! * `kernel`, `atomics`: reading the kernel's structures; the atomics `core` lacks here
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod any;
mod atomics;
mod calls;
mod count;
mod ext4;
mod kernel;
mod slots;
mod target;
mod vfs;
mod xfs;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
