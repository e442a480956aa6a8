//! Memory that start-up took for a moment: given back to the system once, so that an idle agent is as small as it is.
//! Never called on the path of a connection.

// Links the allocator that the program uses, also into what does not (the tests), where the call finds nothing to do.
use mimalloc as _;

unsafe extern "C" {
    /// Source: mimalloc, include/mimalloc.h.
    fn mi_collect(force: bool);
}

/// Gives back what is free. Loading the programs parses the kernel's types, whether or not they are wanted, which takes
/// 25 MiB for some milliseconds; the allocator would keep them.
pub fn give_back() {
    // SAFETY: the function takes a plain value, and may be called at any time from any thread.
    unsafe { mi_collect(true) }
}
