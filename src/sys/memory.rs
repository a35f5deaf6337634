//! Memory that the allocator keeps.
#![allow(unsafe_code)]

/// Gives memory that the allocator holds and is not in use back to the system, where the C library is able to. This takes some
/// milliseconds and locks the allocator: not for a worker.
pub fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` has no preconditions and may be called from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
