//! Loading the programs into the kernel (`load.rs`) and attaching them.

use aya::Ebpf;
use aya::programs::{Program, RawTracePoint};

use super::btf::Btf;
use super::functions::{self, Function};
use super::programs::Place;
use super::{Error, load, load_error};

/// The programs of one tracker.
#[derive(Debug)]
pub(super) struct Programs {
    /// Name in the object, and where it goes; in the order they are attached.
    places: Vec<(String, Place)>,
    functions: Vec<Function>,
    file_system: String,
}

impl Programs {
    /// Loads them; none is attached.
    ///
    /// # Errors
    /// See [`Error`].
    pub(super) fn load(
        ebpf: &mut Ebpf,
        types: &aya::Btf,
        wanted: &[(&'static str, Place)],
        functions: Vec<Function>,
        file_system: &str,
    ) -> Result<Programs, Error> {
        let places = load::load(ebpf, types, wanted)?;
        functions::load(ebpf, types, &functions, file_system)?;
        Ok(Programs { places, functions, file_system: file_system.to_owned() })
    }

    /// Attaches them: what sees changes before what counts calls. They are detached when `ebpf` is dropped.
    ///
    /// # Errors
    /// See [`Error`].
    pub(super) fn attach(&self, ebpf: &mut Ebpf) -> Result<(), Error> {
        functions::attach(ebpf, &self.functions, &self.file_system)?;
        for (name, place) in &self.places {
            let attached = match (place, program_of(ebpf, name)?) {
                (Place::Function(function), Program::KProbe(program)) => {
                    program.attach(function, 0).map(drop)
                }
                (Place::Function(_), _) => return Err(load_error(name, "not a kprobe")),
                (Place::Tracepoint(_), Program::BtfTracePoint(program)) => program.attach().map(drop),
                (Place::Tracepoint(tracepoint), program) => raw(name, program)?.attach(tracepoint).map(drop),
            };
            attached.map_err(|e| load_error(name, e))?;
        }
        Ok(())
    }
}

/// The types that the programs are bound to.
///
/// # Errors
/// [`Error::Load`]; it would be a fault of ours.
pub(super) fn types(
    btf: &Btf,
    wanted: &[(&'static str, Place)],
    functions: &[Function],
) -> Result<aya::Btf, Error> {
    let places = wanted.iter().filter_map(|(_, place)| match place {
        Place::Tracepoint(name) => Some(*name),
        Place::Function(_) => None,
    });
    let functions: Vec<&str> = functions.iter().map(|function| function.name).collect();
    let excerpt = btf.excerpt(&places.collect::<Vec<_>>(), &functions);
    aya::Btf::parse(&excerpt, aya::Endianness::default()).map_err(|e| load_error("types", e))
}

fn program_of<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, Error> {
    ebpf.program_mut(name).ok_or_else(|| load_error(name, "not in the object"))
}

pub(super) fn raw<'a>(name: &str, program: &'a mut Program) -> Result<&'a mut RawTracePoint, Error> {
    program.try_into().map_err(|e: aya::programs::ProgramError| load_error(name, e))
}
