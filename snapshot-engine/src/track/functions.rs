//! The kernel functions that file systems without tracepoints are seen through, and what is read of their arguments.
//!
//! A program that took an argument for another one would see no event at all, and nobody would notice. So a function is used only if
//! the kernel's BTF says that its arguments are the ones the program reads.

use aya::programs::{FEntry, FExit};
use aya::{Btf as AyaBtf, Ebpf};

use super::btf::Btf;
use super::{Error, load_error};

/// A program on the entry or the exit of a kernel function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function {
    /// The program's name in the object.
    pub program: &'static str,
    /// The function it is attached to.
    pub name: &'static str,
    /// Attached to its exit.
    pub exit: bool,
    /// Without it events would be lost.
    pub required: bool,
    /// The structures its first arguments point to; "" is an argument that nobody reads.
    arguments: &'static [&'static str],
}

const fn entry(program: &'static str, name: &'static str, arguments: &'static [&'static str]) -> Function {
    Function { program, name, exit: false, required: true, arguments }
}
const fn exit(program: &'static str, name: &'static str, arguments: &'static [&'static str]) -> Function {
    Function { program, name, exit: true, required: true, arguments }
}
const fn may(function: Function) -> Function {
    Function { required: false, ..function }
}

const NAMED: &[&str] = &["", "dentry"];
const DIRECTORY: &[&str] = &["", "inode"];
const ENTRY: &[&str] = &["", "inode", "dentry"];
const TO_FILE: &[&str] = &["", "", "file"];

/// What every change of a file passes.
const FUNCTIONS: &[Function] = &[
    exit("generic_write_checks", "generic_write_checks", &["kiocb", "iov_iter"]),
    entry("folio_mark_dirty", "folio_mark_dirty", &["folio"]),
    entry("vma_interval_tree_insert", "vma_interval_tree_insert", &["vm_area_struct"]),
    entry("notify_change", "notify_change", &["", "dentry", "iattr"]),
    exit("notify_change_exit", "notify_change", &["", "dentry", "iattr"]),
    entry("security_inode_create", "security_inode_create", &["inode"]),
    entry("vfs_open", "vfs_open", &["path", "file"]),
    entry("vfs_create", "vfs_create", DIRECTORY),
    exit("vfs_create_exit", "vfs_create", DIRECTORY),
    entry("vfs_mkdir", "vfs_mkdir", DIRECTORY),
    exit("vfs_mkdir_exit", "vfs_mkdir", DIRECTORY),
    entry("vfs_mknod", "vfs_mknod", DIRECTORY),
    exit("vfs_mknod_exit", "vfs_mknod", DIRECTORY),
    entry("vfs_symlink", "vfs_symlink", DIRECTORY),
    exit("vfs_symlink_exit", "vfs_symlink", DIRECTORY),
    entry("vfs_link", "vfs_link", &["dentry", "", "inode"]),
    exit("vfs_link_exit", "vfs_link", &["dentry", "", "inode"]),
    entry("vfs_unlink", "vfs_unlink", ENTRY),
    exit("vfs_unlink_exit", "vfs_unlink", ENTRY),
    entry("vfs_rmdir", "vfs_rmdir", ENTRY),
    exit("vfs_rmdir_exit", "vfs_rmdir", ENTRY),
    entry("vfs_rename", "vfs_rename", &["renamedata"]),
    exit("vfs_rename_exit", "vfs_rename", &["renamedata"]),
    exit("drop_nlink", "drop_nlink", &["inode"]),
    entry("vfs_fallocate", "vfs_fallocate", &["file"]),
    exit("vfs_fallocate_exit", "vfs_fallocate", &["file"]),
    entry("vfs_copy_file_range", "vfs_copy_file_range", TO_FILE),
    exit("vfs_copy_file_range_exit", "vfs_copy_file_range", TO_FILE),
    entry("vfs_clone_file_range", "vfs_clone_file_range", TO_FILE),
    exit("vfs_clone_file_range_exit", "vfs_clone_file_range", TO_FILE),
    // Before 6.9 others called it beside vfs_clone_file_range.
    may(entry("do_clone_file_range", "do_clone_file_range", TO_FILE)),
    may(exit("do_clone_file_range_exit", "do_clone_file_range", TO_FILE)),
    entry("setxattr", "__vfs_setxattr_noperm", NAMED),
    exit("setxattr_exit", "__vfs_setxattr_noperm", NAMED),
    entry("removexattr", "__vfs_removexattr", NAMED),
    exit("removexattr_exit", "__vfs_removexattr", NAMED),
    // Since 6.2; before it ACLs were attributes like the others.
    may(entry("vfs_set_acl", "vfs_set_acl", NAMED)),
    may(exit("vfs_set_acl_exit", "vfs_set_acl", NAMED)),
    may(entry("vfs_remove_acl", "vfs_remove_acl", NAMED)),
    may(exit("vfs_remove_acl_exit", "vfs_remove_acl", NAMED)),
    entry("vfs_fileattr_set", "vfs_fileattr_set", NAMED),
    exit("vfs_fileattr_set_exit", "vfs_fileattr_set", NAMED),
];

