//! Events of file systems that have no tracepoints of their own (btrfs, tmpfs), from the functions of the VFS that every
//! change passes, whoever makes it and through whatever mount: the inodes are the upper's own. Which operation raises which: measured, docs/events.md.
//!
//! Before or after? A counted call of a target may be told of before its change: the engine takes the event, waits until the call has
//! ended (T2), and reads then; in the window no call is under way (G1). A writer outside the container is not waited for. An event that came before
//! his change may be taken, the old state be read, and the change would be lost; an event after it alone would let a window pass between the two. So
//! each change has both. What changes content is also counted from its first event on, so that no window passes in its middle:
//!
//! ```text
//!   write              generic_write_checks (exit: the range is final) ... bytes ... folio_mark_dirty (entry, a folio each)
//!   direct write       the same, and iomap's tracepoints; i_dio_count until the bytes have landed
//!   names, attributes  function entered ... change ... function left
//!   open(O_CREAT)      security_inode_create ... change ... vfs_open with FMODE_CREATED
//!   unlink             vfs_unlink entered (the name still leads to the inode) ... drop_nlink left
//! ```
//!
//! Deduplication changes no byte and no time, and is no event.
//!
//! The engine checks the functions' arguments against the kernel's BTF before it loads these programs (`track/functions.rs`).

use aya_ebpf::macros::{fentry, fexit};
use aya_ebpf::programs::{FEntryContext, FExitContext};
use snapshot_ebpf::{META, NONE, WHOLE};

use crate::any::{PAGE_SHIFT, folio_range, io_range};
use crate::kernel::{Probed, Structure, constant};
use crate::slots::{content, content_begins, mark, meta, whole, whole_begins};

/// ATTR_SIZE (linux/fs.h).
const ATTR_SIZE: u32 = 1 << 3;
/// FMODE_CREATED (linux/fs.h).
const CREATED: u32 = 1 << 20;
/// VM_SHARED (linux/mm.h).
const SHARED: u64 = 1 << 3;
/// FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE (linux/falloc.h): everything behind the range moves.
const MOVES: u32 = 1 << 3 | 1 << 5;
/// The bits of `folio.mapping` that say that it is no address_space (linux/page-flags.h).
const NO_MAPPING: u64 = 3;

/// The inode a directory entry leads to.
#[inline(always)]
fn inode(dentry: *const u8) -> Probed {
    Probed(dentry).follow(constant!(OFFSETS.dentry_inode))
}

/// A program at the entry of a function and one at its exit, which do the same. `$a` names arguments by number.
macro_rules! around {
    ($($function:literal $entry:ident $exit:ident ($($name:ident $n:literal: $t:ty),+) $body:block)*) => {$(
        #[fentry(function = $function)]
        pub fn $entry(ctx: FEntryContext) -> i32 {
            $(let $name: $t = ctx.arg($n);)+
            let () = $body;
            0
        }

        #[fexit(function = $function)]
        pub fn $exit(ctx: FExitContext) -> i32 {
            $(let $name: $t = ctx.arg($n);)+
            let () = $body;
            0
        }
    )*};
}

type Pointer = *const u8;

around! {
    "notify_change" notify_change notify_change_exit (dentry 1: Pointer, attr 2: Pointer) {
        let valid: u32 = Probed(attr).get(constant!(OFFSETS.attr_valid)).unwrap_or(!0);
        mark(inode(dentry), if valid & ATTR_SIZE != 0 { META | WHOLE } else { META });
    }
    "__vfs_setxattr_noperm" setxattr setxattr_exit (dentry 1: Pointer) { meta(inode(dentry)); }
    "__vfs_removexattr" removexattr removexattr_exit (dentry 1: Pointer) { meta(inode(dentry)); }
    "vfs_set_acl" vfs_set_acl vfs_set_acl_exit (dentry 1: Pointer) { meta(inode(dentry)); }
    "vfs_remove_acl" vfs_remove_acl vfs_remove_acl_exit (dentry 1: Pointer) { meta(inode(dentry)); }
    "vfs_fileattr_set" vfs_fileattr_set vfs_fileattr_set_exit (dentry 1: Pointer) { meta(inode(dentry)); }
    "vfs_create" vfs_create vfs_create_exit (directory 1: Pointer) { meta(Probed(directory)); }
    "vfs_mkdir" vfs_mkdir vfs_mkdir_exit (directory 1: Pointer) { meta(Probed(directory)); }
    "vfs_mknod" vfs_mknod vfs_mknod_exit (directory 1: Pointer) { meta(Probed(directory)); }
    "vfs_symlink" vfs_symlink vfs_symlink_exit (directory 1: Pointer) { meta(Probed(directory)); }
    "vfs_link" vfs_link vfs_link_exit (old 0: Pointer, directory 2: Pointer) {
        meta(inode(old));
        meta(Probed(directory));
    }
    // Left, the name may lead to nothing any more; drop_nlink tells of the inode then.
    "vfs_unlink" vfs_unlink vfs_unlink_exit (directory 1: Pointer, dentry 2: Pointer) {
        meta(Probed(directory));
        meta(inode(dentry));
    }
    "vfs_rmdir" vfs_rmdir vfs_rmdir_exit (directory 1: Pointer, dentry 2: Pointer) {
        meta(Probed(directory));
        meta(inode(dentry));
    }
    "vfs_rename" vfs_rename vfs_rename_exit (data 0: Pointer) { renamed(Probed(data)); }
    "vfs_fallocate" vfs_fallocate vfs_fallocate_exit (file 0: Pointer, mode 1: u32, pos 2: u64, len 3: u64) {
        let file = Probed(file).follow(constant!(OFFSETS.file_inode));
        if mode & MOVES != 0 {
            whole_begins(file);
        } else {
            content_begins(file, pos, len);
            meta(file);
        }
    }
    // As a rule it writes, which is an event of its own; within one file system the extents may change hands instead.
    "vfs_copy_file_range" vfs_copy_file_range vfs_copy_file_range_exit (file 2: Pointer, pos 3: u64, len 4: u64) {
        remapped(file, pos, len);
    }
    "vfs_clone_file_range" vfs_clone_file_range vfs_clone_file_range_exit (file 2: Pointer, pos 3: u64, len 4: u64) {
        remapped(file, pos, len);
    }
    "do_clone_file_range" do_clone_file_range do_clone_file_range_exit (file 2: Pointer, pos 3: u64, len 4: u64) {
        remapped(file, pos, len);
    }
}

