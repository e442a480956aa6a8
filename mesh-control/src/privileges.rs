//! The control daemon needs no right of root's: it reads files of its user and listens on ports above 1024. Whatever it was
//! started with is given up before there is a second thread, because each thread has its own. It also leaves no core: the CA's
//! key is in its memory.

use rustix::{
    io::Errno,
    process::{DumpableBehavior, set_dumpable_behavior},
    thread::{
        CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
        set_capabilities, set_no_new_privs,
    },
};

/// Gives up every capability, for good. The calling thread must be the only one.
///
/// # Errors
/// The kernel refuses; the text says what.
pub fn shed() -> anyhow::Result<()> {
    let refused = |action: &'static str| move |error: Errno| anyhow::anyhow!("{action}: {error}");
    for capability in CapabilitySet::all().iter() {
        match remove_capability_from_bounding_set(capability) {
            // An older kernel knows fewer; without CAP_SETPCAP there is nothing that could be given to a program anyhow.
            Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
            Err(error) => return Err(refused("bound the capabilities of what is executed")(error)),
        }
    }
    clear_ambient_capability_set().map_err(refused("clear the ambient capabilities"))?;
    let nothing = CapabilitySet::empty();
    let sets = CapabilitySets { effective: nothing, permitted: nothing, inheritable: nothing };
    set_capabilities(None, sets).map_err(refused("drop capabilities"))?;
    set_no_new_privs(true).map_err(refused("forbid new privileges"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(refused("forbid core dumps"))
}