/// The functions that this kernel has.
///
/// # Errors
/// [`Error::NoFunction`] names one that is needed and not there, or has other arguments.
pub fn present(btf: &Btf, fs: &str) -> Result<Vec<Function>, Error> {
    chosen(btf, fs, FUNCTIONS)
}

fn chosen(btf: &Btf, fs: &str, wanted: &[Function]) -> Result<Vec<Function>, Error> {
    let names: Vec<&str> = wanted.iter().map(|function| function.name).collect();
    let known = btf.functions(&names);
    let mut found = Vec::new();
    for function in wanted {
        let missing = |why| Error::NoFunction { name: function.name, why, fs: fs.to_owned() };
        match known.get(function.name) {
            Some(has) if fits(function.arguments, has) => found.push(*function),
            // Not even an optional one may be left out for this: it is there, and would go unseen.
            Some(_) => return Err(missing("with the arguments the tracker knows")),
            None if function.required => return Err(missing("that can be traced")),
            None => tracing::info!(function = function.name, "this kernel does not have it"),
        }
    }
    Ok(found)
}

fn fits(wanted: &[&str], has: &str) -> bool {
    let mut has = has.split(", ");
    wanted.iter().all(|w| has.next().is_some_and(|h| w.is_empty() || h.strip_suffix('*') == Some(*w)))
}

/// Loads the programs; none is attached.
///
/// # Errors
/// [`Error::FentryRefused`] when the kernel allows no such programs.
pub fn load(ebpf: &mut Ebpf, btf: &AyaBtf, functions: &[Function], fs: &str) -> Result<(), Error> {
    for function in functions {
        let failed = |e| refused(load_error(function.program, e), fs);
        if function.exit {
            exit_of(ebpf, function)?.load(function.name, btf).map_err(failed)?;
        } else {
            entry_of(ebpf, function)?.load(function.name, btf).map_err(failed)?;
        }
    }
    Ok(())
}

/// Attaches them. They are detached when `ebpf` is dropped.
///
/// # Errors
/// As [`load`].
pub fn attach(ebpf: &mut Ebpf, functions: &[Function], fs: &str) -> Result<(), Error> {
    for function in functions {
        let failed = |e| refused(load_error(function.program, e), fs);
        if function.exit {
            exit_of(ebpf, function)?.attach().map(drop).map_err(failed)?;
        } else {
            entry_of(ebpf, function)?.attach().map(drop).map_err(failed)?;
        }
    }
    Ok(())
}

/// The tracepoints' programs were loaded before: what is refused now is this kind of program, not us.
fn refused(error: Error, fs: &str) -> Error {
    match error {
        Error::Permission(source) => Error::FentryRefused { fs: fs.to_owned(), source },
        other => other,
    }
}

fn entry_of<'a>(ebpf: &'a mut Ebpf, function: &Function) -> Result<&'a mut FEntry, Error> {
    let program = ebpf.program_mut(function.program);
    let program = program.ok_or_else(|| load_error(function.program, "not in the object"))?;
    program.try_into().map_err(|e: aya::programs::ProgramError| load_error(function.program, e))
}

fn exit_of<'a>(ebpf: &'a mut Ebpf, function: &Function) -> Result<&'a mut FExit, Error> {
    let program = ebpf.program_mut(function.program);
    let program = program.ok_or_else(|| load_error(function.program, "not in the object"))?;
    program.try_into().map_err(|e: aya::programs::ProgramError| load_error(function.program, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_compared_as_far_as_they_are_read() {
        let mkdir = "mnt_idmap*, inode*, dentry*, short unsigned int";
        assert!(fits(DIRECTORY, mkdir) && fits(ENTRY, mkdir) && fits(&["renamedata"], "renamedata*"));
        // What a later kernel might make of it: the directory is gone, or an argument.
        assert!(!fits(DIRECTORY, "mnt_idmap*, dentry*, short unsigned int"));
        assert!(!fits(ENTRY, "mnt_idmap*, inode*") && !fits(&["inode"], "inode"));
    }

    #[test]
    fn this_kernels_functions_are_told_by_their_arguments() {
        let Ok(btf) = Btf::of_kernel() else { return eprintln!("this kernel has no BTF: not tested") };
        let right = entry("x", "vfs_fallocate", &["file"]);
        let gone = may(entry("x", "no_such_function", &[]));
        assert_eq!(chosen(&btf, "btrfs", &[right, gone]).unwrap(), [right]);
        for wrong in [Function { arguments: &["dentry"], ..right }, Function { required: true, ..gone }] {
            let text = chosen(&btf, "btrfs", &[wrong]).unwrap_err().to_string();
            assert!(text.contains(wrong.name) && text.contains("--tracker none"), "{text}");
        }
    }
}