#[inline(always)]
fn remapped(file: Pointer, pos: u64, len: u64) {
    let file = Probed(file).follow(constant!(OFFSETS.file_inode));
    // A clone of length 0 goes to the end of the source.
    if len == 0 {
        whole_begins(file);
    } else {
        content_begins(file, pos, len);
        meta(file);
    }
}

/// Both directories, the inode that gets another name, and the one that loses it.
#[inline(always)]
fn renamed(data: Probed) {
    let old = constant!(OFFSETS.rename_old_dir);
    let (from, to) = if old != NONE {
        (data.follow(old), data.follow(constant!(OFFSETS.rename_new_dir)))
    } else {
        (
            inode(data.follow(constant!(OFFSETS.rename_old_parent)).0),
            inode(data.follow(constant!(OFFSETS.rename_new_parent)).0),
        )
    };
    meta(from);
    meta(to);
    meta(inode(data.follow(constant!(OFFSETS.rename_old_dentry)).0));
    meta(inode(data.follow(constant!(OFFSETS.rename_new_dentry)).0));
}

/// Before the bytes. Left, because only then position (O_APPEND) and length are final; the inode is locked by its caller from before this
/// until the bytes are there.
#[fexit(function = "generic_write_checks")]
pub fn generic_write_checks(ctx: FExitContext) -> i32 {
    let (file, pos, len) = io_range(Probed(ctx.arg(0)), Probed(ctx.arg(1)));
    if len != 0 {
        content_begins(file, pos, len);
        // Times and perhaps the size.
        meta(file);
    }
    0
}

/// After the bytes: each folio a write has filled is passed here, dirty already or not (btrfs_dirty_folio, shmem_write_end), and so is one that a page
/// table says was stored to when a mapping of it goes.
#[fentry(function = "folio_mark_dirty")]
pub fn folio_mark_dirty(ctx: FEntryContext) -> i32 {
    let folio = Probed(ctx.arg(0));
    let Some(mapping) = folio.get::<u64>(constant!(OFFSETS.folio_mapping)) else { return 0 };
    if mapping & NO_MAPPING != 0 {
        return 0;
    }
    let inode = Probed(mapping as *const u8).follow(constant!(OFFSETS.mapping_host));
    let Some(index) = folio.get::<u64>(constant!(OFFSETS.folio_index)) else { return 0 };
    let (pos, len) = folio_range(folio, index << PAGE_SHIFT);
    content(inode, pos, len);
    0
}

/// open(O_CREAT) calls the file system itself, not vfs_create: before it does.
#[fentry(function = "security_inode_create")]
pub fn security_inode_create(ctx: FEntryContext) -> i32 {
    meta(Probed(ctx.arg(0)));
    0
}

/// And after.
#[fentry(function = "vfs_open")]
pub fn vfs_open(ctx: FEntryContext) -> i32 {
    let (path, file) = (Probed(ctx.arg(0)), Probed(ctx.arg(1)));
    if file.get::<u32>(constant!(OFFSETS.file_mode)).unwrap_or(!0) & CREATED != 0 {
        let dentry = path.follow(constant!(OFFSETS.path_dentry));
        meta(inode(dentry.follow(constant!(OFFSETS.dentry_parent)).0));
    }
    0
}

/// A name of it is gone.
#[fexit(function = "drop_nlink")]
pub fn drop_nlink(ctx: FExitContext) -> i32 {
    meta(Probed(ctx.arg(0)));
    0
}

/// T4: a mapping has come to be (mmap, also by way of the overlay). `i_mmap_writable` was raised just before (`__vma_link_file`), and nobody can store
/// through it yet: the address space is locked. Stores to what was dirty before it are no events, so all of the file is dirty.
#[fentry(function = "vma_interval_tree_insert")]
pub fn vma_interval_tree_insert(ctx: FEntryContext) -> i32 {
    let vma = Probed(ctx.arg(0));
    if vma.get::<u64>(constant!(OFFSETS.vma_flags)).unwrap_or(!0) & SHARED != 0 {
        let file = vma.follow(constant!(OFFSETS.vma_file));
        whole(file.follow(constant!(OFFSETS.file_inode)));
    }
    0
}
